"""Compiled code of a program for the devices of a mesh: what each of them runs on its part, and how the parts make the
arguments and results of the whole."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from intarsia.collectives import Memory, Transfer, Wait
from intarsia.executable import Executable, TensorLayout
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region
from intarsia.ir.ops.collective import AllSlice, Collective, Done
from intarsia.ir.plan import Plan
from intarsia.ir.sharding import Axes
from intarsia.ir.spmd import Devices, Here, Placement, part, whole
from intarsia.ir.text import print_module, read_module
from intarsia.ir.types import TensorType
from intarsia.parts import Unmade
from intarsia.runtime import buffers
from intarsia.runtime.native import ErrorRecord, address_of, pointer_table

Bind: TypeAlias = Callable[[Node, Memory, Memory], Transfer]
"""What does a collective: for the node, what this device has (an empty array for a `DeviceIndex`), and where the result
goes."""

Argument: TypeAlias = "Array | tuple[Array, ...]"

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
_KNOWN_EXCHANGES = 1024
_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 7)  # releases the GIL around the call


def outline(module: Module, plan: Plan) -> Module:
    """Of a partitioned program what is left when it runs: the header, and the collectives of its plan in order."""
    nodes = tuple(exchange.node for exchange in plan.exchanges)
    given = tuple(p for n in nodes for v in n.operands if isinstance(p := v.node, Parameter))
    made = tuple(n.value for n in nodes if not (isinstance(n, Collective) and n.started))
    return Module(Graph("exchanges", Region(given, nodes, made)), header=module.header)


@dataclass(frozen=True, eq=False)
class MeshProgram:
    """The code of one device, and the text of the `outline`."""

    local: Executable
    text: str

    @staticmethod
    def of(local: Executable, module: Module, plan: Plan) -> MeshProgram:
        return MeshProgram(local, print_module(outline(module, plan)))

    def to_bytes(self) -> bytes:
        """The form in the cache: the length of the text, the text, the code."""
        text = self.text.encode()
        return struct.pack("<I", len(text)) + text + self.local.to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> MeshProgram:
        (length,) = struct.unpack_from("<I", data)
        return MeshProgram(Executable.from_bytes(data[4 + length :]), data[4 : 4 + length].decode())

    @property
    def agreed(self) -> str:
        """What all processes have to have alike."""
        return self.text

    @cached_property
    def _outline(self) -> Module:
        return read_module(Source("exchanges", self.text))

    @cached_property
    def exchanges(self) -> tuple[Node, ...]:
        """What the plan's exchanges do, by their numbers."""
        return self._outline.graph.body.nodes

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """What the devices do together, in the order of the plan."""
        return tuple(n for n in self.exchanges if isinstance(n, Collective))

    @cached_property
    def placement(self) -> Placement:
        """How parameters and results lie on the mesh."""
        return Placement.of(self._outline)

    @cached_property
    def inputs(self) -> tuple[TensorLayout, ...]:
        """The arguments of the whole program."""
        types = [t.tensor for t in self.placement.parameters]
        return tuple(replace(layout, shape=t.shape) for layout, t in zip(self.local.inputs, types))

    def part(self, number: int, value: Argument | Unmade, device: int) -> Argument:
        """What a device has of argument `number`, or of each of a list."""
        mesh, type_ = self.placement.mesh, self.placement.parameters[number]
        if isinstance(value, tuple):
            return tuple(part(mesh, a, type_.sharding, device) for a in value)
        return part(mesh, value, type_.sharding, device)

    def parts(self, arguments: Sequence[Argument], device: int) -> list[Argument]:
        """What a device has of the arguments."""
        return [self.part(n, value, device) for n, value in enumerate(arguments)]

    @property
    def results(self) -> tuple[TensorType, ...]:
        """The types of the results of the whole program, and how these lie."""
        return tuple(t for t in self.placement.results if isinstance(t, TensorType))

    @cached_property
    def groups(self) -> tuple[Axes, ...]:
        """The axes along which devices meet: in collectives, and to make whole results."""
        met = [n.mesh_axes for n in self.collectives if not isinstance(n, AllSlice)]
        said = [t.sharding for t in self.results if t.sharding is not None]
        made = [axes for s in said for axes in (s.partial, *s.axes) if axes]
        return tuple(dict.fromkeys((*met, *made)))

    def whole(self, results: Sequence[Sequence[Array]]) -> list[Array]:
        """The results of the program for those of each device."""
        return [whole(self.placement.mesh, list(parts), t) for parts, t in zip(zip(*results), self.results)]

    def simulate(self, arguments: Sequence[Argument]) -> list[Array]:
        """What the program gives for whole arguments that match `inputs`, with all devices in this process."""
        devices = range(self.placement.mesh.devices)
        return self.whole(self.run_all([self.laid(arguments, n) for n in devices]))

    def run_all(self, laid: Sequence[Sequence[Argument]], devices: Devices | None = None) -> list[list[Array]]:
        """Run all devices in threads of this process, on what the code of each of them takes; gives what each has of
        the results. `devices` log what they do.

        Raises CompileError where a run-time check fails on a device, which ends all of them.
        """

        def run(device: int, here: Here) -> list[Array]:
            return DeviceProgram(self, bind_by(here))(laid[device])

        _ = self.local.native
        return (devices or Devices(self.placement.mesh)).run(run)

    def laid(self, arguments: Sequence[Argument], device: int) -> list[Argument]:
        """What the code of a device takes for whole arguments: its parts, and what is computed from constants."""
        parts = self.parts(arguments, device)
        return [*parts, *self.local.prepared(parts, {})]


def bind_by(here: Here) -> Bind:
    """What does collectives on a simulated device."""

    def bind(node: Node, given: Array, taken: Array) -> Transfer:
        def begin() -> Wait:
            found = here(node, given)
            return lambda: np.copyto(taken, found)

        return Transfer(lambda: begin()(), begin)

    return bind


class Exchanges:
    """What the code of one device does with the others, by the numbers of a plan's exchanges. What does a collective
    between two places in memory is kept, for they are often the same in the next run. One run at a time.

    at: the memory at an address.
    """

    def __init__(self, nodes: Sequence[Node], bind: Bind, at: Callable[[int, TensorType], Memory]) -> None:
        self._nodes = nodes
        self._bind = bind
        self._at = at
        self._known: dict[tuple[int, int, int], Callable[[], object]] = {}
        self._begun: dict[Node, Wait] = {}

    def begin(self) -> None:
        """Another run: forget what one that failed has begun."""
        self._begun.clear()

    def __call__(self, number: int, source: int, target: int) -> None:
        """Do the exchange of a number between two addresses; of a `DeviceIndex`, which has none, `source` is 0."""
        key = number, source, target
        if (do := self._known.get(key)) is None:
            do = self._bound(number, source, target)
            if len(self._known) >= _KNOWN_EXCHANGES:  # results that lie elsewhere each time
                self._known.clear()
            self._known[key] = do
        do()

    def _bound(self, number: int, source: int, target: int) -> Callable[[], object]:
        """What does an exchange between two addresses."""
        node, begun = self._nodes[number], self._begun
        if isinstance(node, Done):
            started = node.x.node
            return lambda: begun.pop(started)()
        taken = self._at(target, node.values[0].tensor)
        if not isinstance(node, Collective):
            return self._bind(node, np.empty(0), taken).now
        transfer = self._bind(node, self._at(source, node.x.tensor), taken)
        return (lambda: begun.__setitem__(node, transfer.begin())) if node.started else transfer.now


class DeviceProgram:
    """The code of a program on one device of CPUs. One run at a time."""

    def __init__(self, program: MeshProgram, bind: Bind) -> None:
        self.program = program
        self._exchanges = Exchanges(program.exchanges, bind, array_at)
        self._failures: list[BaseException] = []
        self._callback = _CALLBACK(self._exchange)  # alive as long as the code may call it
        self._entry = _ENTRY(program.local.native.address)

    def _exchange(self, number: int, source: int, target: int) -> int:
        try:
            self._exchanges(number, source, target)
        except BaseException as error:  # which must not unwind through compiled code
            self._failures.append(error)
            return 1
        return 0

    def __call__(self, laid: Sequence[Argument], places: Mapping[int, Array] = {}) -> list[Array]:
        """Run on what `MeshProgram.laid` gives; gives this device's parts of the results, in memory of their own or in
        `places`. What a collective raises comes through, CompileError where a run-time check fails."""
        local = self.program.local
        tables = [a if isinstance(a, np.ndarray) else pointer_table(a) for a in laid]
        results = [
            places[n] if n in places else buffers.empty(t.concrete_shape({}), t.dtype.numpy)
            for n, t in enumerate(local.outputs)
        ]
        workspace = buffers.lease(size) if (size := int(local.workspace)) else None
        record = ErrorRecord()
        self._failures.clear()
        self._exchanges.begin()
        status = self._entry(
            _pointers(tables),
            _pointers(results),
            None,
            address_of(workspace) if workspace is not None else None,
            record.address,
            None,
            ctypes.cast(self._callback, ctypes.c_void_p),
        )
        if self._failures:
            raise self._failures[0]
        if status:
            raise local.checks[status].error(record.values[: record.count])
        return results


def _pointers(arrays: Sequence[Array]) -> bytes:
    return struct.pack(f"{len(arrays)}P", *map(address_of, arrays))


def array_at(address: int, type_: TensorType) -> Array:
    """The memory at an address of the host as an array."""
    shape, dtype = type_.static_shape, type_.dtype.numpy
    count = math.prod(shape) * dtype.itemsize
    if not count:
        return np.empty(shape, dtype)
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)).view(dtype).reshape(shape)

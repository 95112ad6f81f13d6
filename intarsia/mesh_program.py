"""Compiled code of a program for the devices of a mesh: what each of them runs on its part, and how the parts make the
arguments and results of the whole."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from intarsia.executable import Executable, TensorLayout
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region
from intarsia.ir.ops.collective import Collective, DeviceIndex, Done
from intarsia.ir.plan import Plan
from intarsia.ir.spmd import Devices, Placement, part, whole
from intarsia.ir.text import print_module, read_module
from intarsia.ir.types import ListType, TensorType
from intarsia.runtime import buffers
from intarsia.runtime.native import ErrorRecord, address_of, pointer_table

RunExchange: TypeAlias = Callable[[Node, Array, Array], None]
"""Does a collective: the node, what this device has (an empty array for a `DeviceIndex`), and where the result goes.
One that is started may put it there until its `Done`, which gets the same arrays."""

Argument: TypeAlias = "Array | tuple[Array, ...]"

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
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

    @cached_property
    def _outline(self) -> Module:
        return read_module(Source("exchanges", self.text))

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """What the devices do together, in the order of the plan."""
        return tuple(n for n in self._outline.graph.body.nodes if isinstance(n, Collective))

    @cached_property
    def placement(self) -> Placement:
        """How parameters and results lie on the mesh."""
        return Placement.of(self._outline)

    @cached_property
    def inputs(self) -> tuple[TensorLayout, ...]:
        """The arguments of the whole program."""
        types = [t.element if isinstance(t, ListType) else t for t in self.placement.parameters]
        return tuple(replace(layout, shape=t.shape) for layout, t in zip(self.local.inputs, types))

    def parts(self, arguments: Sequence[Argument], device: int) -> list[Argument]:
        """What a device has of the arguments."""
        mesh, found = self.placement.mesh, list[Argument]()
        for value, type_ in zip(arguments, self.placement.parameters):
            if isinstance(value, tuple):
                found.append(tuple(part(mesh, a, type_.sharding, device) for a in value))
            else:
                found.append(part(mesh, value, type_.sharding, device))
        return found

    def whole(self, results: Sequence[Sequence[Array]]) -> list[Array]:
        """The results of the program for those of each device."""
        types = [t for t in self.placement.results if isinstance(t, TensorType)]
        return [whole(self.placement.mesh, list(parts), t) for parts, t in zip(zip(*results), types)]

    def simulate(self, arguments: Sequence[Argument]) -> list[Array]:
        """Run all devices in threads of this process, for whole arguments that match `inputs`.

        Raises CompileError where a run-time check fails on a device, which ends all of them.
        """

        def run(device: int, meet: Callable[[Node, Array], Array]) -> list[Array]:
            coming: dict[Node, Array] = {}

            def exchange(node: Node, given: Array, taken: Array) -> None:
                if isinstance(node, Done):
                    taken[...] = coming.pop(node.x.node)
                elif isinstance(node, Collective) and node.started:
                    coming[node] = meet(node, given)
                else:
                    taken[...] = meet(node, given)

            return self.run(self.parts(arguments, device), exchange)

        _ = self.local.native
        return self.whole(Devices(self.placement.mesh).run(run))

    def run(self, arguments: Sequence[Argument], exchange: RunExchange) -> list[Array]:
        """Run one device on its parts; gives its parts of the results. What `exchange` raises comes through."""
        local, failures = self.local, list[BaseException]()
        nodes = self._outline.graph.body.nodes

        def callback(number: int, source: int, target: int) -> int:
            try:
                node = nodes[number]
                made = node.x.node if isinstance(node, Done) else node
                assert isinstance(made, Collective | DeviceIndex)
                taken = _view(target, made.value.tensor)
                given = _view(source, made.x.tensor) if isinstance(made, Collective) else np.empty(0, taken.dtype)
                exchange(node, given, taken)
            except BaseException as error:  # which must not unwind through compiled code
                failures.append(error)
                return 1
            return 0

        back = _CALLBACK(callback)
        given = (*arguments, *local.prepared(arguments, {}))
        tables = [a if isinstance(a, np.ndarray) else pointer_table(a) for a in given]
        results = [buffers.empty(t.concrete_shape({}), t.dtype.numpy) for t in local.outputs]
        workspace = buffers.lease(size) if (size := int(local.workspace)) else None
        record = ErrorRecord()
        status = _ENTRY(local.native.address)(
            _pointers(tables),
            _pointers(results),
            None,
            address_of(workspace) if workspace is not None else None,
            record.address,
            None,
            ctypes.cast(back, ctypes.c_void_p),
        )
        if failures:
            raise failures[0]
        if status:
            raise local.checks[status].error(record.values[: record.count])
        return results


def _pointers(arrays: Sequence[Array]) -> bytes:
    return struct.pack(f"{len(arrays)}P", *map(address_of, arrays))


def _view(address: int, type_: TensorType) -> Array:
    """The memory at an address as an array."""
    shape, dtype = type_.static_shape, type_.dtype.numpy
    count = math.prod(shape) * dtype.itemsize
    if not count:
        return np.empty(shape, dtype)
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)).view(dtype).reshape(shape)

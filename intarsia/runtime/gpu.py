"""Plans on a GPU: launches in order on the caller's stream, without waiting for them.

A plan is walked with addresses. What a chip has to do is asked of a `Device`: `CudaDevice` speaks with the driver of
NVIDIA; tests have one that runs kernels in Triton's interpreter. The host waits only where a plan reads a number that
it branches on (the bounds and conditions of loops that depend on data).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from intarsia.backends.gpu.triton_kernel import Pointer, Scalar, TritonKernel
from intarsia.ir.dtypes import DType
from intarsia.ir.plan import Copy, Invoke, Plan, PlanStatement, Reference, Repeat, Slot
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.sizes import ZERO, Size

Addresses: TypeAlias = "int | list[int]"
"""Where a tensor lies, or each of a list."""

Launch: TypeAlias = Callable[[tuple[int, int, int], Sequence[int], int], None]
"""Start a kernel: the programs along each axis, the parameters in order, the stream."""

Parameter: TypeAlias = "int | tuple[int, int | None]"
"""A number, or the address of an argument by its position, or of an element of that."""

Resolved: TypeAlias = "tuple[Launch, tuple[int, int, int], list[Parameter]]"
"""A launch of which only addresses are not known."""

_FORMATS = {"i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I", "i64": "q", "u64": "Q", "bool": "?"}


class Device(Protocol):
    """What a plan needs of a chip. Memory is a number: an address."""

    def load(self, kernel: TritonKernel) -> Launch:
        """A kernel, compiled and ready to be launched."""

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy bytes from one place of the chip's memory to another."""

    def read(self, address: int, size: int, stream: int) -> bytes:
        """Bytes of the chip's memory, once all that was launched before is done."""


class DevicePlan:
    """A plan for one device with its kernels loaded."""

    def __init__(self, plan: Plan, launches: Mapping[str, Sequence[TritonKernel]], device: Device) -> None:
        self.plan = plan
        self.device = device
        self.kernels = {k.name: k for k in plan.kernels}
        self.launches = {k.name: [(launch, device.load(launch)) for launch in launches[k.name]] for k in plan.kernels}
        self._offsets: dict[tuple[tuple[str, int], ...], list[tuple[str, int]]] = {}
        self._resolved: dict[tuple[int, tuple[int, ...]], list[Resolved]] = {}
        self._dtypes = {k.name: [b.dtype for b in k.parameters] for k in plan.kernels}
        slots = plan.slots
        self.inputs = sorted((s for s in slots if s.place == "input"), key=lambda s: s.index)
        self.outputs = sorted((s for s in slots if s.place == "output"), key=lambda s: s.index)

    def shape(self, slot: Slot, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a tensor for some sizes."""
        return tuple(s.evaluate(sizes) for s in slot.shape)

    def workspace(self, sizes: Mapping[str, int]) -> int:
        """The bytes of scratch memory."""
        return self.plan.workspace_bytes.evaluate(sizes)

    def offsets(self, sizes: tuple[tuple[str, int], ...]) -> list[tuple[str, int]]:
        """Where the parts of the workspace begin."""
        found = self._offsets.get(sizes)
        if found is None:
            known = dict(sizes)
            own = [s for s in self.plan.slots if s.place == "workspace"]
            found = self._offsets[sizes] = [(s.name, s.offset.evaluate(known)) for s in own]
        return found

    def dtypes(self, statement: Invoke) -> list[DType]:
        """The element types of a statement's arguments."""
        return self._dtypes[statement.kernel]

    def resolved(self, statement: Invoke, values: tuple[int, ...]) -> list[Resolved]:
        """The launches of a statement for the values of its kernel's sizes."""
        key = (id(statement), values)
        found = self._resolved.get(key)
        if found is None:
            kernel = self.kernels[statement.kernel]
            sizes = dict(zip(kernel.sizes, values, strict=True))
            places = {b.name: n for n, b in enumerate(kernel.parameters)}
            found = self._resolved[key] = []
            for launch, start in self.launches[kernel.name]:
                x, y, z = (*(g.evaluate(sizes) for g in launch.grid), 1, 1, 1)[:3]
                if x * y * z:
                    parameters = [_resolved_parameter(p, places, sizes) for p in launch.parameters]
                    found.append((start, (x, y, z), parameters))
        return found

    def run(
        self,
        inputs: Sequence[Addresses],
        outputs: Sequence[int],
        workspace: int,
        sizes: Mapping[str, int],
        stream: int,
    ) -> None:
        """Launch everything. The addresses of inputs and results are in the order of their slots."""
        memory: dict[str, Addresses] = {s.name: a for s, a in zip(self.inputs, inputs, strict=True)}
        memory.update({s.name: a for s, a in zip(self.outputs, outputs, strict=True)})
        memory.update({name: workspace + offset for name, offset in self.offsets(tuple(sizes.items()))})
        _Walk(self, memory, dict(sizes), stream).block(self.plan.body)


class _Walk:
    """One run: addresses by the names of slots and states, values of sizes and counters."""

    def __init__(self, owner: DevicePlan, memory: dict[str, Addresses], names: dict[str, int], stream: int) -> None:
        self.owner = owner
        self.device = owner.device
        self.memory = memory
        self.names = names
        self.stream = stream
        self.dtypes: dict[str, DType] = {s.name: s.dtype for s in owner.plan.slots}

    def block(self, body: Sequence[PlanStatement]) -> None:
        for statement in body:
            match statement:
                case Invoke():
                    self.invoke(statement)
                case Copy(source, target, dtype, elements):
                    count = self.size(elements) * dtype.bytes
                    if count:
                        self.device.copy(self.address(target, dtype), self.address(source, dtype), count, self.stream)
                case Repeat():
                    self.repeat(statement)

    def invoke(self, statement: Invoke) -> None:
        launches = self.owner.resolved(statement, tuple([self.size(s) for s in statement.sizes]))
        given = [self.argument(reference) for reference in zip(statement.arguments, self.owner.dtypes(statement))]
        for start, grid, parameters in launches:
            start(grid, [_value(p, given) for p in parameters], self.stream)

    def argument(self, argument: tuple[Reference, DType]) -> Addresses:
        """What a kernel gets for a parameter: an address, or those of a list."""
        reference, dtype = argument
        whole = self.memory[reference.name]
        listed = isinstance(whole, list) and reference.element is None
        return whole if listed else self.address(reference, dtype)

    def repeat(self, loop: Repeat) -> None:
        dtypes = {s.name: self.dtypes[s.initial.name] for s in loop.states}
        buffers = {s.name: [self.address(b, dtypes[s.name]) for b in s.buffers] for s in loop.states}
        initial = {s.name: self.address(s.initial, dtypes[s.name]) for s in loop.states}
        self.memory.update(initial)
        self.dtypes.update({n: d for name, d in dtypes.items() for n in (name, f"{name}.next")})
        for step, value in enumerate(range(self.size(loop.lower), self.size(loop.upper))):
            self.names[loop.counter] = value
            self.block(loop.test)
            if loop.condition is not None and not self.number(loop.condition):
                break
            self.memory.update({f"{name}.next": found[step % len(found)] for name, found in buffers.items()})
            self.block(loop.body)
            self.memory.update({name: self.memory[f"{name}.next"] for name in buffers})

    # ------------------------------------------------------------------ values

    def address(self, reference: Reference, dtype: DType) -> int:
        """Where a reference begins."""
        found = self.memory[reference.name]
        if reference.element is not None:
            assert isinstance(found, list), f"{reference.name} is no list"
            found = found[self.size(reference.element)]
        assert isinstance(found, int), f"{reference.name} is a list"
        return found if reference.start == ZERO else found + self.size(reference.start) * dtype.bytes

    def number(self, reference: Reference) -> int:
        """A scalar of the chip's memory, for which the host waits."""
        dtype = self.dtypes[reference.name]
        data = self.device.read(self.address(reference, dtype), dtype.bytes, self.stream)
        return int(struct.unpack(f"<{_FORMATS[dtype.name]}", data)[0])

    def size(self, size: Size) -> int:
        """The value of an integer expression; it may read scalars."""

        def scalar(value: Expr) -> int:
            assert isinstance(value, Load), f"{value} is no scalar"
            return self.number(Reference(value.buffer))

        return size.evaluate(self.names, scalar) if size.opaques else size.evaluate(self.names)


def _resolved_parameter(parameter: Pointer | Scalar, places: Mapping[str, int], sizes: Mapping[str, int]) -> Parameter:
    if isinstance(parameter, Scalar):
        return parameter.value.evaluate(sizes)
    element = None if parameter.element is None else parameter.element.evaluate(sizes)
    return places[parameter.buffer], element


def _value(parameter: Parameter, given: Sequence[Addresses]) -> int:
    if isinstance(parameter, int):
        return parameter
    position, element = parameter
    found = given[position]
    if isinstance(found, list):
        assert element is not None, "a parameter points to a list"
        return found[element]
    return found


def addresses(value: Any) -> Addresses:
    """Where a tensor of PyTorch lies, or each of a list."""
    return [t.data_ptr() for t in value] if isinstance(value, list | tuple) else int(value.data_ptr())

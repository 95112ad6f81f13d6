"""Plans on a GPU: launches, and exchanges with others, in order on the caller's stream, without waiting for them.

A plan is walked once for the sizes at hand. What it tells the chip to do is kept as a list of steps, of which only the
addresses of tensors are open, and which later calls repeat. What a chip has to do is asked of a `Device`: `CudaDevice`
speaks with the driver of NVIDIA; tests have one that runs kernels in Triton's interpreter. The host waits only where a
plan reads a number that it branches on (the bounds and conditions of loops that depend on data); such a plan is walked
in every call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

from intarsia.backends.gpu.traffic import bytes_moved, bytes_touched
from intarsia.backends.gpu.triton_kernel import RECORD, Pointer, Scalar, TritonKernel
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import Span
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops.collective import DeviceIndex
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Reference, Repeat, Slot
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.sizes import ZERO, Size

Place: TypeAlias = "tuple[int, int]"
"""Memory of a call: the number of one of its addresses, and bytes from there."""

Memory: TypeAlias = "Place | list[Place]"
"""Where a tensor lies, or each of a list."""

Step: TypeAlias = Callable[[Sequence[int], int], None]
"""What a stream is told to do, for the addresses of a call and the stream."""

Launcher: TypeAlias = Callable[["tuple[int, int, int]", "Sequence[int | Place]"], Step]
"""Makes a step that starts a kernel, of the programs along each axis and the parameters in order."""

Watch: TypeAlias = Callable[["Work", Callable[[], None]], None]
"""Does a step; the second argument is what does it."""

Exchanger: TypeAlias = Callable[[int, int, int], None]
"""Does the exchange of a number between two addresses, on the caller's stream."""

_FORMATS = {"i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I", "i64": "q", "u64": "Q", "bool": "?"}

_MOST_STEPS = 4096
"""Steps that are kept for later calls; a plan with more is walked again, which costs less than their memory."""

RECORD_BYTES = int(RECORD.shape[0]) * RECORD.dtype.bytes


@dataclass(frozen=True)
class Work:
    """A launch or a copy: its name, the user's line, the bytes that its programs load and store, and those of them that
    the memory has to give and take if caches hold the rest."""

    name: str
    span: Span | None
    moved: int
    touched: int


class Device(Protocol):
    """What a plan needs of a chip. Memory is a number: an address."""

    def prepare(self, kernels: Sequence[TritonKernel]) -> list[str | None]:
        """Compile kernels side by side, so that `load` finds them: why each cannot be; None if it can."""

    def load(self, kernel: TritonKernel) -> Launcher:
        """A kernel, compiled and ready to be launched."""

    def copy(self, target: Place, source: Place, size: int) -> Step:
        """A step that copies bytes from one place of the chip's memory to another."""

    def run(self, steps: Sequence[Step], addresses: Sequence[int], stream: int) -> None:
        """Do steps in order."""

    def read(self, address: int, size: int, stream: int) -> bytes:
        """Bytes of the chip's memory, once all that was launched before is done."""

    def moment(self, stream: int) -> object:
        """The time when all that was launched before is done."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two moments, once the second has come."""

    def bandwidth(self) -> float | None:
        """Bytes that the chip's memory can give or take in a second, if that is known."""


class DevicePlan:
    """A plan for one device. `exchange` is what it does with others, if they are several."""

    def __init__(
        self,
        plan: Plan,
        launches: Mapping[str, Sequence[TritonKernel]],
        device: Device,
        exchange: Exchanger | None = None,
    ) -> None:
        self.plan = plan
        self.device = device
        self.exchange = exchange
        self.kernels = {k.name: k for k in plan.kernels}
        self.launches = {k.name: tuple(launches[k.name]) for k in plan.kernels}
        self._launchers: dict[tuple[int, frozenset[str]], Launcher] = {}
        self._work: dict[tuple[int, tuple[int, ...]], Work] = {}

    def launcher(self, kernel: TritonKernel, multiples: frozenset[str]) -> Launcher:
        """What starts one of the launches where some sizes are multiples of 16. It is compiled and loaded when it is
        first asked for."""
        key = (id(kernel), multiples)
        found = self._launchers.get(key)
        if found is None:
            found = self._launchers[key] = self.device.load(specialized(kernel, multiples))
        return found

    def work(self, launch: TritonKernel, kernel: Kernel, sizes: Mapping[str, int]) -> Work:
        """What a launch has to do."""
        key = (id(launch), tuple(sizes.values()))
        found = self._work.get(key)
        if found is None:
            moved = bytes_moved(launch, sizes)
            touched = bytes_touched(moved, kernel, sizes)
            found = self._work[key] = Work(launch.name, kernel.span, sum(moved.values()), touched)
        return found


class PlanCall:
    """A plan for concrete sizes.

    inputs: how many addresses it takes of them, one for each tensor of a list. They are followed by those of the
    results, of scratch memory and of what the run-time checks write (see `RECORD`). shapes: of the results. workspace:
    bytes of scratch memory.
    """

    def __init__(self, owner: DevicePlan, sizes: Mapping[str, int]) -> None:
        self.owner = owner
        self.sizes = {name: sizes[name] for name in owner.plan.sizes}
        slots = owner.plan.slots
        self.memory: dict[str, Memory] = {}
        self.inputs = 0
        for slot in sorted((s for s in slots if s.place == "input"), key=lambda s: s.index):
            count = 1 if slot.length is None else slot.length.evaluate(self.sizes)
            numbers = range(self.inputs, self.inputs + count)
            self.memory[slot.name] = (self.inputs, 0) if slot.length is None else [(n, 0) for n in numbers]
            self.inputs += count
        outputs = sorted((s for s in slots if s.place == "output"), key=lambda s: s.index)
        self.memory.update((s.name, (self.inputs + n, 0)) for n, s in enumerate(outputs))
        scratch = self.inputs + len(outputs)
        self.memory.update((s.name, (scratch, self._offset(s))) for s in slots if s.place == "workspace")
        self.memory[RECORD.name] = (scratch + 1, 0)
        self.shapes = [(tuple(e.evaluate(self.sizes) for e in s.shape), s.dtype) for s in outputs]
        self.workspace = owner.plan.workspace_bytes.evaluate(self.sizes)
        self._steps: list[Step] | None = None

    def _offset(self, slot: Slot) -> int:
        return slot.offset.evaluate(self.sizes)

    def run(self, addresses: Sequence[int], stream: int) -> None:
        """Launch everything."""
        if self._steps is not None:
            self.owner.device.run(self._steps, addresses, stream)
            return
        walk = _Walk(self, addresses, stream)
        walk.block(self.owner.plan.body)
        self._steps = walk.steps

    def watched(self, addresses: Sequence[int], stream: int, watch: Watch) -> None:
        """The same, each step done by `watch`."""
        _Walk(self, addresses, stream, watch).block(self.owner.plan.body)


class _Walk:
    """One walk through a plan, which does the steps that it makes. memory: places by the names of slots and states;
    names: values of sizes and counters; steps: what was done, None if that depends on data."""

    def __init__(self, call: PlanCall, addresses: Sequence[int], stream: int, watch: Watch | None = None) -> None:
        self.owner = call.owner
        self.device = call.owner.device
        self.addresses = addresses
        self.stream = stream
        self.watch = watch
        self.memory = dict(call.memory)
        self.names = dict(call.sizes)
        self.dtypes: dict[str, DType] = {s.name: s.dtype for s in call.owner.plan.slots}
        self.steps: list[Step] | None = []

    def block(self, body: Sequence[PlanStatement]) -> None:
        for statement in body:
            match statement:
                case Invoke():
                    self.invoke(statement)
                case Copy(source, target, dtype, elements):
                    if count := self.size(elements) * dtype.bytes:
                        step = self.device.copy(self.place(target, dtype), self.place(source, dtype), count)
                        self.do(step, partial(Work, "copy", None, 2 * count, 2 * count))
                case Exchange():
                    self.exchange(statement)
                case Repeat():
                    self.repeat(statement)

    def do(self, step: Step, work: Callable[[], Work]) -> None:
        """Do a step now, and keep it if later calls can repeat it."""
        if self.watch is not None:
            self.watch(work(), lambda: self.device.run((step,), self.addresses, self.stream))
            return
        self.device.run((step,), self.addresses, self.stream)
        if self.steps is not None:
            self.steps.append(step)
            if len(self.steps) > _MOST_STEPS:
                self.steps = None

    def invoke(self, statement: Invoke) -> None:
        kernel = self.owner.kernels[statement.kernel]
        sizes = {name: self.size(s) for name, s in zip(kernel.sizes, statement.sizes, strict=True)}
        given = {
            b.name: self.argument(reference, b.dtype)
            for b, reference in zip(kernel.parameters, statement.arguments, strict=True)
        }
        given[RECORD.name] = self.memory[RECORD.name]
        multiples = self.multiples(statement, sizes)
        for launch in self.owner.launches[kernel.name]:
            x, y, z = (*(g.evaluate(sizes) for g in launch.grid), 1, 1, 1)[:3]
            if x * y * z:
                parameters = [_parameter(p, given, sizes) for p in launch.parameters]
                start = self.owner.launcher(launch, multiples)
                self.do(start((x, y, z), parameters), partial(self.owner.work, launch, kernel, sizes))

    def exchange(self, statement: Exchange) -> None:
        do, node, number, given = self.owner.exchange, statement.node, statement.number, statement.source
        assert do is not None, f"there are no devices for {node.name}"
        target = self.place(statement.target, node.values[0].dtype)
        source = None if given is None or isinstance(node, DeviceIndex) else self.place(given, node.x.dtype)

        def step(addresses: Sequence[int], stream: int) -> None:
            first, second = (0 if p is None else addresses[p[0]] + p[1] for p in (source, target))
            do(number, first, second)

        self.do(step, lambda: Work(node.name, node.span, 0, 0))

    def multiples(self, statement: Invoke, sizes: Mapping[str, int]) -> frozenset[str]:
        """The sizes of a kernel that are multiples of 16, but for those that counters of loops change."""
        own = self.owner.plan.sizes
        pairs = zip(sizes.items(), statement.sizes)
        return frozenset(n for (n, value), s in pairs if value % 16 == 0 and not s.opaques and s.symbols <= {*own})

    def argument(self, reference: Reference, dtype: DType) -> Memory:
        """What a kernel gets for a parameter."""
        whole = self.memory[reference.name]
        listed = isinstance(whole, list) and reference.element is None
        return whole if listed else self.place(reference, dtype)

    def repeat(self, loop: Repeat) -> None:
        dtypes = {s.name: self.dtypes[s.initial.name] for s in loop.states}
        buffers = {s.name: [self.place(b, dtypes[s.name]) for b in s.buffers] for s in loop.states}
        self.memory.update({s.name: self.place(s.initial, dtypes[s.name]) for s in loop.states})
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

    def place(self, reference: Reference, dtype: DType) -> Place:
        """Where a reference begins."""
        found = self.memory[reference.name]
        if reference.element is not None:
            assert isinstance(found, list), f"{reference.name} is no list"
            found = found[self.size(reference.element)]
        assert isinstance(found, tuple), f"{reference.name} is a list"
        number, start = found
        return found if reference.start == ZERO else (number, start + self.size(reference.start) * dtype.bytes)

    def number(self, reference: Reference) -> int:
        """A scalar of the chip's memory, for which the host waits."""
        self.steps = None
        dtype = self.dtypes[reference.name]
        number, start = self.place(reference, dtype)
        data = self.device.read(self.addresses[number] + start, dtype.bytes, self.stream)
        return int(struct.unpack(f"<{_FORMATS[dtype.name]}", data)[0])

    def size(self, size: Size) -> int:
        """The value of an integer expression; it may read scalars."""

        def scalar(value: Expr) -> int:
            assert isinstance(value, Load), f"{value} is no scalar"
            return self.number(Reference(value.buffer))

        return size.evaluate(self.names, scalar) if size.opaques else size.evaluate(self.names)


def specialized(kernel: TritonKernel, multiples: Collection[str]) -> TritonKernel:
    """The kernel where some sizes are multiples of 16: rows of such a length can be loaded and stored 16 bytes at a
    time."""
    parameters = tuple(
        replace(p, divisible=True) if isinstance(p, Scalar) and p.value.as_name in multiples else p
        for p in kernel.parameters
    )
    return replace(kernel, parameters=parameters)


def _parameter(parameter: Pointer | Scalar, given: Mapping[str, Memory], sizes: Mapping[str, int]) -> int | Place:
    if isinstance(parameter, Scalar):
        return parameter.value.evaluate(sizes)
    found = given[parameter.buffer]
    if isinstance(found, list):
        assert parameter.element is not None, f"{parameter.name} points to a list"
        return found[parameter.element.evaluate(sizes)]
    return found


def addresses(value: Any) -> list[int]:
    """Where a tensor of PyTorch lies, or each of a list."""
    return [t.data_ptr() for t in value] if isinstance(value, list | tuple) else [int(value.data_ptr())]

"""Plans run in NumPy on a real workspace: bytes that overlap where the plan says so, and hold nonsense before a write.

What a kernel must not rely on is overwritten before it runs (results, scratch memory), so that a plan that puts two
tensors in one place too early gives other numbers than the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from intarsia.ir import kernel_interpreter
from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import Array
from intarsia.ir.graph import Node
from intarsia.ir.kernel import Buffer, Kernel
from intarsia.ir.ops.collective import Collective, Done
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Reference, Repeat
from intarsia.ir.points import Context, Points
from intarsia.ir.scalar import loads
from intarsia.ir.sizes import Size

_NONSENSE = 0xFF
"""NaN in every float type that has one, -1 or the greatest integer."""

Memory: TypeAlias = "Array | list[Array]"
"""A row of elements, or one for each tensor of a list."""


RunKernel: TypeAlias = Callable[[Kernel, Mapping[str, Memory], Mapping[str, int]], None]

RunExchange: TypeAlias = Callable[[Node, Array], Array]
"""What a device gets from a collective for what it has, an empty array for a `DeviceIndex`."""


def run_plan(
    plan: Plan,
    inputs: Sequence[Memory],
    sizes: Mapping[str, int] | None = None,
    run_kernel: RunKernel = kernel_interpreter.run,
    exchange: RunExchange | None = None,
) -> tuple[Array, ...]:
    """The results of a plan for one array for each input slot (a list of arrays for a list).

    `sizes` gives the plan's sizes. `run_kernel` runs each kernel in place of the interpreter, as a profiler does with
    compiled ones; `exchange` does the collectives of a plan for one of several devices. Raises
    `kernel_interpreter.CheckFailed` where a run-time check does not hold.
    """
    made = run_preparation(plan, inputs, sizes, run_kernel)
    return _Machine(plan, dict(sizes or {}), run_kernel, exchange).run((*inputs, *made))


def run_preparation(
    plan: Plan,
    inputs: Sequence[Memory],
    sizes: Mapping[str, int] | None = None,
    run_kernel: RunKernel = kernel_interpreter.run,
) -> tuple[Array, ...]:
    """What the plan takes after its other inputs: nothing, or what its preparation makes of some of them."""
    if (once := plan.preparation) is None:
        return ()
    known = {name: n for name, n in (sizes or {}).items() if name in once.plan.sizes}
    return run_plan(once.plan, [inputs[n] for n in once.inputs], known, run_kernel)


class _Machine:
    """Memory by name, and the values of sizes and counters."""

    def __init__(self, plan: Plan, names: dict[str, int], run_kernel: RunKernel, exchange: RunExchange | None) -> None:
        self.names = names
        self.run_kernel = run_kernel
        self.run_exchange = exchange
        self.plan = plan
        self.kernels = {k.name: k for k in plan.kernels}
        self.memory: dict[str, Memory] = {}
        self.started: dict[Node, tuple[Array, Array]] = {}  # what was sent, and what comes

    def run(self, inputs: Sequence[Memory]) -> tuple[Array, ...]:
        workspace = np.full(self.size(self.plan.workspace_bytes), _NONSENSE, np.uint8)
        for slot in self.plan.slots:
            count = int(np.prod(self.shape(slot.shape), dtype=np.int64)) * slot.dtype.bytes
            match slot.place:
                case "input":
                    self.memory[slot.name] = _read_only(inputs[slot.index])
                case "output":
                    memory = np.full(count, _NONSENSE, np.uint8).view(slot.dtype.numpy)
                    if slot.takes:
                        memory[...] = self.elements(Reference(slot.takes))
                    self.memory[slot.name] = memory
                case "workspace":
                    offset = self.size(slot.offset)
                    assert offset % 64 == 0 and offset + count <= len(workspace), f"{slot.name} is outside of it"
                    self.memory[slot.name] = workspace[offset : offset + count].view(slot.dtype.numpy)
        self.block(self.plan.body)
        outputs = (s for s in self.plan.slots if s.place == "output")
        return tuple(self.elements(Reference(s.name)).reshape(self.shape(s.shape)) for s in outputs)

    # ------------------------------------------------------------------ statements

    def block(self, body: Iterable[PlanStatement]) -> None:
        for statement in body:
            match statement:
                case Invoke():
                    self.invoke(statement)
                case Copy(source, target, _, elements):
                    count = self.size(elements)
                    given, taken = self.elements(source)[:count], self.elements(target)[:count]
                    assert not np.shares_memory(given, taken), f"{source.name} and {target.name} overlap"
                    taken[...] = given
                case Exchange():
                    self.exchange(statement)
                case Repeat():
                    self.repeat(statement)

    def exchange(self, statement: Exchange) -> None:
        node, type_ = statement.node, statement.node.value.tensor
        assert self.run_exchange is not None, f"{node.name} in a program for one device"
        given = np.empty(0, type_.dtype.numpy)
        made = node.x.node if isinstance(node, Done) else node
        if isinstance(made, Collective):
            assert statement.source is not None
            shape = self.shape(made.x.tensor.shape)
            given = self.elements(statement.source)[: math.prod(shape)].reshape(shape)
        taken = self.elements(statement.target)[: math.prod(self.shape(type_.shape))]
        assert not np.shares_memory(given, taken), f"an exchange overwrites what it sends: {statement}"
        if isinstance(node, Done):
            sent, result = self.started.pop(made)
            unchanged = given.tobytes() == sent.tobytes()
            assert unchanged, f"what is sent was changed before it was done: {statement}"
            taken[...] = result.reshape(-1)
            return
        result = self.run_exchange(node, given)
        if isinstance(node, Collective) and node.started:
            self.started[node] = (given.copy(), result)
            taken.view(np.uint8)[...] = _NONSENSE
            return
        taken[...] = result.reshape(-1)

    def invoke(self, statement: Invoke) -> None:
        kernel = self.kernels[statement.kernel]
        sizes = dict(zip(kernel.sizes, map(self.size, statement.sizes), strict=True))
        arrays: dict[str, Memory] = {}
        for buffer, reference in zip(kernel.parameters, statement.arguments, strict=True):
            arrays[buffer.name] = self.argument(buffer, reference, sizes)
        for buffer in kernel.parameters:
            if buffer.role in ("out", "temp"):
                array = arrays[buffer.name]
                assert isinstance(array, np.ndarray)
                array.reshape(-1).view(np.uint8)[...] = _NONSENSE
        self.run_kernel(kernel, arrays, sizes)

    def argument(self, buffer: Buffer, reference: Reference, sizes: Mapping[str, int]) -> Memory:
        """What a kernel gets for a parameter."""
        shape = tuple(s.evaluate(sizes) for s in buffer.shape)
        count = int(np.prod(shape, dtype=np.int64))
        if buffer.length is None:
            return self.elements(reference)[:count].reshape(shape)
        table = self.memory[reference.name]
        assert isinstance(table, list)
        return [tensor.reshape(shape) for tensor in table]

    def repeat(self, loop: Repeat) -> None:
        states = [(s.name, [self.elements(b) for b in s.buffers]) for s in loop.states]
        for state in loop.states:
            self.memory[state.name] = self.elements(state.initial)
        outer = self.names.get(loop.counter)
        for step, value in enumerate(range(self.size(loop.lower), self.size(loop.upper))):
            self.names[loop.counter] = value
            self.block(loop.test)
            if loop.condition is not None and not self.elements(loop.condition)[0]:
                break
            for name, buffers in states:
                self.memory[f"{name}.next"] = buffers[step % len(buffers)]
            self.block(loop.body)
            for name, _ in states:
                self.memory[name] = self.memory[f"{name}.next"]
        self.names.pop(loop.counter, None)
        if outer is not None:
            self.names[loop.counter] = outer

    # ------------------------------------------------------------------ values

    def elements(self, reference: Reference) -> Array:
        """The memory from where a reference begins."""
        memory = self.memory[reference.name]
        if reference.element is not None:
            assert isinstance(memory, list)
            element = self.size(reference.element)
            assert 0 <= element < len(memory), f"element {element} of {reference.name}, a list of {len(memory)}"
            memory = memory[element]
        assert isinstance(memory, np.ndarray)
        return memory[self.size(reference.start) :]

    def size(self, size: Size) -> int:
        """The value of an integer expression; it may load scalars from slots and states."""
        if not size.opaques:
            return size.evaluate(self.names)
        scalars = {load.buffer: self.elements(Reference(load.buffer))[0] for o in size.opaques for load in loads(o)}
        context = Context(self.names, Arithmetic(), False, None)
        found = Points((), context, {name: np.asarray(value) for name, value in scalars.items()}).size(size)
        assert isinstance(found, int)
        return found

    def shape(self, sizes: Iterable[Size]) -> tuple[int, ...]:
        return tuple(map(self.size, sizes))


def _read_only(given: Memory) -> Memory:
    """An input as a row of elements that cannot be written."""
    if isinstance(given, list):
        return [_row(tensor) for tensor in given]
    return _row(given)


def _row(array: Array) -> Array:
    row = np.ascontiguousarray(array).reshape(-1).view()
    row.flags.writeable = False
    return row

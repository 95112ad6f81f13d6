"""A loop whose steps are several kernels becomes one kernel: the steps run inside, each after the one before.

    %1:2 = scan t in 0..9 (%h = %h0) {         kernel f_loop(u: f32[4, 4], h0: f32[4], out h: f32[4], out y: …) {
      %2 = call @f_matmul(%h, %u) : f32[4]       alloc x: f32[4]
      yield %2                                   for i0 in 0..4 { h[i0] = h0[i0] }
      emit %2                              =>    for t in 0..9 {
    } : f32[4], f32[9, 4]                          … x[i0.1] += h[k] * u[k, i0.1] …
                                                   for i0.3 in 0..4 { y[t, i0.3] = x[i0.3] }
                                                   for i0.4 in 0..4 { h[i0.4] = x[i0.4] } } }

The states are results of the kernel, which a step reads and then writes. What passes between the kernels of a step is a
temporary. Whether it is worth doing is for the caller to say; the schedule decides who does which part of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from intarsia.ir.errors import Span
from intarsia.ir.graph import Value
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Statement, walk
from intarsia.ir.ops import Call, Loop
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Const, Expr, Load
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType
from intarsia.passes.lower.kernel import LoweredGroup
from intarsia.passes.lower.names import buffer_label
from intarsia.passes.lower.stages import Scope, StageWriter, rename_buffers, subscripts, symbols
from intarsia.passes.schedule.tree import rename_axes

Initial: TypeAlias = "Value | Const"
"""What a state is before the first step: a value, or one number everywhere."""


def whole_loop(
    loop: Loop, initial: Sequence[Initial], kernels: Mapping[str, Kernel], names: Sequence[str], facts: Facts
) -> LoweredGroup | None:
    """A loop, with a lowered body, as one kernel; None if a step does more than call kernels, or depends on data.

    `names` are the symbols in scope around the loop, in order; `facts` hold there.
    """
    calls = [node for node in loop.body.nodes if isinstance(node, Call)]
    if loop.condition is not None or loop.scalars or not calls or len(calls) < len(loop.body.nodes):
        return None
    given = (*initial, *(v for call in calls for v in call.arguments), *loop.body.results)
    if any(isinstance(v, Value) and isinstance(v.type, ListType) for v in given):
        return None  # which tensor a step reads is no number inside of a kernel
    if any(call.sizes != tuple(map(Size.of, kernels[call.kernel].sizes)) for call in calls):
        return None
    writer = _LoopWriter(loop.span, StageWriter(facts, (*names, loop.counter)), loop)
    return writer.write(initial, [(call, kernels[call.kernel]) for call in calls], names)


@dataclass
class CallWriter:
    """Writes calls, such as the steps of a loop, into one kernel: `buffers` hold their values, `inputs` those from
    outside."""

    span: Span | None
    writer: StageWriter

    def __post_init__(self) -> None:
        self.buffers: dict[Value, Buffer] = {}
        self.inputs: dict[Value, Buffer] = {}
        self.allocs: list[Alloc] = []

    # ------------------------------------------------------------------ buffers

    def result(self, value: Value, label: str) -> Buffer:
        name = self.writer.names.fresh(label)
        return self.writer.declare(Buffer(name, value.dtype, value.tensor.shape, "global", "out"))

    def temporary(self, label: str, like: Buffer) -> Buffer:
        alloc = self.writer.temporary(label, like.dtype, like.shape)
        self.allocs.append(alloc)
        return alloc.buffer

    def buffer(self, value: Value) -> Buffer:
        """The buffer that holds a value."""
        if value not in self.buffers:
            name = self.writer.names.fresh(buffer_label(value))
            made = Buffer(name, value.dtype, value.tensor.shape, "global", "in")
            self.buffers[value] = self.inputs[value] = self.writer.declare(made)
        return self.buffers[value]

    def is_own(self, value: Value) -> bool:
        """Does a value lie in memory of the loop?"""
        return value in self.buffers and value not in self.inputs

    def element(self, value: Initial) -> Buffer | Const:
        return value if isinstance(value, Const) else self.buffer(value)

    # ------------------------------------------------------------------ statements

    def stage(self, target: Buffer, row: tuple[Size, ...], source: Buffer | Const) -> tuple[Statement, ...]:
        """`target[row, …] = source[…]`, everywhere."""
        axes = axes_for(target.shape[len(row) :])
        here = subscripts(axes)
        value: Expr = source if isinstance(source, Const) else Load(source.name, here, source.dtype)
        outside, self.writer.body = self.writer.body, []
        self.writer.write(axes, target.name, (*row, *here), "=", value, self.span)
        made, self.writer.body = tuple(self.writer.body), outside
        return made

    def call(self, call: Call, kernel: Kernel, later: set[Value]) -> tuple[Statement, ...]:
        """The body of a kernel in the place of its call, with names of its own. `later` is what is read after it: what
        is not, and comes from this loop, is changed in place."""
        names: dict[str, str] = {}
        before: list[Statement] = []
        given, made = iter(call.arguments), iter(call.values)
        for buffer in kernel.parameters:
            if buffer.role == "in":
                names[buffer.name] = self.buffer(next(given)).name
                continue
            old = next(given) if buffer.role == "inout" else None
            if old is not None and old not in later and call.arguments.count(old) == 1 and self.is_own(old):
                own = self.buffer(old)
            else:
                own = self.temporary(buffer.name, buffer)
            if old is not None and own is not self.buffer(old):
                before += self.stage(own, (), self.buffer(old))
            self.buffers[next(made)] = own
            names[buffer.name] = own.name
        for name in kernel.buffers():
            if name not in names:
                names[name] = self.writer.names.fresh(name)
        body = rename_buffers(kernel, names).body
        axes = [s.axis for s, _ in walk(body) if isinstance(s, For)]
        body = rename_axes(body, {a: self.writer.names.fresh(a.partition(".")[0]) for a in axes})
        self.allocs += [s for s in body if isinstance(s, Alloc)]
        return (*before, *(s for s in body if not isinstance(s, Alloc)))


@dataclass
class _LoopWriter(CallWriter):
    """Writes the kernel of a whole loop."""

    loop: Loop

    def write(
        self, initial: Sequence[Initial], calls: Sequence[tuple[Call, Kernel]], names: Sequence[str]
    ) -> LoweredGroup:
        """The kernel of the loop."""
        loop = self.loop
        count = len(initial)
        results = [self.result(v, p.label) for v, p in zip(loop.values, loop.states)]
        results += [self.result(v, "y") for v in loop.values[count:]]
        before = [s for b, v in zip(results, initial) for s in self.stage(b, (), self.element(v))]
        self.buffers.update((p.value, b) for p, b in zip(loop.states, results))
        step: list[Statement] = []
        for n, (call, kernel) in enumerate(calls):
            later = {v for other, _ in calls[n + 1 :] for v in other.arguments} | set(loop.body.results)
            step += self.call(call, kernel, later)
        facts = self.writer.scope.facts.within(loop.counter, loop.lower, loop.upper)
        self.writer.scope = Scope(facts, {})
        row = Size.of(loop.counter) - loop.lower
        for stack, value in zip(results[count:], loop.body.results[count:]):
            step += self.stage(stack, (row,), self.element(value))
        step += self._changes(results[:count], loop.body.results[:count])
        body = (*self.allocs, *before, For(loop.counter, loop.lower, loop.upper, tuple(step)))
        used = symbols(body, (*self.inputs.values(), *results))
        kernel = Kernel(
            "", (*self.inputs.values(), *results), body, tuple(n for n in names if n in used), span=loop.span
        )
        return LoweredGroup(kernel, tuple(self.inputs), loop.values)

    def _changes(self, states: Sequence[Buffer], values: Iterable[Value]) -> Iterable[Statement]:
        """The stages by which all states change at once: what a later one still reads waits in a temporary."""
        late: list[tuple[Buffer, Buffer]] = []
        pairs = [(state, self.buffer(v)) for state, v in zip(states, values)]
        for n, (state, value) in enumerate(pairs):
            if value is state:
                continue
            if any(other is state for _, other in pairs[n + 1 :]):
                wait = self.temporary("next", state)
                late.append((state, wait))
                state = wait
            yield from self.stage(state, (), value)
        for state, wait in late:
            yield from self.stage(state, (), wait)

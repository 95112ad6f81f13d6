"""Several steps of a loop become one kernel, whose schedule can keep a block of large states in a cache meanwhile.

    %1 = loop t in 0..N (%x = %a) {            %1 = loop t.0 in 0..N // 2 (%x = %a) {
      %2 = call @f_update(%x)[t] : f64[9]        %2 = call @f_steps(%x)[2 * t.0] : f64[9]
      yield %2                            =>     yield %2
    } : f64[9]                                 } : f64[9]
                                               %3 = loop t in 2 * (N // 2)..N (%x.1 = %1) { … @f_update … } : f64[9]

Every value of a step has memory of its own: what a step changes in place begins as a copy. The schedule lets values
share memory. Whether it is worth doing is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.graph import Parameter, Region, Value
from intarsia.ir.kernel import Buffer, Kernel
from intarsia.ir.ops import Call, Loop
from intarsia.ir.proofs import Facts
from intarsia.ir.sizes import ZERO, Size, maximum
from intarsia.ir.types import ListType
from intarsia.passes.lower.stages import StageWriter, symbols
from intarsia.passes.lower.whole_loops import CallWriter
from intarsia.passes.schedule.tree import substitute


@dataclass(frozen=True)
class Steps:
    """So many steps of a loop as one kernel, which takes `arguments`: the states before, and what else steps read."""

    count: int
    kernel: Kernel
    arguments: tuple[Value, ...]


def several_steps(
    loop: Loop, count: int, kernels: Mapping[str, Kernel], names: Sequence[str], facts: Facts
) -> Steps | None:
    """So many steps of a loop, with a lowered body, as one kernel; None if a step does more than call kernels.

    `names` are the symbols in scope around the loop, in order; `facts` hold there.
    """
    calls = [node for node in loop.body.nodes if isinstance(node, Call)]
    steps = (loop.upper - loop.lower).constant
    if loop.condition is not None or loop.stacked or not calls or len(calls) < len(loop.body.nodes):
        return None
    if any(isinstance(v.type, ListType) for call in calls for v in call.arguments):
        return None
    if any(call.sizes != tuple(map(Size.of, kernels[call.kernel].sizes)) for call in calls):
        return None
    if steps is not None and steps < count:
        return None
    writer = _Writer(loop.span, StageWriter(facts, (*names, loop.counter)), loop)
    return writer.write(count, [(call, kernels[call.kernel]) for call in calls], (*names, loop.counter))


def in_blocks(loop: Loop, steps: Steps, kernel: str) -> tuple[Loop, Loop | None]:
    """A loop as one that does several steps at a time, by a call of `kernel`, and one that does the rest."""
    outer = f"{loop.counter}.0"
    times = (loop.upper - loop.lower) // steps.count
    times = times if times.constant is not None else maximum(ZERO, times)
    states = [Parameter(p.label, p.type) for p in loop.states]
    own = dict(zip((p.value for p in loop.states), (p.value for p in states)))
    arguments = tuple(own.get(v, v) for v in steps.arguments)
    first = {loop.counter: Size.of(outer) * steps.count + loop.lower}
    sizes = tuple(Size.of(name).substitute(first) for name in steps.kernel.sizes)
    types = tuple(v.type for v in loop.values)
    call = Call(kernel, arguments, types, sizes, **loop.spans)
    several = replace(loop, counter=outer, lower=ZERO, upper=times, body=Region(tuple(states), (call,), call.values))
    done = loop.lower + times * steps.count
    if done == loop.upper:
        return several, None
    return several, replace(loop, lower=done, initial=several.values)


@dataclass
class _Writer(CallWriter):
    """Writes the kernel of some steps."""

    loop: Loop

    def write(self, count: int, calls: Sequence[tuple[Call, Kernel]], names: Sequence[str]) -> Steps:
        """The kernel of so many steps."""
        loop = self.loop
        for state in loop.states:
            self.buffer(state.value)
        given = {p.value: p.value for p in loop.states}
        for n in range(count):
            start = len(self.writer.body)
            every = {v for call, _ in calls for v in (*call.arguments, *call.values)}
            for call, kernel in calls:
                self.writer.body += self.call(call, kernel, every)
            self.writer.body[start:] = substitute(
                tuple(self.writer.body[start:]), {loop.counter: Size.of(loop.counter) + n}
            )
            after = [self.buffer(v) for v in loop.body.results]
            self.buffers.update(zip(given, after))
        return self._kernel(count, names)

    def _kernel(self, count: int, names: Sequence[str]) -> Steps:
        """What was written, with the last states as results."""
        results: list[Buffer] = []
        renamed: dict[str, str] = {}
        temporaries = {alloc.buffer.name for alloc in self.allocs}
        for state in self.loop.states:
            last = self.buffers[state.value]
            if last.name not in temporaries or last.name in renamed:
                out = self.result(self.loop.values[len(results)], state.label)
                self.writer.body += self.stage(out, (), last)
            else:
                out = replace(last, role="out")
                renamed[last.name] = last.name
            results.append(out)
        kept = [alloc for alloc in self.allocs if alloc.buffer.name not in renamed]
        body = (*kept, *self.writer.body)
        parameters = (*self.inputs.values(), *results)
        used = symbols(body, parameters)
        kernel = Kernel("", parameters, body, tuple(n for n in names if n in used), span=self.loop.span)
        return Steps(count, kernel, tuple(self.inputs))

"""What the steps that reduce a chain piece by piece share: `online`, block after block, and `parts`, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from intarsia.ir.dtypes import I64
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Put, PutOperator, Statement
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import Expr, Index, Load, Mask, apply, constant, transform, where
from intarsia.ir.sizes import Size, minimum
from intarsia.passes.schedule.dependence import crossing_dependence, describe
from intarsia.passes.schedule.stages import Stage
from intarsia.passes.schedule.sweeps import Ratio, Sweep
from intarsia.passes.schedule.tree import Body, NameSource, blocks, facts_for, loops_in, rename_axes


def home_of(kernel: Kernel, name: str) -> tuple[Body, tuple[For, ...]]:
    """The innermost block that holds all uses of a buffer, and the loops around it."""
    paths = [a.loops for a in accesses(kernel.body) if a.buffer == name]
    common = tuple(loops[0] for loops in zip(*paths) if all(loop is loops[0] for loop in loops))
    for body, around in blocks(kernel):
        if around == common and sum(a.buffer == name for a in accesses(body)) == len(paths):
            return body, around
    raise ScheduleError("its uses stand under a condition")


def require_order(kernel: Kernel, sweep: Sweep, block: Body) -> None:
    """No stage may overtake, as a whole, one on which it depends."""
    place = {stage: n for n, stage in enumerate(sweep.stages)}
    old = sorted(sweep.stages, key=lambda s: next(n for n, x in enumerate(block) if x is s.statement))
    for n, first in enumerate(old):
        for second in old[n + 1 :]:
            if place[first] > place[second]:
                pair = crossing_dependence(kernel, (first.statement,), (second.statement,), {}, sweep.around)
                if pair is not None:
                    raise ScheduleError(f"{describe(pair)} stands between the blocks")


class SweepWriter:
    """Writes the block of statements that a sweep is made of anew."""

    def __init__(self, kernel: Kernel, sweep: Sweep, names: NameSource) -> None:
        self.sweep = sweep
        self.names = names
        self.facts = facts_for(kernel, sweep.around)
        self.state = sweep.state.put
        self.buffers = kernel.buffers()

    @property
    def held(self) -> Load:
        """The maximum so far, in the axes of its own stage."""
        return Load(self.state.buffer, self.state.indices, self.state.value.dtype)

    def per_row(self, stage: Stage, buffer: str, indices: tuple[Size, ...], operator: PutOperator, value: Expr) -> Body:
        """A write for each row of a stage."""
        put = Put(buffer, indices, operator, value, without_reduced(stage.put.mask, stage))
        return self.fresh(stage.around(put, stage.kept))

    def fresh(self, body: Body) -> Body:
        """A nest with axes of its own."""
        return rename_axes(body, {loop.axis: self.names.derived(loop.axis) for loop in loops_in(body)})

    def of_nothing(self, stage: Stage, ratio: Ratio) -> Body:
        """The sum of a row of nothing but -inf, unless the row is empty."""
        first = next(loop for loop in stage.loops if loop.axis == self.sweep.axes[stage])
        held = Load(stage.put.buffer, stage.put.indices, stage.put.value.dtype)
        value = ratio.of_nothing(ratio.maximum, held)
        if value is held:
            return ()
        mask = without_reduced(stage.put.mask, stage)
        if not self.facts.proves(first.upper - first.lower - 1):
            mask = (*mask, first.upper - first.lower)
        return self.fresh(stage.around(Put(held.buffer, held.indices, "=", value, mask), stage.kept))

    def as_before(self, stage: Stage) -> Body:
        """Sums that are not finite, such as those of infinities, as they are without a sweep."""
        total = Load(stage.put.buffer, stage.put.indices, stage.put.value.dtype)
        own = self.buffers[total.buffer]
        first = next(loop for loop in stage.reduced)
        end = Buffer(self.names.derived("end"), I64, own.extents, own.memory)
        lost = apply("ne", apply("sub", total, total), constant(0.0, total.dtype))
        body: list[Statement] = [Alloc(end)]
        value = where(lost, Index(first.upper), Index(first.lower))
        body += self.per_row(stage, end.name, total.indices, "=", value)
        body += self.per_row(stage, total.buffer, total.indices, "=", where(lost, constant(0.0, total.dtype), total))
        again = minimum(first.upper, Size.opaque(Load(end.name, total.indices, I64)))
        loops = (replace(x, upper=again) if x is first else x for x in (*stage.kept, *stage.reduced))
        body += self.fresh(stage.around(stage.put, loops))
        return tuple(body)


def with_part(value: Expr, old: Expr, new: Expr) -> Expr:
    """A value in which one part is another one."""
    return transform(value, rule=lambda e: new if e == old else None)


def moved(moments: Sequence[Expr], n: int, step: Expr) -> Expr:
    """moments[n] after a step: the coefficient of d**n of the sum over m of moments[m] * (step + d)**m."""
    value = moments[-1]
    for m in range(len(moments) - 1, n, -1):
        step_m = step if n == 0 else apply("mul", constant(m / (m - n), step.dtype), step)
        value = apply("add", moments[m - 1], apply("mul", step_m, value))
    return value


def without_reduced(mask: Mask, stage: Stage) -> Mask:
    """The conditions of a mask that do not depend on what a stage reduces."""
    reduced = {loop.axis for loop in stage.reduced}
    return tuple(m for m in mask if not m.symbols & reduced)

"""The step `online`: reductions over one axis go through it once, block by block, even if some need another one.

Where the maximum moves, the sums so far are multiplied by the ratio of old and new summands (`sweeps.py`).
Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, https://arxiv.org/abs/1805.02867.

Where a sum is about differences from a mean, they are first those from the mean of what was seen, which the sum then
follows from block to block. A result that is not finite is computed again as it was before.
Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import I64
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Put, PutOperator, Statement
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.scalar import Const, Expr, Index, Load, Mask, apply, cast, constant, loads, transform, where
from intarsia.ir.schedule import Online
from intarsia.ir.sizes import Size, minimum
from intarsia.passes.schedule.dependence import commute, conflicts, crossing_dependence, describe, may_meet
from intarsia.passes.schedule.masks import neutral
from intarsia.passes.schedule.products import Product
from intarsia.passes.schedule.stages import Stage
from intarsia.passes.schedule.sweeps import Ratio, Shift, Sweep, find_sweep
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    blocks,
    change_loads,
    facts_for,
    find_buffer,
    loops_in,
    rename_axes,
    replace_block,
    replace_loop,
    substitute,
)


def online(kernel: Kernel, step: Online) -> Kernel:
    """See `Online`."""
    find_buffer(kernel, step.buffer)
    block, around = _home(kernel, step.buffer)
    sweep = find_sweep(kernel, step.buffer, block, around)
    for own in (x for stage, axis in sweep.axes.items() for x in stage.loops if x.axis == axis):
        if own.kind in ("unroll", "lane", "dot"):
            raise ScheduleError(f"{own.axis} is {own.kind}, and its blocks differ in length")
    _require_order(kernel, sweep, block)
    names = NameSource(kernel)
    axis = names.claim(step.names[0]) if step.names else names.derived(sweep.axes[sweep.state])
    writer = _Writer(kernel, sweep, names, axis, step.size)
    new = replace_block(kernel, block, writer.block(block))
    for loop, statements in writer.hoisted.items():
        new = replace_loop(new, loop, lambda found, first=statements: (*first, found))  # type: ignore[misc]
    return new


def _home(kernel: Kernel, name: str) -> tuple[Body, tuple[For, ...]]:
    """The innermost block that holds all uses of a buffer, and the loops around it."""
    paths = [a.loops for a in accesses(kernel.body) if a.buffer == name]
    common = tuple(loops[0] for loops in zip(*paths) if all(loop is loops[0] for loop in loops))
    for body, around in blocks(kernel):
        if around == common and sum(a.buffer == name for a in accesses(body)) == len(paths):
            return body, around
    raise ScheduleError("its uses stand under a condition")


def _require_order(kernel: Kernel, sweep: Sweep, block: Body) -> None:
    """No stage may overtake one on which it depends: neither as a whole, nor an earlier block of it a later block of
    another one. That the sums need the maximum is what the step is for."""
    place = {stage: n for n, stage in enumerate(sweep.stages)}
    old = sorted(sweep.stages, key=lambda s: next(n for n, x in enumerate(block) if x is s.statement))
    for n, first in enumerate(old):
        for second in old[n + 1 :]:
            if place[first] > place[second]:
                pair = crossing_dependence(kernel, (first.statement,), (second.statement,), {}, sweep.around)
                if pair is not None:
                    raise ScheduleError(f"{describe(pair)} stands between the blocks")
    volatile = written_in(s.statement for s in sweep.axes)
    steps = For("'block", sweep.domain.lower, sweep.domain.upper, ())
    around = (*sweep.around, steps)
    moved = [list(accesses(_one_block(stage, axis, steps.axis), around)) for stage, axis in sweep.axes.items()]
    for n, one in enumerate(moved):
        for other in moved[n + 1 :]:
            for a, b in conflicts(one, other):
                if a.buffer == sweep.state.put.buffer or commute(a, b):
                    continue
                if may_meet(kernel, a, b, {steps.axis: ">"}, sweep.around, volatile):
                    raise ScheduleError(f"{describe((a, b))} cross blocks")


def _one_block(stage: Stage, axis: str, block: str) -> Body:
    """What a stage does at one value of its axis."""
    body = stage.around(stage.put, (loop for loop in stage.loops if loop.axis != axis))
    return substitute(body, {axis: Size.of(block)})


class _Writer:
    """Writes the block of statements anew, as a sweep over blocks of `size` along `axis`."""

    def __init__(self, kernel: Kernel, sweep: Sweep, names: NameSource, axis: str, size: int) -> None:
        self.sweep = sweep
        self.names = names
        self.axis = axis
        self.size = size
        self.facts = facts_for(kernel, sweep.around)
        self.hoisted: dict[str, Body] = {}
        self.state = sweep.state.put
        state = kernel.buffers()[self.state.buffer]
        self.old = replace(state, name=names.derived(state.name), role="temp")
        self.shift = replace(self.old, name=names.derived(state.name))
        self.scales = {
            key: replace(self.old, name=names.derived(state.name))
            for key in dict.fromkeys(r.key for r in sweep.ratios.values())
        }
        self.followers = {stage: self._follower(kernel, stage, shift) for stage, shift in sweep.shifts.items()}

    def _follower(self, kernel: Kernel, stage: Stage, shift: Shift) -> _Follower:
        own = kernel.buffers()[stage.put.buffer]
        mean, step, *more = (
            replace(own, name=self.names.derived(own.name), role="temp") for _ in (0, *shift.polynomial.coefficients)
        )
        return _Follower(stage, shift, mean, step, tuple(more))

    def block(self, block: Body) -> Body:
        """The new statements."""
        sweep = self.sweep
        skipped = [self._skipped(stage, ratio) for stage, ratio in sweep.ratios.items()]
        return (
            *(s for s in block if isinstance(s, Alloc)),
            *(s.statement for s in (*sweep.before, *sweep.initial)),
            *(s for make, _ in skipped for s in make),
            *self._unshifted(),
            self._loop(),
            *(s for f in self.followers.values() for s in self._as_before(f)),
            *(s for _, use in skipped for s in use),
            *(s for stage, ratio in sweep.ratios.items() for s in self._of_nothing(stage, ratio)),
            *(s.statement for s in sweep.after),
        )

    def _loop(self) -> For:
        """The loop over blocks."""
        domain = self.sweep.domain
        rescaled = bool(self.sweep.ratios)
        body: list[Statement] = [Alloc(b) for b in (self.old, self.shift, *self.scales.values()) if rescaled]
        for stage, axis in self.sweep.axes.items():
            if stage is self.sweep.state and rescaled:
                body += self._per_row(stage, self.old.name, self.state.indices, "=", self._held)
                body += self._part(stage, axis)
                body += self._moved()
            elif stage in self.sweep.shifts:
                body += self._moments(self.followers[stage], axis)
            elif stage is self.sweep.state and self.sweep.shifts:
                body += (*self._part(stage, axis), *self._shifted_sums())
            else:
                if stage in self.sweep.ratios:
                    ratio = self.sweep.ratios[stage]
                    scale = replace(ratio.maximum, buffer=self.scales[ratio.key].name)
                    body += self._per_row(stage, stage.put.buffer, stage.put.indices, "*=", scale)
                body += change_loads(self._part(stage, axis), self._shifted)
        return For(self.axis, domain.lower, domain.upper, tuple(body), "seq", self.size)

    @property
    def _held(self) -> Load:
        """The maximum so far, in the axes of its own stage."""
        return Load(self.state.buffer, self.state.indices, self.state.value.dtype)

    def _moved(self) -> Body:
        """After the maximum of a block: what summands are relative to (any number will do as long as there is only
        -inf: they are 0), and the ratio of the new summands to the old ones."""
        stage, held = self.sweep.state, self._held
        old = replace(held, buffer=self.old.name)
        lowest, one, zero = (constant(v, held.dtype) for v in (float("-inf"), 1.0, 0.0))
        relative = where(apply("eq", held, lowest), zero, held)
        body = self._per_row(stage, self.shift.name, held.indices, "=", relative)
        for ratio in {r.key: r for r in self.sweep.ratios.values()}.values():
            change = where(apply("eq", old, lowest), one, ratio.between(old, held))
            body += self._per_row(stage, self.scales[ratio.key].name, held.indices, "=", change)
        return body

    def _shifted(self, e: Expr) -> Expr | None:
        return replace(e, buffer=self.shift.name) if isinstance(e, Load) and e.buffer == self.state.buffer else None

    @property
    def _width(self) -> Size:
        """The elements of a block."""
        extent = self.sweep.domain.upper - self.sweep.domain.lower
        exact = all(c % self.size == 0 for _, c in extent.terms)
        return Size.of(self.size) if exact else minimum(self.size, self.sweep.domain.upper - self.axis)

    def _part(self, stage: Stage, axis: str, put: Put | None = None) -> Body:
        """The part of a stage, or of its loops around another write, that belongs to a block."""
        here, width = Size.of(self.axis), self._width
        own = replace(stage.put, numbers=True) if stage is self.sweep.state and self.sweep.shows_nan else stage.put
        body: Body = (put or own,)
        for loop in reversed(stage.loops):
            if loop.axis == axis:
                body = substitute(body, {axis: here + axis})
                loop = replace(loop, lower=Size.of(0), upper=width)
            body = (replace(loop, body=body),)
        return body

    def _per_row(
        self, stage: Stage, buffer: str, indices: tuple[Size, ...], operator: PutOperator, value: Expr
    ) -> Body:
        """A write for each row of a stage."""
        put = Put(buffer, indices, operator, value, _without(stage.put.mask, stage))
        return self._fresh(stage.around(put, stage.kept))

    # ------------------------------------------------------------------ sums that follow a mean

    def _unshifted(self) -> Body:
        """Before the first block every sum is relative to 0, and so are those of the other coefficients."""
        body: list[Statement] = []
        for f in self.followers.values():
            body += (Alloc(f.mean), Alloc(f.step), *map(Alloc, f.more))
            for buffer in (f.mean, *f.more):
                body += self._per_row(f.stage, buffer.name, f.stage.put.indices, "=", constant(0.0, buffer.dtype))
        return tuple(body)

    def _shifted_sums(self) -> Body:
        """After the sum of a block: the mean of what was seen so far, and the sums relative to that."""
        domain, dtype = self.sweep.domain, self.state.value.dtype
        seen = Size.of(self.axis) - domain.lower + self._width
        scale = apply("div", *(cast(dtype, Index(n)) for n in (domain.upper - domain.lower, seen)))
        body: Body = ()
        for f in self.followers.values():
            put, estimate = f.stage.put, apply("mul", f.shift.state, scale)
            mean = _with(f.shift.mean, f.shift.state, estimate)
            step = f.load(f.step)
            body += self._per_row(f.stage, step.buffer, put.indices, "=", apply("sub", mean, f.load(f.mean)))
            body += self._per_row(f.stage, f.mean.name, put.indices, "+=", step)
            for n, moment in enumerate(f.moments[:-1]):
                body += self._per_row(f.stage, moment.buffer, put.indices, "=", _moved(f.moments, n, step))
        return body

    def _moments(self, f: _Follower, axis: str) -> Body:
        """What a block adds to the sums of all coefficients."""
        stage = f.stage
        everywhere = len(stage.reduced) == 1 and stage.put.mask == _without(stage.put.mask, stage)
        body: Body = ()
        for moment, coefficient in zip(f.moments, f.shift.polynomial.coefficients):
            value = _with(coefficient, f.shift.mean, f.load(f.mean))
            if isinstance(value, Const) and everywhere:
                count = apply("mul", value, cast(value.dtype, Index(self._width)))
                body += self._per_row(stage, moment.buffer, moment.indices, "+=", count)
            else:
                body += self._fresh(self._part(stage, axis, replace(stage.put, buffer=moment.buffer, value=value)))
        return body

    def _as_before(self, f: _Follower) -> Body:
        """Sums that are not finite, such as those of infinities, as they are without a sweep."""
        stage, total = f.stage, f.moments[0]
        first = next(loop for loop in stage.reduced)
        end = Buffer(self.names.derived("end"), I64, f.mean.extents, f.mean.memory)
        lost = apply("ne", apply("sub", total, total), constant(0.0, total.dtype))
        body: list[Statement] = [Alloc(end)]
        value = where(lost, Index(first.upper), Index(first.lower))
        body += self._per_row(stage, end.name, total.indices, "=", value)
        body += self._per_row(stage, total.buffer, total.indices, "=", where(lost, constant(0.0, total.dtype), total))
        again = minimum(first.upper, Size.opaque(Load(end.name, total.indices, I64)))
        loops = (replace(x, upper=again) if x is first else x for x in (*stage.kept, *stage.reduced))
        body += self._fresh(stage.around(stage.put, loops))
        return tuple(body)

    # ------------------------------------------------------------------ what is left out

    def _of_nothing(self, stage: Stage, ratio: Ratio) -> Body:
        """The sum of a row of which every summand is exp(-inf - -inf): it is NaN, unless the row is empty."""
        if ratio.guarded is not None:
            return ()
        first = next(loop for loop in stage.loops if loop.axis == self.sweep.axes[stage])
        held = Load(stage.put.buffer, stage.put.indices, stage.put.value.dtype)
        none = apply("eq", ratio.maximum, constant(float("-inf"), ratio.maximum.dtype))
        value = where(none, constant(float("nan"), held.dtype), held)
        mask = _without(stage.put.mask, stage)
        if not self.facts.proves(first.upper - first.lower - 1):
            mask = (*mask, first.upper - first.lower)
        return self._fresh(stage.around(Put(held.buffer, held.indices, "=", value, mask), stage.kept))

    def _skipped(self, stage: Stage, ratio: Ratio) -> tuple[Body, Body]:
        """What the blocks that are left out add to a sum: 0 times its other factors, which is NaN where one of these
        is infinite or NaN. The statements that sum that up, for all rows at once, and those that add it."""
        first = next(loop for loop in stage.loops if loop.axis == self.sweep.axes[stage])
        outside = self.sweep.domain.outside(first)
        rest = ratio.rest.value(stage.put.value.dtype)
        dims = tuple(loop for loop in stage.kept if loop.axis in rest.symbols)
        reduced = tuple(loop for loop in stage.reduced if loop is not first)
        if not outside or not rest.symbols & {loop.axis for loop in stage.reduced}:
            return (), ()
        dtype = stage.put.value.dtype
        place = tuple(Size.of(loop.axis) - loop.lower for loop in dims)
        zeros = Buffer(self.names.derived(stage.put.buffer), dtype, tuple(d.upper - d.lower for d in dims), "cache")
        known = {loop.axis for loop in stage.kept if loop not in dims}
        mask = tuple(m for m in stage.put.mask if not m.symbols & known)
        nothing = apply("mul", constant(0.0, dtype), rest)
        start = stage.around(Put(zeros.name, place, "=", neutral("+=", rest)), dims)
        end = self._end_of_search(ratio.rest, first, (*reduced, *dims), nothing, mask)
        make: list[Statement] = [Alloc(zeros), *self._fresh(start)]
        for lower, upper in outside:
            part = replace(first, lower=lower, upper=upper if end is None else minimum(upper, end))
            make += self._fresh(stage.around(Put(zeros.name, place, "+=", nothing, mask), (part, *reduced, *dims)))
        add = replace(stage.put, value=Load(zeros.name, place, dtype), mask=_without(stage.put.mask, stage))
        return tuple(make), self._fresh(stage.around(add, stage.kept))

    def _end_of_search(
        self, rest: Product, first: For, inner: tuple[For, ...], nothing: Expr, mask: Mask
    ) -> Size | None:
        """Where it is no use to look further for infinite and NaN factors: the end of the axis, or 0 if there are none
        at all. That is found out once, before the outermost loop that changes nothing about the factors; None where
        there is no such loop."""
        fixed: For | None = None
        read = {load.buffer for f in rest.factors for load in loads(f)}
        used = frozenset().union(*(f.symbols for f in rest.factors), *(m.symbols for m in mask))
        used |= frozenset().union(*(x.lower.symbols | x.upper.symbols for x in (first, *inner)))
        for loop in reversed(self.sweep.around):
            if loop.axis in used or read & written_in(loop.body):
                break
            fixed = loop
        if fixed is None:
            return None
        total = Buffer(self.names.derived("nothing"), nothing.dtype, (), "cache")
        end = Buffer(self.names.derived("end"), I64, (), "cache")
        found = apply("isnan", Load(total.name, (), nothing.dtype))
        body: Body = (Put(total.name, (), "+=", nothing, mask),)
        for loop in reversed((first, *inner)):
            body = (replace(loop, body=body),)
        self.hoisted[fixed.axis] = (
            *self.hoisted.get(fixed.axis, ()),
            *(Alloc(total), Put(total.name, (), "=", constant(0.0, nothing.dtype))),
            *self._fresh(body),
            *(Alloc(end), Put(end.name, (), "=", where(found, Index(first.upper), Index(Size.of(0))))),
        )
        return Size.opaque(Load(end.name, (), I64))

    def _fresh(self, body: Body) -> Body:
        """A nest with axes of its own."""
        return rename_axes(body, {loop.axis: self.names.derived(loop.axis) for loop in loops_in(body)})


@dataclass(frozen=True)
class _Follower:
    """A sum that follows a mean: the mean that it is relative to, the last change of that, and the sums of the
    coefficients of its polynomial but the first, which is that of the stage itself."""

    stage: Stage
    shift: Shift
    mean: Buffer
    step: Buffer
    more: tuple[Buffer, ...]

    def load(self, buffer: Buffer) -> Load:
        return Load(buffer.name, self.stage.put.indices, buffer.dtype)

    @property
    def moments(self) -> tuple[Load, ...]:
        return (Load(self.stage.put.buffer, self.stage.put.indices, self.step.dtype), *map(self.load, self.more))


def _with(value: Expr, old: Expr, new: Expr) -> Expr:
    """A value in which one part is another one."""
    return transform(value, rule=lambda e: new if e == old else None)


def _moved(moments: Sequence[Expr], n: int, step: Expr) -> Expr:
    """moments[n] after a step: the coefficient of d**n of the sum over m of moments[m] * (step + d)**m."""
    value = moments[-1]
    for m in range(len(moments) - 1, n, -1):
        step_m = step if n == 0 else apply("mul", constant(m / (m - n), step.dtype), step)
        value = apply("add", moments[m - 1], apply("mul", step_m, value))
    return value


def _without(mask: Mask, stage: Stage) -> Mask:
    """The conditions of a mask that do not depend on what a stage reduces."""
    reduced = {loop.axis for loop in stage.reduced}
    return tuple(m for m in mask if not m.symbols & reduced)

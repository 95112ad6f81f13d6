"""The step `online`: reductions over one axis go through it once, block by block, even if some need another one.

Where the maximum moves, the sums so far are multiplied by the ratio of old and new summands (`sweeps.py`).
Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, https://arxiv.org/abs/1805.02867.

Where a sum is about differences from a mean, they are first those from the mean of what was seen, which the sum then
follows from block to block. A result that is not finite is computed again as it was before.
Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from intarsia.ir.dtypes import I64
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import FIXED, Alloc, Buffer, For, Kernel, Put, Statement
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.scalar import Const, Expr, Index, Load, Mask, apply, cast, constant, loads, where
from intarsia.ir.schedule import Online
from intarsia.ir.sizes import Size, minimum
from intarsia.passes.schedule.dependence import commute, conflicts, describe, may_meet
from intarsia.passes.schedule.domains import unchanged_in
from intarsia.passes.schedule.masks import neutral
from intarsia.passes.schedule.products import Product
from intarsia.passes.schedule.rescaling import SweepWriter, home_of, moved, require_order, with_part, without_reduced
from intarsia.passes.schedule.stages import Stage
from intarsia.passes.schedule.sweeps import Shift, Sweep, find_sweep, finite, finite_part
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    change_loads,
    find_buffer,
    replace_block,
    replace_loop,
    substitute,
)


def online(kernel: Kernel, step: Online) -> Kernel:
    """See `Online`."""
    find_buffer(kernel, step.buffer)
    block, around = home_of(kernel, step.buffer)
    sweep = find_sweep(kernel, step.buffer, block, around)
    for own in (x for stage, axis in sweep.axes.items() for x in stage.loops if x.axis == axis):
        if own.kind in FIXED:
            raise ScheduleError(f"{own.axis} is {own.kind}, and its blocks differ in length")
    require_order(kernel, sweep, block)
    _require_blocks(kernel, sweep)
    names = NameSource(kernel)
    axis = names.claim(step.names[0]) if step.names else names.derived(sweep.axes[sweep.state])
    writer = _Writer(kernel, sweep, names, axis, step.size)
    new = replace_block(kernel, block, writer.block(block))
    for loop, statements in writer.hoisted.items():
        new = replace_loop(new, loop, lambda found, first=statements: (*first, found))  # type: ignore[misc]
    return new


def _require_blocks(kernel: Kernel, sweep: Sweep) -> None:
    """No earlier block of a stage may depend on a later block of another one. That the sums need the maximum is what
    the step is for."""
    volatile = written_in(s.statement for s in sweep.axes)
    steps = For("'block", sweep.domain.lower, sweep.domain.upper, ())
    around = (*sweep.around, steps)
    found = [list(accesses(_one_block(stage, axis, steps.axis), around)) for stage, axis in sweep.axes.items()]
    for n, one in enumerate(found):
        for other in found[n + 1 :]:
            for a, b in conflicts(one, other):
                if a.buffer == sweep.state.put.buffer or commute(a, b):
                    continue
                if may_meet(kernel, a, b, {steps.axis: ">"}, sweep.around, volatile):
                    raise ScheduleError(f"{describe((a, b))} cross blocks")


def _one_block(stage: Stage, axis: str, block: str) -> Body:
    """What a stage does at one value of its axis."""
    body = stage.around(stage.put, (loop for loop in stage.loops if loop.axis != axis))
    return substitute(body, {axis: Size.of(block)})


class _Writer(SweepWriter):
    """Writes the block of statements anew, as a sweep over blocks of `size` along `axis`."""

    def __init__(self, kernel: Kernel, sweep: Sweep, names: NameSource, axis: str, size: int) -> None:
        super().__init__(kernel, sweep, names)
        self.axis = axis
        self.size = size
        self.hoisted: dict[str, Body] = {}
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
        skipped = [self._skipped(stage, ratio.rest) for stage, ratio in sweep.ratios.items()]
        if sweep.masked is not None:
            skipped.append(self._skipped(sweep.state, sweep.masked))
        return (
            *(s for s in block if isinstance(s, Alloc)),
            *(s.statement for s in (*sweep.before, *sweep.initial)),
            *(s for make, _ in skipped for s in make),
            *self._unshifted(),
            self._loop(),
            *(s for f in self.followers.values() for s in self.as_before(f.stage)),
            *(s for _, use in skipped for s in use),
            *(s for stage, ratio in sweep.ratios.items() for s in self.of_nothing(stage, ratio)),
            *(s.statement for s in sweep.after),
        )

    def _loop(self) -> For:
        """The loop over blocks."""
        domain = self.sweep.domain
        rescaled = bool(self.sweep.ratios)
        body: list[Statement] = [Alloc(b) for b in (self.old, self.shift, *self.scales.values()) if rescaled]
        for stage, axis in self.sweep.axes.items():
            if stage is self.sweep.state and rescaled:
                body += self.per_row(stage, self.old.name, self.state.indices, "=", self.held)
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
                    body += self.per_row(stage, stage.put.buffer, stage.put.indices, "*=", scale)
                body += change_loads(self._part(stage, axis), self._shifted)
        return For(self.axis, domain.lower, domain.upper, tuple(body), "seq", self.size)

    def _moved(self) -> Body:
        """After the maximum of a block: what summands are relative to (any number will do as long as there is only
        -inf: they are 0), and the ratio of the new summands to the old ones."""
        stage, held = self.sweep.state, self.held
        old = replace(held, buffer=self.old.name)
        body = self.per_row(stage, self.shift.name, held.indices, "=", finite(held))
        for ratio in {r.key: r for r in self.sweep.ratios.values()}.values():
            body += self.per_row(stage, self.scales[ratio.key].name, held.indices, "=", ratio.change(old, held))
        return body

    def _shifted(self, e: Expr) -> Expr | None:
        if isinstance(e, Load) and e.buffer == self.state.buffer:
            return replace(e, buffer=self.shift.name)
        inner = finite_part(e)
        return inner if isinstance(inner, Load) and inner.buffer == self.shift.name else None

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

    # ------------------------------------------------------------------ sums that follow a mean

    def _unshifted(self) -> Body:
        """Before the first block every sum is relative to 0, and so are those of the other coefficients."""
        body: list[Statement] = []
        for f in self.followers.values():
            body += (Alloc(f.mean), Alloc(f.step), *map(Alloc, f.more))
            for buffer in (f.mean, *f.more):
                body += self.per_row(f.stage, buffer.name, f.stage.put.indices, "=", constant(0.0, buffer.dtype))
        return tuple(body)

    def _shifted_sums(self) -> Body:
        """After the sum of a block: the mean of what was seen so far, and the sums relative to that."""
        domain, dtype = self.sweep.domain, self.state.value.dtype
        seen = Size.of(self.axis) - domain.lower + self._width
        scale = apply("div", *(cast(dtype, Index(n)) for n in (domain.upper - domain.lower, seen)))
        body: Body = ()
        for f in self.followers.values():
            put, estimate = f.stage.put, apply("mul", f.shift.state, scale)
            mean = with_part(f.shift.mean, f.shift.state, estimate)
            step = f.load(f.step)
            body += self.per_row(f.stage, step.buffer, put.indices, "=", apply("sub", mean, f.load(f.mean)))
            body += self.per_row(f.stage, f.mean.name, put.indices, "+=", step)
            for n, moment in enumerate(f.moments[:-1]):
                body += self.per_row(f.stage, moment.buffer, put.indices, "=", moved(f.moments, n, step))
        return body

    def _moments(self, f: _Follower, axis: str) -> Body:
        """What a block adds to the sums of all coefficients."""
        stage = f.stage
        everywhere = len(stage.reduced) == 1 and stage.put.mask == without_reduced(stage.put.mask, stage)
        body: Body = ()
        for moment, coefficient in zip(f.moments, f.shift.polynomial.coefficients):
            value = with_part(coefficient, f.shift.mean, f.load(f.mean))
            if isinstance(value, Const) and everywhere:
                count = apply("mul", value, cast(value.dtype, Index(self._width)))
                body += self.per_row(stage, moment.buffer, moment.indices, "+=", count)
            else:
                body += self.fresh(self._part(stage, axis, replace(stage.put, buffer=moment.buffer, value=value)))
        return body

    # ------------------------------------------------------------------ what is left out

    def _skipped(self, stage: Stage, factors: Product) -> tuple[Body, Body]:
        """What the blocks that are left out add to a sum: 0 times its other factors, which is NaN where one of these
        is infinite or NaN. The statements that sum that up, for all rows at once, and those that add it."""
        first = next(loop for loop in stage.loops if loop.axis == self.sweep.axes[stage])
        outside = self.sweep.domain.outside(first)
        rest = factors.value(stage.put.value.dtype)
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
        end = self._end_of_search(factors, first, (*reduced, *dims), nothing, mask)
        make: list[Statement] = [Alloc(zeros), *self.fresh(start)]
        for lower, upper in outside:
            part = replace(first, lower=lower, upper=upper if end is None else minimum(upper, end))
            make += self.fresh(stage.around(Put(zeros.name, place, "+=", nothing, mask), (part, *reduced, *dims)))
        add = replace(stage.put, value=Load(zeros.name, place, dtype), mask=without_reduced(stage.put.mask, stage))
        return tuple(make), self.fresh(stage.around(add, stage.kept))

    def _end_of_search(
        self, rest: Product, first: For, inner: tuple[For, ...], nothing: Expr, mask: Mask
    ) -> Size | None:
        """Where it is no use to look further for infinite and NaN factors: the end of the axis, or 0 if there are none
        at all. That is found out once, before the outermost loop that changes nothing about the factors; None where
        there is no such loop."""
        read = {load.buffer for f in rest.factors for load in loads(f)}
        used = frozenset().union(*(f.symbols for f in rest.factors), *(m.symbols for m in mask))
        used |= frozenset().union(*(x.lower.symbols | x.upper.symbols for x in (first, *inner)))
        fixed = unchanged_in(self.sweep.around, used, read)
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
            *self.fresh(body),
            *(Alloc(end), Put(end.name, (), "=", where(found, Index(first.upper), Index(Size.of(0))))),
        )
        return Size.opaque(Load(end.name, (), I64))


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

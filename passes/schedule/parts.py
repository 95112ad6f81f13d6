"""The step `parts`: reductions over one axis are made of parts of it side by side, even if some need another one.

Each part has its own maximum, and sums relative to that. Merging them is the same reduction again, over the parts: the
maximum of the maxima, and the sums of the sums times the ratio of their summands to those of the whole (`sweeps.py`).
Source: Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html.

Sums of differences from a mean are first those from the mean of a part, and follow it to that of the whole.
Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Put, Statement
from intarsia.ir.scalar import Apply, Const, Expr, Index, Load, apply, cast, constant, transform, where
from intarsia.ir.schedule import Parts
from intarsia.ir.sizes import ZERO, Size, minimum
from intarsia.passes.schedule.masks import guard, neutral
from intarsia.passes.schedule.rescaling import SweepWriter, home_of, moved, require_order, with_part, without_reduced
from intarsia.passes.schedule.stages import Stage
from intarsia.passes.schedule.storage import never_negative
from intarsia.passes.schedule.sweeps import Shift, Sweep, find_sweep, finite, finite_part
from intarsia.passes.schedule.tree import Body, NameSource, find_buffer, rename_axes, replace_block, substitute


def parts(kernel: Kernel, step: Parts) -> Kernel:
    """See `Parts`."""
    find_buffer(kernel, step.buffer)
    block, around = home_of(kernel, step.buffer)
    sweep = find_sweep(kernel, step.buffer, block, around)
    require_order(kernel, sweep, block)
    whole = sweep.state.reduced[0]
    for stage, axis in sweep.axes.items():
        (own,) = (loop for loop in stage.loops if loop.axis == axis)
        if own.kind != "seq" or own.step != 1 or own.upper.opaques or own.lower.opaques:
            raise ScheduleError(f"{own.axis} is no plain loop that could have parts")
        if any(loop.kind == "grid" for loop in stage.loops):
            raise ScheduleError("programs of a launch cannot stand inside the loop over parts")
    names = NameSource(kernel)
    axis = names.claim(step.names[0]) if step.names else ""
    return replace_block(kernel, block, _Writer(kernel, sweep, names, whole, step.size, axis).block(block))


@dataclass(frozen=True)
class _Moments:
    """A sum that follows a mean: the mean of each part, and the sums of the coefficients of its polynomial in it."""

    shift: Shift
    mean: Buffer
    sums: tuple[Buffer, ...]


class _Writer(SweepWriter):
    """Writes the block of statements anew, in parts of `size`. The loops over parts are called after `axis`."""

    def __init__(self, kernel: Kernel, sweep: Sweep, names: NameSource, whole: For, size: int, axis: str) -> None:
        super().__init__(kernel, sweep, names)
        self.kernel = kernel
        self.whole = whole
        self.size = size
        self.axis = axis
        extent = whole.upper - whole.lower
        self.count = (extent + (size - 1)) // size
        self.is_exact = all(c % size == 0 for _, c in extent.terms)
        self.of_parts = {stage: self._for_parts(stage) for stage in self._reducing}
        self.moments = {
            stage: _Moments(
                shift,
                self._for_parts(stage),
                (self.of_parts[stage], *(self._for_parts(stage) for _ in shift.polynomial.coefficients[1:])),
            )
            for stage, shift in sweep.shifts.items()
        }
        self.kept = {
            buffer.name: replace(buffer, name=names.derived(stage.put.buffer))
            for stage in self._reducing
            for buffer in self._made(stage)
        }
        self.scales = {r.key: self._for_parts(sweep.state) for r in sweep.ratios.values()}

    @property
    def _reducing(self) -> list[Stage]:
        return [s for s, axis in self.sweep.axes.items() if axis in {loop.axis for loop in s.reduced}]

    def _for_parts(self, stage: Stage) -> Buffer:
        """A temporary with an element for each part, of each element of what a stage reduces."""
        own, around = self.buffers[stage.put.buffer], self.sweep.around
        memory = own.memory if around and own.memory != "register" else "cache" if around else "global"
        shape = never_negative(self.kernel, (self.count, *own.shape), around)
        return Buffer(self.names.derived(own.name), own.dtype, shape, memory)

    def _made(self, stage: Stage) -> tuple[Buffer, ...]:
        """What is made of each part for a reduction."""
        found = self.moments.get(stage)
        return (self.of_parts[stage],) if found is None else (found.mean, *found.sums)

    def block(self, block: Body) -> Body:
        """The new statements."""
        sweep = self.sweep
        return (
            *(s for s in block if isinstance(s, Alloc)),
            *(Alloc(b) for stage in self._reducing for b in self._made(stage)),
            *map(Alloc, (*self.kept.values(), *self.scales.values())),
            *(s.statement for s in sweep.before),
            *(s for stage, axis in sweep.axes.items() for s in self._of_parts(stage, axis)),
            *(s for stage in self._reducing for s in self._copied(stage)),
            *(s.statement for s in sweep.initial),
            *(s for stage in self._reducing for s in self._merged(stage)),
            *(s for stage in sweep.shifts for s in self.as_before(stage)),
            *(s for stage, ratio in sweep.ratios.items() for s in self.of_nothing(stage, ratio)),
            *(s.statement for s in sweep.after),
        )

    # ------------------------------------------------------------------ parts

    def _part(self) -> str:
        """The name of one more loop over parts."""
        name, self.axis = self.axis or self.names.derived(self.whole.axis), ""
        return name

    def _over_parts(self, part: str, body: Body) -> Body:
        return (For(part, ZERO, self.count, body),)

    def _of_parts(self, stage: Stage, axis: str) -> Body:
        """What a stage does, part by part; a reduction begins anew in each."""
        if stage in self.moments:
            return self._of_moments(stage, axis, self.moments[stage])
        part, own = self._part(), stage.put
        put = replace(own, value=self._relative(own.value, part))
        if stage not in self.of_parts:
            return self._over_parts(part, self._of_part(stage, axis, put, part))
        buffer, place = self.of_parts[stage].name, (Size.of(part), *own.indices)
        numbers = own.numbers or (stage is self.sweep.state and self.sweep.shows_nan)
        put = replace(put, buffer=buffer, indices=place, numbers=numbers)
        initial = self._set(stage, buffer, neutral(own.operator, own.value), self._part())
        return (*initial, *self._over_parts(part, self._of_part(stage, axis, put, part)))

    def _set(self, stage: Stage, buffer: str, value: Expr, part: str) -> Body:
        """Write a number for each part of each row of a stage."""
        return self._over_parts(part, self.per_row(stage, buffer, (Size.of(part), *stage.put.indices), "=", value))

    def _of_part(self, stage: Stage, axis: str, put: Put, part: str) -> Body:
        """The loops of a stage around another write, along a part of its axis."""
        body: Body = (put,)
        if not self.is_exact:
            body = guard(body, axis, (self.whole.upper - axis,))
        start = self.whole.lower + Size.of(part) * self.size
        body = substitute(body, {axis: start + axis})
        for loop in reversed(stage.loops):
            if loop.axis == axis:
                loop = replace(loop, lower=ZERO, upper=Size.of(self.size))
            body = (replace(loop, body=body),)
        return body

    def _relative(self, value: Expr, part: str) -> Expr:
        """A value relative to the maximum of a part instead of the whole one."""
        if not self.sweep.ratios:
            return value
        name = self.of_parts[self.sweep.state].name

        def rule(e: Expr) -> Expr | None:
            match e:
                case Load() if e.buffer == self.state.buffer:
                    return finite(self._at(e, name, part))
                case Apply("where", (Apply("isinf", (tested,)), Const() as number, other)) if tested == other:
                    inner = finite_part(other)
                    if isinstance(inner, Load) and inner.buffer == name:  # the number stands for -inf already
                        return where(apply("isinf", inner), number, inner)
            return None

        return transform(value, rule=rule)

    def _at(self, load: Load, buffer: str, part: str) -> Load:
        return replace(load, buffer=buffer, indices=(Size.of(part), *load.indices))

    # ------------------------------------------------------------------ sums that follow a mean

    def _of_moments(self, stage: Stage, axis: str, found: _Moments) -> Body:
        """The means of parts, and the sums of all coefficients of a polynomial in them."""
        part = self._part()
        state = self._at(found.shift.state, self.of_parts[self.sweep.state].name, part)
        scale = apply(
            "div", self._number(self.whole.upper - self.whole.lower, state), self._number(self._seen(part), state)
        )
        mean = with_part(found.shift.mean, found.shift.state, apply("mul", state, scale))
        body = [*self._set(stage, found.mean.name, mean, part)]
        everywhere = len(stage.reduced) == 1 and stage.put.mask == without_reduced(stage.put.mask, stage)
        for buffer, coefficient in zip(found.sums, found.shift.polynomial.coefficients):
            part = self._part()
            if isinstance(coefficient, Const) and everywhere:
                total = apply("mul", coefficient, self._number(self._seen(part), coefficient))
                body += self._set(stage, buffer.name, total, part)
                continue
            place = (Size.of(part), *stage.put.indices)
            value = with_part(coefficient, found.shift.mean, Load(found.mean.name, place, found.mean.dtype))
            put = replace(stage.put, buffer=buffer.name, indices=place, value=value)
            body += self._set(stage, buffer.name, constant(0.0, state.dtype), self._part())
            body += self._over_parts(part, self.fresh(self._of_part(stage, axis, put, part)))
        return tuple(body)

    def _seen(self, part: str) -> Size:
        """The elements of a part."""
        rest = self.whole.upper - self.whole.lower - Size.of(part) * self.size
        return Size.of(self.size) if self.is_exact else minimum(self.size, rest)

    def _number(self, size: Size, like: Expr) -> Expr:
        return cast(like.dtype, Index(size))

    # ------------------------------------------------------------------ merging

    def _copied(self, stage: Stage) -> Body:
        """Keep what the parts give for a reduction."""
        body: list[Statement] = []
        for buffer in self._made(stage):
            part = self._part()
            held = Load(buffer.name, (Size.of(part), *stage.put.indices), buffer.dtype)
            body += self._set(stage, self.kept[buffer.name].name, held, part)
        return tuple(body)

    def _of(self, buffer: Buffer, place: tuple[Size, ...]) -> Load:
        return Load(self.kept[buffer.name].name, place, buffer.dtype)

    def _merged(self, stage: Stage) -> Body:
        """What all parts give together."""
        part, own = self._part(), stage.put
        place = (Size.of(part), *own.indices)
        value: Expr = self._of(self.of_parts[stage], place)
        if stage in self.sweep.ratios:
            ratio = self.sweep.ratios[stage]
            value = apply("mul", value, self._at(ratio.maximum, self.scales[ratio.key].name, part))
        elif stage in self.moments:
            found = self.moments[stage]
            sums = [self._of(b, place) for b in found.sums]
            value = moved(sums, 0, apply("sub", found.shift.mean, self._of(found.mean, place)))
        numbers = own.numbers or (stage is self.sweep.state and self.sweep.shows_nan)
        put = Put(own.buffer, own.indices, own.operator, value, without_reduced(own.mask, stage), numbers=numbers)
        body = self._over_parts_inside(stage, part, put)
        return (*body, *self._scales()) if stage is self.sweep.state else body

    def _scales(self) -> Body:
        """The ratios of summands relative to the maximum of a part to those relative to the whole one."""
        body: list[Statement] = []
        stage, indices = self.sweep.state, self.state.indices
        for ratio in {r.key: r for r in self.sweep.ratios.values()}.values():
            part = self._part()
            value = ratio.change(self._of(self.of_parts[stage], (Size.of(part), *indices)), self.held)
            put = Put(self.scales[ratio.key].name, (Size.of(part), *indices), "=", value)
            body += self._over_parts_inside(stage, part, replace(put, mask=without_reduced(stage.put.mask, stage)))
        return tuple(body)

    def _over_parts_inside(self, stage: Stage, part: str, put: Put) -> Body:
        """A write for each part, inside the loops over the rows of a stage."""
        body = self._over_parts(part, (put,))
        for loop in reversed(stage.kept):
            body = (replace(loop, body=body),)
        return rename_axes(body, {loop.axis: self.names.derived(loop.axis) for loop in stage.kept})

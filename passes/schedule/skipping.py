"""The step `skip`: a loop that adds to sums leaves out the iterations in which masks make all of it 0.

    for i in 0..N { for j in 0..M { y[j] += exp(where(i >= j, x[i, j], -inf) - m[i]) * g[i] } }

Where the mask fails, `exp(-inf - m[i]) * g[i]` is added. That is 0 unless m[i] is -inf or NaN, or g[i] infinite or NaN.
Both change along one side only, so that all of them are looked at before the loop, which leaves out nothing if any of
them is so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce

from intarsia.ir.dtypes import F32, I64
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Put, Statement
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Index, Load, Mask, apply, constant, loads, transform, where
from intarsia.ir.schedule import Skip
from intarsia.ir.sizes import Extremum, Size, maximum, minimum
from intarsia.passes.schedule.domains import Domain, conditions_in, domain_within, needed, unchanged_in
from intarsia.passes.schedule.shape import points
from intarsia.passes.schedule.stages import Stage, definitions_in, expand, stages_in
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    allocated_in,
    copy_body,
    extreme,
    facts_for,
    find_loop,
    replace_loop,
)

LITTLE = 8
"""What is looked at is at most one in so many of the points that a sum goes through."""


@dataclass(frozen=True)
class Zero:
    """A value that has to be 0 wherever loops go and a mask holds."""

    value: Expr
    loops: tuple[For, ...]
    mask: Mask

    @property
    def symbols(self) -> frozenset[str]:
        sizes = (*self.mask, *(end for x in self.loops for end in (x.lower, x.upper)))
        return self.value.symbols.union(*(size.symbols for size in sizes))


def skip(kernel: Kernel, step: Skip) -> Kernel:
    """See `Skip`."""
    loop, around = find_loop(kernel, step.axis)
    found = [_zeros(stage, loop) for stage in _sums(loop)]
    conditions = [c for c in found[0] if all(c in zeros for zeros in found)]
    domain = domain_within(loop, conditions, facts_for(kernel, around))
    if not domain.outside(loop):
        raise ScheduleError("no mask makes all that an iteration adds 0")
    needed_zeros = dict.fromkeys(z for zeros in found for c in conditions for z in zeros[c])
    return _bounded(kernel, loop, around, domain, needed_zeros)


def _sums(loop: For) -> tuple[Stage, ...]:
    """The sums to which the iterations of a loop add. Raises ScheduleError if they do anything else."""
    stages = stages_in(loop.body)
    if not isinstance(stages, tuple) or loop.step != 1 or loop.kind != "seq":
        raise ScheduleError("it is no loop over stages")
    local = allocated_in(loop.body)
    sums = tuple(s for s in stages if s.put.buffer not in local)
    results = {s.put.buffer for s in sums}
    if not sums or any(s.put.operator != "+=" for s in sums):
        raise ScheduleError("its iterations do more than to add to sums")
    if used := sorted(x.buffer for s in stages for x in s.reads if x.buffer in results):
        raise ScheduleError(f"its iterations need {used[0]}")
    return sums


# ---------------------------------------------------------------------- where nothing is added


def _zeros(stage: Stage, loop: For) -> Mapping[Size, tuple[Zero, ...]]:
    """Conditions on the axis of a loop: in an iteration where one of them is less than 1, a sum adds nothing, provided
    that some values, which are little work, are 0."""
    stages = stages_in(loop.body)
    assert isinstance(stages, tuple)
    local = allocated_in(loop.body)
    value = expand(stage, definitions_in(stages, local))
    inner = [_widest(x, loop.axis) for x in stage.loops]
    found: dict[Size, tuple[Zero, ...]] = {}
    for condition in conditions_in(value):
        best = extreme(condition, inner, greatest=True)
        if best is None or best.opaques or not best.coefficient(loop.axis):
            continue
        zeros = tuple(_zero(e, stage, loop) for e in _vanishing(value, condition))
        is_little = all(LITTLE * points(z.loops) <= points((loop, *stage.loops)) for z in zeros)
        if is_little and not any(x.buffer in local for z in zeros for x in loads(z.value)):
            found.setdefault(best, zeros)
    return found


def _zero(value: Expr, stage: Stage, loop: For) -> Zero:
    """What has to be 0, with the loops of a stage and the one around it along which that changes, in the order in which
    it is read, and the conditions that the stage has there."""
    everything = (loop, *stage.loops)
    symbols, more = frozenset[str](), value.symbols
    loops: list[For] = []
    mask: Mask = ()
    while symbols != more:
        symbols = more
        loops = [x for x in everything if x.axis in symbols]
        mask = tuple(m for m in stage.put.mask if any(x.axis in m.symbols for x in loops))
        more = symbols.union(*(x.lower.symbols | x.upper.symbols for x in loops), *(m.symbols for m in mask))
    places = [(n, index.symbols) for load in loads(value) for n, index in enumerate(load.indices)]
    loops.sort(key=lambda x: max((n for n, names in places if x.axis in names), default=0))
    return Zero(value, tuple(loops), mask)


def _without(value: Expr, condition: Size) -> Expr:
    """A value where a condition fails."""

    def choose(e: Expr) -> Expr | None:
        match e:
            case Apply("where", (test, then, otherwise)):
                if condition in needed(test, True):
                    return otherwise
                if condition in needed(test, False):
                    return then
        return None

    return transform(value, rule=choose)


def _vanishing(value: Expr, condition: Size) -> Iterator[Expr]:
    """What has to be 0 for a value to be 0 where a condition fails."""
    rest = _without(value, condition)
    match value, rest:
        case _, Const(0):
            return
        case Apply("mul", (left, right)), Apply("mul", (one, other)):
            chosen, factor = (left, other) if one != left else (right, one)
            yield from _vanishing(chosen, condition)
            if not isinstance(factor, Const) or not math.isfinite(factor.value):
                yield apply("mul", constant(0, factor.dtype), factor)
        case Apply("div", (left, _)), Apply("div", (one, other)) if one != left and value.dtype.is_float:
            yield from _vanishing(left, condition)
            yield apply("div", constant(0, other.dtype), other)
        case Apply("neg", (inner,)), _:
            yield from _vanishing(inner, condition)
        case Cast(_, inner), _:
            yield from _vanishing(inner, condition)
        case _:
            yield rest


def _widest(inner: For, axis: str) -> For:
    """A loop with the most iterations that it has, whatever the axis of one around it."""
    most = [a for x in inner.upper.atoms() if isinstance(x, Extremum) for a in x.arguments]
    numbers = [a for a in most if a.constant is not None]
    is_cut = bool(numbers) and axis in inner.upper.symbols and inner.upper == minimum(*most)
    return replace(inner, upper=numbers[0]) if is_cut else inner


# ---------------------------------------------------------------------- writing


def _bounded(kernel: Kernel, loop: For, around: tuple[For, ...], domain: Domain, zeros: Iterable[Zero]) -> Kernel:
    """The kernel with a loop within a domain, or as long as it was where some value is not 0. They are looked at before
    the outermost loop that changes nothing about them."""
    names = NameSource(kernel)
    before: dict[str, list[Statement]] = {}
    totals: dict[str, Load] = {}
    for zero in zeros:
        place = (unchanged_in(around, zero.symbols, {x.buffer for x in loads(zero.value)}) or loop).axis
        if place not in totals:
            totals[place] = Load(names.derived("something"), (), F32)
            start = Put(totals[place].buffer, (), "=", constant(0.0, F32))
            before[place] = [Alloc(Buffer(totals[place].buffer, F32, (), "cache")), start]
        holds = apply("eq", zero.value, constant(0, zero.value.dtype))
        found = where(holds, constant(0.0, F32), constant(1.0, F32))
        body: Body = (Put(totals[place].buffer, (), "max=", found, zero.mask),)
        for x in reversed(zero.loops):
            body = (replace(x, body=body),)
        before[place] += copy_body(kernel, body, names)
    some = [apply("gt", total, constant(0.0, F32)) for total in totals.values()]

    def end(whole: Size, otherwise: Size) -> Size:
        """An end of the loop: one or the other, as what was looked at says."""
        buffer = Buffer(names.derived("end"), I64, (), "cache")
        value = where(reduce(lambda a, b: apply("or", a, b), some), Index(whole), Index(otherwise))
        before.setdefault(loop.axis, []).extend((Alloc(buffer), Put(buffer.name, (), "=", value)))
        return Size.opaque(Load(buffer.name, (), I64))

    lower, upper = domain.lower, domain.upper
    if some and lower != loop.lower:
        lower = maximum(loop.lower, minimum(lower, end(loop.lower, loop.upper)))
    if some and upper != loop.upper:
        upper = minimum(loop.upper, maximum(upper, end(loop.upper, loop.lower)))
    kernel = replace_loop(kernel, loop.axis, lambda x: replace(x, lower=lower, upper=upper))
    for axis, statements in before.items():
        kernel = replace_loop(kernel, axis, lambda x, first=statements: (*first, x))  # type: ignore[misc]
    return kernel

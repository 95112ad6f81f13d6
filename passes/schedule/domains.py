"""Where a masked reduction has any effect: the part of its axis to which a block of rows is bound."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from intarsia.ir.kernel import For
from intarsia.ir.kernel_access import written_in
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Mask, constant, walk
from intarsia.ir.sizes import Size, maximum, minimum
from intarsia.passes.schedule.masks import affine_mask, neutral
from intarsia.passes.schedule.stages import Stage
from intarsia.passes.schedule.tree import extreme


@dataclass(frozen=True)
class Domain:
    """The values of an axis from `lower` to `upper`, of those of a loop."""

    lower: Size
    upper: Size

    def outside(self, loop: For) -> tuple[tuple[Size, Size], ...]:
        """The ranges of the loop that it leaves out."""
        parts = ((loop.lower, self.lower), (self.upper, loop.upper))
        return tuple((a, b) for a, b in parts if a != b)


def domain_of(value: Expr, state: Stage, facts: Facts) -> Domain:
    """Where on its outermost reduction axis a reduction may change its result. `facts` hold for the rows."""
    inner = (*state.kept, *state.reduced[1:])
    conditions = _conditions(value, neutral(state.put.operator, state.put.value))
    best = (extreme(c, inner, greatest=True) for c in conditions)
    return domain_within(state.reduced[0], [b for b in best if b is not None], facts)


def domain_within(loop: For, conditions: Iterable[Size], facts: Facts) -> Domain:
    """Where on the axis of a loop all of some conditions are more than 0, of which those that data decides do not
    count. `facts` hold around it."""
    lower, upper = loop.lower, loop.upper
    for condition in conditions:
        slope = condition.coefficient(loop.axis) if not condition.opaques else None
        if not slope:
            continue
        rest = condition - Size.of(loop.axis) * slope  # rest + slope * axis > 0
        end = (rest - 1) // -slope + 1 if slope < 0 else (-rest) // slope + 1
        if slope < 0 and not facts.proves(end - loop.upper):
            upper = minimum(upper, end)
        elif slope > 0 and not facts.proves(loop.lower - end):
            lower = maximum(lower, end)
    if not facts.proves(loop.upper - lower):
        lower = minimum(lower, loop.upper)
    if not facts.proves(upper - loop.lower):
        upper = maximum(upper, loop.lower)
    return Domain(lower, upper)


def unchanged_in(around: Sequence[For], used: Collection[str], read: Collection[str]) -> For | None:
    """The outermost of some loops of which it and those inside it change nothing about what uses these names and reads
    these buffers."""
    found: For | None = None
    for loop in reversed(around):
        if loop.axis in used or not written_in(loop.body).isdisjoint(read):
            break
        found = loop
    return found


def is_masked(value: Expr, state: Stage) -> bool:
    """Do masks, which no data decides, leave out parts of the outermost reduction axis?"""
    axis = state.reduced[0].axis
    conditions = _conditions(value, neutral(state.put.operator, state.put.value))
    return any(axis in c.symbols and not c.opaques for c in conditions)


def has_conditions(value: Expr, nothing: Const) -> bool:
    """Do conditions make a value the neutral element?"""
    return bool(_conditions(value, nothing))


def _conditions(value: Expr, nothing: Const) -> Mask:
    """Conditions without any of which a value is the neutral element, as a mask."""
    match value:
        case Apply("where", (condition, inner, Const() as number)) if number == nothing:
            return (*needed(condition, True), *_conditions(inner, nothing))
        case Apply("where", (condition, Const() as number, inner)) if number == nothing:
            return (*needed(condition, False), *_conditions(inner, nothing))
        case Apply("mul", (inner, Const(number))) | Apply("mul", (Const(number), inner)):
            return _conditions(inner, nothing) if number > 0 and nothing.value == float("-inf") else ()
        case Cast(_, inner) if nothing.value == 0:
            return _conditions(inner, constant(0, inner.dtype))
    return ()


def conditions_in(value: Expr) -> Mask:
    """The conditions on axes that choices in a value depend on: that they hold, or that they do not."""
    found: dict[Size, None] = {}
    for e in walk(value):
        match e:
            case Apply("where", (test, _, _)):
                found |= dict.fromkeys((*needed(test, True), *needed(test, False)))
    return tuple(found)


def needed(condition: Expr, holds: bool) -> Mask:
    """What a condition that holds, or does not, needs of the axes; the rest of it may depend on data."""
    match condition:
        case Apply("not", (inner,)):
            return needed(inner, not holds)
        case Apply("and" | "or" as name, (left, right)) if (name == "and") == holds:
            return (*needed(left, holds), *needed(right, holds))
    return affine_mask(condition, holds) or ()

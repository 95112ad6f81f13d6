"""Where a masked reduction has any effect: the part of its axis to which a block of rows is bound."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.kernel import For
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Mask, constant
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
    first = state.reduced[0]
    inner = (*state.kept, *state.reduced[1:])
    lower, upper = first.lower, first.upper
    for condition in _conditions(value, neutral(state.put.operator, state.put.value)):
        best = extreme(condition, inner, greatest=True)
        slope = best.coefficient(first.axis) if best is not None and not best.opaques else None
        if best is None or not slope:
            continue
        rest = best - Size.of(first.axis) * slope  # rest + slope * axis > 0
        end = (rest - 1) // -slope + 1 if slope < 0 else (-rest) // slope + 1
        if slope < 0 and not facts.proves(end - first.upper):
            upper = minimum(upper, end)
        elif slope > 0 and not facts.proves(first.lower - end):
            lower = maximum(lower, end)
    if not facts.proves(first.upper - lower):
        lower = minimum(lower, first.upper)
    if not facts.proves(upper - first.lower):
        upper = maximum(upper, first.lower)
    return Domain(lower, upper)


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
            return (*_needed(condition, True), *_conditions(inner, nothing))
        case Apply("where", (condition, Const() as number, inner)) if number == nothing:
            return (*_needed(condition, False), *_conditions(inner, nothing))
        case Apply("mul", (inner, Const(number))) | Apply("mul", (Const(number), inner)):
            return _conditions(inner, nothing) if number > 0 and nothing.value == float("-inf") else ()
        case Cast(_, inner) if nothing.value == 0:
            return _conditions(inner, constant(0, inner.dtype))
    return ()


def _needed(condition: Expr, holds: bool) -> Mask:
    """What a condition that holds, or does not, needs of the axes; the rest of it may depend on data."""
    match condition:
        case Apply("not", (inner,)):
            return _needed(inner, not holds)
        case Apply("and" | "or" as name, (left, right)) if (name == "and") == holds:
            return (*_needed(left, holds), *_needed(right, holds))
    return affine_mask(condition, holds) or ()

"""The step that walks a sweep in place along its diagonals.

After Lamport, "The parallel execution of DO loops", Communications of the ACM 17(2), 1974: the hyperplane method, for
two loops.
"""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For, Kernel
from intarsia.ir.proofs import simplify
from intarsia.ir.schedule import Reorder, Skew, Wavefront
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.dependence import carried_dependence, describe
from intarsia.passes.schedule.loops import reorder, skew
from intarsia.passes.schedule.tree import Body, NameSource, copy_body, facts_for, find_loop, replace_loop


def wavefront(kernel: Kernel, step: Wavefront) -> Kernel:
    """See `Wavefront`."""
    outer, around = find_loop(kernel, step.outer)
    inner = outer.body[0] if len(outer.body) == 1 else None
    if not isinstance(inner, For) or inner.axis != step.inner:
        raise ScheduleError(f"{step.inner} is not alone in {step.outer}")
    if step.factor < 1 or outer.step != 1 or inner.step != 1:
        raise ScheduleError("the factor is at least 1, and so is the step of both loops")
    kernel = skew(kernel, Skew(step.inner, step.outer, step.factor))
    kernel = reorder(kernel, Reorder((step.inner, step.outer)))
    front, nest = find_loop(kernel, step.outer)
    if pair := carried_dependence(kernel, front, nest, reductions=False):
        raise ScheduleError(f"points of a diagonal meet at {describe(pair)}")
    full = _full(kernel, outer, inner, around, step.factor)
    if full is None:
        return kernel
    return replace_loop(kernel, step.inner, lambda found: _parts(kernel, found, outer, around, *full))


def _full(kernel: Kernel, outer: For, inner: For, around: tuple[For, ...], factor: int) -> tuple[Size, Size] | None:
    """The range of the diagonals that have a point in every iteration of the outer loop, if there are any."""
    if outer.axis in inner.lower.symbols | inner.upper.symbols:
        return None
    first = inner.lower + (outer.upper - 1) * factor
    last = inner.upper + outer.lower * factor
    facts = facts_for(kernel, around)
    return (first, last) if facts.proves(last - first) and facts.proves(outer.upper - outer.lower - 1) else None


def _parts(kernel: Kernel, diagonals: For, rows: For, around: tuple[For, ...], first: Size, last: Size) -> Body:
    """The diagonals before the full ones, these, and those after them."""
    (front,) = diagonals.body
    assert isinstance(front, For)

    def part(lower: Size, upper: Size) -> For:
        found = replace(diagonals, lower=lower, upper=upper)
        facts = facts_for(kernel, (*around, found))
        bounds = (simplify(bound, facts) for bound in (front.lower, front.upper))
        return replace(found, body=(replace(front, lower=next(bounds), upper=next(bounds)),))

    whole = replace(diagonals, lower=first, upper=last, body=(replace(front, lower=rows.lower, upper=rows.upper),))
    names = NameSource(kernel)
    full = copy_body(kernel, (whole,), names)
    end = copy_body(kernel, (part(last, diagonals.upper),), names)
    return (part(diagonals.lower, first), *full, *end)

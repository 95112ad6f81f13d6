"""Index-set splitting: parts of a loop in which choices by the axis have one outcome.

After Griebl, Feautrier and Lengauer, "Index set splitting", International Journal of Parallel Programming 28(6), 2000,
for conditions that compare an affine subscript with something that the loop does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For, If, Kernel, Put, Statement
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Apply, Const, Expr, Index, Load, Mask, constant, walk
from intarsia.ir.schedule import Partition
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.masks import masks_in
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    change_loads,
    copy_body,
    facts_for,
    facts_of,
    find_loop,
    loops_in,
    puts_in,
    replace_loop,
)


def partition(kernel: Kernel, step: Partition) -> Kernel:
    """See `Partition`."""
    loop, around = find_loop(kernel, step.axis)
    if loop.kind != "seq" or loop.step != 1:
        raise ScheduleError("only a plain loop has parts")
    cuts = _cuts(kernel, loop, around)
    if not cuts:
        raise ScheduleError("no choice or mask changes once along it")
    names, sizes = NameSource(kernel), frozenset(kernel.sizes)
    parts: list[Statement] = []
    for lower, upper in zip((loop.lower, *cuts), (*cuts, loop.upper)):
        part: Body = (replace(loop, lower=lower, upper=upper),)
        parts += _decided(copy_body(kernel, part, names) if parts else part, around, sizes)
    return replace_loop(kernel, step.axis, lambda _: tuple(parts))


def _cuts(kernel: Kernel, loop: For, around: tuple[For, ...]) -> tuple[Size, ...]:
    """Where conditions change inside the loop, in order; those whose order cannot be proved are left out."""
    facts = facts_for(kernel, around)
    found: list[Size] = []
    inner = {own.axis for own in loops_in(loop.body)}
    for condition in _conditions(loop.body):
        slope = condition.coefficient(loop.axis)
        if not slope or condition.symbols & inner or condition.opaques:
            continue
        rest = condition - Size.of(loop.axis) * slope
        cut = (slope - rest) // slope if slope > 0 else (rest - 1) // -slope + 1
        is_inside = facts.proves(cut - loop.lower - 1) and facts.proves(loop.upper - cut - 1)
        place = next((n for n, other in enumerate(found) if facts.proves(other - cut)), len(found))
        ordered = cut not in found and (place == 0 or facts.proves(cut - found[place - 1] - 1))
        if is_inside and ordered:
            found.insert(place, cut)
    return tuple(found)


def _conditions(body: Body) -> Iterator[Size]:
    """What is compared with 0 in choices and masks below."""
    yield from masks_in(body)
    for put in puts_in(body):
        for e in walk(put.value):
            if isinstance(e, Apply):
                yield from (size for pair in _comparisons(e) for size in pair)


def _comparisons(e: Apply) -> Iterator[Mask]:
    """A comparison of integers as sizes that are all above 0 where it holds."""
    match e:
        case Apply("lt", (Index(a), Index(b))) | Apply("gt", (Index(b), Index(a))):
            yield (b - a,)
        case Apply("le", (Index(a), Index(b))) | Apply("ge", (Index(b), Index(a))):
            yield (b - a + 1,)
        case Apply("eq" | "ne", (Index(a), Index(b))):
            yield (b - a + 1, a - b + 1)


# ---------------------------------------------------------------------- deciding


def _decided(body: Body, loops: Sequence[For], sizes: frozenset[str]) -> Body:
    """The statements with choices and masks replaced whose outcome is known inside these loops."""
    out: list[Statement] = []
    facts = facts_of(loops, (), sizes)
    for statement in body:
        match statement:
            case For():
                if inner := _decided(statement.body, (*loops, statement), sizes):
                    out.append(replace(statement, body=inner))
                continue
            case If(condition, then, otherwise):
                out.append(If(condition, _decided(then, loops, sizes), _decided(otherwise, loops, sizes)))
                continue
            case Put():
                if any(_never(m, facts) for m in statement.mask):
                    continue
                statement = replace(statement, mask=_left(statement.mask, facts))
        out += change_loads((statement,), lambda e: _decide(e, facts))
    return tuple(out)


def _decide(e: Expr, facts: Facts) -> Expr | None:
    match e:
        case Load(mask=mask) if any(_never(m, facts) for m in mask):
            return e.other if e.other is not None else constant(0, e.dtype)
        case Load(mask=mask) if mask:
            return replace(e, mask=_left(mask, facts))
        case Apply("where", (Const(chosen), then, otherwise)):
            return then if chosen else otherwise
        case Apply("and", (Const(known), other)) | Apply("and", (other, Const(known))):
            return other if known else constant(False, e.dtype)
        case Apply("or", (Const(known), other)) | Apply("or", (other, Const(known))):
            return constant(True, e.dtype) if known else other
        case Apply("not", (Const(known),)):
            return constant(not known, e.dtype)
        case Apply():
            for mask in _comparisons(e):
                if all(_always(m, facts) for m in mask):
                    return constant(e.function != "ne", e.dtype)
                if any(_never(m, facts) for m in mask):
                    return constant(e.function == "ne", e.dtype)
    return None


def _left(mask: Mask, facts: Facts) -> Mask:
    return tuple(m for m in mask if not _always(m, facts))


def _always(condition: Size, facts: Facts) -> bool:
    return facts.proves(condition - 1)


def _never(condition: Size, facts: Facts) -> bool:
    return facts.proves(-condition)

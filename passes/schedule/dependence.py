"""The dependence test: can two accesses of a buffer touch the same element in different iterations?

Subscripts are compared as integer expressions over the axes of both sides, with the ranges of the axes, the masks and
an order between iterations as facts. What cannot be excluded counts as a dependence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from intarsia.ir.kernel import For, Kernel, Put
from intarsia.ir.kernel_access import Access, accesses, written_in
from intarsia.ir.scalar import loads
from intarsia.ir.sizes import Extremum, Size
from intarsia.passes.schedule.tree import Body, allocated_in, extreme, facts_of

Order: TypeAlias = Literal["<", ">"]
"""How the iteration of the first access lies to that of the second along one axis: before or after it."""


def may_meet(
    kernel: Kernel,
    first: Access,
    second: Access,
    order: Mapping[str, Order],
    shared: Iterable[For],
    volatile: frozenset[str],
) -> bool:
    """Can the accesses touch one element while their iterations along each axis of `order` lie in that order?

    Along the loops of `shared` the iterations are the same; along all others they are free. `volatile` are buffers that
    are written meanwhile: subscripts that depend on them tell nothing.
    """
    assert first.buffer == second.buffer
    same = {loop.axis for loop in shared}
    renamed = {loop.axis: f"{loop.axis}'" for loop in second.loops if loop.axis not in same}
    names = {old: Size.of(new) for old, new in renamed.items()}
    # A row access of a call has fewer subscripts: it is the whole row.
    pairs = [(a, b.substitute(names)) for a, b in zip(first.indices, second.indices)]
    if any(_depends_on(size, volatile) for pair in pairs for size in pair):
        return True
    masks = (*first.mask, *(m.substitute(names) for m in second.mask))
    loops = {loop.axis: loop for loop in first.loops}
    for loop in second.loops:
        axis = renamed.get(loop.axis, loop.axis)
        loops[axis] = For(axis, loop.lower.substitute(names), loop.upper.substitute(names), (), "seq", loop.step)
    differences = sorted((a - b for a, b in pairs), key=lambda d: len(d.terms))
    if _is_never_zero(differences, order, renamed, loops):
        return False
    stable = tuple(m for m in masks if not _depends_on(m, volatile))
    facts = facts_of(loops.values(), stable, frozenset(kernel.sizes))
    for axis, relation in order.items():
        # Both count in steps from one lower bound, so different iterations lie at least a step apart.
        distance = Size.of(renamed[axis]) - axis
        facts = facts.given((distance if relation == "<" else -distance) - loops[axis].step)
    # Short differences first: that they are 0 helps to compare the longer ones.
    for difference in differences:
        if facts.proves(difference - 1) or facts.proves(-difference - 1):
            return False
        if difference.terms:
            facts = facts.given(difference, -difference)
    return True


def _is_never_zero(
    differences: Sequence[Size], order: Mapping[str, Order], renamed: Mapping[str, str], loops: Mapping[str, For]
) -> bool:
    """Does one of the differences of subscripts keep clear of 0 for all values that its axes can take? A quick look,
    which knows no masks: the axes are replaced by the ends of their ranges, inner ones first."""
    ranges: list[For] = []
    seconds: dict[str, Size] = {}
    for axis, relation in order.items():
        distance = f"{axis}'' - {axis}"
        ranges.append(For(distance, Size.of(loops[axis].step), Size.of(1 << 60), ()))
        seconds[renamed[axis]] = Size.of(axis) + distance if relation == "<" else Size.of(axis) - distance
    ranges += [For(s.axis, s.lower, _simple_bound(s.upper), (), step=s.step) for s in loops.values()]
    for difference in differences:
        if not difference.terms:
            continue
        moved = difference.substitute(seconds)
        least, most = (extreme(moved, ranges, greatest) for greatest in (False, True))
        if (least is not None and (least.constant or 0) > 0) or (most is not None and (most.constant or 0) < 0):
            return True
    return False


def _simple_bound(upper: Size) -> Size:
    """An upper bound without a minimum: one of its arguments, a number if there is one."""
    match upper.terms:
        case (((Extremum("min", arguments),), 1),):
            return next((a for a in arguments if a.constant is not None), arguments[0])
    return upper


def _depends_on(size: Size, buffers: frozenset[str]) -> bool:
    return any(load.buffer in buffers for value in size.opaques for load in loads(value))


def conflicts(first: Iterable[Access], second: Iterable[Access]) -> Iterator[tuple[Access, Access]]:
    """Pairs of accesses of one buffer of which at least one writes, alike ones only once."""
    by_buffer: dict[str, list[Access]] = defaultdict(list)
    for access in _distinct(second):
        by_buffer[access.buffer].append(access)
    for a in _distinct(first):
        for b in by_buffer[a.buffer]:
            if a.writes or b.writes:
                yield a, b


def _own_conflicts(found: Iterable[Access]) -> Iterator[tuple[Access, Access]]:
    """The same among accesses of one piece of code, each with itself too, in one of the two orders."""
    by_buffer: dict[str, list[Access]] = defaultdict(list)
    for b in _distinct(found):
        others = by_buffer[b.buffer]
        others.append(b)
        yield from ((a, b) for a in others if a.writes or b.writes)


def _distinct(found: Iterable[Access]) -> Iterable[Access]:
    """Accesses that differ in what they touch, whatever statement they stand in."""
    return {
        (a.buffer, a.indices, a.mask, a.writes, a.operator, tuple(loop.axis for loop in a.loops)): a for a in found
    }.values()


def commute(first: Access, second: Access) -> bool:
    """Are both accumulating writes with one operator, so that their order does not matter?"""
    return first.writes and second.writes and first.operator == second.operator and first.operator not in ("=", None)


def carried_dependence(
    kernel: Kernel, loop: For, around: tuple[For, ...], reductions: bool, parts: int | None = None
) -> tuple[Access, Access] | None:
    """Two accesses that different iterations of `loop` may direct at the same element, one of them writing; or None.

    Buffers that live inside the loop do not count, nor do atomic writes by one operator, and with `reductions` all
    accumulating ones. With `parts`, only an access of the first `parts` statements and one of the others.
    """
    local = allocated_in(loop.body)

    def below(body: Body) -> list[Access]:
        return [a for a in accesses(body, (*around, loop)) if a.buffer not in local]

    volatile = written_in(loop.body)
    if parts is None:
        found = _own_conflicts(below(loop.body))
    else:
        found = conflicts(below(loop.body[:parts]), below(loop.body[parts:]))
    for first, second in found:
        atomic = all(isinstance(a.statement, Put) and a.statement.atomic for a in (first, second))
        if (reductions or atomic) and commute(first, second):
            continue
        orders: tuple[Order, ...] = ("<",) if first is second else ("<", ">")
        if any(may_meet(kernel, first, second, {loop.axis: order}, around, volatile) for order in orders):
            return first, second
    return None


def crossing_dependence(
    kernel: Kernel,
    first: Body,
    second: Body,
    order: Mapping[str, Order],
    around: tuple[For, ...],
    free: frozenset[str] = frozenset(),
) -> tuple[Access, Access] | None:
    """An access below `first` and one below `second` that may meet although their iterations lie in `order`.

    Along the loops `around` that are neither in `order` nor `free` the iterations are the same. Accumulating writes by
    one operator do not count: their order is free. Nor do buffers that both have for themselves, as a body that is
    compared with itself has those that live in it.
    """
    volatile = written_in(first) | written_in(second)
    local = allocated_in(first).keys() & allocated_in(second).keys()
    for a, b in conflicts(accesses(first, around), accesses(second, around)):
        if a.buffer in local:
            continue
        shared = tuple(loop for loop in around if loop.axis not in order and loop.axis not in free)
        if not commute(a, b) and may_meet(kernel, a, b, order, shared, volatile):
            return a, b
    return None


def describe(pair: tuple[Access, Access]) -> str:
    """Both places of a dependence, for messages: buffer and subscripts."""
    texts = [f"{a.buffer}[{', '.join(map(str, a.indices))}]" for a in pair]
    return texts[0] if texts[0] == texts[1] else " and ".join(texts)

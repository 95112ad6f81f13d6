"""Steps that change loops: split, collapse, skew, reorder, merge, move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import FIXED, LANES, Alloc, Buffer, Call, For, Kernel, Put, Statement
from intarsia.ir.kernel import Prefetch as PrefetchStatement
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.scalar import Expr, Index, Load, loads, transform
from intarsia.ir.schedule import Collapse, Merge, Move, Reorder, Skew, Split
from intarsia.ir.sizes import Extremum, Size, maximum, minimum
from intarsia.passes.schedule.dependence import Order, carried_dependence, crossing_dependence, describe
from intarsia.passes.schedule.masks import guard
from intarsia.passes.schedule.scans import scan_refusal
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    allocated_in,
    blocks,
    change_loads,
    copy_body,
    extreme,
    facts_for,
    find_loop,
    map_opaques,
    map_statement,
    perfect_nest,
    replace_block,
    replace_loop,
    rewrite,
    substitute,
)

# ---------------------------------------------------------------------- split


def split(kernel: Kernel, step: Split) -> Kernel:
    """See `Split`."""
    loop, around = find_loop(kernel, step.axis)
    if loop.step != 1:
        raise ScheduleError(f"the loop has step {loop.step}")
    names = NameSource(kernel)
    outer, inner = (
        tuple(map(names.claim, step.names)) if step.names else (names.derived(step.axis), names.derived(step.axis))
    )
    extent, factor = loop.upper - loop.lower, step.factor
    exact = all(c % factor == 0 for _, c in extent.terms)
    if step.tail == "peel" and not exact:
        middle = end = loop.lower + extent // factor * factor
        if not facts_for(kernel, around).proves(extent):  # no tile runs then
            end = loop.lower + maximum(0, extent) // factor * factor
        (rest,) = copy_body(kernel, (replace(loop, lower=end),), names)
        main = _two_loops(replace(loop, upper=middle), factor, outer, inner, "mask")
        return replace_loop(kernel, step.axis, lambda _: (main, rest))
    tail = "mask" if exact and step.tail in ("peel", "min") else step.tail
    return replace_loop(kernel, step.axis, lambda found: _two_loops(found, factor, outer, inner, tail))


def _two_loops(loop: For, factor: int, outer: str, inner: str, tail: str) -> For:
    """`loop` as a loop over tiles of `factor` and one inside a tile."""
    extent = loop.upper - loop.lower
    exact = all(c % factor == 0 for _, c in extent.terms)
    body = loop.body
    if tail == "step":
        here = Size.of(outer)
        first, last, stride = loop.lower, loop.upper, factor
        width = Size.of(factor) if exact else minimum(factor, loop.upper - here)
    else:
        here = loop.lower + Size.of(outer) * factor
        first, last, stride = Size.of(0), (extent + (factor - 1)) // factor, 1
        width = Size.of(factor) if exact or tail == "mask" else minimum(factor, loop.upper - here)
    if tail == "mask" and not exact:
        body = rewrite(guard(body, loop.axis, (loop.upper - loop.axis,)), lambda s: _never_negative(s, loop.axis))
    body = substitute(body, {loop.axis: here + inner})
    # Each iteration of both loops is one iteration of the old loop: promises hold for both.
    inner_kind = "seq" if loop.kind in ("parallel", "grid") or width.constant is None else loop.kind
    outer_kind = "seq" if loop.kind in LANES | {"dot"} else loop.kind
    return For(outer, first, last, (For(inner, Size.of(0), width, body, inner_kind),), outer_kind, stride)


def _never_negative(statement: Statement, axis: str) -> Statement | None:
    """A temporary that is empty, and not of negative size, in iterations beyond the end."""
    if not isinstance(statement, Alloc) or not any(axis in extent.symbols for extent in statement.buffer.shape):
        return None
    return Alloc(replace(statement.buffer, shape=tuple(maximum(0, extent) for extent in statement.buffer.shape)))


# ---------------------------------------------------------------------- collapse


def collapse(kernel: Kernel, step: Collapse) -> Kernel:
    """See `Collapse`."""
    outer, _ = find_loop(kernel, step.outer)
    inner = outer.body[0] if len(outer.body) == 1 else None
    if not isinstance(inner, For) or inner.axis != step.inner:
        raise ScheduleError("the second is not alone in the first")
    if outer.lower.terms or inner.lower.terms or outer.step != 1 or inner.step != 1 or outer.kind != inner.kind:
        raise ScheduleError("the loops begin at 0, have step 1 and one kind")
    if step.outer in inner.upper.symbols:
        raise ScheduleError(f"the bound {inner.upper} needs {step.outer}")
    for buffer, dimension in _side_by_side(kernel, outer, inner):
        kernel = _flatten(kernel, buffer, dimension)
    outer, _ = find_loop(kernel, step.outer)
    (inner,) = (s for s in outer.body if isinstance(s, For))
    names = NameSource(kernel)
    axis = names.claim(step.names[0]) if step.names else names.derived(step.outer)
    both, row = {step.outer, step.inner}, inner.upper

    def affine(s: Size) -> Size:
        factor = s.coefficient(step.inner)
        rest = s - (Size.of(step.outer) * row + step.inner) * (factor or 0)
        if factor is None or both & rest.symbols:
            raise ScheduleError(f"{s} does not use them as one")
        return rest + Size.of(axis) * factor

    def leaf(e: Expr) -> Expr | None:
        match e:
            case Load():
                return replace(e, indices=tuple(map(affine, e.indices)), mask=tuple(map(affine, e.mask)))
            case Index(s):
                return Index(affine(s))
        return None

    def expression(e: Expr) -> Expr:
        return transform(e, rule=leaf)

    body = tuple(map_statement(s, lambda z: affine(map_opaques(z, expression)), expression) for s in inner.body)
    return replace_loop(kernel, step.outer, lambda _: For(axis, Size.of(0), outer.upper * row, body, outer.kind))


def _side_by_side(kernel: Kernel, outer: For, inner: For) -> list[tuple[Buffer, int]]:
    """The buffers that the two axes subscript in neighbouring dimensions, and the first of these."""
    found: dict[str, tuple[Buffer, int]] = {}
    buffers = kernel.buffers()
    for access in accesses((outer,)):
        for dimension, (first, second) in enumerate(pairwise(access.indices)):
            if first.coefficient(outer.axis) and second.coefficient(inner.axis):
                found.setdefault(access.buffer, (buffers[access.buffer], dimension))
    return list(found.values())


def _flatten(kernel: Kernel, buffer: Buffer, dimension: int) -> Kernel:
    """Make one dimension of `dimension` (a subscript) and the next: another view of the same memory."""
    name, columns = buffer.name, buffer.extents[dimension + 1]
    at = dimension - (buffer.length is not None)
    if at < 0:
        raise ScheduleError(f"{name} is a list")

    def merged(indices: tuple[Size, ...]) -> tuple[Size, ...]:
        flat = indices[dimension] * columns + indices[dimension + 1]
        return (*indices[:dimension], flat, *indices[dimension + 2 :])

    shape = (*buffer.shape[:at], buffer.shape[at] * buffer.shape[at + 1], *buffer.shape[at + 2 :])
    flat_buffer = replace(buffer, shape=shape)

    def load(e: Expr) -> Expr | None:
        return replace(e, indices=merged(e.indices)) if isinstance(e, Load) and e.buffer == name else None

    def change(statement: Statement) -> Statement | None:
        match statement:
            case Put() | PrefetchStatement() if statement.buffer == name:
                return replace(statement, indices=merged(statement.indices))
            case Alloc(b) if b.name == name:
                return Alloc(flat_buffer)
            case Call(routine, reads, writes) if any(n == name for n, _ in (*reads, *writes)):
                raise ScheduleError(f"a call of {routine} uses {name}")
        return None

    parameters = tuple(flat_buffer if b.name == name else b for b in kernel.parameters)
    return replace(kernel, parameters=parameters, body=rewrite(change_loads(kernel.body, load), change))


# ---------------------------------------------------------------------- order of loops


def reorder(kernel: Kernel, step: Reorder) -> Kernel:
    """See `Reorder`."""
    found = {axis: find_loop(kernel, axis) for axis in step.axes}
    if len(found) < len(step.axes):
        raise ScheduleError("an axis is named twice")
    top, around = min(found.values(), key=lambda pair: len(pair[1]))
    chain, _ = perfect_nest(top)
    depth = max((n for n, loop in enumerate(chain) if loop.axis in found), default=0)
    chain = chain[: depth + 1]
    outside = [axis for axis in step.axes if axis not in {loop.axis for loop in chain}]
    if outside:
        raise ScheduleError(f"{outside[0]} is not in a perfect nest with {top.axis}")
    order = iter(step.axes)
    wanted = [next(order) if loop.axis in found else loop.axis for loop in chain]
    new = _permuted(chain, wanted)
    body = chain[-1].body
    before, after = ([loop.axis for loop in loops] for loops in (chain, new))
    for first, second in combinations(before, 2):
        if after.index(first) > after.index(second):
            # `first` decides the old order and `second` the new one: along the loops outside of each nothing moves.
            same = {*before[: before.index(first)], *after[: after.index(second)]}
            free = frozenset(before) - same
            order_of_both: dict[str, Order] = {first: "<", second: ">"}
            pair = crossing_dependence(kernel, body, body, order_of_both, (*around, *chain), free)
            if pair is not None:
                raise ScheduleError(f"the order of {first} and {second} matters at {describe(pair)}")
    for loop in reversed(new):
        body = (replace(loop, body=body),)
    return replace_loop(kernel, top.axis, lambda _: body)


def _permuted(chain: Sequence[For], wanted: Sequence[str]) -> list[For]:
    """Loops in another order, with bounds to match, by exchanging neighbours."""
    loops = list(chain)
    for place, axis in enumerate(wanted):
        here = next(n for n, loop in enumerate(loops) if loop.axis == axis)
        for n in range(here, place, -1):
            loops[n - 1], loops[n] = _exchanged(loops[n - 1], loops[n])
    return loops


def _exchanged(outer: For, inner: For) -> tuple[For, For]:
    """Two loops, the second inside the first, the other way around. Where the bounds of the inner one move with the
    outer one, they become bounds of the outer one:

        for i in 0..N { for j in i..M + 2 * i { … } }
     -> for j in 0..M + 2 * (N - 1) { for i in max(0, (j - M) // 2 + 1)..min(N, j + 1) { … } }
    """
    axis, here = outer.axis, Size.of(inner.axis)
    if axis not in inner.lower.symbols | inner.upper.symbols:
        return inner, outer
    for loop in (outer, inner):
        if loop.kind in FIXED:
            raise ScheduleError(f"the bounds of {loop.axis}, which is {loop.kind}, have to be numbers")
    if outer.step != 1 or inner.step != 1:
        raise ScheduleError(f"the bounds of {inner.axis} need {axis}, and one of the two has a step")
    first, last = [outer.lower], [outer.upper]
    ends: list[list[Size]] = [[], []]
    for n, bound in enumerate((inner.lower, inner.upper)):
        for part in _parts(bound, "min" if n else "max"):
            factor = part.coefficient(axis)
            rest = part - Size.of(axis) * (factor or 0)
            if factor is None or axis in rest.symbols:
                raise ScheduleError(f"the bound {bound} of {inner.axis} is not linear in {axis}")
            end = extreme(part, (outer,), greatest=bool(n))
            assert end is not None
            ends[n].append(end)
            # lower: rest + factor * i <= j; upper: rest + factor * i >= j + 1
            room = rest - 1 - here if n else here - rest
            if factor:
                towards_end = (factor < 0) == bool(n)
                limit = room // abs(factor)
                (last if towards_end else first).append(limit + 1 if towards_end else -limit)
    return (
        replace(inner, lower=maximum(*ends[0]), upper=minimum(*ends[1])),
        replace(outer, lower=maximum(*first), upper=minimum(*last)),
    )


def _parts(bound: Size, name: str) -> tuple[Size, ...]:
    """The bounds that a greatest or least one is made of: all of them hold."""
    match bound.terms:
        case ((((Extremum() as extremum),), 1),) if extremum.name == name:
            return extremum.arguments
    return (bound,)


def skew(kernel: Kernel, step: Skew) -> Kernel:
    """See `Skew`."""
    loop, around = find_loop(kernel, step.axis)
    if step.outer not in {other.axis for other in around}:
        raise ScheduleError(f"{step.outer} is no loop around it")
    if loop.kind in FIXED:
        raise ScheduleError(f"the bounds of a loop that is {loop.kind} have to be numbers")
    distance = Size.of(step.outer) * step.factor
    body = substitute(loop.body, {step.axis: Size.of(step.axis) - distance})
    moved = replace(loop, lower=loop.lower + distance, upper=loop.upper + distance, body=body)
    return replace_loop(kernel, step.axis, lambda _: moved)


def merge(kernel: Kernel, step: Merge) -> Kernel:
    """See `Merge`."""
    for later in step.axes[1:]:
        kernel = _merge_two(kernel, step.axes[0], later)
    return kernel


def _merge_two(kernel: Kernel, first: str, second: str) -> Kernel:
    one, around = find_loop(kernel, first)
    two, _ = find_loop(kernel, second)
    block = next(body for body, _ in blocks(kernel) if one in body)
    if two not in block:
        raise ScheduleError("they are not in one block")
    here, there = block.index(one), block.index(two)
    if here >= there:
        raise ScheduleError(f"{second} comes first")
    if (one.lower, one.upper, one.step) != (two.lower, two.upper, two.step):
        bounds = [f"{loop.lower}..{loop.upper} step {loop.step}".removesuffix(" step 1") for loop in (one, two)]
        raise ScheduleError(f"the bounds {bounds[0]} and {bounds[1]} differ")
    between = block[here + 1 : there]
    allocs = tuple(s for s in between if isinstance(s, Alloc))
    rest = tuple(s for s in between if not isinstance(s, Alloc))
    if rest and (pair := crossing_dependence(kernel, rest, (two,), {}, around)):
        raise ScheduleError(f"{describe(pair)} stands between them")
    written = written_in(one.body)
    for value in (o for bound in (two.lower, two.upper) for o in bound.opaques):
        if any(load.buffer in written for load in loads(value)):
            raise ScheduleError(f"the bound {value} of {second} changes")
    added = substitute(two.body, {second: Size.of(first)})
    pair = crossing_dependence(kernel, one.body, added, {first: ">"}, (*around, one))
    if pair is not None:
        raise ScheduleError(f"{describe(pair)} cross iterations of {first}")
    if one.kind != two.kind:
        raise ScheduleError(f"one is {one.kind}, the other {two.kind}")
    merged = replace(one, body=(*one.body, *added))
    if one.kind in ("parallel", "grid", "lane") and (
        pair := carried_dependence(kernel, merged, around, reductions=one.kind == "lane")
    ):
        raise ScheduleError(f"iterations that run at once would meet at {describe(pair)}")
    if one.kind == "scan" and (problem := scan_refusal(kernel, merged, around)) is not None:
        raise ScheduleError(problem)
    new = (*block[:here], *allocs, merged, *rest, *block[there + 1 :])
    return replace_block(kernel, block, new)


def place_of(body: Body, name: str) -> int | None:
    """The place of a statement in a block: of a loop by its axis, of a write by its buffer."""
    for n, statement in enumerate(body):
        if (isinstance(statement, For) and statement.axis == name) or (
            isinstance(statement, Put) and statement.buffer == name
        ):
            return n
    return None


def move(kernel: Kernel, step: Move) -> Kernel:
    """See `Move`."""

    places = ((b, a, place_of(b, step.statement), place_of(b, step.before)) for b, a in blocks(kernel))
    found = next(((b, a, i, j) for b, a, i, j in places if i is not None and j is not None), None)
    if found is None:
        raise ScheduleError("no block holds both")
    block, around, here, target = found
    moved = block[here]
    if here < target:
        passed = block[here + 1 : target]
        new = (*block[:here], *passed, moved, *block[target:])
    else:
        used = {a.buffer for a in accesses((moved,))}
        temporaries = tuple(s for s in block[target:here] if isinstance(s, Alloc) and s.buffer.name in used)
        passed = tuple(s for s in block[target:here] if s not in temporaries)
        new = (*block[:target], *temporaries, moved, *passed, *block[here + 1 :])
    own = allocated_in(s for s in passed if isinstance(s, Alloc))
    if any(a.buffer in own for a in accesses((moved,))):
        raise ScheduleError(f"it needs {', '.join(own)}")
    pair = crossing_dependence(kernel, passed, (moved,), {}, around)
    if pair is not None:
        raise ScheduleError(f"{describe(pair)} stands between")
    return replace_block(kernel, block, new)

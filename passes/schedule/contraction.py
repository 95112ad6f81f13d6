"""Default schedule of contractions: matrix products, batched ones, convolutions, with what is done to their results.

A tile of the result, a few rows by a few vectors of columns, stays in registers while the reduction runs. The operand
that runs along the vectors is packed into panels where it is read often enough; the other one is read one number at a
time, and packed where it does not lie along the reduction. Batches, blocks of rows or blocks of columns go to threads.
The scheme is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008,
but each thread packs the block that it works on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import (
    ROOT,
    Accumulate,
    Fetch,
    Group,
    Inline,
    Localize,
    Merge,
    Parallel,
    Partition,
    Peel,
    Reorder,
    Sink,
    Tighten,
    Unroll,
    Version,
    Widen,
)
from intarsia.passes.schedule.builder import SHARES, SMALL, Builder
from intarsia.passes.schedule.codes import lay_out_gathered
from intarsia.passes.schedule.dots import dot_width, multiply_as, other_types
from intarsia.passes.schedule.groups import groups_of
from intarsia.passes.schedule.nests import (
    Contraction,
    Nest,
    find_contraction,
    flattened,
    reducing_nest,
    result_step,
)
from intarsia.passes.schedule.packing import (
    STEPS,
    Tiled,
    copy,
    copy_tile,
    left_load,
    pack_left,
    pack_right,
    write_out,
)
from intarsia.passes.schedule.shape import count, effort, lanes_for, points, stride
from intarsia.passes.schedule.tiling import (
    Early,
    Extents,
    Tiling,
    choose_tiling,
    fetched_early,
    other_blocks,
    other_packings,
    other_parts,
    other_tiles,
)
from intarsia.passes.schedule.tree import blocks, loops_in, perfect_nest, puts_in

SQUARE = 4
"""Dot products along each side of a tile of them."""

NEAR = 4
"""How far apart neighbouring lanes of a result may be written."""

UNROLLED = (STEPS, 1, 2, 8)
"""Steps of the reduction that are written out, the likeliest number first."""

WORTH = 0.95
"""What lanes across the result may do against lanes along it: tiles are transposed then."""

# ---------------------------------------------------------------------- choosing


PLACES = ("block", "inside", "group")
"""Where a tiling walks through a batch axis: outside of blocks, inside of them, or between, where sums are added up."""

Batches: TypeAlias = tuple[str, ...]


def extents(b: Builder, c: Contraction) -> Extents:
    """What a contraction's tiling depends on."""

    def length(axis: str) -> int | None:
        return trips(b.loop(axis)).constant

    buffer = b.kernel.buffers()[c.right.buffer]
    outer, repeated = _batches(c)
    return Extents(
        rows=length(c.main.row) if c.main.row else 1,
        columns=length(c.main.column),
        depth=points(b.loop(a) for a in c.main.reduced),
        repeats=points(b.loop(a) for a in repeated),
        batches=points(b.loop(a) for a in outer),
        lanes=lanes_for((c.put,), b.target),
        bits=buffer.dtype.bits,
        follows=bool(c.epilogues),
        across=stride(buffer, c.right.indices, c.main.column) != 1,
        movable=c.right in c.plain,
        constant=c.right in c.plain and b.copy_memory(c.right, ROOT) == "prepared",
        divisible=len(c.main.reduced) == 1 and not c.summed and not _is_across(b, c),
        apart=buffer.dtype.bytes * (stride(buffer, c.right.indices, c.main.reduced[-1]) or 0),
        grouped=bool(c.summed),
    )


def is_made(b: Builder, buffer: str) -> bool:
    """Is it a temporary that a nest makes element by element from what is stored, as from codes, and others read?"""
    if b.kernel.buffers()[buffer].role != "temp":
        return False
    for loop in b.outermost():
        nest, body = perfect_nest(loop)
        if len(body) == 1 and isinstance(put := body[0], Put) and put.buffer == buffer:
            reads = any(True for _ in loads(put.value))
            return reads and put.operator == "=" and [str(i) for i in put.indices] == [x.axis for x in nest]
    return False


def _operators(loop: For, buffer: str) -> set[str]:
    """How statements of a nest write a buffer."""
    return {put.operator for put in puts_in((loop,)) if put.buffer == buffer}


def _is_across(b: Builder, c: Contraction) -> bool:
    """Do results lie along the rows of a tile, so that it is transposed when it is written? Then its sums are whole."""
    return result_step(b, c.put, c.main, c.epilogues, c.main.row) == 1


def _batches(c: Contraction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The batch axes along which the right operand changes, and those along which it does not."""
    outer = tuple(a for a in c.main.batch if a in c.right.symbols and a not in c.summed)
    return outer, tuple(a for a in c.main.batch if a not in (*outer, *c.summed))


def _places(c: Contraction, t: Tiling) -> Batches:
    """Where the batch axes of a contraction are walked through."""
    _, repeated = _batches(c)
    return tuple(
        "group" if a in c.summed else "inside" if t.inside and a in repeated else "block" for a in c.main.batch
    )


# ---------------------------------------------------------------------- scheduling


def schedule_contraction(b: Builder, loop: For) -> bool:
    """Schedule a contraction with its initial value and what follows it. Returns whether every step was legal."""
    c = find_contraction(b, loop := flattened(b, loop))
    if c is None:
        return False
    if (types := other_types(b, c)) is not None and not c.is_ragged:
        ways = (f"{types.left} and {types.right}", "as they are")
        before = len(b.steps)
        if b.choose(f"factors of {c.put.buffer}", ways) == ways[0] and b.together(
            ways[0], partial(multiply_as, b, types)
        ):
            if _schedule_typed(b, b.loop(loop.axis)):
                return True
            while len(b.steps) > before:
                b.undo()
    return _schedule_typed(b, loop)


def _schedule_typed(b: Builder, loop: For) -> bool:
    """Schedule a contraction whose factors have the types that they should have."""
    c = find_contraction(b, loop)
    if c is None:
        return False
    if c.is_ragged:
        return b.together(f"tiles of {c.put.buffer}", lambda: _schedule_ragged(b, loop))
    size = extents(b, c)
    if is_made(b, c.right.buffer) and b.attempt(Inline(c.right.buffer)):  # tiles decode what they read
        return schedule_contraction(b, next(x for x in b.outermost() if c.put.operator in _operators(x, c.put.buffer)))
    if any(b.together(f"groups of {step.axis}", partial(_in_groups, b, step)) for step in groups_of(b, c)):
        return True
    likeliest = choose_tiling(size, b.target)
    if likeliest is None:
        return _schedule_narrow(b, loop, c) or _schedule_spread(b, loop, c)
    options = [(c, likeliest)]
    if (other := _across(b, loop, c)) is not None:
        options.insert(0 if _waste(b, *other) < WORTH * _waste(b, c, likeliest) else 1, other)
    c, tiling = b.choose(f"lanes of {c.put.buffer}", options, lambda option: option[0].main.column, looks=1)
    tiling = _choose_sizes(b, c, extents(b, c), tiling)
    if tiling.few and c.main.row and not size.constant and _is_dot(b, c):
        return b.together(f"tiles of dot products of {c.put.buffer}", lambda: _tile_dots(b, c, tiling))
    return b.together(f"tiles of {c.put.buffer}", lambda: _tile(b, c, tiling))


def _in_groups(b: Builder, step: Group) -> None:
    """Schedule a contraction of which some factor is the same within groups, as products without that factor whose
    sums are added up; those of a shorter last group are another one."""
    before = b.kernel.buffers()
    b.take(step)
    for buffer in [name for name in b.kernel.buffers() if name not in before]:
        nests = [x for x in b.outermost() if [s.buffer for s in puts_in((x,))] == [buffer] and reducing_nest(x)]
        for loop in nests[:1]:
            if not schedule_contraction(b, loop) and buffer == step.new:
                raise ScheduleError("they are no contraction")
    if b.kernel.buffers()[step.new].memory != "register":
        raise ScheduleError(f"{step.new} would be kept for all groups")


def _schedule_ragged(b: Builder, loop: For) -> None:
    """Schedule a contraction whose elements sum over different ranges, such as a product with a triangular matrix: the
    ranges become masks, by which the loop over the steps of a tile begins and ends, and few of its steps need them."""
    place = b.outermost().index(loop)
    for inner in perfect_nest(loop)[0]:
        b.attempt(Widen(inner.axis))
    c = find_contraction(b, b.outermost()[place])
    tiling = None if c is None else choose_tiling(extents(b, c), b.target)
    if c is None or tiling is None or tiling.few or not all(m.symbols & {*c.main.reduced} for m in c.put.mask):
        raise ScheduleError("no product of many rows and columns")
    _tile(b, c, _choose_sizes(b, c, extents(b, c), tiling))


def _choose_sizes(b: Builder, c: Contraction, e: Extents, t: Tiling) -> Tiling:
    """The sizes of a tiling, one after the other."""
    result = c.put.buffer
    t = b.choose(f"tile of {result}", (t, *other_tiles(t, e, b.target)), looks=0 if t.few else 1)
    t = b.choose(f"packing of {result}", (t, *other_packings(t, e)))
    t = b.choose(f"steps of {result}", (t, *other_parts(t, e)), looks=0 if t.few else 1)
    return b.choose(f"blocks of {result}", (t, *other_blocks(t, e)))


def _across(b: Builder, loop: For, c: Contraction) -> tuple[Contraction, Tiling] | None:
    """A contraction with lanes along a constant operand's own axis, across the result, if the sums are not cut: their
    tiles are transposed in registers when they are written."""
    other = find_contraction(b, loop, c.main.row) if c.main.row else None
    if other is None or other.main.row != c.main.column:
        return None
    size = replace(extents(b, other), follows=True, divisible=len(other.main.reduced) == 1)
    tiling = choose_tiling(size, b.target) if size.constant else None
    return None if tiling is None or tiling.part or tiling.few else (other, tiling)


def _waste(b: Builder, c: Contraction, t: Tiling) -> float:
    """What the lanes of a contraction's tiles do for each result."""
    length = trips(b.loop(c.main.column)).constant
    return 1.0 if not length else -(-length // t.columns) * t.columns / length


def _schedule_narrow(b: Builder, loop: For, c: Contraction) -> bool:
    """Schedule a contraction whose columns fill no vector as dot products, if the other operand lies along a long
    reduction."""
    other = find_contraction(b, loop, c.main.row) if c.main.row else None
    if other is None or other.main.row != c.main.column:
        return False
    size, buffer = extents(b, other), b.kernel.buffers()[other.right.buffer]
    tiling = choose_tiling(size, b.target)
    last = next((a for a in other.main.reduced if stride(buffer, other.right.indices, a) == 1), "")
    if tiling is None or not last or count(trips(b.loop(last))) < SQUARE * size.lanes:
        return False
    reduced = (*(a for a in other.main.reduced if a != last), last)
    other = replace(other, main=replace(other.main, reduced=reduced))
    is_dot, left = _is_dot(b, other), left_load(b, other, other.main.row)
    if not is_dot and left is None:
        return False

    def tile(other: Contraction) -> None:
        if not is_dot and left is not None:
            copy(b, left, ROOT, (*other.main.batch, other.main.row, *other.main.reduced))
        _tile_dots(b, other, tiling)

    return b.together(f"tiles of dot products of {c.put.buffer}", partial(tile, other))


def _schedule_spread(b: Builder, loop: For, c: Contraction) -> bool:
    """Schedule a contraction whose columns fill no vector with lanes along another axis of the result, whose elements
    lie a few apart: one along which an operand lies in memory."""
    buffers = b.kernel.buffers()
    put = c.put
    for x in dict.fromkeys(loads(put.value)):
        for axis in (c.main.row, *c.main.batch):
            apart = stride(buffers[put.buffer], put.indices, axis)
            if stride(buffers[x.buffer], x.indices, axis) != 1 or apart is None or apart > NEAR:
                continue
            other = find_contraction(b, loop, axis, longest=True)
            tiling = None if other is None else choose_tiling(extents(b, other), b.target)
            if other is not None and tiling is not None:
                return b.together(f"tiles of {put.buffer}", partial(_tile, b, other, tiling))
    return False


def _split(b: Builder, nest: Nest, t: Tiling, batches: Batches, first: bool) -> Tiled:
    """Split a nest; `first` says whether panels come before groups and parts of the reduction."""
    blocks, inside, groups = ([a for a, place in zip(nest.batch, batches) if place == name] for name in PLACES)
    rows, row = b.split(nest.row, t.rows) if nest.row else ("", "")
    panels, column = b.split(nest.column, t.columns)
    vectors = b.split(column, t.lanes) if t.vectors > 1 else (column,)
    if t.block_rows and rows:
        block, rows = b.split(rows, t.block_rows // t.rows, "min")
        blocks.append(block)
    if t.block_columns:
        block, panels = b.split(panels, max(1, t.block_columns // t.columns), "min")
        blocks.append(block)
    tiles = (panels, *inside, rows) if t.few else (*inside, rows, panels)
    inner = (row, *vectors) if row else vectors
    return Tiled(tuple(blocks), tuple(filter(None, tiles)), panels, inner, row, tuple(groups), first)


def _tile(b: Builder, c: Contraction, t: Tiling) -> None:
    """Tiles in registers, lanes along the columns."""
    early = fetched_early(extents(b, c), t, b.target)
    once = t.packed and b.copy_memory(c.right, ROOT) == "prepared"
    split = partial(_split, b, t=t, batches=_places(c, t), first=once and t.few)  # what lies together is read in order
    is_across, width = _is_across(b, c), dot_width(b, c)
    main = split(c.main)
    reduced, part = c.main.reduced, ""
    if t.part:
        part, inside = b.split(reduced[0], -(-t.part // width) * width, "min")
        reduced = (inside,)
    parts = (part,) if part else ()
    if width > 1:
        words, word = b.split(reduced[-1], width)
        reduced, main = (*reduced[:-1], words), replace(main, word=word)
    outside = (*main.outside, *main.groups)
    b.take(Reorder((*outside, *parts, *main.inside, *reduced, *main.inner, *main.words)))
    initial = None if c.initial is None else split(c.initial)
    if initial is not None:
        b.take(Reorder((*initial.outer, *initial.inner)))
    for start in _starts(b, c):
        _split(b, start, t, tuple(place for place in _places(c, t) if place != "group"), False)
    for epilogue in c.epilogues:
        own = split(epilogue)
        written = (*own.columns, own.row) if is_across else own.inner
        b.take(Reorder((*own.outer, *written)))
        for ours, theirs in zip(outside if part else main.outer, own.outer):
            b.take(Merge((ours, theirs)))
        write_out(b, written)
    packed = c.right.buffer
    if t.packed:
        blocked = (*outside, *parts)
        at = blocked[-1] if blocked and not once else ROOT
        steps = (*parts, *reduced) if at == ROOT else reduced
        panels = (*(blocked if at == ROOT else ()), main.panels)
        packed = pack_right(b, c, at, (*dict.fromkeys(panels), *reduced, *main.columns), steps, main.word)
    copied = copy_tile(b, c, main, reduced) if t.copied else ""
    if main.row and (not t.few or ((part or main.groups) and count(trips(b.loop(main.tiles[-1]))) > 1)):
        across = tuple(a for a in main.tiles if a != main.panels)
        pack_left(b, c, t, main, (*main.groups, *parts, *across, *reduced, main.row))
    if not is_across:
        write_out(b, main.inner, main.word)
    tile = Accumulate(c.put.buffer, reduced[0], b.fresh(c.put.buffer), "register", "set", outer=part)
    if initial is None:
        b.take(replace(tile, mode="load"))
    elif not part:
        b.take(tile)
    elif t.gathered and not is_across and b.together("gathered sums", lambda: _gather(b, tile)):
        pass
    elif not b.attempt(replace(tile, mode="first")):  # a reduction of open length may have no part at all
        write_out(b, initial.inner)
        b.take(replace(tile, mode="add"))
    if is_across:
        before, (row, *columns) = around(b, main.tiles[-1], reduced[0])
        b.take(Reorder((*columns, row)))
        for inner in (before, (*columns, row)):
            write_out(b, inner)
        write_out(b, main.inner, main.word)
    if c.epilogues and not part and b.kernel.buffers()[c.put.buffer].role == "temp":
        b.attempt(Localize(c.put.buffer, main.outer[-1], "register"))
    if main.groups:
        _gather_groups(b, c, main)
    lay_out_gathered(b)
    if copied:
        b.take(Sink(copied, reduced[-1]))
    if c.is_ragged:
        for axis in reduced:
            b.attempt(Tighten(axis))
    if c.is_ragged or main.word:
        b.attempt(Peel(reduced[-1]))
    unrolled = unroll_reduction(b, reduced[-1])
    _fetch(b, c, t, main, early, packed if once or t.few else c.right.buffer, (*main.groups, *parts), unrolled)
    if copied:
        b.take(Partition(main.tiles[-1]))
    b.attempt(Version(main.tiles[-1], _steps(b, main.tiles[-1], reduced) if c.is_ragged else ()))
    share(b, main.blocks or main.tiles[:1])


def _starts(b: Builder, c: Contraction) -> Iterator[Nest]:
    """The nests that set what is added up over groups, in the axes of these results."""
    for epilogue in c.epilogues:
        (added,) = puts_in((b.loop(epilogue.column),))
        for loop in b.waiting() if added.operator == "+=" else ():
            (*_, put) = puts_in((loop,)) or (added,)
            if put.buffer == added.buffer and put.operator == "=":
                names = {str(theirs): str(own) for own, theirs in zip(put.indices, added.indices)}
                batch = tuple(names[a] for a in epilogue.batch if a in names)
                yield Nest(names.get(epilogue.row, ""), names[epilogue.column], batch)


def _gather_groups(b: Builder, c: Contraction, main: Tiled) -> None:
    """Let what is added up over groups lie together until all are added: rows of a result may be whole pages apart."""
    for put in puts_in((b.loop(main.groups[0]),)):
        if put.operator == "+=" and any(x.buffer == c.put.buffer for x in loads(put.value)):
            b.attempt(Accumulate(put.buffer, main.groups[0], b.fresh(put.buffer), "cache", "set"))


def _gather(b: Builder, tile: Accumulate) -> None:
    """Let the sums of a block lie together until all parts are added, tile after tile."""
    sums = b.fresh(tile.buffer)
    b.take(Accumulate(tile.buffer, tile.outer, sums, "cache", "set"))
    b.take(replace(tile, buffer=sums, new=b.fresh(tile.buffer), mode="first"))


def _fetch(
    b: Builder, c: Contraction, t: Tiling, main: Tiled, early: Early, right: str, parts: tuple[str, ...], steps: str
) -> None:
    """Let tiles fetch what later ones read from beyond the second cache, as no prefetcher foresees where rows begin:
    `right` for the next part of the reduction or block, the left operand of the next rows, sums of the next tile."""
    if not steps:
        return
    if early.columns and (parts or main.blocks):
        b.attempt(Fetch(right, (*main.blocks, *parts)[-1], steps, 1 if t.few else 2, early.distance))
    left = left_load(b, c, main.row) if main.row and early.rows else None
    if left is not None:
        b.attempt(Fetch(left.buffer, main.tiles[-2], steps))
        b.attempt(Fetch(c.put.buffer, main.panels, steps, 1))


def _steps(b: Builder, tiles: str, reduced: tuple[str, ...]) -> tuple[str, ...]:
    """The loops inside that over tiles which walk along what is reduced."""
    names = [loop.axis for loop in loops_in(b.loop(tiles).body)]
    return tuple(n for n in names if any(n == axis or n.startswith(f"{axis}.") for axis in reduced))


def _is_dot(b: Builder, c: Contraction) -> bool:
    """Does all that is read lie in memory along a reduction that fills vectors?"""
    last, buffers = c.main.reduced[-1], b.kernel.buffers()
    is_long = count(trips(b.loop(last))) >= lanes_for((c.put,), b.target)
    return is_long and all(stride(buffers[x.buffer], x.indices, last) == 1 for x in loads(c.put.value))


def _tile_dots(b: Builder, c: Contraction, t: Tiling) -> None:
    """Few rows against columns that lie along the reduction: a square of dot products at a time, lanes along it."""
    rows = min(SQUARE, t.rows)
    tiles, row = b.split(c.main.row, rows)
    panels, column = b.split(c.main.column, SQUARE * SQUARE // rows)
    *outer, last = c.main.reduced
    width, word = dot_width(b, c), ""
    width = width if count(trips(b.loop(last))) >= t.lanes * width else 1
    steps, lane = b.split(last, t.lanes * width)
    if width > 1:
        lane, word = b.split(lane, width)
    words = (word,) if word else ()
    b.take(Reorder((*c.main.batch, panels, tiles, *outer, steps, row, column, lane, *words)))
    write_out(b, (row, column, lane), word)
    first = outer[0] if outer else steps
    b.take(Accumulate(c.put.buffer, first, b.fresh(c.put.buffer), "register", "add", (lane,)))
    b.attempt(Version(tiles))
    for loop in loops_in(b.loop(tiles).body):
        if loop.axis == steps or loop.axis.startswith(f"{steps}."):
            b.attempt(Peel(loop.axis))
    share(b, (*c.main.batch, panels))


def around(b: Builder, tiles: str, reduced: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of the nest before the reduction of a tile, which sets it, and of that after it, which writes it."""
    body = next(body for body, loops in blocks(b.kernel) if loops and loops[-1].axis == tiles)
    nests = [s for s in body if isinstance(s, For)]
    here = next(n for n, nest in enumerate(nests) if nest.axis == reduced)
    first, last = nests[here - 1], nests[here + 1]
    return tuple(x.axis for x in loops_in((first,))), tuple(x.axis for x in loops_in((last,)))


def unroll_reduction(b: Builder, axis: str) -> str:
    """Write a short innermost reduction out, or some steps of a long one; the loop that is left, if there is one."""
    length = trips(b.loop(axis)).constant
    if length is not None and length <= 2 * UNROLLED[0]:
        b.take(Unroll((axis,)))
        return ""
    together = b.choose("steps written out", UNROLLED)
    if together == 1:
        return axis
    steps, inside = b.split(axis, together, "peel")
    b.take(Unroll((inside,)))
    return steps


def share(b: Builder, axes: tuple[str, ...]) -> None:
    """Give the iterations of an outer loop to threads."""
    if effort(b.kernel.body) < SMALL:
        return
    lengths = {axis: count(trips(b.loop(axis))) for axis in axes}
    wanted = SHARES * max(2, b.target.cores)
    best = next((a for a in axes if lengths[a] >= wanted), None) or max(axes, key=lambda a: lengths[a])
    if lengths[best] > 1:
        b.attempt(Parallel((best,)), silent=False)

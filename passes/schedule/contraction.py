"""Default schedule of contractions: matrix products, batched ones, convolutions, with what is done to their results.

A tile of the result, a few rows by a few vectors of columns, stays in registers while the reduction runs. The operand
that runs along the vectors is packed into panels where it is read often enough; the other one is read one number at a
time, and packed where it does not lie along the reduction. Batches, blocks of rows or blocks of columns go to threads.
The scheme is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008,
but each thread packs the block that it works on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import (
    ROOT,
    Accumulate,
    Fetch,
    Localize,
    Merge,
    Pack,
    Parallel,
    Partition,
    Peel,
    Prefetch,
    Reorder,
    Sink,
    Tighten,
    Unroll,
    Vectorize,
    Version,
    Widen,
)
from intarsia.passes.schedule.builder import SHARES, SMALL, Builder
from intarsia.passes.schedule.nests import Contraction, Nest, find_contraction, flattened, result_step
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

UNROLLED = (4, 1, 2, 8)
"""Steps of the reduction that are written out, the likeliest number first."""

WORTH = 0.95
"""What lanes across the result may do against lanes along it: tiles are transposed then."""


AHEAD = 8
"""Steps of the reduction for which an operand is fetched before it is packed."""

STREAMS = 8
"""Tiles of rows that are packed at a time, so that whole lines of memory are read."""


# ---------------------------------------------------------------------- choosing


def extents(b: Builder, c: Contraction) -> Extents:
    """What a contraction's tiling depends on."""

    def length(axis: str) -> int | None:
        return trips(b.loop(axis)).constant

    buffer = b.kernel.buffers()[c.right.buffer]
    outer, repeated = _batches(c)
    return Extents(
        rows=length(c.main.row),
        columns=length(c.main.column),
        depth=points(b.loop(a) for a in c.main.reduced),
        repeats=points(b.loop(a) for a in repeated),
        batches=points(b.loop(a) for a in outer),
        lanes=lanes_for((c.put,), b.target),
        bytes=buffer.dtype.bytes,
        follows=bool(c.epilogues),
        across=stride(buffer, c.right.indices, c.main.column) != 1,
        movable=_is_plain(c.right),
        constant=_is_plain(c.right) and b.copy_memory(c.right, ROOT) == "prepared",
        divisible=len(c.main.reduced) == 1 and not _is_across(b, c),
        apart=buffer.dtype.bytes * (stride(buffer, c.right.indices, c.main.reduced[-1]) or 0),
    )


def _is_across(b: Builder, c: Contraction) -> bool:
    """Do results lie along the rows of a tile, so that it is transposed when it is written? Then its sums are whole."""
    return result_step(b, c.put, c.main, c.epilogues, c.main.row) == 1


def _batches(c: Contraction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The batch axes along which the right operand changes, and those along which it does not."""
    outer = tuple(a for a in c.main.batch if a in c.right.symbols)
    return outer, tuple(a for a in c.main.batch if a not in c.right.symbols)


# ---------------------------------------------------------------------- scheduling


def schedule_contraction(b: Builder, loop: For) -> bool:
    """Schedule a contraction with its initial value and what follows it. Returns whether every step was legal."""
    c = find_contraction(b, loop := flattened(b, loop))
    if c is None:
        return False
    if c.is_ragged:
        return b.together(f"tiles of {c.put.buffer}", lambda: _schedule_ragged(b, loop))
    size = extents(b, c)
    likeliest = choose_tiling(size, b.target)
    if likeliest is None:
        return _schedule_narrow(b, loop, c) or _schedule_spread(b, loop, c)
    options = [(c, likeliest)]
    if (other := _across(b, loop, c)) is not None:
        options.insert(0 if _waste(b, *other) < WORTH * _waste(b, c, likeliest) else 1, other)
    c, tiling = b.choose(f"lanes of {c.put.buffer}", options, lambda option: option[0].main.column, looks=1)
    tiling = _choose_sizes(b, c, extents(b, c), tiling)
    if tiling.few and not size.constant and _is_dot(b, c):
        return b.together(f"tiles of dot products of {c.put.buffer}", lambda: _tile_dots(b, c, tiling))
    return b.together(f"tiles of {c.put.buffer}", lambda: _tile(b, c, tiling))


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
    other = find_contraction(b, loop, c.main.row)
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
    other = find_contraction(b, loop, c.main.row)
    if other is None or other.main.row != c.main.column:
        return False
    size, buffer = extents(b, other), b.kernel.buffers()[other.right.buffer]
    tiling = choose_tiling(size, b.target)
    last = next((a for a in other.main.reduced if stride(buffer, other.right.indices, a) == 1), "")
    if tiling is None or not last or count(trips(b.loop(last))) < SQUARE * size.lanes:
        return False
    reduced = (*(a for a in other.main.reduced if a != last), last)
    other = replace(other, main=replace(other.main, reduced=reduced))
    is_dot, left = _is_dot(b, other), _left(b, other, other.main.row)
    if not is_dot and left is None:
        return False

    def tile(other: Contraction) -> None:
        if not is_dot and left is not None:
            _copy(b, left, ROOT, (*other.main.batch, other.main.row, *other.main.reduced))
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


@dataclass(frozen=True)
class _Tiled:
    """The axes of a nest after it was split, from the outermost: `blocks`, of batches, rows and columns; inside a block
    `tiles`, and among them panels of columns; inside a tile rows, vectors if there are several, lanes."""

    blocks: tuple[str, ...]
    tiles: tuple[str, ...]
    panels: str
    inner: tuple[str, ...]

    @property
    def outer(self) -> tuple[str, ...]:
        return (*self.blocks, *self.tiles)


def _split(b: Builder, nest: Nest, t: Tiling, repeated: tuple[int, ...]) -> _Tiled:
    """Split a nest; `repeated` says which batch axes are walked inside a block."""
    blocks = [a for n, a in enumerate(nest.batch) if n not in repeated]
    inside = [a for n, a in enumerate(nest.batch) if n in repeated]
    rows, row = b.split(nest.row, t.rows)
    panels, column = b.split(nest.column, t.columns)
    vectors = b.split(column, t.lanes) if t.vectors > 1 else (column,)
    if t.block_rows:
        block, rows = b.split(rows, t.block_rows // t.rows, "min")
        blocks.append(block)
    if t.block_columns:
        block, panels = b.split(panels, max(1, t.block_columns // t.columns), "min")
        blocks.append(block)
    tiles = (panels, *inside, rows) if t.few else (*inside, rows, panels)
    return _Tiled(tuple(blocks), tiles, panels, (row, *vectors))


def _tile(b: Builder, c: Contraction, t: Tiling) -> None:
    """Tiles in registers, lanes along the columns."""
    early = fetched_early(extents(b, c), t, b.target)
    repeated = tuple(n for n, a in enumerate(c.main.batch) if t.inside and a not in c.right.symbols)
    is_across = _is_across(b, c)
    main = _split(b, c.main, t, repeated)
    reduced, part = c.main.reduced, ""
    if t.part:
        part, inside = b.split(reduced[0], t.part, "min")
        reduced = (inside,)
    parts = (part,) if part else ()
    once = t.packed and b.copy_memory(c.right, ROOT) == "prepared"
    outside, tiles = main.blocks, main.tiles
    if once and t.few:  # what lies together is gone through in order
        outside, tiles = (*main.blocks, main.panels), tuple(a for a in main.tiles if a != main.panels)
    b.take(Reorder((*outside, *parts, *tiles, *reduced, *main.inner)))
    initial = None if c.initial is None else _split(b, c.initial, t, repeated)
    if initial is not None:
        b.take(Reorder((*initial.outer, *initial.inner)))
    for epilogue in c.epilogues:
        own = _split(b, epilogue, t, repeated)
        written = (*own.inner[1:], own.inner[0]) if is_across else own.inner
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
        packed = _pack(b, c, at, (*dict.fromkeys(panels), *reduced, *main.inner[1:]), steps)
    copied = _copy_tile(b, c, main, reduced) if t.copied else ""
    if not t.few or (part and count(trips(b.loop(main.tiles[-1]))) > 1):
        _pack_left(b, c, t, main, (*parts, *(a for a in main.tiles if a != main.panels), *reduced, main.inner[0]))
    if not is_across:
        write_out(b, main.inner)
    tile = Accumulate(c.put.buffer, reduced[0], b.fresh(c.put.buffer), "register", "set", outer=part)
    if initial is None:
        b.take(replace(tile, mode="load"))
    elif not part:
        b.take(tile)
    elif not b.attempt(replace(tile, mode="first")):  # a reduction of open length may have no part at all
        write_out(b, initial.inner)
        b.take(replace(tile, mode="add"))
    if is_across:
        before, (row, *columns) = around(b, main.tiles[-1], reduced[0])
        b.take(Reorder((*columns, row)))
        for inner in (before, main.inner, (*columns, row)):
            write_out(b, inner)
    if c.epilogues and not part and b.kernel.buffers()[c.put.buffer].role == "temp":
        b.attempt(Localize(c.put.buffer, main.tiles[-1], "register"))
    if copied:
        b.take(Sink(copied, reduced[-1]))
    if c.is_ragged:
        for axis in reduced:
            b.attempt(Tighten(axis))
        b.attempt(Peel(reduced[-1]))
    unrolled = unroll_reduction(b, reduced[-1])
    _fetch(b, c, t, main, early, packed if once or t.few else c.right.buffer, part, unrolled)
    if copied:
        b.take(Partition(main.tiles[-1]))
    b.attempt(Version(main.tiles[-1], _steps(b, main.tiles[-1], reduced) if c.is_ragged else ()))
    share(b, main.blocks or main.tiles[:1])


def _fetch(
    b: Builder, c: Contraction, t: Tiling, main: _Tiled, early: Early, right: str, part: str, steps: str
) -> None:
    """Let tiles fetch what later ones read from beyond the second cache, as no prefetcher foresees where rows begin:
    `right` for the next part of the reduction or block, the left operand of the next rows, sums of the next tile."""
    if not steps:
        return
    if early.columns and (part or main.blocks):
        b.attempt(Fetch(right, part or main.blocks[-1], steps, 1 if t.few and right == c.right.buffer else 2))
    left = _left(b, c, main.inner[0])
    if early.rows and left is not None:
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
    steps, lane = b.split(last, t.lanes)
    b.take(Reorder((*c.main.batch, panels, tiles, *outer, steps, row, column, lane)))
    write_out(b, (row, column, lane))
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


def write_out(b: Builder, inner: tuple[str, ...]) -> None:
    """Lanes for the last axis, everything else of a tile written out."""
    if inner[:-1]:
        b.take(Unroll(inner[:-1]))
    b.take(Vectorize(inner[-1:]))


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


# ---------------------------------------------------------------------- packing


def _pack(b: Builder, c: Contraction, at: str, axes: tuple[str, ...], reduced: tuple[str, ...]) -> str:
    """Copy the right operand, in the order of the axes, so that the columns of a panel lie together for each step of
    the reduction. Returns the copy."""
    load = load_along(b, c.right.buffer, axes[-1])
    layout = [axis for axis in axes if axis in load.symbols]
    new, copied = _copy(b, load, at, axes)
    made, lane = dict(zip(layout, copied)), copied[-1]
    steps = tuple(made[a] for a in reduced if a in made)  # the operand need not depend on any axis of the reduction
    inner = copied[copied.index(steps[-1]) + 1 :] if steps else (lane,)
    batch = tuple(made[a] for a in c.main.batch if a in made)
    panels = tuple(a for a in copied if a not in (*batch, *steps, *inner))
    along = _axis_in_memory(b, c.right.buffer, copied)
    if along not in (lane, ""):
        transpose_copy(b, c.right.buffer, copied, along, lane)
    else:
        b.take(Reorder((*batch, *steps, *panels)))  # rows of the source piece by piece, whole lines of memory
        write_out(b, inner)
        if steps:
            b.attempt(Prefetch(c.right.buffer, new, steps[-1], AHEAD))
    b.attempt(Version(panels[-1]))
    return new


def _copy_tile(b: Builder, c: Contraction, main: _Tiled, reduced: tuple[str, ...]) -> str:
    """Copy what a tile reads of the right operand, for all tiles of rows that use it, so that its rows lie together.
    Returns the loop of the copy along the reduction."""
    load = load_along(b, c.right.buffer, main.inner[-1])
    _, copied = _copy(b, load, main.panels, (*reduced, *main.inner[1:]))
    write_out(b, copied[1:])
    return copied[0]


def _pack_left(b: Builder, c: Contraction, t: Tiling, main: _Tiled, axes: tuple[str, ...]) -> None:
    """Copy the left operand, if it does not lie along the reduction, so that the rows of a tile lie together for each
    step: else every step reads other lines."""
    row, last = axes[-1], axes[-2]
    load = _left(b, c, row)
    if load is None or last not in load.symbols:
        return
    is_along = stride(b.kernel.buffers()[load.buffer], load.indices, last) == 1
    if is_along and not t.few:
        return
    depth = max((n + 1 for n, a in enumerate(main.blocks) if a in load.symbols), default=0)
    at = main.blocks[depth - 1] if depth else ROOT
    inside = tuple(a for a in (*main.blocks[depth:], *axes[:-1]) if a in load.symbols)
    new, copied = _copy(b, load, at, (*inside, row))
    tiles = copied[-2 - len(c.main.reduced)]
    if is_along:
        transpose_copy(b, load.buffer, copied, copied[-2], copied[-1])
        b.attempt(Version(tiles))
        return
    blocks, tiles = b.split(tiles, STREAMS, "min")
    b.take(Reorder((blocks, *copied[-1 - len(c.main.reduced) : -1], tiles)))
    write_out(b, copied[-1:])
    b.attempt(Prefetch(load.buffer, new, copied[-2], AHEAD))
    b.attempt(Version(tiles))
    if not depth and effort(b.kernel.body) >= SMALL:
        b.attempt(Parallel((blocks,)))


def _copy(b: Builder, load: Load, at: str, axes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Pack what a load reads, with those of the axes as dimensions on which it depends. Returns the copy and the axes
    of the loops that make it."""
    layout = tuple(axis for axis in axes if axis in load.symbols)
    before = set(b.axes())
    new = b.fresh(load.buffer)
    b.take(Pack(load.buffer, at, new, layout, b.copy_memory(load, at)))
    return new, tuple(axis for axis in b.axes() if axis not in before)


def _axis_in_memory(b: Builder, buffer: str, axes: tuple[str, ...]) -> str:
    """Along which of the axes the elements that are read of a buffer lie next to each other; "" for none."""
    indices = load_along(b, buffer, axes[-1]).indices
    return next((axis for axis in reversed(axes) if stride(b.kernel.buffers()[buffer], indices, axis) == 1), "")


def transpose_copy(b: Builder, buffer: str, copied: tuple[str, ...], along: str, lane: str) -> None:
    """Copy squares through registers: `along` is how the source lies in memory, `lane` how the copy does."""
    size = count(trips(b.loop(lane)))
    b.take(Reorder((*(axis for axis in copied if axis not in (along, lane)), along, lane)))
    squares, step = b.split(along, size, "peel")
    before = set(b.axes())
    b.take(Pack(buffer, squares, b.fresh(buffer), (lane, step), "register"))
    rows, columns = (axis for axis in b.axes() if axis not in before)
    b.take(Unroll((rows, step)))
    b.take(Vectorize((columns, lane)))


def _left(b: Builder, c: Contraction, row: str) -> Load | None:
    """What a contraction reads along its rows, of which `row` is what is left now: if it is one load, plainly indexed,
    and nothing else is read of its buffer, which a copy would serve too."""
    read = dict.fromkeys(x for put in puts_in((b.loop(row),)) for x in loads(put.value))
    left = [x for x in read if row in x.symbols]
    plain = [x for x in loads(c.put.value) if c.main.row in x.symbols and _is_plain(x)]
    if len(left) != 1 or not plain or sum(x.buffer == left[0].buffer for x in read) > 1:
        return None
    return left[0]


def _is_plain(load: Load) -> bool:
    """Is every subscript an axis or a number?"""
    return all(i.as_name is not None or i.constant is not None for i in load.indices)


def load_along(b: Builder, buffer: str, axis: str) -> Load:
    """The load of a buffer along `axis`."""
    found = (x for put in puts_in((b.loop(axis),)) for x in loads(put.value))
    return next(x for x in found if x.buffer == buffer and axis in x.symbols)

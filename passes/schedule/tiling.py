"""Sizes of the tiles and blocks of a contraction, from its extents and what the target offers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from intarsia.ir.target import Target
from intarsia.passes.schedule.builder import SHARES
from intarsia.passes.schedule.shape import UNKNOWN

FEW = 32
"""Up to so many rows the columns' operand is read once, in wide pieces, and never packed."""

REUSED = 192
"""Rows from which on packing the columns' operand pays even where it fits into the second cache."""

BLOCK_ROWS = 96
"""Rows of a block at least, so that packing the columns' operand for each of them costs little."""

FEW_COLUMNS = 512
"""Columns of a block where there are few rows: twice as many where they make several tiles."""

FEW_STEPS = 64
"""Steps of the reduction that few rows take at a time, while the columns' operand for the next ones is fetched: rows of
it in memory. Of a constant, which lies together, a panel takes a third of the first cache."""

COPIED_COLUMNS = 256
"""Columns of a block where a tile copies what it reads: rows of more steps come between its first and last one."""

DEEP = 2048
"""Steps of the reduction from which on one or two tiles of rows gather the sums of a block: copying them is little."""

BUSY = 5
"""Rows from which on that pays: of fewer, all the time is that of reading."""

DEEP_STEPS = 32
"""Steps that they take at a time: so many rows of the columns' operand, those that are read and those that are fetched,
fit into the sets of the second cache even where all fall into a few of them."""

PIECE = 4096
"""Bytes of each of these rows in a block: pieces of a page, so that two of them share few lines."""

FETCHED = 256
"""Rows up to which reading the columns' operand takes long enough beside the arithmetic to be fetched ahead."""

AHEAD = 8 << 10
"""Bytes that lie between what few rows read of the columns' operand and what they fetch of it, at least."""

WAY = 4096
"""Bytes after which addresses fall into the same sets of the first cache."""

CROWDED = 24
"""Lines in one set, twice as many as it holds, from which on rows of the columns' operand are copied: what one tile of
rows has read would be gone when the next one needs it."""


@dataclass(frozen=True)
class Extents:
    """What a tiling is chosen for. None is an extent that is not known before the program runs.

    repeats: how often the columns' operand is used again for other rows, beside `rows`. batches: products that share
    nothing. lanes: elements of a vector; bytes: of an element of the columns' operand; apart: between neighbours of it
    along the reduction, 0 where unknown. follows: is something done to
    the result afterwards? across: does the columns' operand not lie along the columns? movable: can it be packed?
    constant: once for all calls, that is? divisible: can the reduction be cut? grouped: are sums of groups added up?
    """

    rows: int | None
    columns: int | None
    depth: int
    repeats: int
    batches: int
    lanes: int
    bits: int
    follows: bool
    across: bool
    movable: bool
    constant: bool
    divisible: bool
    apart: int = 0
    grouped: bool = False

    @property
    def bytes(self) -> int:
        """What an element of the columns' operand takes in memory, if it does not share bytes with others."""
        return -(-self.bits // 8)

    @property
    def is_crowded(self) -> bool:
        """Do the rows of the columns' operand that few rows use again want more of a set of the first cache than it
        holds? Then they can be copied to where they lie together."""
        in_one = FEW_STEPS * math.gcd(self.apart, WAY) // WAY if self.apart else 0
        return in_one > CROWDED and self.movable and not self.across and not self.constant


@dataclass(frozen=True)
class Tiling:
    """rows x (vectors * lanes): the tile in registers. block_rows, block_columns: rows and columns of a block, 0 for
    all of them. part: length of a piece of the reduction, 0 for all of it. packed: is the columns' operand packed?
    inside: do all the rows that use a packed block again do so before the next one is packed? few: columns first.
    copied: does the first of several tiles of few rows copy what it reads of the columns' operand for the others?
    gathered: do the sums of a block lie together until all parts are added, as rows of the result do not?"""

    rows: int
    vectors: int
    lanes: int
    block_rows: int
    block_columns: int
    part: int
    packed: bool
    inside: bool
    few: bool
    copied: bool = False
    gathered: bool = False

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    def __str__(self) -> str:
        blocks = (
            f"{self.block_rows or 'all'} rows by {self.block_columns or 'all'} columns by {self.part or 'all'} steps"
        )
        how = [name for name in ("packed", "inside", "few", "copied", "gathered") if getattr(self, name)]
        return f"{self.rows}x{self.vectors} vectors, blocks of {blocks}" + "".join(f", {name}" for name in how)


def choose_tiling(e: Extents, target: Target) -> Tiling | None:
    """Sizes for a contraction; None if its results do not fill a vector."""
    if e.columns is not None and e.columns <= e.lanes // 2:
        return None
    few = e.rows is not None and e.rows <= FEW
    rows, vectors = register_tile(e, target, few)
    width = vectors * e.lanes
    first, second = target.caches[0], target.caches[min(1, len(target.caches) - 1)]
    is_small = e.columns is not None and e.columns * e.depth * e.bytes <= second // 2
    if few and e.rows is not None:
        cut = e.divisible and not is_small
        copied = cut and e.rows > rows and e.is_crowded
        deep = cut and BUSY <= e.rows <= 2 * rows and _gathers(e, width)
        steps = max(FEW_STEPS, first // 3 // (width * e.bytes)) if e.constant else DEEP_STEPS if deep else FEW_STEPS
        part = _part(e.depth, steps, 2 * FEW_STEPS) if cut else 0
        wanted = COPIED_COLUMNS if copied else FEW_COLUMNS * min(2, -(-e.rows // rows))
        if deep:
            wanted = max(COPIED_COLUMNS, min(PIECE // e.bytes, (e.columns or 0) // max(2, target.cores)))
        columns = max(1, wanted // width) * width
        packed = e.constant or (e.across and e.movable)
        return Tiling(rows, vectors, e.lanes, 0, columns, part, packed, e.constant, True, copied, deep)
    steps = first * 2 // 3 // (rows * e.bytes)  # a tile's rows of the left operand stay in the first cache
    panel = second // 2 // (width * e.bytes)  # steps for which a panel stays in half of the second one
    part = 0
    if e.divisible:
        part = _part(e.depth, min(steps, panel), panel if e.follows else min(steps * 3 // 2, panel))
    most = max(1, second // 2 // ((part or e.depth) * e.bytes) // width) * width
    wanted = -(-SHARES * max(2, target.cores) // e.batches)
    columns = most
    if e.columns is not None:
        columns = min(most, max(width, -(-e.columns // wanted // width) * width))
    enough = e.columns is None or -(-e.columns // columns) >= wanted
    reused = e.rows is None or e.rows * e.repeats >= REUSED
    packed = e.constant or (e.movable and (e.across or not is_small or reused))
    inside = enough or e.repeats == 1
    block = 0
    if not enough and inside and e.rows is not None and e.columns is not None:
        share = max(BLOCK_ROWS, -(-e.rows // -(-wanted * columns // e.columns)))
        block = 0 if share >= e.rows else -(-share // rows) * rows
    return Tiling(rows, vectors, e.lanes, block, columns, part, packed, inside, False)


def _gathers(e: Extents, width: int) -> bool:
    """Does it pay few rows to gather the sums of a block until all parts of the reduction are added? Where tiles are
    whole, no mask is in the way of the first part."""
    whole = e.columns is not None and e.columns % width == 0
    return whole and e.depth >= DEEP and e.bytes >= 4 and not (e.constant or e.across)


@dataclass(frozen=True)
class Early:
    """What tiles fetch for those that come later. columns: what the next part of the reduction or block reads of the
    columns' operand, or a part that is further away. rows: what the next rows read of theirs."""

    columns: bool
    rows: bool
    distance: int = 1


def fetched_early(e: Extents, t: Tiling, target: Target) -> Early:
    """What it pays to fetch, since it comes from beyond the second cache: most columns, if few rows use them; rows, if
    those of a whole block and its columns do not fit there."""
    if t.few:
        piece = max(1, (t.part or e.depth) * t.columns * e.bits // 8)
        return Early(columns=bool(t.part) or e.grouped, rows=False, distance=-(-AHEAD // piece))
    second = target.caches[min(1, len(target.caches) - 1)]
    steps, columns = t.part or e.depth, e.columns or UNKNOWN
    rows = t.block_rows or (e.rows or UNKNOWN) * (e.repeats if t.inside else 1)
    block = (rows + min(columns, t.block_columns or columns)) * steps * e.bytes
    return Early(
        columns=rows <= FETCHED and columns * e.depth * e.bytes > second // 2,
        rows=block > second,
    )


SHAPES = ((6, 4), (4, 4), (8, 2), (4, 6), (12, 2), (8, 1), (3, 8))
"""Rows and vectors of tiles that keep the multiply-add units busy."""

FEW_SHAPES = ((1, 8), (2, 8), (4, 4), (8, 2), (8, 1))
"""The same where there are few rows."""


def other_tiles(t: Tiling, e: Extents, target: Target) -> Iterator[Tiling]:
    """The tiling with tiles of other shapes."""
    for rows, vectors in FEW_SHAPES if t.few else SHAPES:
        width = vectors * e.lanes
        fits = rows * vectors + vectors < target.registers and (e.columns is None or width < e.columns + e.lanes)
        if fits and (e.rows is None or rows <= e.rows):
            yield replace(
                t,
                rows=rows,
                vectors=vectors,
                block_rows=-(-t.block_rows // rows) * rows,
                block_columns=-(-t.block_columns // width) * width,
                copied=t.copied and e.rows is not None and e.rows > rows,
                gathered=t.gathered and e.rows is not None and e.rows > rows,
            )


def other_packings(t: Tiling, e: Extents) -> Iterator[Tiling]:
    """The tiling with the columns' operand packed if it was not, and the other way round."""
    if t.packed != e.across and e.movable and not t.few:
        yield replace(t, packed=not t.packed)
    if t.few and e.movable and not (e.across or e.constant) and e.rows is not None and e.rows > t.rows and t.part:
        yield replace(t, copied=not t.copied, gathered=False)


def other_parts(t: Tiling, e: Extents) -> Iterator[Tiling]:
    """The tiling with the reduction cut into shorter or longer parts, or not cut."""
    if not e.divisible:
        return
    if t.part:
        yield replace(t, part=0, copied=False, gathered=False)
    for length in (64, 128, 256, 512):
        if 2 * length <= e.depth and not 2 * length <= 3 * t.part <= 4 * length:
            yield replace(t, part=-(-e.depth // -(-e.depth // length)))


def other_blocks(t: Tiling, e: Extents) -> Iterator[Tiling]:
    """The tiling with blocks of fewer or more columns, and of rows."""
    if t.block_columns:
        for columns in (t.block_columns // 2, 2 * t.block_columns, 4 * t.block_columns):
            columns = max(t.columns, columns // t.columns * t.columns)
            if e.columns is None or columns < e.columns + t.block_columns:
                yield replace(t, block_columns=columns)
    if e.rows is not None and not t.few and t.inside and e.rows > 2 * BLOCK_ROWS:
        for rows in (BLOCK_ROWS, 2 * BLOCK_ROWS):
            yield replace(t, block_rows=-(-rows // t.rows) * t.rows)
        yield replace(t, block_rows=0)


def register_tile(e: Extents, target: Target, few: bool) -> tuple[int, int]:
    """Rows and vectors of a tile: enough accumulators to keep the multiply-add units busy for the length of an
    addition, and few loads for each."""
    accumulators = target.registers // 2
    most = 8 if accumulators >= 16 else 6
    rows = most if e.rows is None else -(-e.rows // -(-e.rows // most))
    vectors = min(2, max(1, -(-accumulators // rows)))
    if few:  # as wide as registers allow: what is read once should be read in long pieces
        vectors = min(8, 1 << (max(1, (target.registers - 2) // (rows + 1)).bit_length() - 1))
    if e.columns is not None:
        vectors = min(vectors, -(-e.columns // e.lanes))
    return rows, vectors


def _part(depth: int, steps: int, most: int) -> int:
    """The length of equal pieces of a reduction of at most `steps` steps; 0 where it is at most `most` long."""
    return 0 if depth <= most else -(-depth // -(-depth // steps))

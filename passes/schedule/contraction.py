"""Default schedule of contractions: matrix products, batched ones, convolutions, with what is done to their results.

A tile of the result, a few rows by a few vectors of columns, stays in registers while the reduction runs. The operand
that runs along the vectors is packed into panels where it is read often enough; the other one is read one number at a
time. Blocks of rows, batches or blocks of columns go to threads. The numbers were measured, see docs/kernel-ir.md; the
scheme is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.scalar import Const, Load, loads
from intarsia.ir.schedule import (
    ROOT,
    Accumulate,
    Localize,
    Merge,
    Pack,
    Parallel,
    Peel,
    Reorder,
    Unroll,
    Vectorize,
    Version,
)
from intarsia.passes.schedule.builder import SHARES, SMALL, Builder
from intarsia.passes.schedule.shape import count, effort, lanes_for, points, stride
from intarsia.passes.schedule.tree import find_loop, loops_in, perfect_nest, puts_in

FEW = 32
"""Up to so many rows the columns' operand is read once, in wide pieces, and never packed."""

REUSED = 192
"""Rows from which on packing the columns' operand pays."""

BLOCK = 64
"""Rows whose part of the other operand stays in the second cache."""

DEEP = 1536
"""A longer reduction is cut into parts of about `PART`, so that a panel stays in the second cache."""

PART = 1024
PART_OF_FEW = 256

WIDE = 512
"""Columns of a block where there are few rows."""

SQUARE = 4
"""Dot products along each side of a tile of them."""

UNROLLED = 4
"""Steps of the reduction that are written out."""


@dataclass(frozen=True)
class Nest:
    """The axes of one stage. The result has the dimensions `batch`, `row` and `column` in some order: only the left
    operand has rows, only the right one has columns, and along columns the result lies in memory."""

    row: str
    column: str
    batch: tuple[str, ...]
    reduced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contraction:
    """A stage `y[…] += left * right`, with the stages that come before and after it: the initial value, and what is
    done to each element of the result."""

    put: Put
    right: Load
    main: Nest
    initial: Nest | None
    epilogues: tuple[Nest, ...]


@dataclass(frozen=True)
class Tiling:
    """rows x vectors * lanes: the tile in registers. block: rows of tiles in a block. part: length of a piece of the
    reduction, 0 for all of it. packed: is the right operand packed?"""

    rows: int
    vectors: int
    lanes: int
    block: int
    part: int
    packed: bool
    few: bool

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


# ---------------------------------------------------------------------- recognizing


def find_contraction(b: Builder, loop: For) -> Contraction | None:
    """The contraction that a nest is, if it is one and long enough in both directions for a tile."""
    nest, body = perfect_nest(loop)
    if len(body) != 1 or not isinstance(put := body[0], Put) or put.operator != "+=" or put.mask:
        return None
    axes = {inner.axis: inner for inner in nest}
    names = [index.as_name for index in put.indices if index.constant is None]
    is_plain = all(n in axes for n in names) and len(set(names)) == len(names)
    is_box = not any(axes.keys() & (x.lower.symbols | x.upper.symbols) or x.step != 1 for x in nest)
    if not is_plain or not is_box:
        return None
    kept = [a for a in axes if a in names]
    reduced = tuple(a for a in axes if a not in names)
    column = next((a for a in kept if stride(b.kernel.buffers()[put.buffer], put.indices, a) == 1), None)
    operands = list(dict.fromkeys(loads(put.value)))
    right = [x for x in operands if column in x.symbols]
    left = [x for x in operands if column not in x.symbols]
    rows = [a for a in kept if any(a in x.symbols for x in left) and not any(a in x.symbols for x in right)]
    rows = [a for a in rows if count(trips(axes[a])) > 1]
    if column is None or not rows or len(right) != 1 or not reduced:
        return None
    row = max(rows, key=lambda a: count(trips(axes[a])))
    main = Nest(row, column, tuple(a for a in kept if a not in (row, column)), reduced)
    before, after = _neighbours(b, put, main, loop)
    return Contraction(put, right[0], main, before, after)


def _neighbours(b: Builder, put: Put, main: Nest, loop: For) -> tuple[Nest | None, tuple[Nest, ...]]:
    """The stage that sets the result, and those that use it point by point, in their own axes."""
    initial: Nest | None = None
    epilogues: list[Nest] = []
    position = {str(index.as_name): d for d, index in enumerate(put.indices)}
    for stage in b.outermost():
        nest, body = perfect_nest(stage)
        if stage is loop or len(body) != 1 or not isinstance(own := body[0], Put) or own.operator != "=":
            continue
        places = {a.indices for a in accesses(body) if a.buffer == put.buffer}
        if len(places) != 1:
            continue
        (indices,) = places
        names = {axis: indices[d].as_name for axis, d in position.items()}
        if {inner.axis for inner in nest} != set(names.values()):
            continue
        found = Nest(str(names[main.row]), str(names[main.column]), tuple(str(names[a]) for a in main.batch))
        if own.buffer == put.buffer and isinstance(own.value, Const):
            initial = found
        elif own.buffer != put.buffer:
            epilogues.append(found)
    return initial, tuple(epilogues)


# ---------------------------------------------------------------------- choosing


def choose_tiling(b: Builder, c: Contraction) -> Tiling | None:
    """Sizes of tiles and blocks for a contraction; None if its results do not fill a vector."""

    def length(axis: str) -> int | None:
        return trips(b.loop(axis)).constant

    rows, columns = length(c.main.row), length(c.main.column)
    lanes = lanes_for((c.put,), b.target)
    if columns is not None and columns <= lanes // 2:
        return None
    accumulators = b.target.registers // 2
    few = rows is not None and rows <= FEW
    most = 8 if accumulators >= 16 else 6
    height = most if rows is None else -(-rows // -(-rows // most))
    width = max(1, (accumulators + height - 1) // height)
    width = min(8, max(4, width)) if few else min(2, width)
    if columns is not None:
        width = min(width, -(-columns // lanes))
    depth = points(b.loop(a) for a in c.main.reduced)
    step = PART_OF_FEW if few else PART
    part = step if len(c.main.reduced) == 1 and depth > (2 * step if few else DEEP) else 0
    along = stride(b.kernel.buffers()[c.right.buffer], c.right.indices, c.main.column)
    is_plain = all(i.as_name is not None or i.constant is not None for i in c.right.indices)
    packed = is_plain and (along != 1 or (not few and (rows is None or rows >= REUSED)))
    block = BLOCK
    if rows is not None:
        block = min(BLOCK, -(-rows // (2 * max(2, b.target.cores))))
    return Tiling(height, width, lanes, max(1, block // height), part, packed, few)


# ---------------------------------------------------------------------- scheduling


def schedule_contraction(b: Builder, loop: For) -> bool:
    """Schedule a contraction with its initial value and what follows it. Returns whether every step was legal."""
    c = find_contraction(b, loop)
    tiling = choose_tiling(b, c) if c is not None else None
    if c is None or tiling is None:
        return False
    if tiling.few and _is_dot(b, c):
        return b.together(f"tiles of dot products of {c.put.buffer}", lambda: _tile_dots(b, c, tiling))
    return b.together(f"tiles of {c.put.buffer}", lambda: _tile(b, c, tiling))


@dataclass(frozen=True)
class _Tiled:
    """The axes of a nest after it was split: blocks (of rows, or of panels for few rows), tiles of rows, panels of
    columns, and inside a tile rows, vectors if there are several, lanes."""

    batch: tuple[str, ...]
    blocks: str
    panels: str
    tiles: str
    row: str
    columns: tuple[str, ...]

    @property
    def outer(self) -> tuple[str, ...]:
        return (*self.batch, self.blocks, self.panels, self.tiles)

    @property
    def inner(self) -> tuple[str, ...]:
        return (self.row, *self.columns)


def _split(b: Builder, nest: Nest, t: Tiling) -> _Tiled:
    tiles, row = b.split(nest.row, t.rows)
    panels, inside = b.split(nest.column, t.columns)
    columns = b.split(inside, t.lanes) if t.vectors > 1 else (inside,)
    if t.few:
        blocks, panels = b.split(panels, max(1, WIDE // t.columns), "min")
    else:
        blocks, tiles = b.split(tiles, t.block, "min")
    return _Tiled(nest.batch, blocks, panels, tiles, row, columns)


def _tile(b: Builder, c: Contraction, t: Tiling) -> None:
    """Tiles in registers, lanes along the columns."""
    main = _split(b, c.main, t)
    reduced, part = c.main.reduced, ""
    if t.part:
        length = count(trips(b.loop(reduced[0])))
        part, inside = b.split(reduced[0], -(-length // -(-length // t.part)), "min")
        reduced = (inside,)
    at = len(main.batch) + t.few
    outer = (*main.outer[:at], part, *main.outer[at:]) if part else main.outer
    b.take(Reorder((*outer, *reduced, *main.inner)))
    initial = None if c.initial is None else _split(b, c.initial, t)
    if initial is not None:
        b.take(Reorder((*initial.outer, *initial.inner)))
    if not part:
        for epilogue in c.epilogues:
            own = _split(b, epilogue, t)
            b.take(Reorder((*own.outer, *own.inner)))
            for ours, theirs in zip(main.outer, own.outer):
                b.take(Merge((ours, theirs)))
            _write_out(b, own.inner)
    copied = ""
    if t.packed:
        copied = _pack(b, c, part or _innermost(c.right, main.batch), (main.panels, *reduced, *main.columns))
    _write_out(b, main.inner)
    tile = Accumulate(c.put.buffer, reduced[0], b.fresh(c.put.buffer), "register", "set", outer=part)
    if initial is None:
        b.take(replace(tile, mode="load"))
    elif not part:
        b.take(tile)
    elif not b.attempt(replace(tile, mode="first")):  # a reduction of open length may have no part at all
        _write_out(b, initial.inner)
        b.take(replace(tile, mode="add"))
    if c.epilogues and not part and b.kernel.buffers()[c.put.buffer].role == "temp":
        b.attempt(Localize(c.put.buffer, main.tiles, "register"))
    _unroll_reduction(b, reduced[-1])
    b.attempt(Version(main.tiles))
    _share(b, (*main.batch, main.blocks), copied)


def _is_dot(b: Builder, c: Contraction) -> bool:
    """Does all that is read lie in memory along the reduction?"""
    last, buffers = c.main.reduced[-1], b.kernel.buffers()
    return all(stride(buffers[x.buffer], x.indices, last) == 1 for x in loads(c.put.value))


def _tile_dots(b: Builder, c: Contraction, t: Tiling) -> None:
    """Few rows against columns that lie along the reduction: a square of dot products at a time, lanes along it."""
    rows = min(SQUARE, t.rows)
    tiles, row = b.split(c.main.row, rows)
    panels, column = b.split(c.main.column, SQUARE * SQUARE // rows)
    *outer, last = c.main.reduced
    steps, lane = b.split(last, t.lanes)
    b.take(Reorder((*c.main.batch, panels, tiles, *outer, steps, row, column, lane)))
    _write_out(b, (row, column, lane))
    first = outer[0] if outer else steps
    b.take(Accumulate(c.put.buffer, first, b.fresh(c.put.buffer), "register", "add", (lane,)))
    b.attempt(Version(tiles))
    for loop in loops_in(b.loop(tiles).body):
        if loop.axis == steps or loop.axis.startswith(f"{steps}."):
            b.attempt(Peel(loop.axis))
    _share(b, (*c.main.batch, panels), "")


def _write_out(b: Builder, inner: tuple[str, ...]) -> None:
    """Lanes for the last axis, everything else of a tile written out."""
    if inner[:-1]:
        b.take(Unroll(inner[:-1]))
    b.take(Vectorize(inner[-1:]))


def _innermost(load: Load, batch: tuple[str, ...]) -> str:
    """The innermost of the axes on which a load depends, or the whole kernel."""
    return next((axis for axis in reversed(batch) if axis in load.symbols), ROOT)


def _unroll_reduction(b: Builder, axis: str) -> None:
    """Write a short innermost reduction out, or four steps of a long one."""
    length = trips(b.loop(axis)).constant
    if length is not None and length <= 2 * UNROLLED:
        b.take(Unroll((axis,)))
    else:
        b.take(Unroll((b.split(axis, UNROLLED, "peel")[1],)))


def _share(b: Builder, axes: tuple[str, ...], copied: str) -> None:
    """Give the iterations of an outer loop to threads, and the panels that are copied if that is not done inside."""
    if effort(b.kernel.body) < SMALL:
        return
    lengths = {axis: count(trips(b.loop(axis))) for axis in axes}
    wanted = SHARES * max(2, b.target.cores)
    best = next((a for a in axes if lengths[a] >= wanted), None) or max(axes, key=lambda a: lengths[a])
    if lengths[best] > 1:
        b.attempt(Parallel((best,)), silent=False)
    if copied and not any(loop.kind == "parallel" for loop in find_loop(b.kernel, copied)[1]):
        b.attempt(Parallel((copied,)))


# ---------------------------------------------------------------------- packing


def _pack(b: Builder, c: Contraction, at: str, axes: tuple[str, ...]) -> str:
    """Copy the right operand so that the columns of a panel lie together for each step of the reduction. Returns the
    axis that counts the panels that are copied."""
    load = _load(b, c.right.buffer, axes[-1])
    layout = tuple(axis for axis in axes if axis in load.symbols)
    before = set(b.axes())
    b.take(Pack(load.buffer, at, b.fresh(load.buffer), layout, "cache"))
    copied = tuple(axis for axis in b.axes() if axis not in before)
    panels, lane = copied[0], copied[-1]
    buffer = b.kernel.buffers()[load.buffer]
    indices = _load(b, load.buffer, lane).indices
    along = next((axis for axis in copied if stride(buffer, indices, axis) == 1), lane)
    if along == lane:
        b.take(Vectorize((lane,)))
    else:
        _transpose(b, load.buffer, copied, along, lane)
    b.attempt(Version(panels))
    return panels


def _transpose(b: Builder, buffer: str, copied: tuple[str, ...], along: str, lane: str) -> None:
    """Copy squares through registers: `along` is how the source lies in memory, `lane` how the copy does."""
    size = count(trips(b.loop(lane)))
    b.take(Reorder((*(axis for axis in copied if axis not in (along, lane)), along, lane)))
    squares, step = b.split(along, size, "peel")
    before = set(b.axes())
    b.take(Pack(buffer, squares, b.fresh(buffer), (lane, step), "register"))
    rows, columns = (axis for axis in b.axes() if axis not in before)
    b.take(Unroll((rows, step)))
    b.take(Vectorize((columns, lane)))


def _load(b: Builder, buffer: str, axis: str) -> Load:
    """The load of a buffer in the loop over `axis`."""
    return next(x for put in puts_in((b.loop(axis),)) for x in loads(put.value) if x.buffer == buffer)

"""Default schedule of reductions over windows in which every axis of the result reads elements of its own: depthwise
convolutions, pooling, blurs.

There is no operand that many outputs share, so such a reduction is no contraction; but windows of neighbours overlap.
A part of the image is copied into a buffer that the first cache holds, with the padding, so that what reads it has no
masks: each element once, or, where windows lie several elements apart, once for each place in a window (the window
order of Lu et al., "Im2win", 2023). A tile of the result is in registers, the window is written out, and what one tile
reads of the image several times is loaded once.

Lanes run along pixels, or, where these fill no vectors, along an axis that has no windows, such as channels. Then
squares are transposed in registers on the way in and on the way out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import (
    ROOT,
    Accumulate,
    Localize,
    Merge,
    Pack,
    Partition,
    Reorder,
    Unroll,
    Vectorize,
    Version,
)
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.contraction import around, share
from intarsia.passes.schedule.nests import Nest, neighbours, reducing_nest, result_step
from intarsia.passes.schedule.packing import load_along, write_out
from intarsia.passes.schedule.shape import count, lanes_for, points, stride
from intarsia.passes.schedule.tree import find_loop, loops_in, puts_in
from intarsia.passes.schedule.vectors import vectorize_leaf

LARGEST = 128
"""Elements of a window at most, which are written out."""

VECTORS = 1
"""Vectors of a tile at most, side by side."""

TRANSPOSED = 4
"""Instructions for each vector of a square that is transposed in registers."""

SPREAD = 3
"""Instructions for each vector of every second, third or fourth element, where it is used."""

NEAR = 4
"""How far apart in memory windows may lie that are the lanes of a vector."""


@dataclass(frozen=True)
class Window:
    """A stage `y[…] += image[sums] * …`, with the stages that come before and after it: the initial value, and what is
    done to each element of the result. In `main`, columns are the lanes, rows the other side of a tile.

    windowed: the axes of the result along which windows lie. length: outputs along the lanes; worth: instructions of an
    output vector.
    """

    put: Put
    image: Load
    main: Nest
    initial: Nest | None
    epilogues: tuple[Nest, ...]
    windowed: frozenset[str]


def schedule_windows(b: Builder, loop: For) -> bool:
    """Schedule a reduction over windows with its initial value and what follows it. Returns whether it was one, and
    every step was legal."""
    found = find_windows(b, loop)
    if not found:
        return False
    w = b.choose(f"lanes of {found[0].put.buffer}", found, lambda window: window.main.column, looks=len(found))
    return b.together(f"tiles of windows of {w.put.buffer}", lambda: _tile(b, w))


# ---------------------------------------------------------------------- recognizing


def find_windows(b: Builder, loop: For) -> list[Window]:
    """The ways to see a nest as a reduction over windows, the likeliest first; none if it is no such thing."""
    found = reducing_nest(loop)
    if found is None:
        return []
    put, axes = found
    kept = tuple(axis for axis in axes if any(axis in i.symbols for i in put.indices))
    reduced = tuple(axis for axis in axes if axis not in kept)
    sizes = [trips(axes[axis]).constant for axis in axes]
    images = [x for x in dict.fromkeys(loads(put.value)) if _sums(x, kept, reduced)]
    if len(images) != 1 or not all(sizes) or not 1 < points(axes[r] for r in reduced) <= LARGEST:
        return []
    (image,) = images
    once = all(sum(axis in index.symbols for index in image.indices) == 1 for axis in axes)
    single = all(len(index.symbols & set(kept)) <= 1 for index in image.indices)
    windowed = _sums(image, kept, reduced)
    is_affine = all(index.is_affine_in(axes) and not index.opaques for index in (*image.indices, *image.mask))
    if not (once and single and is_affine) or not any(_overlaps(b, image, axis, reduced) for axis in windowed):
        return []
    ways = []
    for lane in kept:
        rows = [axis for axis in kept if axis in windowed and axis != lane]
        others = [x for x in loads(put.value) if x != image]
        distance = stride(b.kernel.buffers()[image.buffer], image.indices, lane)
        if not rows or (
            lane in windowed and (distance not in range(1, NEAR + 1) or any(lane in x.symbols for x in others))
        ):
            continue
        row = min(rows, key=lambda axis: stride(b.kernel.buffers()[put.buffer], put.indices, axis) or 0)
        order = _ordered(image, (row, lane), kept, reduced)
        main = Nest(row, lane, tuple(a for a in kept if a not in (row, lane)), order)
        ways.append(Window(put, image, main, *neighbours(b, put, main, loop), windowed))
    return sorted(ways, key=lambda w: _cost(b, w))


def _sums(load: Load, kept: tuple[str, ...], reduced: tuple[str, ...]) -> frozenset[str]:
    """The axes of the result that a load's subscripts add to axes of the reduction."""
    mixed = (index.symbols for index in load.indices if index.symbols & set(reduced))
    return frozenset(axis for symbols in mixed for axis in symbols & set(kept))


def _overlaps(b: Builder, image: Load, axis: str, reduced: tuple[str, ...]) -> bool:
    """Do windows that follow each other along an axis of the result share elements?"""
    (index,) = (i for i in image.indices if axis in i.symbols)
    return _extent(b, index, index.symbols & set(reduced)) > abs(index.coefficient(axis) or 0)


def _ordered(image: Load, tile: tuple[str, str], kept: tuple[str, ...], reduced: tuple[str, ...]) -> tuple[str, ...]:
    """The axes of the reduction, last those that run along the rows of a tile: what a tile reads again is then needed
    soon."""

    def place(axis: str) -> int:
        index = next((i for i in image.indices if axis in i.symbols), None)
        return 0 if index is None else 2 if tile[0] in index.symbols else 0 if tile[1] in index.symbols else 1

    return tuple(sorted(reduced, key=place))


def _lies_along(b: Builder, w: Window, axis: str) -> bool:
    """Do results lie in memory along an axis?"""
    return result_step(b, w.put, w.main, w.epilogues, axis) == 1


def _step(b: Builder, w: Window, axis: str) -> int | None:
    """How far apart neighbours along an axis lie in the image."""
    return stride(b.kernel.buffers()[w.image.buffer], w.image.indices, axis)


def _within(w: Window, axis: str) -> frozenset[str]:
    """The axes of the reduction that an axis of the result is added to."""
    return next(i.symbols for i in w.image.indices if axis in i.symbols) & frozenset(w.main.reduced)


def _cost(b: Builder, w: Window) -> float:
    """Instructions, about, for a vector of results."""
    lanes, lane = lanes_for((w.put,), b.target), w.main.column
    length = count(trips(b.loop(lane)))
    area = 1  # elements of the image for each result
    for axis in w.windowed:
        area *= max(abs(index.coefficient(axis) or 0) for index in w.image.indices)
    is_near = _step(b, w, lane) == 1
    window = points(b.loop(a) for a in w.main.reduced)
    if lane not in w.windowed:
        moved = area * (1 if is_near else TRANSPOSED) + (1 if _lies_along(b, w, lane) else TRANSPOSED)
    else:
        window, moved = window * (1 if is_near else SPREAD), 1
    return (window + moved) * -(-length // lanes) * lanes / length


# ---------------------------------------------------------------------- scheduling


@dataclass(frozen=True)
class _Tiling:
    """rows, vectors, lanes: the tile in registers. block: how many of the outermost axis with windows are copied at a
    time, 0 for all of them."""

    rows: int
    vectors: int
    lanes: int
    block: int


@dataclass(frozen=True)
class _Tiled:
    """The axes of a nest after it was split, from the outermost: `outer`, where the image is copied for all that is
    inside of them; `tiles`; the rows and columns of a tile."""

    outer: tuple[str, ...]
    tiles: tuple[str, ...]
    row: str
    columns: tuple[str, ...]


def _tiling(b: Builder, w: Window) -> _Tiling:
    """Sizes: a tile of accumulators beside what it reads of the image at a time; a part of the image that the first
    cache holds, or the second where windows are large."""
    lanes, lane, row = lanes_for((w.put,), b.target), w.main.column, w.main.row
    length = count(trips(b.loop(row)))
    vectors = min(VECTORS, -(-count(trips(b.loop(lane))) // lanes)) if lane in w.windowed else 1
    most = max(1, (b.target.registers // vectors - points(b.loop(axis) for axis in _within(w, row))) // 2)
    rows = -(-length // -(-length // most))
    first = _first(w)
    bytes_of_row = b.kernel.buffers()[w.image.buffer].dtype.bytes * (1 if lane in w.windowed else lanes)
    for index in w.image.indices:
        if index.symbols & w.windowed and first not in index.symbols:
            bytes_of_row *= _extent(b, index, index.symbols)
    step, length = _factor(w, first), count(trips(b.loop(first)))
    window = points(b.loop(axis) for axis in _within(w, first))
    for part in (b.target.caches[0] * 2 // 3, b.target.caches[min(1, len(b.target.caches) - 1)] // 10):
        block = max(1, (part // bytes_of_row - window) // step + 1)
        if step * (block - 1) + window <= 1.5 * step * block:
            break
    block = -(-length // -(-length // block))
    if first == row:
        block = -(-block // rows) * rows
    return _Tiling(rows, vectors, lanes, 0 if block >= length else block)


def _first(w: Window) -> str:
    """The outermost dimension of the image that has windows: its axis of the result."""
    return next(axis for index in w.image.indices for axis in index.symbols & w.windowed)


def _factor(w: Window, axis: str) -> int:
    """How many elements apart neighbouring windows are."""
    return max(abs(index.coefficient(axis) or 0) for index in w.image.indices)


def _extent(b: Builder, index: Size, axes: Iterable[str]) -> int:
    """How many elements a subscript spans while these axes run."""
    return 1 + sum(abs(index.coefficient(a) or 0) * (count(trips(b.loop(a))) - 1) for a in axes)


def _split(b: Builder, nest: Nest, t: _Tiling, windowed: tuple[bool, ...], blocked: int, lane_windowed: bool) -> _Tiled:
    """Split a nest. `windowed`: which batch axes have windows; `blocked`: the place of the one of which blocks are
    made, or -1 for the rows."""
    tiles, row = b.split(nest.row, t.rows)
    panels, column = b.split(nest.column, t.vectors * t.lanes)
    columns = b.split(column, t.lanes) if t.vectors > 1 else (column,)
    outer = [] if lane_windowed else [panels]
    inside = [panels] if lane_windowed else []
    outer += [axis for axis, own in zip(nest.batch, windowed) if not own]
    batch = [axis for axis, own in zip(nest.batch, windowed) if own]
    if t.block and blocked < 0:
        block, tiles = b.split(tiles, t.block // t.rows, "min")
        outer.append(block)
    elif t.block:
        block, rest = b.split(nest.batch[blocked], t.block, "min")
        outer.append(block)
        batch[batch.index(nest.batch[blocked])] = rest
    return _Tiled(tuple(outer), (*batch, tiles, *inside), row, columns)


def _tile(b: Builder, w: Window) -> None:
    """Tiles in registers, for one part of the image after the other."""
    t, lane, reduced = _tiling(b, w), w.main.column, w.main.reduced
    along = w.main.row if _lies_along(b, w, w.main.row) else lane
    first, windowed = _first(w), tuple(axis in w.windowed for axis in w.main.batch)
    blocked = w.main.batch.index(first) if first in w.main.batch else -1

    def split(nest: Nest) -> _Tiled:
        return _split(b, nest, t, windowed, blocked, lane in w.windowed)

    main = split(w.main)
    b.take(Reorder((*main.outer, *main.tiles, *reduced, main.row, *main.columns)))
    if w.initial is not None:
        initial = split(w.initial)
        b.take(Reorder((*initial.outer, *initial.tiles, initial.row, *initial.columns)))
    for epilogue in w.epilogues:
        own = split(epilogue)
        inner = (*own.columns, own.row) if along == w.main.row else (own.row, *own.columns)
        b.take(Reorder((*own.outer, *own.tiles, *inner)))
        for ours, theirs in zip((*main.outer, *main.tiles), (*own.outer, *own.tiles)):
            b.take(Merge((ours, theirs)))
        write_out(b, inner)
    _pack_weights(b, w, main)
    _pack_image(b, w, main)
    tile = b.fresh(w.put.buffer)
    b.take(Accumulate(w.put.buffer, reduced[0], tile, "register", "load" if w.initial is None else "set"))
    before, after = around(b, main.tiles[-1], reduced[0])
    write_out(b, before)
    write_out(b, (main.row, *main.columns))
    row, *columns = after
    inner = (*columns, row) if along == w.main.row else after
    if inner != after:
        b.take(Reorder(inner))
    write_out(b, inner)
    if w.epilogues and b.kernel.buffers()[w.put.buffer].role == "temp":
        b.attempt(Localize(w.put.buffer, main.tiles[-1], "register"))
    b.take(Unroll(reduced))
    b.attempt(Version(main.tiles[-1]))
    share(b, main.outer or main.tiles)


def _pack_weights(b: Builder, w: Window, main: _Tiled) -> None:
    """Copy what else is read across the lanes, so that it lies along them: a constant once for all calls."""
    put = next(p for p in puts_in((b.loop(main.row),)) if p.buffer == w.put.buffer)
    for load in dict.fromkeys(loads(put.value)):
        lane = main.columns[-1]
        if load.buffer == w.image.buffer or lane not in load.symbols:
            continue
        if stride(b.kernel.buffers()[load.buffer], load.indices, lane) == 1:
            continue
        memory = b.copy_memory(load, ROOT)
        at = ROOT if memory == "prepared" else main.outer[0]
        axes = (*(main.outer if at == ROOT else main.outer[1:]), *main.tiles, *w.main.reduced, main.row, *main.columns)
        before = set(b.axes())
        b.take(Pack(load.buffer, at, b.fresh(load.buffer), tuple(a for a in axes if a in load.symbols), memory))
        write_out(b, tuple(axis for axis in b.axes() if axis not in before)[-1:])


def _pack_image(b: Builder, w: Window, main: _Tiled) -> None:
    """Copy the part of the image that the tiles inside of the outer loops read."""
    load = load_along(b, w.image.buffer, main.row)
    inside = (*main.tiles, main.row, *main.columns, *w.main.reduced)
    lane, last = main.columns[-1], ""
    layout = []
    for index in load.indices:
        axes = [axis for axis in inside if axis in index.symbols]
        if not axes:
            continue
        if lane in axes:
            last = " + ".join(axes)
        else:
            layout.append(" + ".join(axes))
    at = main.outer[-1] if main.outer else ROOT
    before = set(b.axes())
    b.take(Pack(load.buffer, at, b.fresh(load.buffer), (*layout, last), "cache"))
    copied = tuple(axis for axis in b.axes() if axis not in before)
    _copy_in_parts(b, load.buffer, copied)


def _copy_in_parts(b: Builder, buffer: str, copied: tuple[str, ...]) -> None:
    """Copy the image: the padding around it as numbers, the rest as whole vectors, squares in registers where it lies
    along other axes than the copy."""
    others = set(b.axes()) - set(copied)
    for axis in copied:
        own = [a for a in b.axes() if a not in others and (a == axis or a.startswith(f"{axis}."))]
        for part in own:
            b.attempt(Partition(part))
    for leaf in [x.axis for x in loops_in(b.kernel.body) if x.axis not in others and not loops_in(x.body)]:
        nest = [x.axis for x in find_loop(b.kernel, leaf)[1] if x.axis not in others]
        if not any(_transpose(b, buffer, axis, leaf) for axis in nest[-1:]):
            vectorize_leaf(b, leaf)


def _transpose(b: Builder, buffer: str, along: str, lane: str) -> bool:
    """Copy squares through registers if the source lies in memory along the loop around that over the lanes."""
    (put,) = puts_in((b.loop(lane),))
    indices = [x.indices for x in loads(put.value)]
    if not indices or stride(b.kernel.buffers()[buffer], indices[0], along) != 1:
        return False
    length, lanes = count(trips(b.loop(along))), count(trips(b.loop(lane)))
    squares, step = b.split(along, -(-length // -(-length // lanes)))
    before = set(b.axes())
    b.take(Pack(buffer, squares, b.fresh(buffer), (lane, step), "register"))
    rows, columns = (axis for axis in b.axes() if axis not in before)
    b.take(Unroll((rows, step)))
    b.take(Vectorize((columns, lane)))
    return True

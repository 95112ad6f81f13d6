"""Default schedule of convolutions: lanes along output channels, rows of a tile along a row of pixels.

A convolution is a contraction in which pixels of the image are read at sums of axes, which no packing makes a panel of.
Lanes along pixels would have to be read from any address, or from every second one, and fill no whole vectors in a
narrow image. So the weights are packed into panels of channels, a pixel is one number for all lanes, and a tile, which
holds pixels by channels, is transposed in registers when it is written, because the result lies along the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.ir.kernel import For
from intarsia.ir.kernel_access import is_injective, trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import ROOT, Accumulate, Collapse, Fetch, Localize, Merge, Pack, Peel, Reorder, Version
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.contraction import around, share, unroll_reduction
from intarsia.passes.schedule.nests import Contraction, Nest, find_contraction
from intarsia.passes.schedule.packing import load_along, transpose_copy, write_out
from intarsia.passes.schedule.shape import count, lanes_for, points, stride
from intarsia.passes.schedule.tiling import FETCHED
from intarsia.passes.schedule.tree import loops_in

ROWS = 8
"""Pixels of a tile at most."""

BRIEF = 6
"""Pixels for which a tile takes as long as for one: additions wait for each other, and weights for the second cache."""

FEWEST = 5
"""Pixels of a tile at least, where a row has more."""

VECTORS = 2
"""Vectors of channels of a tile: with eight pixels ten loads for sixteen multiply-adds."""

WAYS = ("as it lies", "copied once", "copied by windows")
"""How the image is read: where it lies; from a copy of the rows that a row of pixels needs, padding included (implicit
GEMM); or from one with window after window (Im2win, Lu et al., 2023)."""

STRIDED = 0.3
"""How much lanes along pixels are worth that are read at every second address, or farther apart."""


def schedule_convolution(b: Builder, loop: For) -> bool:
    """Schedule a convolution with its initial value and what follows it, if lanes along channels fill vectors better
    than lanes along pixels. Returns whether that was the case and every step was legal."""
    c = find_convolution(b, loop)
    return c is not None and b.together(f"tiles of pixels of {c.put.buffer}", lambda: _tile(b, c))


def find_convolution(b: Builder, loop: For) -> Contraction | None:
    """The convolution that a nest is, seen along its channels, if that is the better way."""
    plain = find_contraction(b, loop)
    if plain is None or not plain.main.row or plain.is_ragged or plain.right in plain.plain:
        return None
    lanes = lanes_for((plain.put,), b.target)
    pixels = count(trips(b.loop(plain.main.column)))
    if not pixels:
        return None
    image = b.kernel.buffers()[plain.right.buffer]
    near = stride(image, plain.right.indices, plain.main.column) == 1
    rows = count(trips(b.loop(plain.main.row)))
    best, worth = (
        None,
        _filled(pixels, lanes) * _filled(rows, -(-rows // -(-rows // ROWS))) * (1.0 if near else STRIDED),
    )
    for axis in (plain.main.row, *plain.main.batch):
        c = find_contraction(b, loop, axis)
        if c is None or not is_injective(c.right.indices, [x for x in loops_in((loop,)) if x.axis in c.right.symbols]):
            continue
        channels = trips(b.loop(axis)).constant or lanes
        found = _filled(channels, lanes) * _filled(pixels, _rows(b, c))
        if channels > lanes // 2 and c.main.row == plain.main.column and found >= worth:
            best, worth = c, found
    return best


def _filled(length: int, unit: int) -> float:
    """The share of whole units that a length fills."""
    return length / (-(-length // unit) * unit)


def _rows(b: Builder, c: Contraction) -> int:
    """Pixels of a tile: so that a row of pixels takes the least time, the shorter tile at its end included."""
    length = trips(b.loop(c.main.row)).constant
    if length is None or length <= ROWS:
        return length or ROWS

    def cost(rows: int) -> tuple[int, bool, int]:
        whole, rest = divmod(length, rows)
        pixels = whole * rows + (max(rest, BRIEF) if rest else 0)
        return (
            2 * pixels + -(-length // rows),
            rest > 0,
            -rows,
        )  # a tile is begun and written in the time of half a pixel

    return min(range(FEWEST, ROWS + 1), key=cost)


def _vectors(b: Builder, c: Contraction, lanes: int) -> int:
    """Vectors of channels of a tile: more of them where two would leave part of the last ones empty."""
    length = trips(b.loop(c.main.column)).constant
    if not length:
        return VECTORS
    fitting = [n for n in (VECTORS, VECTORS + 1) if n * (_rows(b, c) + 1) < b.target.registers]
    best = max(fitting, key=lambda n: _filled(length, n * lanes), default=VECTORS)
    return min(best, -(-length // lanes))


def _other_rows(b: Builder, c: Contraction) -> list[int]:
    """Other numbers of pixels of a tile."""
    length = trips(b.loop(c.main.row)).constant
    return [n for n in (4, 5, 6, 7, 8, 12) if length is None or n <= length]


def _other_vectors(b: Builder, c: Contraction, rows: int, lanes: int) -> list[int]:
    """Other numbers of vectors of a tile with so many pixels."""
    needed = -(-count(trips(b.loop(c.main.column))) // lanes)
    return [n for n in (1, 2, 3, 4) if n <= needed and n * (rows + 1) < b.target.registers]


@dataclass(frozen=True)
class _Tiled:
    """The axes of a nest after it was split: groups, which have weights of their own, panels of channels, batches and
    rows of pixels, tiles in a row; inside a tile pixels and channels. by_rows: is a row of pixels done for all panels
    before the next one?"""

    groups: tuple[str, ...]
    panels: str
    batch: tuple[str, ...]
    tiles: str
    pixel: str
    channels: tuple[str, ...]
    by_rows: bool

    @property
    def outer(self) -> tuple[str, ...]:
        if self.by_rows:
            return (*self.groups, *self.batch, self.panels, self.tiles)
        return (*self.groups, self.panels, *self.batch, self.tiles)


def _split(
    b: Builder, nest: Nest, grouped: Sequence[bool], rows: int, vectors: int, lanes: int, by_rows: bool
) -> _Tiled:
    tiles, pixel = b.split(nest.row, rows)
    panels, channel = b.split(nest.column, vectors * lanes)
    channels = b.split(channel, lanes) if vectors > 1 else (channel,)
    groups, batch = (tuple(a for a, own in zip(nest.batch, grouped) if own == wanted) for wanted in (True, False))
    return _Tiled(groups, panels, batch, tiles, pixel, channels, by_rows)


def _tile(b: Builder, c: Contraction) -> None:
    """Tiles in registers, lanes along the channels; results are written along the pixels."""
    rows, lanes = _rows(b, c), lanes_for((c.put,), b.target)
    vectors = _vectors(b, c, lanes)
    rows = b.choose(f"pixels of {c.put.buffer}", (rows, *_other_rows(b, c)))
    vectors = b.choose(f"channels of {c.put.buffer}", (vectors, *_other_vectors(b, c, rows, lanes)))
    grouped = [axis in c.right.symbols for axis in c.main.batch]
    ways = WAYS if not all(grouped) and _image(b, c) is not None else WAYS[:1]
    way = b.choose(f"image of {c.put.buffer}", ways, looks=len(WAYS) - 1)
    by_rows = way != WAYS[0]
    pixels = points(b.loop(a) for a in (*c.main.batch, c.main.row) if a not in c.right.symbols)
    main = _split(b, c.main, grouped, rows, vectors, lanes, by_rows)
    reduced = c.main.reduced
    b.take(Reorder((*main.outer, *reduced, main.pixel, *main.channels)))
    if c.initial is not None:
        initial = _split(b, c.initial, grouped, rows, vectors, lanes, by_rows)
        b.take(Reorder((*initial.outer, initial.pixel, *initial.channels)))
    for epilogue in c.epilogues:
        own = _split(b, epilogue, grouped, rows, vectors, lanes, by_rows)
        b.take(Reorder((*own.outer, *own.channels, own.pixel)))
        for ours, theirs in zip(main.outer, own.outer):
            b.take(Merge((ours, theirs)))
        write_out(b, (*own.channels, own.pixel))
    packed = _pack(b, c, main)
    if by_rows:
        _copy_image(b, c, main, windows=way == WAYS[2])
    tile = b.fresh(c.put.buffer)
    b.take(Accumulate(c.put.buffer, reduced[0], tile, "register", "load" if c.initial is None else "set"))
    before, after = around(b, main.tiles, reduced[0])
    write_out(b, before)
    write_out(b, (main.pixel, *main.channels))
    pixel, *channels = after
    b.take(Reorder((*channels, pixel)))
    write_out(b, (*channels, pixel))
    if c.epilogues and b.kernel.buffers()[c.put.buffer].role == "temp":
        b.attempt(Localize(c.put.buffer, main.tiles, "register"))
    steps = unroll_reduction(b, reduced[-1]) or "".join(reduced[-2:-1])
    if steps and pixels <= FETCHED:
        b.attempt(Fetch(packed, main.panels, steps))
    # The last tile of a row by itself has only the pixels that there are: known lengths leave nothing of its masks.
    if trips(b.loop(main.tiles)).constant is None or not b.attempt(Peel(main.tiles)):
        b.attempt(Version(main.tiles))
    share(b, main.outer[:-1])


def _image(b: Builder, c: Contraction) -> Load | None:
    """What a convolution reads along its pixels, if it is one load and no data says where."""
    found = [x for x in dict.fromkeys(loads(c.put.value)) if c.main.row in x.symbols]
    return found[0] if len(found) == 1 and not any(i.opaques for i in found[0].indices) else None


def _copy_image(b: Builder, c: Contraction, main: _Tiled, windows: bool) -> None:
    """Copy what a row of pixels reads of the image, each number once or window after window."""
    image = _image(b, c)
    assert image is not None
    load = load_along(b, image.buffer, main.pixel)
    inside = (*c.main.reduced, main.tiles, main.pixel)
    if windows:
        layout = tuple(a for a in inside if a in load.symbols)
    else:
        joint = ([a for a in inside if a in index.symbols] for index in load.indices)
        layout = tuple(" + ".join(axes) for axes in joint if axes)
    before = set(b.axes())
    b.take(Pack(image.buffer, main.batch[-1], b.fresh(image.buffer), layout, "cache"))
    write_out(b, tuple(axis for axis in b.axes() if axis not in before)[-1:])


def _pack(b: Builder, c: Contraction, main: _Tiled) -> str:
    """Copy the weights of a panel, or once of all panels, so that its channels lie together for each step of the
    reduction. Returns the copy."""
    layout = _used(b, c, (*main.groups, main.panels, *c.main.reduced, *main.channels))
    memory, inside = b.copy_memory(c.right, ROOT), layout[layout.index(main.panels) + 1 :]
    before = set(b.axes())
    at, axes = (ROOT, layout) if memory == "prepared" else (main.panels, inside)
    packed = b.fresh(c.right.buffer)
    b.take(Pack(c.right.buffer, at, packed, axes, memory))
    copied = [axis for axis in b.axes() if axis not in before][-len(inside) :]
    steps, channels = copied[: -len(main.channels)], copied[-len(main.channels) :]
    while len(steps) > 1 and b.attempt(Collapse(steps[0], steps[1], (step := b.fresh(steps[0]),))):
        steps[:2] = [step]
    if len(steps) == 1 and count(trips(b.loop(steps[0]))) >= count(trips(b.loop(channels[-1]))):
        transpose_copy(b, c.right.buffer, (*steps, *channels), steps[0], channels[-1])
    else:
        write_out(b, tuple(channels))
    return packed


def _used(b: Builder, c: Contraction, axes: Sequence[str]) -> tuple[str, ...]:
    """The axes that the load of the weights uses now."""
    load = load_along(b, c.right.buffer, axes[-1])
    return tuple(axis for axis in axes if axis in load.symbols)

"""Copies of what the tiles of a contraction read: panels that lie together, transposed where the source lies across.

With a `word`, an axis of a few neighbouring steps of the reduction, those of each column or row lie side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.dtypes import U8, U32
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import ROOT, Dot, Pack, Parallel, Prefetch, Reorder, Unroll, Vectorize, Version
from intarsia.passes.schedule.builder import SMALL, Builder
from intarsia.passes.schedule.codes import share_words
from intarsia.passes.schedule.nests import Contraction
from intarsia.passes.schedule.shape import count, effort, stride
from intarsia.passes.schedule.tiling import Tiling
from intarsia.passes.schedule.tree import puts_in

AHEAD = 8
"""Steps of the reduction for which an operand is fetched before it is packed."""

STEPS = 4
"""Steps of the reduction that are likely to be written out."""

STREAMS = 8
"""Tiles of rows that are packed at a time, so that whole lines of memory are read."""


@dataclass(frozen=True)
class Tiled:
    """The axes of a nest after it was split, from the outermost: `blocks`, of batches, rows and columns; `groups` whose
    sums are added up; inside of these `tiles`, and among them panels of columns, which are outside of the groups if
    they come `first`; inside a tile rows, vectors if there are several, lanes. word: inside of these, the few steps of
    the reduction that a dot instruction adds up; "" without one."""

    blocks: tuple[str, ...]
    tiles: tuple[str, ...]
    panels: str
    inner: tuple[str, ...]
    row: str
    groups: tuple[str, ...] = ()
    first: bool = False
    word: str = ""

    @property
    def outside(self) -> tuple[str, ...]:
        """The axes outside of the groups, and of the parts of a reduction."""
        return (*self.blocks, self.panels) if self.first else self.blocks

    @property
    def inside(self) -> tuple[str, ...]:
        """Those of the tiles inside of them."""
        return tuple(a for a in self.tiles if not (self.first and a == self.panels))

    @property
    def outer(self) -> tuple[str, ...]:
        return (*self.outside, *self.groups, *self.inside)

    @property
    def columns(self) -> tuple[str, ...]:
        """Vectors and lanes of a tile."""
        return self.inner[1:] if self.row else self.inner

    @property
    def words(self) -> tuple[str, ...]:
        return (self.word,) if self.word else ()


def write_out(b: Builder, inner: tuple[str, ...], word: str = "") -> None:
    """Lanes for the last axis, everything else of a tile written out; `word` is inside of the lanes."""
    if inner[:-1]:
        b.take(Unroll(inner[:-1]))
    b.take(Vectorize(inner[-1:]))
    if word:
        b.take(Dot((word,)))


def pack_right(
    b: Builder, c: Contraction, at: str, axes: tuple[str, ...], reduced: tuple[str, ...], word: str = ""
) -> str:
    """Copy the right operand, in the order of the axes, so that the columns of a panel lie together for each step of
    the reduction. Returns the copy."""
    load = load_along(b, c.right.buffer, axes[-1])
    axes = (*axes, word) if word else axes
    layout = [axis for axis in axes if axis in load.symbols]
    new, copied = copy(b, load, at, axes)
    made = dict(zip(layout, copied))
    word, copied = made.get(word, ""), tuple(a for a in copied if a != made.get(word))
    lane = copied[-1]
    steps = tuple(made[a] for a in reduced if a in made)  # the operand need not depend on any axis of the reduction
    inner = copied[copied.index(steps[-1]) + 1 :] if steps else (lane,)
    batch = tuple(made[a] for a in c.main.batch if a in made)
    panels = tuple(a for a in copied if a not in (*batch, *steps, *inner))
    along = _axis_in_memory(b, c.right.buffer, (*copied, word) if word else copied)
    turned = steps[-1] if along == word else along
    if along not in (lane, "") and b.kernel.buffers()[new].memory == "prepared" and c.right.dtype.bits < 8:
        outer = tuple(a for a in (*batch, *panels, *steps) if a != turned)
        b.take(Reorder((*outer, turned, *inner)))
        _turn_first(b, c, outer[-1], (turned, *inner), word)
        write_out(b, inner, word)
    elif along not in (lane, ""):
        transpose_copy(b, c.right.buffer, copied, turned, lane, word)
    else:
        b.take(Reorder((*batch, *steps, *panels)))  # rows of the source piece by piece, whole lines of memory
        write_out(b, inner, word)
        if steps:
            b.attempt(Prefetch(c.right.buffer, new, steps[-1], AHEAD))
    if b.kernel.buffers()[new].memory == "prepared":
        ways = [((axis,), count(trips(b.loop(axis)))) for axis in inner[:-1]]
        together = [((steps[-1], *inner[:-1]), STEPS)] if steps and not word else []
        new = share_words(b, new, [*ways, *together], U8.bits if word else U32.bits)  # those of dots are made of bytes
    b.attempt(Version(panels[-1]))
    return new


def _turn_first(b: Builder, c: Contraction, at: str, axes: tuple[str, ...], word: str) -> None:
    """Let a copy of the right operand read what is turned already, so that what it writes can be put into words."""
    load = load_along(b, c.right.buffer, axes[-1])
    _, turned = copy(b, load, at, (*axes, word) if word else axes)
    loops = turned[: len(axes)]
    transpose_copy(b, load.buffer, loops, loops[0], loops[-1], turned[-1] if word else "")


def copy_tile(b: Builder, c: Contraction, main: Tiled, reduced: tuple[str, ...]) -> str:
    """Copy what a tile reads of the right operand, for all tiles of rows that use it, so that its rows lie together.
    Returns the loop of the copy along the reduction."""
    load = load_along(b, c.right.buffer, main.inner[-1])
    _, copied = copy(b, load, main.panels, (*reduced, *main.columns, *main.words))
    inner, word = (copied[1:-1], copied[-1]) if main.word else (copied[1:], "")
    write_out(b, inner, word)
    return copied[0]


def pack_left(b: Builder, c: Contraction, t: Tiling, main: Tiled, axes: tuple[str, ...]) -> None:
    """Copy the left operand, if it does not lie along the reduction, so that the rows of a tile lie together for each
    step: else every step reads other lines."""
    row, last = axes[-1], main.word or axes[-2]
    load = left_load(b, c, row)
    if load is None or last not in load.symbols:
        return
    is_along = stride(b.kernel.buffers()[load.buffer], load.indices, last) == 1
    if is_along and (main.word or not t.few):
        return
    depth = max((n + 1 for n, a in enumerate(main.blocks) if a in load.symbols), default=0)
    at = main.blocks[depth - 1] if depth else ROOT
    inside = tuple(a for a in (*main.blocks[depth:], *axes[:-1]) if a in load.symbols)
    new, copied = copy(b, load, at, (*inside, row, *main.words))
    copied, word = (copied[:-1], copied[-1]) if main.word else (copied, "")
    tiles = copied[-2 - len(c.main.reduced)]
    if is_along:
        transpose_copy(b, load.buffer, copied, copied[-2], copied[-1])
        b.attempt(Version(tiles))
        return
    blocks, tiles = b.split(tiles, STREAMS, "min")
    b.take(Reorder((blocks, *copied[-1 - len(c.main.reduced) : -1], tiles)))
    write_out(b, copied[-1:], word)
    b.attempt(Prefetch(load.buffer, new, copied[-2], AHEAD))
    b.attempt(Version(tiles))
    if not depth and effort(b.kernel.body) >= SMALL:
        b.attempt(Parallel((blocks,)))


def copy(b: Builder, load: Load, at: str, axes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
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


def transpose_copy(b: Builder, buffer: str, copied: tuple[str, ...], along: str, lane: str, word: str = "") -> None:
    """Copy squares through registers: `along` is how the source lies in memory, `lane` how the copy does; or along and
    `word` together, in squares of words."""
    size = count(trips(b.loop(lane)))
    b.take(Reorder((*(axis for axis in copied if axis not in (along, lane)), along, lane)))
    squares, step = b.split(along, size, "peel")
    before = set(b.axes())
    b.take(Pack(buffer, squares, b.fresh(buffer), (lane, f"{step} + {word}" if word else step), "register"))
    rows, columns = (axis for axis in b.axes() if axis not in before)
    b.take(Unroll((rows, step)))
    b.take(Vectorize((columns, lane)))
    if word:
        b.take(Dot((word,)))


def left_load(b: Builder, c: Contraction, row: str) -> Load | None:
    """What a contraction reads along its rows, of which `row` is what is left now: if it is one load, plainly indexed,
    and nothing else is read of its buffer, which a copy would serve too."""
    read = dict.fromkeys(x for put in puts_in((b.loop(row),)) for x in loads(put.value))
    left = [x for x in read if row in x.symbols]
    plain = [x for x in c.plain if c.main.row in x.symbols]
    if len(left) != 1 or not plain or sum(x.buffer == left[0].buffer for x in read) > 1:
        return None
    return left[0]


def load_along(b: Builder, buffer: str, axis: str) -> Load:
    """The load of a buffer along `axis`."""
    found = (x for put in puts_in((b.loop(axis),)) for x in loads(put.value))
    return next(x for x in found if x.buffer == buffer and axis in x.symbols)

"""Default schedule of products whose elements are summed along their rows and along their columns.

    for blocks of columns { for blocks of rows { s = q @ k^T; p = f(s); y += p @ k; z += p^T @ q } }

The elements of a block of rows and columns are made where they are used, and never leave the second cache: memory grows
with the rows and the columns, not with their product. Sums along a block of columns are kept while all blocks of rows
are walked through; those along rows are added to in every block of columns. So the gradient of attention computes each
product once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For
from intarsia.ir.kernel_access import trips
from intarsia.ir.schedule import ROOT, Localize, Merge, Move, Reorder, Skip
from intarsia.passes.schedule.block_tiles import (
    HEIGHT,
    VECTORS,
    BlockAxes,
    pack_panels,
    reuse_scores,
    run_rows,
    share,
    tile_product,
    tile_sums,
)
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.chain import WIDEST
from intarsia.passes.schedule.chained import schedule_chain
from intarsia.passes.schedule.domains import conditions_in
from intarsia.passes.schedule.shape import points
from intarsia.passes.schedule.stages import Stage, spread, stages_in
from intarsia.passes.schedule.tree import allocated_in

ROWS = 128
"""Rows of a block at most: elements of sums are loaded and stored once for so many products."""

COLUMNS = 256
"""Columns of a block at most."""

MASKED = 64
"""Rows and columns of a block at most, where masks may leave out blocks: a block at an edge is computed as a whole."""


@dataclass(frozen=True)
class Square:
    """Products in a naive kernel with what is made of their elements, and sums of that along rows and columns: all
    stages in the order of the text; the axes that number rows and columns in the stages that have them, and those that
    all have in common. `products` and `sums` are stages, `elements` are all that run over rows and columns."""

    stages: tuple[Stage, ...]
    batch: tuple[dict[Stage, str], ...]
    row: dict[Stage, str]
    column: dict[Stage, str]

    @property
    def elements(self) -> tuple[Stage, ...]:
        return tuple(s for s in self.stages if s in self.row and s in self.column)

    @property
    def products(self) -> tuple[Stage, ...]:
        return tuple(s for s in self.elements if s.reduced and self.is_whole(s))

    @property
    def sums(self) -> tuple[Stage, ...]:
        return tuple(s for s in self.elements if not self.is_whole(s))

    def is_whole(self, stage: Stage) -> bool:
        """Does it write something for each row and column?"""
        return self.keeps_rows(stage) and any(self.column[stage] == loop.axis for loop in stage.kept)

    def others(self, stage: Stage) -> tuple[For, ...]:
        """The loops whose axes its result has beside rows or columns."""
        fixed = {self.row[stage], self.column[stage], *(r[stage] for r in self.batch)}
        return tuple(loop for loop in stage.kept if loop.axis not in fixed)

    @property
    def is_masked(self) -> bool:
        """Do conditions on rows and columns choose what elements are?"""
        return any(
            {self.row[s], self.column[s]} <= condition.symbols
            for s in self.elements
            for condition in conditions_in(s.put.value)
        )

    def keeps_rows(self, stage: Stage) -> bool:
        return any(self.row[stage] == loop.axis for loop in stage.kept)


def find_square(b: Builder) -> Square:
    """The square that a naive kernel is. Raises ScheduleError where it is none."""
    stages = stages_in(b.kernel.body)
    if not isinstance(stages, tuple):
        raise ScheduleError("it is not made of stages")
    temporaries = allocated_in(b.kernel.body)
    products = [s for s in stages if s.reduced and s.put.operator == "+=" and s.put.buffer in temporaries]
    if not products:
        raise ScheduleError("there is no product")
    first = max(products, key=lambda s: points(s.kept))
    written = {x.name for x in b.kernel.buffers().values() if x.role != "in"}
    batch: list[dict[Stage, str]] = []
    sides: list[dict[Stage, str]] = []
    for loop in first.kept:
        axes = {first: loop.axis}
        spread(stages, axes, written)
        (batch if len(axes) == len(stages) else sides).append(axes)
    if len(sides) == 1 and batch:  # all sums are along the same side, and all stages have the other one
        sides.append(batch.pop())
        sides.sort(key=lambda axes: [loop.axis for loop in first.kept].index(axes[first]))
    if len(sides) != 2:
        raise ScheduleError(f"there are {len(sides)} axes along which elements are summed")
    square = Square(stages, tuple(batch), *sides)
    if not square.sums:
        raise ScheduleError("nothing is summed along rows or columns")
    several = len({square.keeps_rows(s) for s in square.sums}) > 1
    if several and 3 * points(b.loop(axes[first]) for axes in batch) < 2 * b.target.cores:
        raise ScheduleError("cores have nothing to share where sums go both ways")
    if numbers := [s.put.buffer for s in stages if not s.loops]:
        raise ScheduleError(f"{numbers[0]} is a number, which no block of rows or columns makes")
    finished = {s.put.buffer for s in square.sums}
    for stage in square.elements:
        if stage.put.operator not in ("=", "+=") or (stage.reduced and stage.put.operator == "="):
            raise ScheduleError(f"{stage.put.buffer} is no sum")
        if square.is_whole(stage):
            if stage.put.buffer not in temporaries:
                raise ScheduleError(f"{stage.put.buffer} is stored as a whole anyway")
        elif len(stage.reduced) != 1 or not 1 < points(square.others(stage)) <= WIDEST:
            raise ScheduleError(f"{stage.put.buffer} is no sum along rows or columns, or a wide one")
        if needed := sorted(finished & {x.buffer for x in stage.reads}):
            raise ScheduleError(f"{stage.put.buffer} needs the finished {needed[0]}")
    return square


def runs_both_ways(b: Builder) -> bool:
    """Is a naive kernel one that `schedule_both_ways` is for?"""
    try:
        find_square(b)
    except ScheduleError:
        return False
    return True


def schedule_in_one(b: Builder) -> bool:
    """Schedule a kernel that is made in one sweep, or in blocks of rows and columns. Returns whether it is."""
    return schedule_chain(b) or (not b.decisions and schedule_both_ways(b))


def schedule_both_ways(b: Builder) -> bool:
    """Schedule a kernel that is a square. Returns whether it is, and every step was legal."""
    return runs_both_ways(b) and b.together("blocks of rows and columns", partial(_schedule, b))


def _schedule(b: Builder) -> None:
    square = _in_order(b, find_square(b))
    lanes = b.target.lanes(max(32, *(s.put.value.dtype.bits for s in square.elements)))
    outer, blocks, axes = _block(b, square, VECTORS * lanes)
    columns: dict[Stage, tuple[str, str]] = {}
    for stage in square.products:
        columns[stage] = b.split(axes[stage].key, lanes)
        inside = (axes[stage].panel, *(loop.axis for loop in stage.reduced), *columns[stage])
        if _columns_are_outer(square):
            pack_panels(b, outer, columns[stage][1], inside)
        else:
            at = square.batch[-1][square.stages[0]] if square.batch else ROOT
            pack_panels(b, at, columns[stage][1], (blocks[stage], *inside))
    b.take(Merge(tuple(blocks[s] for s in square.elements)))
    inner = blocks[square.elements[0]]
    places = (inner, outer, *(r[square.stages[0]] for r in reversed(square.batch)))
    for name, found in allocated_in(b.kernel.body).items():
        if found.memory == "global":
            any(b.attempt(Localize(name, axis, "cache")) for axis in places)
    if square.is_masked:
        b.attempt(Skip(inner), silent=False)
    for stage in square.products:
        initial = next(s for s in square.stages if s.put.buffer == stage.put.buffer)
        tile_product(b, stage, axes[initial], axes[stage], columns[stage], lanes)
    for stage in square.sums:
        own = axes[stage]
        side, reduced = (
            ((own.row,), (own.panel, own.key)) if square.keeps_rows(stage) else ((own.panel, own.key), (own.row,))
        )
        others = [loop.axis for loop in square.others(stage)]
        tile_sums(b, stage.put.buffer, others, side, reduced, lanes)
    run_rows(b, inner, {a.panel for a in axes.values()} - {""})
    reuse_scores(b, inner)
    shared = [r[square.stages[0]] for r in square.batch]
    if len({square.keeps_rows(s) for s in square.sums}) == 1:
        shared.append(outer)
    if shared:
        share(b, shared)


def _columns_are_outer(square: Square) -> bool:
    """Are blocks of columns outside of blocks of rows? Not if all sums are along rows, which threads can share then."""
    return not all(map(square.keeps_rows, square.sums))


def _in_order(b: Builder, square: Square) -> Square:
    """The stages so that what is done once for each index of the outer side stands around what is done for the inner
    side alone, and this around the elements."""
    sides = (square.row, square.column) if _columns_are_outer(square) else (square.column, square.row)
    made: set[str] = set()
    rank: dict[Stage, int] = {}
    for stage in square.stages:
        inside = [stage in side for side in sides]
        follows = bool(made & stage.touched)
        rank[stage] = 2 if all(inside) else (3 if inside[1] else 4) if follows else (1 if inside[1] else 0)
        if all(inside) or follows:
            made.add(stage.put.buffer)
    waiting = list(square.stages)
    order = sorted(waiting, key=rank.__getitem__)
    for stage in order:
        if waiting[0] is not stage:
            b.take(Move(stage.loops[0].axis, waiting[0].loops[0].axis))
        waiting.remove(stage)
    return Square(tuple(order), square.batch, square.row, square.column)


def _block(b: Builder, square: Square, panel: int) -> tuple[str, dict[Stage, str], dict[Stage, BlockAxes]]:
    """Make blocks of rows, and of panels of columns. Returns the axis that counts the blocks of the outer side for all
    stages, for each that runs over elements the one that counts those of the inner side, and the axes in a block."""
    columns = _columns_of_block(b, square, panel)
    rows = _rows_of_block(b, square, columns)
    outer: list[str] = []
    inner: dict[Stage, str] = {}
    inside: dict[Stage, BlockAxes] = {}
    for stage in square.stages:
        batch = [r[stage] for r in square.batch]
        rest = [loop.axis for loop in stage.loops if loop.axis not in batch]
        row = across = key = ""
        counts: dict[bool, str] = {}  # of columns, of rows
        if stage in square.column:
            n = rest.index(square.column[stage])
            panels, key = b.split(square.column[stage], panel)
            counts[True], across = b.split(panels, columns // panel, "min")
            rest[n : n + 1] = [across, key]
        if stage in square.row:
            n = rest.index(square.row[stage])
            counts[False], row = b.split(square.row[stage], rows, "min")
            rest[n] = row
        inside[stage] = BlockAxes(row, across, key)
        first = _columns_are_outer(square)
        b.take(Reorder((*batch, *(counts[n] for n in (first, not first) if n in counts), *rest)))
        if first in counts:
            outer.append(counts[first])
        if len(counts) == 2:
            inner[stage] = counts[not first]
    for axes in square.batch:
        b.take(Merge(tuple(axes[s] for s in square.stages)))
    b.take(Merge(tuple(outer)))
    return outer[0], inner, inside


def _columns_of_block(b: Builder, square: Square, panel: int) -> int:
    """Columns of a block, whole panels: what belongs to them fills half of the second cache at most."""
    widest = MASKED if square.is_masked else COLUMNS
    most = max(panel, min(widest, _second_cache(b) // 2 // _bytes_of(b, square, square.column) // panel * panel))
    length = trips(b.loop(square.column[square.elements[0]])).constant
    even = most if length is None else -(-length // -(-length // most) // panel) * panel
    others = [n * panel for n in (2, 4, 8, 16) if length is None or n * panel < length + panel]
    return b.choose("columns of a block", (even, *others))


def _rows_of_block(b: Builder, square: Square, columns: int) -> int:
    """Rows of a block, whole tiles."""
    elements = sum(s.put.value.dtype.bytes for s in square.products) * columns
    fitting = _second_cache(b) * 3 // 8 // (elements + _bytes_of(b, square, square.row))
    most = max(HEIGHT, min(MASKED if square.is_masked else ROWS, fitting // HEIGHT * HEIGHT))
    length = trips(b.loop(square.row[square.elements[0]])).constant
    likeliest = most
    if length is not None:
        whole = [n for n in range(most, most // 2, -HEIGHT) if length % n == 0]
        likeliest = whole[0] if whole else -(-length // -(-length // most) // HEIGHT) * HEIGHT
    others = [n for n in (32, 64, 128, 256) if length is None or n < length + HEIGHT]
    return b.choose("rows of a block", (likeliest, *others))


def _bytes_of(b: Builder, square: Square, side: dict[Stage, str]) -> int:
    """What is read and written at one index of a side, beside the elements."""
    found: dict[tuple[str, bool], int] = {}
    for stage in square.elements:
        both = {square.row[stage], square.column[stage]}
        fixed = {*both, *(r[stage] for r in square.batch)}
        for access in stage.accesses:
            symbols = frozenset().union(*(i.symbols for i in access.indices))
            if both & symbols == {side[stage]}:
                length = points(loop for loop in stage.loops if loop.axis in symbols - fixed)
                size = b.kernel.buffers()[access.buffer].dtype.bytes
                found[access.buffer, stage in square.products] = length * size
    return max(1, sum(found.values()))


def _second_cache(b: Builder) -> int:
    return b.target.caches[min(1, len(b.target.caches) - 1)]

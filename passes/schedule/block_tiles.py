"""Products and sums of products in blocks of rows and columns: tiles in registers, and what stands between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from intarsia.ir.kernel import Alloc, For, Put
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import (
    Accumulate,
    Merge,
    Move,
    Pack,
    Parallel,
    Peel,
    Reorder,
    Reuse,
    Unmask,
    Unroll,
    Vectorize,
    Version,
)
from intarsia.passes.schedule.builder import SHARES, SMALL, Builder
from intarsia.passes.schedule.shape import count, effort, stride
from intarsia.passes.schedule.stages import Stage
from intarsia.passes.schedule.tree import find_loop, loops_in, puts_in
from intarsia.passes.schedule.vectors import keep_partial_results, vectorize_leaf

VECTORS = 2
"""Vectors of a panel of columns."""

HEIGHT = 8
"""Rows of a tile."""

UNROLLED = 4
"""Steps of a reduction that are written out."""


@dataclass(frozen=True)
class BlockAxes:
    """The axes of a stage inside a block: rows, and for what runs along the columns, panels and columns in them."""

    row: str
    panel: str = ""
    key: str = ""


def pack_panels(b: Builder, at: str, lane: str, axes: tuple[str, ...]) -> None:
    """Copy what lies along the keys into panels."""
    (put,) = puts_in((b.loop(lane),))
    load = next(x for x in loads(put.value) if lane in x.symbols)
    before = set(b.axes())
    b.take(Pack(load.buffer, at, b.fresh(load.buffer), axes, "cache"))
    copied = tuple(axis for axis in b.axes() if axis not in before)
    last = copied[-1]
    buffer = b.kernel.buffers()[load.buffer]
    (own,) = (x for p in puts_in((b.loop(last),)) for x in loads(p.value))
    along = next((axis for axis in copied if stride(buffer, own.indices, axis) == 1), last)
    if along == last:
        b.take(Vectorize((last,)))
    else:
        size = count(trips(b.loop(last)))
        b.take(Reorder((*(a for a in copied[:-1] if a != along), along, last)))
        squares, step = b.split(along, size, "peel")
        before = set(b.axes())
        b.take(Pack(load.buffer, squares, b.fresh(load.buffer), (last, step), "register"))
        rows, columns = (axis for axis in b.axes() if axis not in before)
        b.take(Unroll((rows, step)))
        b.take(Vectorize((columns, last)))
    b.attempt(Version(copied[0]))


def tile_product(
    b: Builder, product: Stage, initial: BlockAxes, own: BlockAxes, columns: tuple[str, str], lanes: int
) -> None:
    """Tiles of a product in registers, lanes along its columns, which are split already. `initial` are the axes of what
    sets it to 0, `own` those of the product."""
    buffer = product.put.buffer
    tiles, inner = b.split(own.row, HEIGHT)
    reduced = tuple(loop.axis for loop in product.reduced)
    b.take(Reorder((own.panel, tiles, *reduced, inner, *columns)))
    first, second = b.split(initial.row, HEIGHT)
    vector, lane = b.split(initial.key, lanes)
    b.take(Reorder((initial.panel, first, second, vector, lane)))
    b.take(Unroll((inner, columns[0])))
    b.take(Vectorize((columns[1],)))
    b.take(Accumulate(buffer, reduced[0], b.fresh(buffer), "register", "set"))
    b.take(Unroll((b.split(reduced[-1], UNROLLED, "peel")[1],)))
    b.attempt(Unmask(buffer))  # a tile at the end is stored as a whole; whoever reads it is masked
    b.attempt(Version(tiles))


def tile_sums(
    b: Builder, buffer: str, others: Sequence[str], side: Sequence[str], reduced: Sequence[str], lanes: int
) -> None:
    """Tiles of sums of products in registers. Their results have the axes `side`, of a block, outer ones first, and
    `others`; `reduced` are those of a block that are summed over. Lanes run along the last axis of the results."""
    (put,) = (p for p in puts_in((b.loop(side[0]),)) if p.buffer == buffer)
    across = side[-1] in put.indices[-1].symbols
    column, tall = (side[-1], others[-1]) if across else (others[-1], side[-1])
    outer = [*others[:-1], *side[:-1]]
    vectors, height = shape_of_tile(count(trips(b.loop(column))), lanes)
    tiles, inner = b.split(tall, height)
    panels, wide = b.split(column, vectors * lanes)
    vector, lane = b.split(wide, lanes)
    first, last = reduced[0], reduced[-1]
    b.take(Reorder((*outer, panels, tiles, *reduced, inner, vector, lane)))
    b.take(Unroll((inner, vector)))
    b.take(Vectorize((lane,)))
    b.take(Accumulate(buffer, first, b.fresh(buffer), "register", "load"))
    whole = trips(b.loop(last)).constant is not None
    b.take(Unroll((b.split(last, UNROLLED, "mask" if whole else "peel")[1],)))
    if first != last and b.attempt(Peel(first)):
        for steps in (x for x in loops_in((b.loop(tiles),)) if x.axis.startswith(f"{last}.") and x.kind == "seq"):
            b.attempt(Peel(steps.axis))
    inside = [x.axis for x in loops_in((b.loop(tiles),))]
    kept = [axis for axis in inside if axis == first or axis.startswith(f"{first}.")] if first != last else []
    if count(trips(b.loop(panels))) == 1:  # every tile has the end of the columns
        kept += [axis for axis in inside if axis == lane or axis.startswith(f"{lane}.")]
    b.attempt(Version(tiles, tuple(kept)))


def shape_of_tile(columns: int, lanes: int) -> tuple[int, int]:
    """Vectors and rows of a tile of sums."""
    needed = -(-columns // lanes)
    vectors = next(v for v in (2, 4, 5, 3, 1) if needed % v == 0)
    return vectors, {1: 16, 2: 8, 3: 8, 4: 4, 5: 4}[vectors]


def run_rows(b: Builder, sweep: str, panels: set[str]) -> None:
    """What is done to scores, row by row: all of it in one loop over the rows of a block, lanes along the keys. What is
    done to the numbers of a row has lanes along the rows."""
    rows = [s for s in b.loop(sweep).body if isinstance(s, For) and s.kind == "seq"]
    keyed = [s.axis for s in rows if any(x.axis in panels for x in loops_in(s.body))]
    tiled = {s.axis for s in rows if any(x.kind != "seq" for x in loops_in((s,)))}
    free = [axis for axis in keyed if axis not in tiled]
    while free:
        first, *rest = free
        free = [axis for axis in rest if not _merge(b, sweep, first, axis)]
        _merge_neighbours(b, first)
    end = next(n for n, s in enumerate(b.kernel.body) if sweep in {x.axis for x in loops_in((s,))})
    for leaf in [x.axis for x in loops_in(b.kernel.body[: end + 1]) if x.kind == "seq" and not loops_in(x.body)]:
        b.together(f"vectors along {leaf}", partial(_vectorize, b, leaf))


def _merge(b: Builder, block: str, first: str, second: str) -> bool:
    """Merge two loops of the body of a loop, if that is legal; what stands between them moves up where it can."""
    body = b.loop(block).body
    places = [n for n, s in enumerate(body) if isinstance(s, For) and s.axis in (first, second)]
    for statement in body[places[0] + 1 : places[1]]:
        if isinstance(statement, (For, Put)):
            b.attempt(Move(statement.axis if isinstance(statement, For) else statement.buffer, first))
    return b.attempt(Merge((first, second)))


def _merge_neighbours(b: Builder, axis: str) -> None:
    """Merge loops that follow each other in the body of a loop, and those inside them."""
    first, *rest = [s.axis for s in b.loop(axis).body if isinstance(s, For)] or [""]
    for second in rest:
        if _merge(b, axis, first, second):
            _merge_neighbours(b, first)
        else:
            first = second


def _vectorize(b: Builder, leaf: str) -> None:
    """Lanes along a loop, of a panel all at once; where a mask ends in the loop around it, the iterations before that
    run without it."""
    around = find_loop(b.kernel, leaf)[1]
    loop, puts = b.loop(leaf), puts_in((b.loop(leaf),))
    longest = VECTORS * b.target.lanes(max(32, *(p.value.dtype.bits for p in puts)))
    if (trips(loop).constant or longest + 1) > longest:
        vectorize_leaf(b, leaf)
        return
    b.take(Vectorize((leaf,)))
    for put in puts:
        if put.operator != "=" and not any(leaf in i.symbols for i in put.indices):
            keep_partial_results(b, put.buffer, "", (leaf,))
    if len(around[-1].body) == 1:
        b.attempt(Peel(around[-1].axis))


def reuse_scores(b: Builder, sweep: str) -> None:
    """What is made of scores lies where they did: the second cache has to hold half as much."""
    names = [s.buffer.name for s in b.loop(sweep).body if isinstance(s, Alloc)]
    for put in puts_in((b.loop(sweep),)):
        for load in loads(put.value):
            if put.buffer in names and load.buffer in names and load.indices == put.indices:
                b.attempt(Reuse(load.buffer, put.buffer))


def share(b: Builder, axes: Sequence[str]) -> None:
    """Give the iterations of an outer loop to threads."""
    if effort(b.kernel.body) < SMALL:
        return
    wanted = SHARES * max(2, b.target.cores)
    lengths = {axis: count(trips(b.loop(axis))) for axis in axes}
    best = next((a for a in axes if lengths[a] >= wanted), max(axes, key=lambda a: lengths[a]))
    b.attempt(Parallel((best,)), silent=False)

"""Default schedule of chained reductions: a product whose rows are reduced, with what else runs along the same axis.

Scores are made block by block, for a block of rows and a block of keys (the axis along which they are reduced); they
never leave the second cache. `online` makes one sweep of it. So attention with any scores, and losses that reduce the
rows of a product, need memory for one block only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from intarsia.ir.kernel import Alloc, For, Put, Statement
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import (
    ROOT,
    Accumulate,
    Localize,
    Merge,
    Move,
    Online,
    Pack,
    Parallel,
    Parts,
    Peel,
    Reorder,
    Reuse,
    Tighten,
    Unmask,
    Unroll,
    Vectorize,
    Version,
)
from intarsia.passes.schedule.arrange import accumulate_rows, localize_all, merge_rows
from intarsia.passes.schedule.builder import SHARES, SMALL, Builder
from intarsia.passes.schedule.chain import Chain, find_chain, prepare, state_of_chain
from intarsia.passes.schedule.domains import is_masked
from intarsia.passes.schedule.shape import count, effort, points, stride
from intarsia.passes.schedule.stages import Stage, definitions_in, expand
from intarsia.passes.schedule.tree import allocated_in, find_loop, loops_in, puts_in
from intarsia.passes.schedule.vectors import keep_partial_results, vectorize_leaf, vectorize_region

ROWS = 64
"""Rows of a block, about; half as many where all that they share stays in the second cache: masks leave out more."""

KEYS = 384
"""Elements of the reduced axis in a block, at least; more where what belongs to them stays in the second cache."""

VECTORS = 2
"""Vectors of a panel of keys."""

HEIGHT = 8
"""Rows of a tile."""

PARTS = 16
"""Parts of the keys that cores share. Their number depends on sizes alone, and so do the results."""

LEAST = 1024
"""Keys of a part at least: it is so many, or twice as many, and so on."""

UNROLLED = 4
"""Steps of a reduction that are written out."""


def schedule_chain(b: Builder) -> bool:
    """Schedule a kernel that is one chain of reductions. Returns whether it is, and every step was legal."""
    name = state_of_chain(b)
    if name is None or b.choose(f"reductions with {name}", ("in one sweep", "one by one")) == "one by one":
        return False
    return b.together(f"sweep over the rows of {name}", partial(_schedule, b, name))


@dataclass(frozen=True)
class _Axes:
    """The axes of a stage inside a block of rows: rows, and for what runs along the keys, panels and keys in them."""

    row: str
    panel: str = ""
    key: str = ""


def _schedule(b: Builder, name: str) -> None:
    prepare(b, name)
    chain = find_chain(b, name)
    if width := _width_of_parts(b, chain):
        name = _cut(b, name, width)
        chain = find_chain(b, name, alone=True)
        _sweep(b, name, chain, cut=True)
        _merge_parts(b)
    else:
        _sweep(b, name, chain)


def _width_of_parts(b: Builder, chain: Chain) -> int:
    """The keys of a part, where there are fewer blocks of rows than cores, and masks do not give rows different work;
    0 for one sweep."""
    own = chain.sweep.state
    blocks = points(b.loop(r[own]) for r in chain.batch)
    blocks *= -(-count(trips(b.loop(chain.row[own]))) // _rows_of_block(b, chain))
    length = trips(own.reduced[0]).constant
    if blocks >= b.target.cores or length is None or length < 2 * LEAST:
        return 0
    if is_masked(expand(own, definitions_in(chain.stages, allocated_in(b.kernel.body))), own):
        return 0
    width = max(LEAST, -(-length // PARTS))
    width = -(-width // LEAST) * LEAST
    name = own.put.buffer
    return width if b.choose(f"keys of {name}", ("in parts", "whole"), looks=1) == "in parts" else 0


def _cut(b: Builder, name: str, width: int) -> str:
    """Cut the axis of a sweep into parts. Returns the name of the maximum of a part."""
    operator = next(p.operator for p in puts_in(b.kernel.body) if p.buffer == name and p.operator != "=")
    old = b.kernel.buffers()
    b.take(Parts(name, width))
    return next(p.buffer for p in puts_in(b.kernel.body) if p.operator == operator and p.buffer not in old)


def _axes_of(statement: Statement) -> set[str]:
    return {loop.axis for loop in loops_in((statement,))}


def _merge_parts(b: Builder) -> None:
    """Schedule what merges the parts."""
    merge_rows(b)
    localize_all(b)
    accumulate_rows(b)
    for loop in b.waiting():
        vectorize_region(b, loop.axis)


def _sweep(b: Builder, name: str, chain: Chain, cut: bool = False) -> None:
    """Sweep through the keys of each block of rows; through those of a part, if they are `cut`."""
    lanes = b.target.lanes(max(32, chain.sweep.state.put.value.dtype.bits))
    panels = _panels_of_block(b, chain, VECTORS * lanes)
    top, axes = _block(b, chain, VECTORS * lanes)
    for stage in chain.sweep.axes if cut else ():
        b.attempt(Tighten(axes[stage].panel))  # nothing is looked at beyond the last key
    panel = axes[chain.sweep.state].panel
    if chain.scores is not None:
        mine = axes[chain.scores]
        columns = b.split(mine.key, lanes)
        at = chain.batch[-1][chain.stages[0]] if chain.batch else ROOT
        _pack(b, at, columns[-1], (mine.panel, *(loop.axis for loop in chain.scores.reduced), *columns))
    around = frozenset().union(*(s.touched for s in (*chain.sweep.before, *chain.sweep.after)))
    others = {a.buffer for s in b.kernel.body if top not in _axes_of(s) for a in accesses((s,))}
    around -= others
    for buffer in (*(s.put.buffer for s in chain.sums), *sorted(around)):
        if b.kernel.buffers()[buffer].role == "temp" and allocated_in(b.kernel.body)[buffer].memory == "global":
            b.take(Localize(buffer, top, "cache"))
    sweep = b.fresh(panel)
    b.take(Online(name, panels, (sweep,)))
    for buffer, found in allocated_in(b.kernel.body).items():
        if found.memory == "global" and buffer not in others:
            b.take(Localize(buffer, sweep, "cache"))
    if chain.scores is not None:
        _tile_scores(b, chain, chain.scores, axes, columns, lanes)
    for stage in chain.sums:
        if len(stage.kept) > len(chain.batch) + 1:
            _tile_sums(b, chain, stage, axes[stage], lanes)
    _rows(b, sweep, {a.panel for a in axes.values()} - {""})
    _reuse(b, sweep)
    _share(b, (*(r[chain.stages[0]] for r in chain.batch), top))


def _block(b: Builder, chain: Chain, panel: int) -> tuple[str, dict[Stage, _Axes]]:
    """Make blocks of rows and panels of keys, and one loop around all stages. Returns the axis that counts the blocks,
    and the axes of each stage inside of one."""
    rows = _rows_of_block(b, chain)
    tops: list[str] = []
    inside: dict[Stage, _Axes] = {}
    for stage in chain.stages:
        row = chain.row[stage]
        top, inner = b.split(row, rows, "min")
        batch = [r[stage] for r in chain.batch]
        rest = [loop.axis for loop in stage.loops if loop.axis not in (row, *batch)]
        inside[stage] = _Axes(inner)
        if stage in chain.sweep.axes:
            axis = chain.sweep.axes[stage]
            inside[stage] = _Axes(inner, *b.split(axis, panel))
            n = rest.index(axis)
            rest[n : n + 1] = [inside[stage].panel, inside[stage].key]
        b.take(Reorder((*batch, top, inner, *rest)))
        tops.append(top)
    for axes in (*([r[s] for s in chain.stages] for r in chain.batch), tops):
        b.take(Merge(tuple(axes)))
    return tops[0], inside


def _rows_of_block(b: Builder, chain: Chain) -> int:
    """Rows of a block."""
    length = trips(b.loop(chain.row[chain.sweep.state])).constant
    others = [n for n in (16, 32, 64, 128) if length is None or n < length + HEIGHT]
    return b.choose(f"rows of {chain.sweep.state.put.buffer}", (_likely_rows(b, chain, length), *others))


def _likely_rows(b: Builder, chain: Chain, length: int | None) -> int:
    """Rows of a block of so many in all: where that is possible, blocks are whole, and so are tiles."""
    keys = trips(chain.sweep.state.reduced[0]).constant
    near = keys is not None and keys * _bytes_of_key(b, chain) <= _second_cache(b)
    rows = ROWS // 2 if near else ROWS
    if length is None:
        return rows
    whole = [n for n in range(rows // 2, 2 * rows, HEIGHT) if length % n == 0]
    if whole:
        return min(whole, key=lambda n: abs(n - rows))
    even = -(-length // -(-length // rows))
    return -(-even // (2 * HEIGHT)) * 2 * HEIGHT


def _panels_of_block(b: Builder, chain: Chain, panel: int) -> int:
    """Panels of keys in a block."""
    likeliest = _likely_panels(b, chain, panel)
    others = [n for n in (likeliest // 4, likeliest // 2, 2 * likeliest) if n]
    return b.choose(f"panels of {chain.sweep.state.put.buffer}", (likeliest, *others))


def _likely_panels(b: Builder, chain: Chain, panel: int) -> int:
    """Panels of keys in a block: the scores of a block of rows and what it reads along its keys fill most of the second
    cache, and the blocks are about as long as each other."""
    state = chain.sweep.state
    length = trips(state.reduced[0])
    scores = _rows_of_block(b, chain) * state.put.value.dtype.bytes
    fitting = _second_cache(b) * 3 // 4 // (scores + _bytes_of_key(b, chain))
    keys = max(KEYS, fitting // panel * panel)
    if length.constant:
        keys = -(-length.constant // -(-length.constant // keys))
    return -(-keys // panel)


def _bytes_of_key(b: Builder, chain: Chain) -> int:
    """What all rows read at one place of the reduced axis."""
    read: dict[str, int] = {}
    for stage, axis in chain.sweep.axes.items():
        others = {axis, chain.row[stage], *(r[stage] for r in chain.batch)}
        for x in stage.reads:
            if axis in x.symbols and chain.row[stage] not in x.symbols and b.kernel.buffers()[x.buffer].role == "in":
                own = points(loop for loop in stage.loops if loop.axis in x.symbols - others)
                read[x.buffer] = max(read.get(x.buffer, 0), own * x.dtype.bytes)
    return sum(read.values())


def _second_cache(b: Builder) -> int:
    return b.target.caches[min(1, len(b.target.caches) - 1)]


def _pack(b: Builder, at: str, lane: str, axes: tuple[str, ...]) -> None:
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


def _tile_scores(
    b: Builder, chain: Chain, scores: Stage, axes: dict[Stage, _Axes], columns: tuple[str, str], lanes: int
) -> None:
    """Tiles of scores in registers, lanes along the keys."""
    buffer, mine = scores.put.buffer, axes[scores]
    initial = next(s for s in chain.sweep.axes if s.put.buffer == buffer)
    tiles, inner = b.split(mine.row, HEIGHT)
    reduced = tuple(loop.axis for loop in scores.reduced)
    b.take(Reorder((mine.panel, tiles, *reduced, inner, *columns)))
    own = axes[initial]
    first, second = b.split(own.row, HEIGHT)
    vector, lane = b.split(own.key, lanes)
    b.take(Reorder((own.panel, first, second, vector, lane)))
    b.take(Unroll((inner, columns[0])))
    b.take(Vectorize((columns[1],)))
    b.take(Accumulate(buffer, reduced[0], b.fresh(buffer), "register", "set"))
    b.take(Unroll((b.split(reduced[-1], UNROLLED, "peel")[1],)))
    b.attempt(Unmask(buffer))  # a tile at the end is stored as a whole; whoever reads it is masked
    b.attempt(Version(tiles))


def _tile_sums(b: Builder, chain: Chain, stage: Stage, own: _Axes, lanes: int) -> None:
    """Tiles of sums of products in registers, lanes along an axis of their results."""
    buffer, row = stage.put.buffer, chain.row[stage]
    batch = {r[stage] for r in chain.batch}
    others = [loop.axis for loop in stage.kept if loop.axis not in (row, *batch)]
    *outer, column = others
    vectors, height = _shape_of_tile(count(trips(b.loop(column))), lanes)
    tiles, inner = b.split(own.row, height)
    panels, wide = b.split(column, vectors * lanes)
    vector, lane = b.split(wide, lanes)
    b.take(Reorder((*outer, panels, tiles, own.panel, own.key, inner, vector, lane)))
    b.take(Unroll((inner, vector)))
    b.take(Vectorize((lane,)))
    b.take(Accumulate(buffer, own.panel, b.fresh(buffer), "register", "load"))
    b.take(Unroll((b.split(own.key, UNROLLED)[1],)))
    if b.attempt(Peel(own.panel)):
        for steps in (x for x in loops_in((b.loop(tiles),)) if x.axis.startswith(f"{own.key}.") and x.kind == "seq"):
            b.attempt(Peel(steps.axis))
    inside = [x.axis for x in loops_in((b.loop(tiles),))]
    kept = [own.panel, *(axis for axis in inside if axis.startswith(f"{own.panel}."))]
    if count(trips(b.loop(panels))) == 1:  # every tile has the end of the columns
        kept += [axis for axis in inside if axis == lane or axis.startswith(f"{lane}.")]
    b.attempt(Version(tiles, tuple(kept)))


def _shape_of_tile(columns: int, lanes: int) -> tuple[int, int]:
    """Vectors and rows of a tile of sums."""
    needed = -(-columns // lanes)
    vectors = next(v for v in (2, 4, 5, 3, 1) if needed % v == 0)
    return vectors, {1: 16, 2: 8, 3: 8, 4: 4, 5: 4}[vectors]


def _rows(b: Builder, sweep: str, panels: set[str]) -> None:
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
    end = next(n for n, s in enumerate(b.kernel.body) if sweep in _axes_of(s))
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


def _reuse(b: Builder, sweep: str) -> None:
    """What is made of scores lies where they did: the second cache has to hold half as much."""
    names = [s.buffer.name for s in b.loop(sweep).body if isinstance(s, Alloc)]
    for put in puts_in((b.loop(sweep),)):
        for load in loads(put.value):
            if put.buffer in names and load.buffer in names and load.indices == put.indices:
                b.attempt(Reuse(load.buffer, put.buffer))


def _share(b: Builder, axes: Sequence[str]) -> None:
    """Give the iterations of an outer loop to threads."""
    if effort(b.kernel.body) < SMALL:
        return
    wanted = SHARES * max(2, b.target.cores)
    lengths = {axis: count(trips(b.loop(axis))) for axis in axes}
    best = next((a for a in axes if lengths[a] >= wanted), max(axes, key=lambda a: lengths[a]))
    b.attempt(Parallel((best,)), silent=False)

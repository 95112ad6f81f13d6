"""Default schedule of chained reductions: a product whose rows are reduced, with what else runs along the same axis.

Scores are made block by block, for a block of rows and a block of keys (the axis along which they are reduced); they
never leave the second cache. `online` makes one sweep of it. So attention with any scores, and losses that reduce the
rows of a product, need memory for one block only.
"""

from __future__ import annotations

from functools import partial

from intarsia.ir.kernel import Statement
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.schedule import (
    ROOT,
    Localize,
    Merge,
    Online,
    Parts,
    Reorder,
    Tighten,
)
from intarsia.passes.schedule.arrange import accumulate_rows, localize_all, merge_rows
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
from intarsia.passes.schedule.chain import Chain, find_chain, prepare, state_of_chain
from intarsia.passes.schedule.domains import is_masked
from intarsia.passes.schedule.shape import count, points
from intarsia.passes.schedule.stages import Stage, definitions_in, expand
from intarsia.passes.schedule.tree import allocated_in, loops_in, puts_in
from intarsia.passes.schedule.vectors import vectorize_region

ROWS = 64
"""Rows of a block, about; half as many where all that they share stays in the second cache: masks leave out more."""

KEYS = 384
"""Elements of the reduced axis in a block, at least; more where what belongs to them stays in the second cache."""

PARTS = 16
"""Parts of the keys that cores share. Their number depends on sizes alone, and so do the results."""

LEAST = 1024
"""Keys of a part at least: it is so many, or twice as many, and so on."""


def schedule_chain(b: Builder) -> bool:
    """Schedule a kernel that is one chain of reductions. Returns whether it is, and every step was legal."""
    name = state_of_chain(b)
    if name is None or b.choose(f"reductions with {name}", ("in one sweep", "one by one")) == "one by one":
        return False
    return b.together(f"sweep over the rows of {name}", partial(_schedule, b, name))


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
        pack_panels(b, at, columns[-1], (mine.panel, *(loop.axis for loop in chain.scores.reduced), *columns))
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
        initial = next(s for s in chain.sweep.axes if s.put.buffer == chain.scores.put.buffer)
        tile_product(b, chain.scores, axes[initial], axes[chain.scores], columns, lanes)
    for stage in chain.sums:
        if len(stage.kept) > len(chain.batch) + 1:
            own, fixed = axes[stage], {chain.row[stage], *(r[stage] for r in chain.batch)}
            wide = [loop.axis for loop in stage.kept if loop.axis not in fixed]
            tile_sums(b, stage.put.buffer, wide, (own.row,), (own.panel, own.key), lanes)
    run_rows(b, sweep, {a.panel for a in axes.values()} - {""})
    reuse_scores(b, sweep)
    share(b, (*(r[chain.stages[0]] for r in chain.batch), top))


def _block(b: Builder, chain: Chain, panel: int) -> tuple[str, dict[Stage, BlockAxes]]:
    """Make blocks of rows and panels of keys, and one loop around all stages. Returns the axis that counts the blocks,
    and the axes of each stage inside of one."""
    rows = _rows_of_block(b, chain)
    tops: list[str] = []
    inside: dict[Stage, BlockAxes] = {}
    for stage in chain.stages:
        row = chain.row[stage]
        top, inner = b.split(row, rows, "min")
        batch = [r[stage] for r in chain.batch]
        rest = [loop.axis for loop in stage.loops if loop.axis not in (row, *batch)]
        inside[stage] = BlockAxes(inner)
        if stage in chain.sweep.axes:
            axis = chain.sweep.axes[stage]
            inside[stage] = BlockAxes(inner, *b.split(axis, panel))
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

"""Default schedules of large reductions: few results from much data, and sums down the columns of a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Accumulate, Merge, Move, Peel, Reorder, Unroll, Vectorize
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.codes import filled_by
from intarsia.passes.schedule.shape import count, is_contiguous, lanes_for, points, vector_cost, work
from intarsia.passes.schedule.tree import loops_in, perfect_nest, puts_in

FEW = 16
"""Independent results (vectors of them, where they are computed side by side) that are too few to share among cores."""

CHUNKS = 64
"""Parts of a reduction that has few results. Their number depends on sizes alone, and so do the results."""

PROGRAMS = 4
"""Parts of it for each core of a GPU."""

CHUNK_WORK = 50_000
"""Scalar operations that a part has at least."""

CHUNK_ROWS = 128
"""Rows of a part of a matrix at least, whose columns are summed: it writes sums that are read again."""

COLUMNS = (1024, 256, 512, 2048, 4096)
"""Columns that are summed at once, the likeliest number first: the sums stay in the nearest cache, the rows are read in
long pieces."""

ROWS = (8, 4, 16)
"""Rows that are added up in registers before a sum in the cache changes."""


@dataclass(frozen=True)
class _Stage:
    """A perfect nest around writes that accumulate over the same axes, and along which axis memory is contiguous (""
    if along none)."""

    nest: tuple[For, ...]
    puts: tuple[Put, ...]
    kept: tuple[For, ...]
    reduced: tuple[For, ...]
    lane: str

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(x.buffer for put in self.puts for x in loads(put.value))

    @property
    def is_across(self) -> bool:
        """Do neighbouring lanes hold different results?"""
        return self.lane in {loop.axis for loop in self.kept}


def _stage(b: Builder, loop: For) -> _Stage | None:
    nest, body = perfect_nest(loop)
    puts = tuple(s for s in body if isinstance(s, Put) and s.operator != "=")
    used = {frozenset().union(*(i.symbols for i in put.indices)) for put in puts}
    if len(puts) != len(body) or len(used) != 1 or any(inner.step != 1 for inner in nest):
        return None
    indices = used.pop()
    kept = tuple(inner for inner in nest if inner.axis in indices)
    reduced = tuple(inner for inner in nest if inner.axis not in indices)
    if not reduced or any(i.opaques for put in puts for i in put.indices):
        return None
    lanes = lanes_for(puts, b.target)
    axes = [x.axis for x in nest if any(is_contiguous(b.kernel, put, x.axis) for put in puts)]
    best = min(axes, key=lambda x: sum(vector_cost(b.kernel, put, nest, x, lanes) for put in puts), default="")
    return _Stage(nest, puts, kept, reduced, best)


def merge_column_sums(b: Builder) -> None:
    """Let sums down the columns of one range that read something in common go through it together."""
    before = ""
    for axis in [loop.axis for loop in b.waiting()]:
        stage = _stage(b, b.loop(axis))
        if stage is None or not stage.is_across:
            continue
        first = _stage(b, b.loop(before)) if before else None
        alike = first is not None and len(first.nest) == len(stage.nest) and not first.reads.isdisjoint(stage.reads)
        if first is None or not (alike and b.together("pass for several sums", partial(_merge, b, first, stage))):
            before = axis


def _merge(b: Builder, first: _Stage, second: _Stage) -> None:
    """Merge two nests. What sets the results of the second one goes before both."""
    top = first.nest[0]
    for put in second.puts:
        initial = next(s for s in b.outermost() if any(p.buffer == put.buffer for p in puts_in((s,))))
        if b.kernel.body.index(initial) > b.kernel.body.index(b.loop(top.axis)):
            b.take(Move(initial.axis, top.axis))
    for one, two in zip(first.nest, second.nest):
        b.take(Merge((one.axis, two.axis)))


def reduce_in_parts(b: Builder, axis: str) -> str:
    """If a reduction has few results, compute partial ones in parallel, to be combined in order afterwards.

    Returns the axis that now begins the nest.
    """
    stage = _stage(b, b.loop(axis))
    if stage is None or work((b.loop(axis),)) < 2 * CHUNK_WORK:
        return axis
    first = stage.reduced[0]
    is_box = not (first.lower.symbols | first.upper.symbols) & {loop.axis for loop in stage.kept}
    if not is_box or not _has_few_results(b, stage):
        return axis
    per_step = work(stage.nest[:1]) // max(1, count(trips(first)))
    chunks = CHUNKS if b.target.kind == "cpu" else PROGRAMS * b.target.cores
    least = CHUNK_ROWS if b.target.kind == "cpu" and stage.is_across else 1
    length = max(least, -(-count(trips(first)) // chunks), -(-CHUNK_WORK // max(1, per_step)))
    length = 1 << math.ceil(math.log2(length))
    if b.target.kind == "gpu":
        length = choose_size(b, f"steps of a part of {first.axis}", length, 1, count(trips(first)))
    if (whole := trips(first).constant) is not None and whole <= length:
        return axis
    part = b.fresh(first.axis)

    def cut() -> None:
        b.split(first.axis, length, "min")
        if stage.kept:
            b.take(Reorder((part, *(loop.axis for loop in stage.kept))))
        for put in stage.puts:
            b.take(Accumulate(put.buffer, part, b.fresh(put.buffer), "global", "add", (part,)))

    return part if b.together("reduction in parts", cut) else axis


def _has_few_results(b: Builder, stage: _Stage) -> bool:
    """Are there too few results, or blocks of them, to share among cores?"""
    if not stage.is_across:
        return points(stage.kept) < FEW
    if b.target.kind == "cpu":
        return points(stage.kept) <= COLUMNS[0]
    return points(stage.kept) < 4 * lanes_for(stage.puts, b.target) * FEW


def sum_columns(b: Builder, axis: str) -> bool:
    """Reduce down the columns of a matrix: blocks of columns whose sums are in the cache, several rows at a time.

    Returns whether the nest is of that kind and every step was legal.
    """
    stage = _stage(b, b.loop(axis))
    if stage is None or not stage.is_across:
        return False
    lane = next(loop for loop in stage.kept if loop.axis == stage.lane)
    lanes = lanes_for(stage.puts, b.target)
    if count(trips(lane)) < 16 * lanes or points(stage.reduced) < 4 * ROWS[0]:
        return False
    return b.together("sums of blocks of columns", lambda: _sum_columns(b, stage, lanes))


def _sum_columns(b: Builder, stage: _Stage, lanes: int) -> None:
    reduced = [loop.axis for loop in stage.reduced]
    width = b.choose(f"columns of {stage.puts[0].buffer}", _columns(b, stage, lanes))
    columns, inside = b.split(stage.lane, width, "min")
    block, two = b.split(inside, 2 * lanes)
    vector, lane = b.split(two, lanes)
    others = [loop.axis for loop in stage.kept if loop.axis != stage.lane]
    b.take(Reorder((*others, columns, *reduced, block, vector, lane)))
    b.take(Unroll((vector,)))
    b.take(Vectorize((lane,)))
    kept: list[str] = []
    for put in stage.puts:
        kept.append(b.fresh(put.buffer))
        b.take(Accumulate(put.buffer, reduced[0], kept[-1], "cache"))
    _, row = b.split(reduced[-1], b.choose(f"rows of {stage.puts[0].buffer}", _rows(b, stage)), "peel")
    b.take(Reorder((block, row, vector, lane)))
    for sums in kept:
        b.take(Accumulate(sums, row, b.fresh(sums), "register"))
    b.take(Unroll((row,)))
    for loop in loops_in(b.loop(columns).body):
        if loop.axis == block or loop.axis.startswith(f"{block}."):
            b.attempt(Peel(loop.axis))


def _columns(b: Builder, stage: _Stage, lanes: int) -> tuple[int, ...]:
    """Columns of a block, the likeliest number first: of constant codes all blocks are alike if any number of whole
    vectors makes them so, for these are laid out before the first call (`codes.py`)."""
    constant = {buffer.name for buffer in b.kernel.inputs if buffer.constant and buffer.dtype.bits <= 8}
    extent = trips(b.loop(stage.lane)).constant
    if extent is None or constant.isdisjoint(stage.reads):
        return COLUMNS
    alike = [n for n in range(COLUMNS[0], min(COLUMNS) - 1, -2 * lanes) if extent % n == 0]
    return tuple(dict.fromkeys((*alike[:1], *COLUMNS)))


def _rows(b: Builder, stage: _Stage) -> tuple[int, ...]:
    """Rows that may be added up in registers, the likeliest number first: codes of few bits fill whole words then."""
    buffers = b.kernel.buffers()
    bits = {n for name in stage.reads if (n := buffers[name].dtype.bits) < 8}
    return tuple(dict.fromkeys((max(ROWS[0], filled_by(*bits)), *ROWS))) if bits else ROWS

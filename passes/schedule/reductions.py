"""Default schedules of large reductions: few results from much data, and sums down the columns of a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Accumulate, Peel, Reorder, Unroll, Vectorize
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.codes import filled_by
from intarsia.passes.schedule.shape import count, is_contiguous, lanes_for, points, vector_cost, work
from intarsia.passes.schedule.tree import loops_in, perfect_nest

FEW = 16
"""Independent results (vectors of them, where they are computed side by side) that are too few to share among cores."""

CHUNKS = 64
"""Parts of a reduction that has few results. Their number depends on sizes alone, and so do the results."""

PROGRAMS = 4
"""Parts of it for each core of a GPU."""

CHUNK_WORK = 50_000
"""Scalar operations that a part has at least."""

COLUMNS = (1024, 256, 512, 2048, 4096)
"""Columns that are summed at once, the likeliest number first: the sums stay in the nearest cache, the rows are read in
long pieces."""

ROWS = (8, 4, 16)
"""Rows that are added up in registers before a sum in the cache changes."""


@dataclass(frozen=True)
class _Stage:
    """A perfect nest around one accumulating write, and along which axis memory is contiguous ("" if along none)."""

    put: Put
    kept: tuple[For, ...]
    reduced: tuple[For, ...]
    lane: str

    @property
    def is_across(self) -> bool:
        """Do neighbouring lanes hold different results?"""
        return self.lane in {loop.axis for loop in self.kept}


def _stage(b: Builder, loop: For) -> _Stage | None:
    nest, body = perfect_nest(loop)
    if len(body) != 1 or not isinstance(put := body[0], Put) or put.operator == "=":
        return None
    used = frozenset().union(*(i.symbols for i in put.indices))
    kept = tuple(inner for inner in nest if inner.axis in used)
    reduced = tuple(inner for inner in nest if inner.axis not in used)
    if not reduced or any(i.opaques for i in put.indices) or any(inner.step != 1 for inner in nest):
        return None
    lanes = lanes_for((put,), b.target)
    axes = [inner.axis for inner in nest if is_contiguous(b.kernel, put, inner.axis)]
    best = min(axes, key=lambda axis: vector_cost(b.kernel, put, nest, axis, lanes), default="")
    return _Stage(put, kept, reduced, best)


def reduce_in_parts(b: Builder, axis: str) -> str:
    """If a reduction has few results, compute partial ones in parallel, to be combined in order afterwards.

    Returns the axis that now begins the nest.
    """
    stage = _stage(b, b.loop(axis))
    if stage is None or work((b.loop(axis),)) < 2 * CHUNK_WORK:
        return axis
    lanes = 4 * lanes_for((stage.put,), b.target) if stage.is_across else 1
    results = points(stage.kept) // lanes
    first = stage.reduced[0]
    if results >= FEW or (first.lower.symbols | first.upper.symbols) & {loop.axis for loop in stage.kept}:
        return axis
    per_step = work((first,)) // max(1, count(trips(first)))
    chunks = CHUNKS if b.target.kind == "cpu" else PROGRAMS * b.target.cores
    length = max(-(-count(trips(first)) // chunks), -(-CHUNK_WORK // max(1, per_step)))
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
        b.take(Accumulate(stage.put.buffer, part, b.fresh(stage.put.buffer), "global", "add", (part,)))

    return part if b.together("reduction in parts", cut) else axis


def sum_columns(b: Builder, axis: str) -> bool:
    """Reduce down the columns of a matrix: blocks of columns whose sums are in the cache, several rows at a time.

    Returns whether the nest is of that kind and every step was legal.
    """
    stage = _stage(b, b.loop(axis))
    if stage is None or not stage.is_across:
        return False
    lane = next(loop for loop in stage.kept if loop.axis == stage.lane)
    lanes = lanes_for((stage.put,), b.target)
    if count(trips(lane)) < 16 * lanes or points(stage.reduced) < 4 * ROWS[0]:
        return False
    return b.together("sums of blocks of columns", lambda: _sum_columns(b, stage, lanes))


def _sum_columns(b: Builder, stage: _Stage, lanes: int) -> None:
    reduced = [loop.axis for loop in stage.reduced]
    columns, inside = b.split(stage.lane, b.choose(f"columns of {stage.put.buffer}", _columns(b, stage, lanes)), "min")
    block, two = b.split(inside, 2 * lanes)
    vector, lane = b.split(two, lanes)
    others = [loop.axis for loop in stage.kept if loop.axis != stage.lane]
    b.take(Reorder((*others, columns, *reduced, block, vector, lane)))
    b.take(Unroll((vector,)))
    b.take(Vectorize((lane,)))
    sums = b.fresh(stage.put.buffer)
    b.take(Accumulate(stage.put.buffer, reduced[0], sums, "cache"))
    _, row = b.split(reduced[-1], b.choose(f"rows of {stage.put.buffer}", _rows(b, stage)), "peel")
    b.take(Reorder((block, row, vector, lane)))
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
    if extent is None or constant.isdisjoint(x.buffer for x in loads(stage.put.value)):
        return COLUMNS
    alike = [n for n in range(COLUMNS[0], min(COLUMNS) - 1, -2 * lanes) if extent % n == 0]
    return tuple(dict.fromkeys((*alike[:1], *COLUMNS)))


def _rows(b: Builder, stage: _Stage) -> tuple[int, ...]:
    """Rows that may be added up in registers, the likeliest number first: codes of few bits fill whole words then."""
    buffers = b.kernel.buffers()
    bits = {n for x in loads(stage.put.value) if (n := buffers[x.buffer].dtype.bits) < 8}
    return tuple(dict.fromkeys((max(ROWS[0], filled_by(*bits)), *ROWS))) if bits else ROWS

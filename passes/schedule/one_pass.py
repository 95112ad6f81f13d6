"""Default schedules of several stages that go through one large matrix: a few of its rows serve all of them.

   for i { for k { t[i] += a[i, k] * x[k] } }        for i.0 { for i.1 in 0..8 { for k { t[8 * i.0 + i.1] += … } }
   for j { for i { y[j] += a[i, j] * t[i] } }    ->            for j { for i.1 in 0..8 { y[j] += … } } }

The first stage brings the rows into the second cache, where the others find them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from intarsia.ir.dtypes import DType
from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.schedule import Accumulate, Merge, Move, Parallel, Peel, Prefetch, Reorder, Unroll, Vectorize
from intarsia.ir.sizes import Size
from intarsia.ir.target import Target
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import count, lanes_for
from intarsia.passes.schedule.tree import perfect_nest
from intarsia.passes.schedule.vectors import vectorize_leaf

ROWS = (8, 4, 16)
"""Rows that serve all stages before the next ones, the likeliest number first."""

PARTS = 16
"""Parts of the rows, of which each has sums of its own, which are added up in order: threads share them. Their number
depends on nothing, so that results do not either."""

COLUMNS = 2
"""Vectors of columns whose sums are in registers while the rows are added."""


def is_large(shape: Sequence[Size], dtype: DType, target: Target) -> bool:
    """Is a matrix too large for a cache to keep until the next kernel?"""
    return len(shape) == 2 and math.prod(map(count, shape)) * dtype.bytes >= target.caches[-1] // 2


@dataclass
class _Stage:
    """A nest over the rows and columns of a matrix. sums: does it add up columns?"""

    put: Put
    row: str
    column: str
    sums: bool


def go_through_once(b: Builder) -> bool:
    """Let all stages that go through a large matrix go through it together, if there are several, and it is legal."""
    for buffer in b.kernel.parameters:
        stages = _stages(b, buffer.name) if is_large(buffer.shape, buffer.dtype, b.target) else []
        if len({stage.sums for stage in stages}) > 1:
            if b.choose(f"passes over {buffer.name}", ("one", "several")) == "several":
                return False
            return b.together(f"single pass over {buffer.name}", partial(_together, b, buffer.name, stages))
    return False


def _stages(b: Builder, name: str) -> list[_Stage]:
    """The stages that read or write each element of a matrix once."""
    found: list[_Stage] = []
    for loop in b.outermost():
        nest, body = perfect_nest(loop)
        places = {a.indices for a in accesses((loop,)) if a.buffer == name}
        if len(nest) != 2 or len(body) != 1 or not isinstance(put := body[0], Put) or put.mask or len(places) != 1:
            continue
        row, column = (index.as_name for index in places.pop())
        is_box = all(x.step == 1 and trips(x).constant is not None for x in nest)
        if row is None or column is None or {row, column} != {x.axis for x in nest} or not is_box:
            continue
        used = frozenset().union(*(i.symbols for i in put.indices))
        if (put.operator == "=") == ({row, column} <= used) and put.operator in ("=", "+="):
            found.append(_Stage(put, row, column, row not in used))
    return found


def _together(b: Builder, name: str, stages: Sequence[_Stage]) -> None:
    rows = b.choose(f"rows of {name}", ROWS)
    length = -(-count(trips(b.loop(stages[0].row))) // rows // PARTS)
    parts: list[str] = []
    blocks: list[str] = []
    for stage in stages:
        b.take(Reorder((stage.row, stage.column)))
        block, _ = b.split(stage.row, rows, "peel")
        part, block = b.split(block, max(1, length), "min")
        parts.append(part)
        blocks.append(block)
        if stage.sums:
            sums, before = b.fresh(stage.put.buffer), {loop.axis for loop in b.outermost()}
            b.take(Accumulate(stage.put.buffer, part, sums, "global", "add", (part,)))
            initial = next(loop.axis for loop in b.outermost() if loop.axis not in before)
            b.take(Move(initial, parts[0]))
            stage.put = replace(stage.put, buffer=sums)
    b.take(Merge(tuple(parts)))
    b.take(Merge(tuple(blocks)))
    for stage, loop in zip(stages, b.loop(blocks[0]).body, strict=True):
        assert isinstance(loop, For)
        row, column = (inner.axis for inner in perfect_nest(loop)[0])
        if stage.sums:
            last = _sum_columns(b, stage.put, row, column)
        elif stage.put.operator == "=":
            vectorize_leaf(b, column)
            last = stage.put.buffer
        else:
            last = _sum_rows(b, stage.put, row, column)
    if b.choose(f"next rows of {name}", ("fetched early", "not fetched")) == "fetched early":
        b.attempt(Prefetch(name, last, blocks[0], 1, 2))
    b.attempt(Parallel((parts[0],)))


def _sum_rows(b: Builder, put: Put, row: str, column: str) -> str:
    """Sum some rows side by side, each in a vector. Returns what the sums are kept in."""
    steps, lane = b.split(column, lanes_for((put,), b.target))
    b.take(Reorder((steps, row, lane)))
    b.take(Unroll((row,)))
    b.take(Vectorize((lane,)))
    sums = b.fresh(put.buffer)
    b.take(Accumulate(put.buffer, steps, sums, "register", "add", (lane,)))
    b.attempt(Peel(steps))
    return sums


def _sum_columns(b: Builder, put: Put, row: str, column: str) -> str:
    """Add rows to sums, some vectors of which are in registers. Returns what these are kept in."""
    lanes = lanes_for((put,), b.target)
    block, several = b.split(column, COLUMNS * lanes)
    vector, lane = b.split(several, lanes)
    b.take(Reorder((block, row, vector, lane)))
    b.take(Unroll((vector,)))
    b.take(Vectorize((lane,)))
    sums = b.fresh(put.buffer)
    b.take(Accumulate(put.buffer, row, sums, "register", "load"))
    b.take(Unroll((row,)))
    b.attempt(Peel(block))
    return sums

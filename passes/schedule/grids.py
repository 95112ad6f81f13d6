"""Default schedules of stages that read their neighbours' results on large grids, as several steps of a stencil do:
blocks of the grid go through all of them while they are in the second cache.

    for i { for j { t[i, j] = f(x) } }              for b { for i in 16 * b - 1..16 * b + 17 { for j { t[…] = f(x) } }
    for i.1 { for j.1 { y[i.1, j.1] = f(t) } } ->           for i.1 in 16 * b..16 * b + 16 { for j.1 { y[…] = f(t) } } }

What neighbouring blocks need of each other's rows both compute. How large blocks are, and through how many of the
stages they go at a time, is a balance of that against what passes through the last cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import Overlap, Parallel, Partition, Reuse
from intarsia.ir.target import Target
from intarsia.passes.schedule.arrange import chooses
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import bytes_of, count, lanes_for, operations, points
from intarsia.passes.schedule.tree import allocated_in

PASSES = (1, 2, 4)
"""How often blocks go over a grid, each time through a part of the stages."""

ROWS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
COLUMNS = (8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
"""Extents of blocks in the first dimension and in the second one."""

SHORTEST = 128
"""Elements of a block that lie together, at least."""

ENDS = 400
"""Elements that take as long as it costs to begin and end a piece of a row."""

KEPT = 1.25
"""Of the second cache, what a block may have: what a stage is done with may leave it."""

PROBE = 8
"""The extent of the blocks with which is found out how far they overlap."""

OPTIONS = 5
"""Numbers of rows among which a schedule can choose."""

WORTH = 0.9
"""Blocks are made if that is predicted to take at most this part of the time."""


@dataclass(frozen=True)
class Blocks:
    """A way to go over a grid. extents: of a block, one or two. cost: cycles for each element, about."""

    passes: int
    extents: tuple[int, ...]
    cost: float


@dataclass(frozen=True)
class _Grid:
    """What stages do on a grid, for each of its elements. work: cycles. moved: bytes through the last cache, one stage
    after the other; across: through it for each pass of blocks. far: bytes a cycle from there. size: bytes of all
    temporaries that a block has at a time."""

    kernel: Kernel
    target: Target
    shape: tuple[int, ...]
    results: int
    work: float
    moved: float
    across: float
    far: float
    size: int

    @staticmethod
    def of(kernel: Kernel, target: Target) -> _Grid | None:
        """The grid of a kernel, all of whose results are alike; None if it has none that is large."""
        results = [b for b in kernel.parameters if b.role == "out"]
        shapes = {b.shape for b in results}
        if len(shapes) != 1 or any(b.role == "inout" for b in kernel.parameters) or target.kind != "cpu":
            return None
        shape = tuple(s.constant or 0 for s in shapes.pop())
        size = sum(map(bytes_of, results))
        temporaries = [b for b in allocated_in(kernel.body).values() if _is_as_large(b, shape)]
        if not shape or 0 in shape or not temporaries or size <= target.caches[1]:
            return None
        elements = math.prod(shape)
        every = [(s, points(around)) for s, around in walk(kernel.body) if isinstance(s, Put)]
        stages = [(put, n) for put, n in every if not _is_copy(put)]
        work = sum(n * _cycles(put, target) for put, n in stages) / elements
        moved = sum(3 * n * put.value.dtype.bytes for put, n in stages) / elements
        rates = target.rates
        is_in_memory = 2 * size > target.caches[-1] // 2
        memory = min(rates.memory_of_one, rates.memory / target.cores) / rates.clock
        far = memory if is_in_memory else rates.cache_bytes[-1]
        # What steps change in place needs no second buffer.
        is_changed = any(n == elements and _is_copy(s) for s, n in every)
        kept = size // elements if is_changed else size // elements + max(b.dtype.bytes for b in results)
        return _Grid(kernel, target, shape, len(results), work, moved, 3 * size / elements, far, kept)

    def ways(self) -> Iterator[Blocks]:
        """All ways to go over the grid that keep a block in the second cache, or in a part of the last one."""
        for passes in PASSES:
            halo = self._halo(passes)
            for extents in self._extents(len(halo)):
                cost = self._cost(passes, extents, halo)
                if cost is not None:
                    yield Blocks(passes, extents, cost)

    def _extents(self, depth: int) -> Iterator[tuple[int, ...]]:
        """What blocks may have, in at most so many dimensions."""
        rows = [n for n in ROWS if n < self.shape[0]]
        if depth > 0:
            yield from ((n,) for n in rows)
        if depth > 1:
            columns = [n for n in COLUMNS if n < self.shape[1] and (n >= SHORTEST or len(self.shape) > 2)]
            yield from ((n, m) for n in rows for m in columns)

    @property
    def cost(self) -> float:
        """Cycles for each element with one stage after the other."""
        return max(self.work, self.moved / self.far)

    def _cost(self, passes: int, extents: Sequence[int], halo: Sequence[int]) -> float | None:
        """Cycles for each element of the grid; None if no cache keeps a block. Of what limits a block and what it takes
        to bring it and to write it back, the shorter half hides behind the longer."""
        twice = math.prod(1 + h / 2 / e for e, h in zip(extents, halo))
        edges = math.prod(1 + h / e for e, h in zip(extents, halo))
        block = math.prod(e + h for e, h in zip(extents, halo)) * math.prod(self.shape[len(extents) :]) * self.size
        if block <= KEPT * self.target.caches[1]:
            near = 0.0
        elif block <= self.target.caches[-1] // 4 // self.target.cores:
            near = self.moved / self.target.rates.cache_bytes[-1]
        else:
            return None
        pieces = 1 + ENDS / extents[-1] if len(extents) == len(self.shape) > 1 else 1.0
        own, others = twice * max(self.work * pieces, near), passes * self.across * edges / self.far
        return max(own, others) + min(own, others) / 2

    def _halo(self, passes: int) -> tuple[int, ...]:
        """How much larger than a block the temporaries are that it needs, in as many dimensions as blocks can have:
        none if not all temporaries can be made in blocks, or if none is larger."""
        for depth in range(min(2, len(self.shape)), 0, -1):
            trial = Builder(self.kernel, self.target)
            try:
                take_blocks(trial, Blocks(passes, (PROBE,) * depth, 0.0))
            except ScheduleError:
                continue
            every = allocated_in(trial.kernel.body).values()
            made = [b for b in every if b.memory == "cache"]
            if made and sum(b.memory == "global" for b in every) <= (passes - 1) * self.results:
                halo = tuple(count(made[0].shape[d]) - PROBE for d in range(depth))
                return halo if any(halo) else ()
        return ()


def _is_as_large(buffer: Buffer, shape: Sequence[int]) -> bool:
    """Has a buffer, along each dimension, as much as a grid, or the bit more that steps beyond its ends need?"""
    return len(buffer.shape) == len(shape) and all((s.constant or 0) >= n for s, n in zip(buffer.shape, shape))


def _is_copy(put: Put) -> bool:
    return put.operator == "=" and isinstance(put.value, Load)


def _cycles(put: Put, target: Target) -> float:
    """Cycles of a statement for one element: loads of the same place are one."""
    every = list(loads(put.value))
    once = operations(put.value) - len(every) + len(set(every)) + 1
    return once / lanes_for((put,), target) / target.rates.arithmetic


@lru_cache(maxsize=32)
def find_blocks(kernel: Kernel, target: Target) -> tuple[Blocks, ...]:
    """Ways to go over the grid of a kernel in blocks, the likeliest first; none if none is likely to pay."""
    grid = _Grid.of(kernel, target)
    ways = sorted(grid.ways(), key=lambda way: way.cost) if grid else []
    return tuple(ways) if grid and ways and ways[0].cost <= WORTH * grid.cost else ()


def block_stages(b: Builder) -> bool:
    """Let blocks of a large grid go through the stages of a kernel, if that is likely to pay."""
    ways = find_blocks(b.kernel, b.target)
    if not ways:
        return False
    passes = b.choose("passes over the grid", (way.passes for way in ways))
    usable = [way for way in ways if way.passes == passes]
    columns = b.choose("columns of blocks", (way.extents[1:] for way in usable), lambda c: str(*c) or "all")
    rows = [way.extents[:1] for way in usable if way.extents[1:] == columns]
    row = b.choose("rows of blocks", rows[:OPTIONS], lambda r: str(*r))
    way = Blocks(passes, (*row, *columns), 0.0)
    return b.together("blocks that go through all stages", partial(_in_blocks, b, way))


def _in_blocks(b: Builder, way: Blocks) -> None:
    for loop in b.outermost():
        if chooses(loop):  # rows that come from elsewhere
            b.attempt(Partition(loop.axis))
    take_blocks(b, way)
    for loop in b.outermost():
        b.attempt(Parallel((loop.axis,)))  # now, while that is shown in no time
        _share_memory(b, loop.axis)


def take_blocks(b: Builder, way: Blocks) -> None:
    """Make the stages in blocks: those of each pass what later ones need."""
    statements = [s for s in b.kernel.body if not isinstance(s, Alloc)]
    stages = [tuple(part) for _, part in groupby(statements, lambda s: written_in((s,)))]
    results = {buffer.name for buffer in b.kernel.parameters if buffer.role == "out"}
    if len(stages) % way.passes:
        raise ScheduleError("passes go through equal parts of the stages")
    part = len(stages) // way.passes
    for end in range(part, len(stages) + 1, part):
        before, own, after = (sum(some, ()) for some in (stages[: end - part], stages[end - part : end], stages[end:]))
        made = written_in((*before, *own))
        wanted = results & made | {a.buffer for a in accesses(after)} & made
        here = wanted & written_in(own)
        b.take(Overlap(tuple(name for name in b.kernel.buffers() if name in here), way.extents))


def _share_memory(b: Builder, block: str) -> None:
    """Let temporaries of a block lie where others are not needed any more."""
    kept: list[str] = []
    for name in _in_order(b, block):
        if not any(b.attempt(Reuse(old, name)) for old in kept):
            kept.append(name)


def _in_order(b: Builder, block: str) -> list[str]:
    """Temporaries of a block in the order in which they are written."""
    buffers: dict[str, Buffer] = allocated_in((b.loop(block),))
    return list(dict.fromkeys(a.buffer for a in accesses((b.loop(block),)) if a.writes and a.buffer in buffers))

"""How long loops run and how many bytes their bodies touch, read off a kernel without running it.

A loop whose bounds depend on outer axes (a tail, a triangle) counts as in the middle of those axes. What depends on
data counts as a few iterations, an open size as a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.ir.kernel import Alloc, Buffer, For, If, Kernel, Prefetch, Statement
from intarsia.ir.kernel_access import Access, accesses
from intarsia.ir.sizes import Size

OPEN = 1000
"""What a name counts as that is no axis: an open dimension."""

RAGGED = 16
"""What an integer counts as that depends on data."""

FILLED = 0.75
"""The part of a cache that a kernel can count on."""


@dataclass(frozen=True)
class Extents:
    """The trips of every loop of a kernel, and the statements that usually run: of an `if`, the branch that is taken in
    the middle of the loops around it."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]
    trips: dict[str, float] = field(default_factory=dict)
    _middle: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(kernel: Kernel) -> Extents:
        found = Extents(kernel, kernel.buffers())
        found._visit(kernel.body)
        return found

    def value(self, size: Size) -> int:
        """A size in the middle of the axes that it depends on."""
        names = {name: self._middle.get(name, OPEN) for name in size.symbols}
        return size.evaluate(names, lambda _: RAGGED)

    def bytes_of(self, buffer: Buffer) -> float:
        """The size of a buffer."""
        return math.prod(max(1, self.value(s)) for s in buffer.shape) * buffer.dtype.bytes

    def taken(self, branch: If) -> tuple[Statement, ...]:
        """The branch that runs in the middle of the loops around it."""
        return branch.then if all(self.value(m) > 0 for m in branch.condition) else branch.otherwise

    def statements(self, body: Sequence[Statement]) -> Iterator[Statement]:
        """The loops and leaves of a body; of an `if`, those of the branch that is taken."""
        for statement in body:
            if isinstance(statement, If):
                yield from self.statements(self.taken(statement))
            elif not isinstance(statement, (Alloc, Prefetch)):
                yield statement

    def leaves(
        self, body: Sequence[Statement], loops: tuple[For, ...] = ()
    ) -> Iterator[tuple[Statement, tuple[For, ...]]]:
        """Every statement that is no loop, with the loops around it, outermost first."""
        for statement in self.statements(body):
            if isinstance(statement, For):
                yield from self.leaves(statement.body, (*loops, statement))
            else:
                yield statement, loops

    def points(self, loops: Sequence[For]) -> float:
        return math.prod(self.trips[loop.axis] for loop in loops)

    def _visit(self, body: Sequence[Statement]) -> None:
        for statement in body:
            match statement:
                case For(axis, lower, upper, inner, _, step):
                    low, high = self.value(lower), self.value(upper)
                    trips = max(0, -(-(high - low) // step))
                    self.trips[axis] = trips
                    self._middle[axis] = low + trips // 2 * step
                    self._visit(inner)
                case If(_, then, otherwise):
                    self._visit(then)
                    self._visit(otherwise)


STARTED = 64
"""Bytes that could be brought while a run of bytes begins, which no prefetcher foresees."""

CROWDED = 6
"""How many lines to a set, against an even distribution, undo what prefetching does."""

WAYS = 12
"""Lines of one set of a cache, about."""


@dataclass(frozen=True)
class Footprint:
    """What is touched of a buffer: bytes, in whole lines, in runs of `run` bytes that lie `stride` bytes apart; 0
    where they lie together."""

    bytes: float
    run: float
    stride: int

    def cost(self, startup: float, capacity: float, line: int) -> float:
        """Bytes that could be brought in the same time if they lay together: `startup` more for each run, and several
        times so where what is brought early is thrown out before it is used."""
        if not self.stride:
            return self.bytes
        is_crowded = self.occupied(capacity, line) > CROWDED * self.bytes
        return self.bytes * (1 + (CROWDED if is_crowded else 1) * startup / self.run)

    def occupied(self, capacity: float, line: int) -> float:
        """Bytes of a cache that are taken: more than there are where the stride leads into few sets only."""
        if self.stride % line:
            return self.bytes
        sets = 1 << max(0, int(math.log2(max(1, capacity / line / WAYS))))
        reached = sets // math.gcd(self.stride // line, sets) * max(1.0, self.run / line)
        return self.bytes * max(1.0, sets / reached)


class Footprints:
    """What a body touches of each buffer when it runs once, each cache line once; remembered by body."""

    def __init__(self, extents: Extents, line: int, startup: float = STARTED) -> None:
        self.extents = extents
        self.line = line
        self.startup = startup
        self._known: dict[int, Mapping[str, Footprint]] = {}

    def of(self, body: Sequence[Statement]) -> Mapping[str, Footprint]:
        """For a body of the kernel, or a tuple of one statement of it."""
        key = id(body[0]) if len(body) == 1 else id(body)
        if key not in self._known:
            self._known[key] = self._count(body)
        return self._known[key]

    def fits(self, body: Sequence[Statement], capacity: float) -> bool:
        """Does all that a body touches stay in a cache of so many bytes until it is over?"""
        found = self.of(body).values()
        occupied = max((f.occupied(capacity, self.line) for f in found), default=0.0)
        return sum(f.bytes for f in found) <= FILLED * capacity and occupied <= capacity

    def cost(self, body: Sequence[Statement], capacity: float) -> dict[str, float]:
        """Bytes of each buffer that a body brings into an empty cache, short runs counted as longer ones."""
        return {name: found.cost(self.startup, capacity, self.line) for name, found in self.of(body).items()}

    def _count(self, body: Sequence[Statement]) -> Mapping[str, Footprint]:
        found: dict[str, Footprint] = {}
        for leaf, loops in self.extents.leaves(body):
            for access in accesses((leaf,)):
                buffer = self.extents.buffers[access.buffer]
                if buffer.memory != "register":
                    touched = self._touched(buffer, access, loops)
                    known = found.get(buffer.name)
                    if known is None or touched.bytes > known.bytes:
                        found[buffer.name] = touched
        return found

    def _touched(self, buffer: Buffer, access: Access, loops: Sequence[For]) -> Footprint:
        shape = [max(1, self.extents.value(extent)) for extent in buffer.shape]
        indices = (
            access.indices[len(access.indices) - len(shape) :] if len(access.indices) > len(shape) else access.indices
        )
        spans = [float(whole) for whole in shape]  # of the row of a routine, all
        for d, index in enumerate(indices):
            spans[d] = max(1.0, min(shape[d], 1 + sum(self._reach(index, loop, shape[d]) for loop in loops)))
        run, stride = float(buffer.dtype.bytes), 0
        size = run
        for span, whole in zip(reversed(spans), reversed(shape)):
            if stride == 0 and span > 1 and run < size:
                stride = int(size)
            elif stride == 0:
                run *= span
            size *= whole
        count = math.prod(spans) * buffer.dtype.bytes / run
        return Footprint(count * max(self.line, run), run, stride)

    def _reach(self, index: Size, loop: For, whole: int) -> float:
        """How far an axis moves a subscript."""
        if loop.axis not in index.symbols:
            return 0
        coefficient = index.coefficient(loop.axis)
        trips = self.extents.trips[loop.axis]
        if coefficient is None:  # behind a quotient or in data
            return min(whole, trips) - 1
        return abs(coefficient) * loop.step * max(0, trips - 1)


def traffic(footprints: Footprints, capacity: float, body: Sequence[Statement]) -> Mapping[str, float]:
    """Bytes of each buffer that one execution of a body brings into a cache of so many bytes, short runs counted as the
    longer ones that would take their time.

    The reuse argument of tiling: a loop brings each line once if one iteration fits the cache, since what the next
    iteration needs again is still there, and else as often as its body runs.
    """
    extents = footprints.extents
    total: dict[str, float] = {}
    if footprints.fits(body, capacity):
        return footprints.cost(body, capacity)
    for statement in extents.statements(body):
        if isinstance(statement, For) and not footprints.fits(statement.body, capacity):
            inner = traffic(footprints, capacity, statement.body)
            brought = {name: count * extents.trips[statement.axis] for name, count in inner.items()}
        else:
            brought = footprints.cost((statement,), capacity)
        for name, count in brought.items():
            total[name] = total.get(name, 0) + count
    return total


def memory_passes(kernel: Kernel, capacity: float, line: int) -> dict[str, int]:
    """How often a kernel brings each of its inputs from beyond a cache of so many bytes: 1 for each element once."""
    footprints = Footprints(Extents.of(kernel), line, startup=0)
    brought, touched = traffic(footprints, capacity, kernel.body), footprints.cost(kernel.body, capacity)
    return {b.name: max(1, round(brought[b.name] / touched[b.name])) for b in kernel.inputs if touched.get(b.name)}

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


class Footprints:
    """Bytes of each buffer that a body touches when it runs once, each cache line once; remembered by body."""

    def __init__(self, extents: Extents, line: int) -> None:
        self.extents = extents
        self.line = line
        self._known: dict[int, Mapping[str, float]] = {}

    def of(self, body: Sequence[Statement]) -> Mapping[str, float]:
        """For a body of the kernel, or a tuple of one statement of it."""
        key = id(body[0]) if len(body) == 1 else id(body)
        if key not in self._known:
            self._known[key] = self._count(body)
        return self._known[key]

    def _count(self, body: Sequence[Statement]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for leaf, loops in self.extents.leaves(body):
            for access in accesses((leaf,)):
                buffer = self.extents.buffers[access.buffer]
                if buffer.memory != "register":
                    touched = self._touched(buffer, access, loops)
                    found[buffer.name] = max(found.get(buffer.name, 0), touched)
        return found

    def _touched(self, buffer: Buffer, access: Access, loops: Sequence[For]) -> float:
        spans: list[float] = []
        for index, extent in zip(access.indices[-len(buffer.shape) :] if buffer.shape else (), buffer.shape):
            whole = max(1, self.extents.value(extent))
            spans.append(min(whole, 1 + sum(self._reach(index, loop, whole) for loop in loops)))
        if len(spans) < len(buffer.shape):  # the row of a routine
            spans.append(max(1, self.extents.value(buffer.shape[-1])))
        contiguous = spans.pop() if spans else 1
        return math.prod(spans) * max(self.line, contiguous * buffer.dtype.bytes)

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
    """Bytes of each buffer that one execution of a body brings into a cache of so many bytes.

    The reuse argument of tiling: a loop brings each line once if one iteration fits the cache, since what the next
    iteration needs again is still there, and else as often as its body runs.
    """
    extents = footprints.extents
    found = footprints.of(body)
    if sum(found.values()) <= capacity:
        return found
    total: dict[str, float] = {}
    for statement in extents.statements(body):
        if isinstance(statement, For) and sum(footprints.of(statement.body).values()) > capacity:
            inner = traffic(footprints, capacity, statement.body)
            brought = {name: count * extents.trips[statement.axis] for name, count in inner.items()}
        else:
            brought = dict(footprints.of((statement,)))
        for name, count in brought.items():
            total[name] = total.get(name, 0) + count
    return total

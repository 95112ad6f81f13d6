"""Which dimensions of tensors go together, and which of them kernels would like to lie next to each other.

Two dimensions go together where a kernel runs along both by one axis: then it would read in one order what it writes in
another one, if only one of them came last. A sum of products does not care in which order its operands lie beside its
result: what it sums over and what it makes are different dimensions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from intarsia.ir.kernel import Kernel, Put
from intarsia.ir.scalar import Load, loads
from intarsia.ir.sizes import Size
from intarsia.passes.layout.orders import stages

Place: TypeAlias = "tuple[str, int]"
"""A dimension of a buffer, or, with -1, an axis of a kernel."""


@dataclass
class Classes:
    """Things of which some are the same (union-find)."""

    _parents: dict[Hashable, Hashable] = field(default_factory=dict)

    def find(self, one: Hashable) -> Hashable:
        """The one that stands for all that are the same."""
        while (parent := self._parents.setdefault(one, one)) != one:
            one = parent
        return one

    def join(self, one: Hashable, other: Hashable) -> None:
        self._parents[self.find(other)] = self.find(one)


@dataclass(frozen=True)
class Demands:
    """What a kernel says of the dimensions of its parameters. together: sets of those that go together. wanted: those
    of which a sum of products would like to find neighbours side by side."""

    together: tuple[tuple[Place, ...], ...]
    wanted: frozenset[Place]

    def across(self, together: Sequence[Place]) -> Iterator[str]:
        """The buffers that have some of these dimensions, but as their last one another one that goes together with
        that of some other buffer."""
        for name, place in together:
            end = max(other for places in self.together for buffer, other in places if buffer == name)
            own = next(places for places in self.together if (name, end) in places)
            if place != end and len({buffer for buffer, _ in own}) > 1:
                yield name

    @staticmethod
    def of(kernel: Kernel) -> Demands:
        classes, wanted, buffers = Classes(), set(), kernel.buffers()
        for loops, put in stages(kernel):
            axes = [loop.axis for loop in loops]
            kept = {axis for axis in axes if any(axis in index.symbols for index in put.indices)}
            for name, indices in ((put.buffer, put.indices), *((x.buffer, x.indices) for x in loads(put.value))):
                for place, index in enumerate(indices):
                    own = index.symbols & kept
                    if len(own) == 1 and buffers[name].length is None:
                        classes.join((*own, -1), (name, place))
            wanted |= {classes.find(place) for place in _wanted(put, [a for a in axes if a not in kept])}
        wanted = {classes.find(place) for place in wanted}
        found: dict[Hashable, list[Place]] = {}
        for buffer in (b for b in kernel.parameters if b.length is None):
            for place in range(len(buffer.shape)):
                found.setdefault(classes.find((buffer.name, place)), []).append((buffer.name, place))
        return Demands(
            tuple(map(tuple, found.values())),
            frozenset(place for one, places in found.items() if one in wanted for place in places),
        )


def _wanted(put: Put, reduced: Sequence[str]) -> Iterable[Place]:
    """The dimensions that a sum of products would like last: of an operand those that it sums over, of its result those
    along which its lanes may run, since they belong to another operand than the last one does."""
    operands = list(dict.fromkeys(loads(put.value)))
    if put.operator != "+=" or len(operands) < 2 or not reduced:
        return
    for load in operands:
        yield from ((load.buffer, d) for d, index in enumerate(load.indices) if index.as_name in reduced)
    columns = _users(operands, put.indices[-1:])
    for place, index in enumerate(put.indices[:-1]):
        if index.as_name is not None and columns and (rows := _users(operands, (index,))) and rows.isdisjoint(columns):
            yield put.buffer, place


def _users(operands: Sequence[Load], indices: Sequence[Size]) -> frozenset[Load]:
    """The operands that depend on what subscripts do."""
    axes = {axis for index in indices for axis in index.symbols}
    return frozenset(x for x in operands if any(axes & index.symbols for index in x.indices))

"""Which values of a graph are made of constants, so that they can be made before the first call."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.graph import Parameter, Region, Structured, Value
from intarsia.ir.ops import Fused, ListGet
from intarsia.ir.scalar import Index, Load, walk
from intarsia.ir.sizes import Size
from intarsia.ir.space import Space, operand_position
from intarsia.ir.types import ListType

Place = tuple[Size, ...]
"""The length of lists, or extents of leading dimensions, and the subscripts of an item."""


@dataclass(frozen=True)
class Fixed:
    """Says whether a value is a constant, or made of items of constants at one place of a loop; `dimensions` are the
    sizes that hold for a whole call. `rows`: rows of tensors are items, as `lower` makes them for the target.

    This foresees what `passes/lower/constants.py` finds in kernels.
    """

    dimensions: Collection[str]
    rows: bool
    _known: dict[Value, frozenset[Place] | None] = field(default_factory=dict)

    def __call__(self, value: Value) -> bool:
        return self._of(value) is not None

    def together(self, values: Collection[Value]) -> bool:
        """Can what is made of all of these values be made before?"""
        places = [self._of(v) for v in values]
        return all(p is not None for p in places) and len({x for p in places for x in p or ()}) <= 1

    def _of(self, value: Value) -> frozenset[Place] | None:
        if value not in self._known:
            found = self._find(value)
            self._known[value] = None if found is None or len(found) > 1 else found
        return self._known[value]

    def _find(self, value: Value) -> frozenset[Place] | None:
        match value.node:
            case Parameter(constant=True):
                return frozenset()
            case ListGet(Value(Parameter(constant=True, type=ListType(length))), index, ()):
                return frozenset() if index.constant is not None else frozenset({(length, index)})
            case Fused(Region(nodes=nodes)) if len(nodes) == 1:
                return self._of(nodes[0].values[0])
            case Structured() as node if node.operands:
                return self._structured(node)
        return None

    def _structured(self, node: Structured) -> frozenset[Place] | None:
        if _symbols(node.space, ()) <= {*self.dimensions, *(a.name for a in node.space.all_axes)}:
            parts = [self._of(v) for v in node.operands]
            return None if None in parts else frozenset().union(*(p for p in parts if p is not None))
        return self._of_rows(node) if self.rows else None

    def _of_rows(self, node: Structured) -> frozenset[Place] | None:
        """The place of what is made of nothing but rows of constants at the counters of loops."""
        axes = {a.name for a in node.space.all_axes}
        places: set[Place] = set()
        read: list[Load] = []
        for load in node.space.loads():
            value = node.operands[operand_position(load.buffer)]
            if not isinstance(value.node, Parameter) or not value.node.constant or load.mask:
                return None
            row = tuple(itertools.takewhile(lambda i: i.symbols and i.symbols.isdisjoint(axes), load.indices))
            places.add((*value.tensor.shape[: len(row)], *row))
            read.append(replace(load, indices=load.indices[len(row) :]))
        others = _symbols(node.space, tuple(read)) - {*self.dimensions, *axes}
        return frozenset(places) if not others and not any(i.opaques for place in places for i in place) else None


def _symbols(space: Space, read: Sequence[Load]) -> frozenset[str]:
    """The names that a space uses, its loads being those that are given where any are."""
    bounds = (b.symbols for a in space.all_axes for b in (a.lower, a.upper))
    if not read:
        return space.body.symbols.union(*bounds)
    return frozenset().union(
        *bounds, *(e.symbols for e in walk(space.body) if isinstance(e, Index)), *(x.symbols for x in read)
    )

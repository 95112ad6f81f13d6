"""Who reads what in a region: where the parts of a sum are best merged."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import cached_property

from intarsia.ir.graph import Node, Region, Value
from intarsia.ir.linear import passes_parts
from intarsia.passes.shard.ways import elements_of


@dataclass(frozen=True)
class Readers:
    """The numbers of the nodes that read each value; that of no node where it is a result."""

    region: Region
    of: dict[Value, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for n, node in enumerate(self.region.nodes):
            for value in node.inputs:
                self.of.setdefault(value, []).append(n)
        for value in dict.fromkeys(self.region.results):
            self.of.setdefault(value, []).append(len(self.region.nodes))

    @cached_property
    def nodes(self) -> frozenset[Node]:
        return frozenset(self.region.nodes)

    def is_for_one(self, value: Value) -> bool:
        """Is there one reader?"""
        return len(self.of.get(value, ())) == 1

    def would_spread(self, value: Value, combiner: str) -> bool:
        """Would the parts of a sum, passed on by the ops that may do so, have to be merged where more elements are?"""
        passed, merged = {value}, set[Value]()
        waiting = list(self.of.get(value, ()))
        while waiting:
            n = heapq.heappop(waiting)
            if n == len(self.region.nodes):
                merged |= {v for v in passed if n in self.of.get(v, ())}
                continue
            node = self.region.nodes[n]
            own = [p for p, v in enumerate(node.operands) if v in passed]
            if own and passes_parts(node, own, combiner):
                if node.value not in passed:
                    passed.add(node.value)
                    for reader in self.of.get(node.value, ()):
                        heapq.heappush(waiting, reader)
            else:
                merged |= passed & set(node.inputs)
        return sum(map(elements_of, merged)) > elements_of(value)

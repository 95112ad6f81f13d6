"""A minimum cut of a graph with capacities: the least that has to be taken away to part a source from a sink.

Augmenting paths, shortest ones first (Edmonds and Karp, "Theoretical Improvements in Algorithmic Efficiency for Network
Flow Problems", 1972).
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V", bound=Hashable)


class Network(Generic[V]):
    """Edges with capacities, numbers or infinity."""

    def __init__(self) -> None:
        self._left: dict[V, dict[V, float]] = defaultdict(dict)

    def add(self, start: V, end: V, capacity: float = math.inf) -> None:
        """An edge, or more capacity for one that is there."""
        self._left[start][end] = self._left[start].get(end, 0) + capacity
        self._left[end].setdefault(start, 0)

    def near_sink(self, source: V, sink: V) -> set[V]:
        """The smallest side of a minimum cut that holds the sink. Raises ValueError where no cut is finite."""
        while path := self._path(source, sink):
            flow = min(self._left[a][b] for a, b in path)
            if flow == math.inf:
                raise ValueError("no finite cut")
            for a, b in path:
                self._left[a][b] -= flow
                self._left[b][a] += flow
        found, pending = {sink}, [sink]
        while pending:
            end = pending.pop()
            for start in self._left[end]:
                if start not in found and self._left[start].get(end, 0) > 0:
                    found.add(start)
                    pending.append(start)
        return found

    def _path(self, source: V, sink: V) -> list[tuple[V, V]]:
        """A shortest path along which something can still flow; empty if there is none."""
        before: dict[V, V] = {source: source}
        pending = deque([source])
        while pending and sink not in before:
            start = pending.popleft()
            for end, left in self._left[start].items():
                if left > 0 and end not in before:
                    before[end] = start
                    pending.append(end)
        path: list[tuple[V, V]] = []
        end = sink
        while end in before and end != source:
            path.append((before[end], end))
            end = before[end]
        return path[::-1]

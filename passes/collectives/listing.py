"""Orders in which a device may take up its tasks: list scheduling.

A collective is begun as soon as what it sends is there, unless too much is gathered already; of what can be computed
at once, the task of the first rank. Where nothing can, the device waits for what comes first. The ranks are the usual
ones: the order of the program, the longest path to the end, what a collective waits for soonest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.ir.events import Task
from intarsia.passes.collectives.timeline import COMPUTING

Rank = Sequence[tuple[float, ...]]
"""For each task its place among others: the least goes first."""


def ranks(tasks: Sequence[Task]) -> Iterator[Rank]:
    """The ranks to try for tasks that come after what they wait for."""
    path = [0.0] * len(tasks)
    soonest = [math.inf] * len(tasks)
    for n in reversed(range(len(tasks))):
        task = tasks[n]
        path[n] += task.seconds
        soonest[n] = 0.0 if task.resource != COMPUTING else soonest[n] + task.seconds
        for before in task.after:
            path[before] = max(path[before], path[n])
            soonest[before] = min(soonest[before], soonest[n])
    yield [(n,) for n in range(len(tasks))]
    yield [(-path[n], n) for n in range(len(tasks))]
    yield [(soonest[n], -path[n], n) for n in range(len(tasks))]
    yield [(soonest[n], n) for n in range(len(tasks))]


@dataclass
class _Listing:
    """grown: the bytes that a task adds to what a device holds until its readers have begun; `limit` is the most that
    is held so beside one that is needed."""

    tasks: Sequence[Task]
    rank: Rank
    grown: Mapping[int, int]
    limit: int
    now: float = 0.0
    free: dict[str, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    def run(self) -> tuple[int, ...]:
        readers: list[list[int]] = [[] for _ in self.tasks]
        for n, task in enumerate(self.tasks):
            for before in task.after:
                readers[before].append(n)
        missing = [len(task.after) for task in self.tasks]
        unread = [len(own) for own in readers]
        ends = [0.0] * len(self.tasks)
        there = {n: 0.0 for n, count in enumerate(missing) if not count}  # those that may begin, and when
        held = 0
        while there:
            n = self._chosen(there, held)
            begin = there.pop(n)
            ends[n] = self._done(n, begin)
            self.order.append(n)
            held += self.grown.get(n, 0)
            for before in self.tasks[n].after:
                unread[before] -= 1
                held -= 0 if unread[before] else self.grown.get(before, 0)
            for reader in readers[n]:
                missing[reader] -= 1
                if not missing[reader]:
                    there[reader] = max(ends[b] for b in self.tasks[reader].after)
        assert len(self.order) == len(self.tasks), "tasks wait for each other"
        return tuple(self.order)

    def _chosen(self, there: Mapping[int, float], held: int) -> int:
        computing = [n for n in there if self.tasks[n].resource == COMPUTING]
        sending = [n for n in there if self.tasks[n].resource != COMPUTING]
        allowed = [n for n in sending if not held or held + self.grown.get(n, 0) <= self.limit or not self.grown.get(n)]
        for some in (allowed, computing):
            at_once = [n for n in some if there[n] <= self.now]
            if at_once:
                return min(at_once, key=lambda n: self.rank[n])
        return min(allowed + computing or sending, key=lambda n: (there[n], self.rank[n]))

    def _done(self, n: int, begin: float) -> float:
        task = self.tasks[n]
        self.now = max(self.now, begin)
        if task.resource == COMPUTING:
            self.now += task.seconds
            return self.now
        self.free[task.resource] = max(self.now, self.free.get(task.resource, 0.0)) + task.seconds
        return self.free[task.resource]


def listed(tasks: Sequence[Task], rank: Rank, grown: Mapping[int, int], limit: int) -> tuple[int, ...]:
    """The numbers of the tasks in the order in which a device takes them up."""
    return _Listing(tasks, rank, grown, limit).run()

"""When tasks run that share resources: the event simulation behind the timelines of devices and of pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Task:
    """Work of `seconds` on one resource, which begins when the tasks with the numbers `after` have ended.

    A resource, a stream of a device or a link, does one task at a time, in the order in which they are given.
    """

    name: str
    resource: str
    seconds: float
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """Tasks in the order given, and the seconds at which each one begins."""

    tasks: tuple[Task, ...]
    starts: tuple[float, ...]

    @cached_property
    def ends(self) -> tuple[float, ...]:
        return tuple(start + task.seconds for start, task in zip(self.starts, self.tasks))

    @cached_property
    def seconds(self) -> float:
        """When the last task has ended."""
        return max(self.ends, default=0.0)

    @cached_property
    def resources(self) -> tuple[str, ...]:
        """The resources in order of first use."""
        return tuple(dict.fromkeys(task.resource for task in self.tasks))

    def busy(self, resources: Iterable[str]) -> tuple[tuple[float, float], ...]:
        """The times, without gaps inside and in order, at which at least one of some resources works."""
        wanted = set(resources)
        spans = zip(self.starts, self.ends, self.tasks)
        found: list[tuple[float, float]] = []
        for start, end in sorted((a, b) for a, b, task in spans if task.resource in wanted and b > a):
            if found and start <= found[-1][1]:
                found[-1] = (found[-1][0], max(found[-1][1], end))
            else:
                found.append((start, end))
        return tuple(found)


def length(spans: Iterable[tuple[float, float]]) -> float:
    """The seconds of spans that do not overlap."""
    return sum(end - start for start, end in spans)


def common(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> float:
    """The seconds that lie both in `a` and in `b`, spans in order as `busy` gives them."""
    found, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        found += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] <= b[j][1]:
            i += 1
        else:
            j += 1
    return found


def simulate_tasks(tasks: Sequence[Task]) -> Timeline:
    """Each task begins as early as its resource and the tasks before it allow. Tasks may wait for later ones of other
    resources; raises ValueError where some wait for each other."""
    waits = [set(task.after) for task in tasks]
    last: dict[str, int] = {}
    for number, task in enumerate(tasks):
        if task.resource in last:
            waits[number].add(last[task.resource])
        last[task.resource] = number
    followers: list[list[int]] = [[] for _ in tasks]
    for number, before in enumerate(waits):
        for other in before:
            followers[other].append(number)
    missing = [len(before) for before in waits]
    starts = [0.0] * len(tasks)
    ready = [number for number, count in enumerate(missing) if not count]
    for number in ready:  # grows while it is walked
        for follower in followers[number]:
            starts[follower] = max(starts[follower], starts[number] + tasks[number].seconds)
            missing[follower] -= 1
            if not missing[follower]:
                ready.append(follower)
    if len(ready) < len(tasks):
        stuck = next(tasks[n].name for n, count in enumerate(missing) if count)
        raise ValueError(f"tasks wait for each other: {stuck} never begins")
    return Timeline(tuple(tasks), tuple(starts))

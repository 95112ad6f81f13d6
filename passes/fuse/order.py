"""An order of groups in which each comes after what it uses, kept true as groups merge.

Only what lies between the two groups of an edge is ever looked at, as in the order of Pearce and Kelly for growing
graphs, and from both ends in turn, since one of them often has nothing behind it. So a merge costs the same in long
programs as in short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from intarsia.passes.fuse.groups import Group

Neighbours: TypeAlias = "Callable[[Group], Iterable[Group]]"


class GroupOrder:
    """The place of each group.

    `successors` and `predecessors` give the groups that need a group, or that it needs, as they are at the time of the
    call; they may name a group several times, and the group itself.
    """

    def __init__(self, groups: Iterable[Group], successors: Neighbours, predecessors: Neighbours) -> None:
        self._place = {group: place for place, group in enumerate(groups)}
        self._successors = successors
        self._predecessors = predecessors

    def in_order(self, a: Group, b: Group) -> tuple[Group, Group]:
        """Two groups, the one with the earlier place first."""
        return (a, b) if self._place[a] < self._place[b] else (b, a)

    def meets_elsewhere(self, first: Group, last: Group) -> bool:
        """Does a path lead from one group to a later one through a third?"""
        after, before = self._walks(first, last)
        while after.step() and before.step() and not (after.arrived or before.arrived):
            pass
        return after.arrived or before.arrived

    def merge(self, first: Group, last: Group, merged: Group) -> None:
        """Put one group in the place of two that do not meet elsewhere."""
        after, before = self._walks(first, last)
        while after.step() and before.step():
            pass
        if after.is_done and not after.found:
            places = {merged: self._place[last]}
        elif before.is_done and not before.found:
            places = {merged: self._place[first]}
        else:
            groups = [*self._sorted(before.run()), merged, *self._sorted(after.run())]
            free = sorted(self._place[g] for g in (first, last, *before.found, *after.found))
            places = dict(zip(groups, free))
        del self._place[first], self._place[last]
        self._place.update(places)

    def _walks(self, first: Group, last: Group) -> tuple[_Walk, _Walk]:
        low, high = self._place[first], self._place[last]

        def is_between(group: Group) -> bool:
            return low < self._place[group] < high

        return _Walk(first, last, self._successors, is_between), _Walk(last, first, self._predecessors, is_between)

    def _sorted(self, groups: Iterable[Group]) -> list[Group]:
        return sorted(groups, key=self._place.__getitem__)


class _Walk:
    """A search from one end of an edge towards the other, a step at a time.

    found: the groups between the ends that it has come upon. arrived: has one of them led to the other end? is_done: is
    there nothing left to look at?
    """

    def __init__(self, start: Group, end: Group, neighbours: Neighbours, is_between: Callable[[Group], bool]) -> None:
        self.found: dict[Group, None] = {}
        self.arrived = False
        self.is_done = False
        self._steps = self._run(start, end, neighbours, is_between)

    def step(self) -> bool:
        """Look at one more neighbour, unless there is none."""
        self.is_done = next(self._steps, True)
        return not self.is_done

    def run(self) -> Iterable[Group]:
        """All that there is to find."""
        while self.step():
            pass
        return self.found

    def _run(
        self, start: Group, end: Group, neighbours: Neighbours, is_between: Callable[[Group], bool]
    ) -> Iterator[bool]:
        waiting = [start]
        while waiting:
            group = waiting.pop()
            for neighbour in neighbours(group):
                if neighbour is end:
                    self.arrived |= group is not start
                elif neighbour not in self.found and is_between(neighbour):
                    self.found[neighbour] = None
                    waiting.append(neighbour)
                yield False

"""The part of a region in which it shows whether products should be merged: they, and what could be fused with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops import Constant, ListGet, Reshape
from intarsia.passes.fuse import emit
from intarsia.passes.fuse.groups import Search
from intarsia.passes.fuse.members import Member

MOST = 64
"""Nodes that are looked at."""


class Surroundings:
    """Who reads what in a region."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self._users: dict[Value, list[Node]] = {}
        for node in region.nodes:
            for value in dict.fromkeys(node.inputs):
                self._users.setdefault(value, []).append(node)

    def only_user(self, value: Value) -> Node | None:
        """The node that reads a value, if it alone does."""
        users = self._users.get(value, [])
        return users[0] if len(users) == 1 and value not in self.region.results else None

    def around(self, nodes: Iterable[Node], is_left_out: Callable[[Value], bool]) -> Region:
        """Nodes with the pointwise work on their results, as a region; without views at its end, which become part of
        what reads them, and what is left out."""
        found = dict.fromkeys(n for n in nodes if not is_left_out(n.values[0]))
        waiting = list(found)
        while waiting and len(found) < MOST:
            after = [u for v in waiting.pop(0).values for u in self._users.get(v, ()) if _is_pointwise(u)]
            waiting += [u for u in after if u not in found]
            found.update(dict.fromkeys(after))
        kept = {n for n in self.region.nodes if n in found}
        while ends := {n for n in kept if _is_view(n) and not self._is_read(n, kept)}:
            kept -= ends
        inside = tuple(n for n in self.region.nodes if n in kept)
        return Region((), inside, tuple(v for n in inside for v in n.values if self._leaves(v, kept)))

    def _is_read(self, node: Node, kept: set[Node]) -> bool:
        """Is a view a result of the region, or read by one of the nodes that are kept?"""
        (value,) = node.values
        return value in self.region.results or any(u in kept for u in self._users.get(value, ()))

    def _leaves(self, value: Value, kept: set[Node]) -> bool:
        return value in self.region.results or any(u not in kept for u in self._users.get(value, ()))


def _is_pointwise(node: Node) -> bool:
    return isinstance(node, Structured) and not node.space.reduced


def _is_view(node: Node) -> bool:
    return (member := Member.of(node)) is not None and member.only_moves


def fused(region: Region, kind: str, max_ops: int) -> Region:
    """A small region with its nodes in groups."""
    search = Search(region.nodes, region.results, max_ops, kind=kind)
    return emit(region, search.run(), search, {})


def launches(fused_region: Region) -> int:
    """The kernels that a fused region runs."""
    return sum(not isinstance(n, (Constant, Reshape, ListGet)) for n in fused_region.nodes)


def independent(nodes: Sequence[Node], region: Region) -> list[Node]:
    """Those of some nodes, in order, that need none of the others before them."""
    own, kept = set(region.nodes), list[Node]()
    for node in nodes:
        seen: set[Node] = set()
        stack = [v.node for v in node.inputs]
        while stack:
            here = stack.pop()
            if here in own and here not in seen:
                seen.add(here)
                stack += [v.node for v in here.inputs]
        if seen.isdisjoint(kept):
            kept.append(node)
    return kept

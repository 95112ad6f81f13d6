"""What is in memory, and while what runs: found once for each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops import ListGet, Loop, Reshape
from intarsia.passes.fuse.groups import estimated_bytes, is_free
from intarsia.passes.fuse.members import Member


class Storage:
    """Of the nodes of a program."""

    def __init__(self) -> None:
        self._is_heavy: dict[Node, bool] = {}
        self._is_view: dict[Node, bool] = {}

    def is_heavy(self, node: Node) -> bool:
        """Does so much happen in a node that what is needed after it is in memory meanwhile? A product, or a loop."""
        if node not in self._is_heavy:
            member = Member.of(node)
            self._is_heavy[node] = isinstance(node, Loop) or (member is not None and member.is_contraction)
        return self._is_heavy[node]

    def is_view(self, value: Value) -> bool:
        """Is nothing stored for a value: a view of memory, or of no data?"""
        node = value.node
        if node not in self._is_view:
            member = Member.of(node)
            self._is_view[node] = isinstance(node, Reshape | ListGet) or (member is not None and is_free(member))
        return self._is_view[node]

    def in_memory(self, value: Value) -> Value:
        """The value that is in memory where this one is read: of a view what it shows."""
        while self.is_view(value) and value.node.operands:
            value = value.node.operands[0]
        return value

    def needed_by(self, node: Node) -> tuple[Value, ...]:
        """What has to be in memory for a node: the operands of a product, and of all that is no space."""
        inputs = () if isinstance(node, Structured) and not self.is_heavy(node) else node.inputs
        return tuple(map(self.in_memory, inputs))

    def bytes_waiting(self, region: Region) -> Iterator[tuple[int, int]]:
        """For each product and loop, the bytes of what was made before it and is needed from there on."""
        last: dict[Value, int] = {}
        for n, node in enumerate(region.nodes):
            last.update(dict.fromkeys(map(self.in_memory, node.inputs), n))
        last.update(dict.fromkeys(map(self.in_memory, region.results), len(region.nodes)))
        ending: Counter[int] = Counter()
        held = 0
        for n, node in enumerate(region.nodes):
            if self.is_heavy(node):
                yield n, held
            for value in node.values:
                if value in last and not self.is_view(value):
                    held += estimated_bytes(value)
                    ending[last[value]] += estimated_bytes(value)
            held -= ending[n]

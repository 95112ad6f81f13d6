"""What is made of gathered tensors: the nodes that go along the gathered dimension, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops.collective import AllGather
from intarsia.ir.scalar import Apply, Const
from intarsia.ir.space import Space, operand_position
from intarsia.ir.types import ListType
from intarsia.passes.fuse.members import is_contraction


@dataclass(frozen=True)
class Gathered:
    """Nodes that can be done block by block, as the blocks of `gathers` arrive: nothing else needs what these give.

    outputs: the values of the members that others need.
    """

    gathers: tuple[AllGather, ...]
    members: tuple[Structured, ...]
    outputs: tuple[Value, ...]


def find_gathered(region: Region, through: bool) -> list[Gathered]:
    """Sets of nodes without gathers in common: with `through`, whole chains of reductions in which what is gathered
    ends; else single products, and what lies before them."""
    followed = _Follower(through)
    for node in region.nodes:
        followed.visit(node)
    followed.escaped |= {followed.labels[v] for v in region.results if v in followed.labels}
    return followed.groups(region)


def is_product(space: Space) -> bool:
    """Is it a sum of products, as of matrices, perhaps without what is padding?"""
    body = space.body
    while isinstance(body, Apply) and body.function == "where" and isinstance(body.arguments[2], Const):
        body = body.arguments[1]
    return is_contraction(replace(space, body=body))


@dataclass
class _Follower:
    """Follows the gathered dimension through the nodes of a region. With `through`, also through products; else these
    are where it ends.

    places: the values that have it, with its position. Labels are joined where one node goes along several.
    """

    through: bool
    labels: dict[Value, int] = field(default_factory=dict)
    places: dict[Value, int] = field(default_factory=dict)
    gathers: list[AllGather] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    escaped: set[int] = field(default_factory=set)
    readers: list[tuple[int, Structured]] = field(default_factory=list)

    def root(self, label: int) -> int:
        while self.parents[label] != label:
            label = self.parents[label]
        return label

    def visit(self, node: Node) -> None:
        if isinstance(node, AllGather):
            self.escaped |= {self.labels[v] for v in node.inputs if v in self.labels}
            self.parents.append(len(self.gathers))
            self.gathers.append(node)
            self.labels[node.value] = len(self.gathers) - 1
            self.places[node.value] = node.dim
            return
        found = [v for v in node.inputs if v in self.labels]
        if not found:
            return
        read = [v for v in found if self._kind(v) == self._kind(found[0])]
        axis = self._axis(node, read)
        self.escaped |= {self.labels[v] for v in found if axis is None or v not in read}
        if axis is None:
            return
        assert isinstance(node, Structured)
        label = self.root(self.labels[read[0]])
        for value in read[1:]:
            self.parents[self.root(self.labels[value])] = label
        self.readers.append((label, node))
        position = next((d for d, a in enumerate(node.space.axes) if a.name == axis), None)
        if position is not None and (self.through or not node.space.reduced):
            self.labels[node.value] = label
            self.places[node.value] = position

    def _axis(self, node: Node, read: Sequence[Value]) -> str | None:
        """The axis of a node that goes along the gathered dimension of all these values; None if there is none."""
        if not isinstance(node, Structured):
            return None
        axes: set[str | None] = set()
        for load in node.space.loads():
            value = node.operands[operand_position(load.buffer)]
            if value in read:
                axes.add(None if isinstance(value.type, ListType) else load.indices[self.places[value]].as_name)
        return axes.pop() if len(axes) == 1 else None

    def _kind(self, value: Value) -> tuple[object, ...]:
        """Equal for values whose blocks go round together."""
        gather = self.gathers[self.labels[value]]
        return gather.axes, gather.x.tensor.shape[gather.dim]

    def groups(self, region: Region) -> list[Gathered]:
        """The sets that nothing else needs, each with a product among what goes along its blocks."""
        lost = {self.root(n) for n in self.escaped}
        found: list[Gathered] = []
        for label in dict.fromkeys(self.root(n) for n in range(len(self.gathers))):
            own = [node for n, node in self.readers if self.root(n) == label]
            if label in lost or not any(is_product(n.space) for n in own):
                continue
            members = _convex(region, own)
            if members is not None:
                gathers = tuple(g for n, g in enumerate(self.gathers) if self.root(n) == label)
                found.append(Gathered(gathers, members, _outputs(region, members)))
        return found


def _convex(region: Region, own: Sequence[Structured]) -> tuple[Structured, ...] | None:
    """The nodes with all that lie between them, in order; None where one of these has no space."""
    below, above = set[Node](own), set[Node](own)
    for node in region.nodes:
        if any(v.node in below for v in node.inputs):
            below.add(node)
    for node in reversed(region.nodes):
        if node in above:
            above.update(v.node for v in node.inputs)
    between = [n for n in region.nodes if n in below and n in above]
    members = tuple(n for n in between if isinstance(n, Structured))
    return members if len(members) == len(between) else None


def _outputs(region: Region, members: Sequence[Node]) -> tuple[Value, ...]:
    inside = set(members)
    used = {v for n in region.nodes if n not in inside for v in n.inputs} | set(region.results)
    return tuple(v for n in members for v in n.values if v in used)

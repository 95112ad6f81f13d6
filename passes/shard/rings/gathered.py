"""What is made of gathered tensors: the nodes that go along the gathered dimension, and what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops.collective import AllGather, ReduceScatter
from intarsia.ir.ops.shape import Pad
from intarsia.ir.scalar import Apply, Const
from intarsia.ir.sizes import ZERO
from intarsia.ir.space import Space, operand_position
from intarsia.ir.types import ListType
from intarsia.passes.fuse.members import is_contraction


@dataclass(frozen=True)
class Gathered:
    """Nodes along the dimension of `gathers`, of which others need only what `ends` give: sums over it, say.

    along: these nodes, and what each calls the dimension. scattered: the ends that keep the dimension, of which others
    need only the sum over the devices, each one a block.
    """

    gathers: tuple[AllGather, ...]
    along: Mapping[Node, str]
    ends: tuple[Structured, ...]
    scattered: Mapping[Node, ReduceScatter]


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
    readers: list[tuple[int, Structured, str]] = field(default_factory=list)
    scattered: dict[Node, ReduceScatter] = field(default_factory=dict)

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
        if self.through and isinstance(node, ReduceScatter) and self._is_blocks(node):
            self.scattered[unpadded(node).node] = node
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
        self.readers.append((label, node, axis))
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

    def _is_blocks(self, node: ReduceScatter) -> bool:
        """Does each device get a sum of its block?"""
        gather = self.gathers[self.labels[node.x]]
        same = node.axes == gather.axes and node.value.tensor.shape[node.dim] == gather.x.tensor.shape[gather.dim]
        value = unpadded(node)
        return same and node.combiner == "sum" and value in self.labels and self.places[value] == node.dim

    def groups(self, region: Region) -> list[Gathered]:
        """The sets that nothing else needs, each with a product among what goes along its blocks."""
        lost = {self.root(n) for n in self.escaped}
        found: list[Gathered] = []
        for label in dict.fromkeys(self.root(n) for n in range(len(self.gathers))):
            own = [node for n, node, _ in self.readers if self.root(n) == label]
            scattered: dict[Node, ReduceScatter] = {n: self.scattered[n] for n in own if n in self.scattered}
            shared = any(v.node in scattered and n is not scattered[v.node].x.node for n in own for v in n.inputs)
            if label in lost or shared or not any(is_product(n.space) for n in own):
                continue
            gathers = tuple(g for n, g in enumerate(self.gathers) if self.root(n) == label)
            pads = {s.x.node for s in scattered.values()} - {*scattered}
            along: dict[Node, str] = {
                node: axis for n, node, axis in self.readers if self.root(n) == label and node not in pads
            }
            if self.through:
                _add_spread(region, along)
            ends = tuple(n for n in own if n.value not in self.labels or n in scattered)
            found.append(Gathered(gathers, along, ends, scattered))
        return found


def _add_spread(region: Region, along: dict[Node, str]) -> None:
    """Add what is made along the dimension, without a reduction, and only for nodes that are there already: a block of
    it at a time will do."""
    places: dict[Value, set[int | None]] = {v: {None} for v in region.results}
    for node in reversed(region.nodes):
        if node not in along and isinstance(node, Structured) and not node.space.reduced:
            read = places.get(node.value, {None})
            if len(read) == 1 and (place := read.pop()) is not None:
                along[node] = node.space.axes[place].name
        if isinstance(node, Structured) and (axis := along.get(node)) is not None:
            for load in node.space.loads():
                place = next((d for d, i in enumerate(load.indices) if i.as_name == axis), None)
                places.setdefault(node.operands[operand_position(load.buffer)], set()).add(place)
        else:
            for value in node.inputs:
                places.setdefault(value, set()).add(None)


def unpadded(node: ReduceScatter) -> Value:
    """What a sum over the devices is made of, without the padding of the last block."""
    pad = node.x.node
    is_end = isinstance(pad, Pad) and all(e == ZERO for d, e in enumerate(pad.after) if d != node.dim)
    return pad.x if isinstance(pad, Pad) and is_end else node.x

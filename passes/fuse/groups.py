"""The search for groups: every node starts alone, and groups merge along the edges that save the most."""

from __future__ import annotations

from collections import ChainMap, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops import Argsort, Constant, Cumulative, Loop, Sort
from intarsia.ir.sizes import Size
from intarsia.ir.types import TensorType
from intarsia.passes.fuse.chains import ChainTest, may_chain, never
from intarsia.passes.fuse.members import Member
from intarsia.passes.fuse.order import GroupOrder
from intarsia.passes.fuse.rows import CHAIN, CONTRACTIONS, Refusal, refusal, stages_of
from intarsia.passes.fuse.siblings import STREAMS, WORTH, is_stream, run_side_by_side
from intarsia.passes.lower.uses import CHEAP

RIVALS = 4
"""Groups that read a value, and that another one that reads it is tried with."""

TYPICAL = 64
"""What an extent without a number counts as where savings are compared."""


TILES = Refusal("tiles", "a matrix product or convolution goes through its operands in tiles")

UPDATE = Refusal("update", "an update or a prefix sum is a kernel of its own")


@dataclass(eq=False)
class Group:
    """Nodes that become one kernel, in order. `members` is empty for a node that is never fused."""

    nodes: list[Node]
    members: list[Member] = field(default_factory=list)

    @cached_property
    def has_contraction(self) -> bool:
        return any(m.is_contraction for m in self.members)


@dataclass(frozen=True)
class Edge:
    """A value that a node of another group uses."""

    value: Value
    user: Node


class Search:
    """Merges the nodes of one region into groups of at most `max_ops`; `is_chain` says which may hold products and
    reductions of their rows. `kind` is that of the target."""

    def __init__(
        self,
        nodes: Sequence[Node],
        results: Iterable[Value],
        max_ops: int,
        is_chain: ChainTest = never,
        kind: str = "cpu",
        together: Iterable[Collection[Node]] = (),
    ) -> None:
        self.nodes = nodes
        self.is_chain = is_chain
        self.max_ops = max_ops
        self.kind = kind
        self.position = {node: n for n, node in enumerate(nodes)}
        self.results = frozenset(results)
        self.users: dict[Value, list[Node]] = {}
        self.group_of: dict[Node, Group] = {}
        self._refused: dict[tuple[Group, Group], Refusal | None] = {}
        self._waiting: set[Node] = set()
        for node in nodes:
            member = member_of(node, kind)
            self.group_of[node] = Group([node], [member] if member else [])
            for value in node.inputs:
                self.users.setdefault(value, []).append(node)
        self._bytes = {value: estimated_bytes(value) for node in nodes for value in node.values}
        self._order = GroupOrder(self.group_of.values(), self._successors, self._predecessors)
        for own in together:
            first, *rest = sorted(own, key=self.position.__getitem__)
            for node in rest:
                self._merge(self.group_of[first], self.group_of[node])

    def run(self) -> list[Group]:
        """All groups, in an order in which each comes after what it uses."""
        self._waiting = {node for node in self.nodes if self._waits(node)}
        for node in self.nodes:
            if self.group_of[node].members and node not in self._waiting:
                self._grow([node])
                if self._may_end_chain(node):
                    self._grow(self.group_of[node].nodes)
        for node in self.nodes:
            if self.group_of[node].members:
                self._grow(self.group_of[node].nodes)
        for value in self.users:
            self._join_readers(value)
        return self._in_order()

    def _waits(self, node: Node) -> bool:
        """Does a node join what reads it before what it reads? A view does, and what is cheap and made of values that
        are needed elsewhere too: those are stored anyway, so that it had better not be."""
        members = self.group_of[node].members
        if not members or members[0].is_reduced or any(v in self.results for v in node.values):
            return bool(members) and _is_view(members[0])
        operands = [v for v in node.operands if v.node in self.group_of and not isinstance(v.node, Constant)]
        shared = all(len(self.users[v]) > 1 for v in operands) and isinstance(node, Structured)
        return _is_view(members[0]) or (bool(operands) and shared and members[0].work <= CHEAP)

    def edges(self) -> Iterable[Edge]:
        """Every edge between two groups, one for each pair of value and user."""
        for node in self.nodes:
            for value in node.inputs:
                if value.node in self.group_of and self.group_of[value.node] is not self.group_of[node]:
                    yield Edge(value, node)

    def outputs(self, nodes: Sequence[Node]) -> frozenset[Value]:
        """The values that are used outside of a set of nodes."""
        inside = set(nodes)
        return frozenset(
            v
            for node in nodes
            for v in node.values
            if v in self.results or any(u not in inside for u in self.users.get(v, ()))
        )

    def refuse(self, edge: Edge) -> Refusal | None:
        """Why the groups on the two sides of an edge do not merge, or None if they may."""
        producer, consumer = self.group_of[edge.value.node], self.group_of[edge.user]
        if (producer, consumer) not in self._refused:
            self._refused[producer, consumer] = self._refuse(edge, producer, consumer)
        return self._refused[producer, consumer]

    def _refuse(self, edge: Edge, producer: Group, consumer: Group) -> Refusal | None:
        for node, group in ((edge.user, consumer), (edge.value.node, producer)):
            if not group.members:
                return _refuse_op(node)
        both = producer.has_contraction and consumer.has_contraction
        if both and not any(may_chain(g.members, self.kind) for g in (producer, consumer)):
            return CONTRACTIONS
        if self._order.meets_elsewhere(producer, consumer):
            return Refusal("cycle", "what lies between them would need the group and be needed by it")
        members = self._joined(producer, consumer)
        if len(members) > self.max_ops:
            return Refusal("max-ops", f"{len(members)} operations are more than {self.max_ops}")
        outputs = self.outputs([m.node for m in members])
        refused = CONTRACTIONS if both else refusal(members, stages_of(members, outputs), self.kind)
        if refused is None or self.is_chain(members, outputs):
            return None
        return CHAIN if self._is_chain_group(producer) or self._is_chain_group(consumer) else refused

    def _is_chain_group(self, group: Group) -> bool:
        """Is a group one that only a chain can be?"""
        if not group.has_contraction or len(group.members) == 1 or not may_chain(group.members, self.kind):
            return False
        stages = stages_of(group.members, self.outputs(group.nodes))
        return refusal(group.members, stages, self.kind) is not None

    def _grow(self, nodes: Sequence[Node]) -> None:
        """Merge the group of some nodes with those of what they read, the best first, as long as any fits."""
        readers = list(nodes)
        refused: set[Group] = set()
        while edges := [e for e in self._inward(readers) if self.group_of[e.value.node] not in refused]:
            edge = min(edges, key=self._priority)
            producer = self.group_of[edge.value.node]
            if self.refuse(edge) is not None:
                refused.add(producer)
                continue
            if self._waiting.issuperset(producer.nodes):
                readers += producer.nodes  # others have tried to merge with what they read
                refused.clear()
            self._merge(producer, self.group_of[edge.user])

    def _may_end_chain(self, node: Node) -> bool:
        """Could a reduction be the last one that the rows of a product wait for? Others may join these afterwards."""
        group = self.group_of[node]
        inward = self._inward(group.nodes)
        reduced = any(m.node is node and m.is_reduced and not m.is_contraction for m in group.members)
        return reduced and any(self.group_of[e.value.node].has_contraction for e in inward)

    def _inward(self, nodes: Sequence[Node]) -> Iterable[Edge]:
        """The edges to nodes from other groups that can merge."""
        for node in nodes:
            for value in node.operands:
                group = self.group_of.get(value.node)
                if group is not None and group.members and group is not self.group_of[node]:
                    yield Edge(value, node)

    def _priority(self, edge: Edge) -> tuple[bool, int, int]:
        """A contraction first, for its epilogue saves a pass that nothing else can; then what is largest."""
        producer = edge.value.node
        has_contraction = self.group_of[producer].has_contraction
        return not has_contraction, -self._bytes[edge.value], self.position[producer]

    def _join_readers(self, value: Value) -> None:
        """Merge groups that read a value one beside the other, each with the last one before it that it fits."""
        before: deque[Group] = deque(maxlen=RIVALS)
        for group in self._readers(value):
            if not is_stream(group.members):
                continue
            other = next((g for g in reversed(before) if self._refuse_beside(g, group, value) is None), None)
            if other is not None:
                before.remove(other)
                group = self._merge(*self._order.in_order(other, group))
            before.append(group)

    def _readers(self, value: Value) -> list[Group]:
        """The groups that read a value, in order."""
        found = dict.fromkeys(self.group_of[user] for user in self.users[value])
        return sorted((g for g in found if g.members), key=lambda g: self.position[g.nodes[0]])

    def beside(self) -> Iterator[tuple[Value, Group, Group, Refusal]]:
        """Groups that follow each other among those that read a value, and why they are not one, where that would save
        enough to matter, or they are products. Of what one of them reads of the other, its edge tells."""
        for value in self.users:
            for first, last in pairwise(self._readers(value)):
                if first in self._predecessors(last) or any(
                    all(m.only_moves for m in g.members) for g in (first, last)
                ):
                    continue
                refused = self._refuse_beside(first, last, value)
                if refused is not None and (refused is CONTRACTIONS or self._saves_beside(first, last)):
                    yield value, first, last, refused

    def _saves_beside(self, first: Group, last: Group) -> bool:
        """Would two groups as one move noticeably fewer bytes?"""
        apart = [v for g in (first, last) for v in self._moved(g.nodes)]
        together = self._moved([m.node for m in self._joined(first, last)])
        before, after = (sum(map(self._bytes_of, values)) for values in (apart, together))
        return WORTH * (before - after) >= before > 0

    def _refuse_beside(self, first: Group, last: Group, value: Value) -> Refusal | None:
        """Why two groups that read a value do not become one kernel, or None if they do."""
        if first.has_contraction and last.has_contraction:
            return CONTRACTIONS
        for group in (first, last):
            if not is_stream(group.members):
                return TILES if group.has_contraction else UPDATE
        first, last = self._order.in_order(first, last)
        if self._order.meets_elsewhere(first, last):
            return Refusal("cycle", "what lies between them would need the group and be needed by it")
        members = self._joined(first, last)
        if len(members) > self.max_ops:
            return Refusal("max-ops", f"{len(members)} operations are more than {self.max_ops}")
        nodes = [m.node for m in members]
        if (streams := len(self._moved(nodes))) > STREAMS:
            return Refusal("streams", f"{streams} arrays are more than a loop goes through well")
        if not self._saves_beside(first, last):
            return Refusal("small", "it would save little")
        stages = stages_of(members, self.outputs(nodes))
        if not run_side_by_side(stages, value, self.kind):
            return Refusal("different order", "they go through it in different orders, or over different ranges")
        return refusal(members, stages, self.kind)

    def _moved(self, nodes: Sequence[Node]) -> dict[Value, None]:
        """What a group reads from memory and writes to it."""
        inside = set(nodes)
        read = [v for n in nodes for v in n.operands if v.node not in inside and not isinstance(v.node, Constant)]
        return dict.fromkeys([*read, *sorted(self.outputs(nodes), key=lambda v: self.position[v.node])])

    def _bytes_of(self, value: Value) -> int:
        if value not in self._bytes:
            self._bytes[value] = estimated_bytes(value)
        return self._bytes[value]

    def _joined(self, a: Group, b: Group) -> list[Member]:
        return sorted((*a.members, *b.members), key=lambda m: self.position[m.node])

    def _merge(self, a: Group, b: Group) -> Group:
        members = self._joined(a, b)
        group = Group([m.node for m in members], members)
        self._order.merge(a, b, group)  # while the nodes are still those of the two
        self.group_of.update((node, group) for node in group.nodes)
        return group

    def _successors(self, group: Group) -> Iterator[Group]:
        return (self.group_of[u] for node in group.nodes for v in node.values for u in self.users.get(v, ()))

    def _predecessors(self, group: Group) -> Iterator[Group]:
        return (self.group_of[v.node] for node in group.nodes for v in node.inputs if v.node in self.group_of)

    def that_need(self, group: Group, through: Callable[[Value], bool]) -> set[Group]:
        """The group and all that need it by way of the values for which `through` holds."""
        found, waiting = {group}, [group]
        while waiting:
            nodes = waiting.pop().nodes
            users = (u for n in nodes for v in n.values if through(v) for u in self.users.get(v, ()))
            later = {self.group_of[u] for u in users} - found
            found |= later
            waiting += later
        return found

    def _in_order(self) -> list[Group]:
        """Depth first from the first node on, so that the order of the program stays where it can."""
        done: dict[Group, None] = {}
        stack = [(self.group_of[node], False) for node in reversed(self.nodes)]
        while stack:
            group, ready = stack.pop()
            if group in done:
                continue
            if ready:
                done[group] = None
                continue
            stack.append((group, True))
            needed = dict.fromkeys(self._predecessors(group))
            stack += [(g, False) for g in reversed(needed) if g is not group]
        return list(done)


def _refuse_op(node: Node) -> Refusal:
    match node:
        case Loop():
            return Refusal("loop boundary", "a loop runs kernels of its own")
        case Sort() | Argsort() | Cumulative():
            return Refusal("ordered op", f"{node.name} goes through rows in order, in a kernel of its own")
    return Refusal("own kernel", f"{node.name} is a kernel of its own")


def estimated_bytes(value: Value) -> int:
    """Bytes of a value, with a typical number for extents that have none."""
    if not isinstance(value.type, TensorType):
        return 0
    return estimated(value.type.elements) * value.dtype.bytes


def estimated(size: Size) -> int:
    """A size, with a typical number for what has none."""
    return size.evaluate(dict.fromkeys(size.symbols, TYPICAL))


def member_of(node: Node, kind: str) -> Member | None:
    """The member that a node can be. A CPU finds prefixes one after the other, and nothing else waits for them."""
    return None if isinstance(node, Cumulative) and kind == "cpu" else Member.of(node)


def sink_views(region: Region, kind: str) -> tuple[Region, Mapping[Node, Node]]:
    """Give every reader of a plain view, or of a value made of nothing, a copy of its own: reading through a view costs
    nothing, so it should not tie its readers together. Also gives the node that each copy was made from."""
    fusible = {node: member for node in region.nodes if (member := member_of(node, kind)) is not None}
    free = {node for node, member in fusible.items() if is_free(member)}
    kept = {v.node for v in region.results} | {v.node for n in region.nodes if n not in fusible for v in n.inputs}
    origin: dict[Node, Node] = {}
    values: dict[Value, Value] = {}
    nodes: list[Node] = []

    def copy(node: Node) -> Node:
        """The node again, and again what it reads of such nodes."""
        new = replace(read(node))
        origin[new] = node
        nodes.append(new)
        return new

    def read(node: Node) -> Node:
        """The node with copies of the views that it reads."""
        own = {v: copy(v.node).value for v in dict.fromkeys(node.operands) if v.node in free}
        return node.with_operands(ChainMap(own, values))

    for node in region.nodes:
        if node in free:
            if node in kept:
                values[node.value] = copy(node).value
            continue
        new = read(node) if node in fusible else node.with_operands(values)
        values.update(zip(node.values, new.values))
        nodes.append(new)
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results)), origin


def _is_view(member: Member) -> bool:
    return member.only_moves or is_free(member)


def is_free(member: Member) -> bool:
    """May every reader compute it again? A view, a cast to something not narrower, a value made of no data."""
    if not member.reads:
        return not member.is_reduced and member.work <= CHEAP
    affine = all(not i.opaques for _, indices in member.reads for i in indices)
    widens = all(v.dtype.bits <= member.value.dtype.bits for v, _ in member.reads if isinstance(v.type, TensorType))
    return member.is_plain and affine and widens

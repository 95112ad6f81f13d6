"""Small collectives of one kind as one: what many messages cost beside their bytes is paid once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from intarsia.ir.cluster import Cluster
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import (
    AllGather,
    AllReduce,
    Collective,
    CollectivePermute,
    Concat,
    ReduceScatter,
    Reshape,
    Slice,
    Transpose,
)
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.spmd import is_partitioned
from intarsia.passes.collectives.timeline import Costs
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions
from intarsia.passes.shard.memory import bytes_of

LONG = 10
"""A message that takes so many times what an empty one does is long enough."""


@dataclass(frozen=True)
class CombineCollectives(Pass):
    """Do several collectives of one kind, along the same axes and on one element type, as one on flat memory.

    Before:  %2 = all_reduce %0 … : f32[4, 8]        After:  %2 = concat %0, %1, both flat : f32[40]
             %3 = all_reduce %1 … : f32[8]                   %3 = all_reduce %2 … : f32[40]
                                                             … slices of it, in the shapes of the two

    Only where what a message costs beside its bytes, on the links of a cluster, is more than copying there and back; up
    to `limit` bytes that a device puts in, by default until a message takes ten times what an empty one does. None of
    them needs another one.

    Keeps: values, bit for bit. Needs: a partitioned program. Leaves: the other collectives.
    """

    name: ClassVar[str] = "combine-collectives"
    cluster: str = "laptop"
    limit: int | None = None

    def run(self, module: Module, context: Context) -> Module:
        if not is_partitioned(module):
            return module
        costs = Costs.of(module, Cluster.read(self.cluster))

        def combined(region: Region) -> Region:
            region = change_regions(region, lambda _, inner: combined(inner))
            tried: set[Node] = set()
            while (found := _bucket(region, costs, self.limit, tried)) is not None:
                names = f"{len(found)} {found[0].name}s along {', '.join(found[0].axes)}"
                self.remark(context, "sharding", f"{names} are one", found[0].span)
                region = _with_one(region, found)
            return region

        body = combined(module.graph.body)
        return module if body is module.graph.body else module.with_body(body)


def _bucket(region: Region, costs: Costs, limit: int | None, tried: set[Node]) -> list[Collective] | None:
    """The first collectives that are to be one; `tried` are those that are with no other."""
    needs = _needs(region)
    small = [n for n in region.nodes if isinstance(n, Collective) and n not in tried and _is_small(n, costs)]
    for first in small:
        found, put_in = [first], bytes_of(first.x.type)
        most = _long_enough(first, costs) if limit is None else limit
        for other in small[small.index(first) + 1 :]:
            size = bytes_of(other.x.type)
            apart = all(member not in needs[other] for member in found)
            if _key(other) == _key(first) and put_in + size <= most and apart:
                found.append(other)
                put_in += size
        if len(found) > 1:
            return found
        tried.add(first)
    return None


def _key(node: Collective) -> object:
    """What collectives have to share to be one."""
    shared = getattr(node, "combiner", None), getattr(node, "sources", None)
    return type(node), node.axes, node.x.dtype, node.started, shared


def _is_small(node: Collective, costs: Costs) -> bool:
    """Is copying what it sends and gives cheaper than another message?"""
    if not isinstance(node, AllReduce | AllGather | ReduceScatter | CollectivePermute) or node.started:
        return False
    copied = 2 * (bytes_of(node.x.type) + bytes_of(node.value.type)) / costs.cluster.memory_bytes_per_second
    return copied < costs.cluster.level(costs.mesh, node.mesh_axes).alpha


def _long_enough(node: Collective, costs: Costs) -> float:
    """The bytes that a device puts in where a message takes `LONG` times what an empty one does."""
    link = costs.cluster.level(costs.mesh, node.mesh_axes)
    seconds = costs.sending(node) - link.alpha
    return LONG * link.alpha * bytes_of(node.x.type) / seconds if seconds else 0.0


def _needs(region: Region) -> Mapping[Node, set[Node]]:
    """The collectives of a region that each node needs, directly or not."""
    found: dict[Node, set[Node]] = {}
    for node in region.nodes:
        found[node] = set().union(*(found.get(v.node, ()) for v in node.inputs))
        found[node] |= {v.node for v in node.inputs if isinstance(v.node, Collective)}
    return found


def _with_one(region: Region, members: Sequence[Collective]) -> Region:
    """The region with one collective in the place of some, at the last of these, and what needs them after it."""
    one = _One()
    values = dict(zip((m.value for m in members), one.run(members)))
    needs, gone = _needs(region), set(members)
    place = region.nodes.index(members[-1])
    before = [n for n in region.nodes[:place] if n not in gone]
    early = [n for n in before if not needs[n] & gone]
    late = [n for n in before if needs[n] & gone]
    after = Region((), (*late, *region.nodes[place + 1 :]), region.results).rebuild(values)
    return Region(region.parameters, (*early, *one.nodes, *after.nodes), after.results)


@dataclass
class _One:
    """The collective for all, on a row for each device: what goes to it, or comes from it; one row where that is all
    the same."""

    nodes: list[Node] = field(default_factory=list)

    def add(self, node: Node) -> Value:
        self.nodes.append(node)
        return node.value

    def run(self, members: Sequence[Collective]) -> list[Value]:
        """What the members gave."""
        first = members[0]
        rows = [self.rows(m.x, m.dim if isinstance(m, ReduceScatter) else None, m.devices) for m in members]
        joined = replace(first, x=self.add(Concat(tuple(rows), 1)))
        if isinstance(joined, AllGather | ReduceScatter):
            joined = replace(joined, dim=0)
        made, start = self.add(joined), 0
        height = int(made.tensor.shape[0])
        found: list[Value] = []
        for member, row in zip(members, rows):
            width = int(row.tensor.shape[1])
            starts = (ZERO, Size.of(start))
            own = self.add(Slice(made, starts, (Size.of(height), Size.of(width)), (1, 1), span=member.span))
            found.append(self.in_shape(own, member))
            start += width
        return found

    def rows(self, x: Value, dim: int | None, devices: int) -> Value:
        """x as a matrix: a row for what goes to each device along a dimension, or one row."""
        if dim is None:
            return self.reshaped(x, (1, -1))
        shape = x.tensor.static_shape
        apart = (*shape[:dim], devices, shape[dim] // devices, *shape[dim + 1 :])
        order = (dim, *(d for d in range(len(apart)) if d != dim))
        return self.reshaped(self.transposed(self.reshaped(x, apart), order), (devices, -1))

    def in_shape(self, own: Value, member: Collective) -> Value:
        """The result of a member of its rows."""
        shape = member.value.tensor.static_shape
        if not isinstance(member, AllGather):
            return self.reshaped(own, shape)
        x, dim = member.x.tensor.static_shape, member.dim
        order = (*range(1, dim + 1), 0, *range(dim + 1, len(x) + 1))
        return self.reshaped(self.transposed(self.reshaped(own, (member.devices, *x)), order), shape)

    def reshaped(self, x: Value, shape: Sequence[int]) -> Value:
        """x in another shape, of which one extent may be -1: what is left."""
        elements = math.prod(x.tensor.static_shape)
        known = math.prod(s for s in shape if s >= 0)
        wanted = tuple(Size.of(s if s >= 0 else elements // max(1, known)) for s in shape)
        return x if wanted == x.tensor.shape else self.add(Reshape(x, wanted, span=x.node.span))

    def transposed(self, x: Value, order: Sequence[int]) -> Value:
        return x if tuple(order) == tuple(range(len(order))) else self.add(Transpose(x, tuple(order)))

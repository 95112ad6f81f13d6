"""Small collectives of one kind as one: what many messages cost beside their bytes is paid once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
)
from intarsia.ir.spmd import is_partitioned
from intarsia.passes.collectives.device_rows import Rows
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
        return module.with_body(body)


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
    return type(node), node.axes, node.x.dtype, shared


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
    one = Rows(members[0].span)
    values = dict(zip((m.value for m in members), _as_one(one, members)))
    needs, gone = _needs(region), set(members)
    place = region.nodes.index(members[-1])
    before = [n for n in region.nodes[:place] if n not in gone]
    early = [n for n in before if not needs[n] & gone]
    late = [n for n in before if needs[n] & gone]
    after = Region((), (*late, *region.nodes[place + 1 :]), region.results).rebuild(values)
    return Region(region.parameters, (*early, *one.nodes, *after.nodes), after.results)


def _as_one(rows: Rows, members: Sequence[Collective]) -> list[Value]:
    """The collective for all, on their rows one beside the other; what the members gave."""
    first = members[0]
    flat = [rows.of(m.x, m.dim if isinstance(m, ReduceScatter) else None, m.devices) for m in members]
    x = rows.add(Concat(tuple(flat), 1))
    joined = replace(first, x=x, dim=0) if isinstance(first, AllGather | ReduceScatter) else replace(first, x=x)
    made, start = rows.add(joined), 0
    found: list[Value] = []
    for member, row in zip(members, flat):
        width = int(row.tensor.shape[1])
        own = rows.cut(made, start, width)
        found.append(rows.gathered(own, member) if isinstance(member, AllGather) else rows.like(own, member.value))
        start += width
    return found

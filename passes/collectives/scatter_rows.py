"""What is summed over devices and then worked on row by row is worked on where its rows are: each device takes its rows
of the sum, and what others need whole is gathered after the work.

An all-reduce is a reduce-scatter and an all-gather. Between the two stands what needs no more than some of the rows: a
residual and a norm in a transformer, as in sequence parallelism (https://arxiv.org/abs/2205.05198) and in TokenWeave
(https://arxiv.org/abs/2505.11329). Which ops these are is read off their factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from intarsia.ir.cluster import Cluster
from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.ops import Shard
from intarsia.ir.sharding import Axes, Mesh, Sharding
from intarsia.ir.spmd import is_partitioned, mesh_of
from intarsia.ir.types import ListType
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions
from intarsia.passes.shard.edges import edge_of
from intarsia.passes.shard.laid import axes_of_factors
from intarsia.passes.shard.ways import Split, Way, elements_of, sharding_of, static_shape


@dataclass(frozen=True)
class ScatterRows(Pass):
    """Between a sum over devices and what needs all of it, each device works on some of the rows.

    Before:  %1 = shard %0 : f32[64, 32]                         with %0: f32[64, 32]{sum: model}
             %2 = exp %1 : f32[64, 32]
             %3 = matmul %2, %w : f32[64, 128@model]
    After:   %1 = shard %0 : f32[64@model, 32]                   a reduce_scatter
             %2 = exp %1 : f32[64@model, 32]
             %3 = shard %2 : f32[64, 32]                         an all_gather
             %4 = matmul %3, %w : f32[64, 128@model]

    Of the dimensions that can be split, the one that saves most time on the cluster, sending and memory together; where
    none saves any, sums stay as they are.

    Keeps: values. Needs: operands that lie as ops need them (`reshard`). Leaves: the same.
    """

    name: ClassVar[str] = "scatter-rows"
    exact: ClassVar[bool] = False
    cluster: str = "laptop"

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None or is_partitioned(module):
            return module
        cluster = Cluster.read(self.cluster)

        def scattered(region: Region) -> Region:
            region = change_regions(region, lambda _, inner: scattered(inner))
            merges = [n for n in region.nodes if isinstance(n, Shard) and _is_merge(n)]
            for axes in dict.fromkeys(sharding_of(n.x).partial for n in merges):
                own = [n for n in merges if sharding_of(n.x).partial == axes]
                ways = [_Rows(mesh, cluster, region, own, axes, d) for d in range(max(map(_rank, own)))]
                best = max(ways, key=lambda w: w.saved, default=None)
                if best is not None and best.saved > 0:
                    said = f"between {len(own)} sums along {', '.join(map(str, axes))} and what needs them whole"
                    rows = f"each device works on its part of dimension {best.dimension}"
                    self.remark(context, "sharding", f"{said} {rows}: {best.saved * 1e6:.4g} us less", own[0].span)
                    region = best.applied()
            return region

        body = scattered(module.graph.body)
        return module.with_body(body)


def _is_merge(node: Shard) -> bool:
    """Does it merge parts of a sum, and nothing else?"""
    source, target = sharding_of(node.x), sharding_of(node.value)
    return bool(source.partial) and not target.partial and source.axes == target.axes


def _rank(node: Node) -> int:
    return node.value.tensor.rank


@dataclass
class _Rows:
    """One dimension of what is merged, split over the axes along which the parts are."""

    mesh: Mesh
    cluster: Cluster
    region: Region
    merges: Sequence[Shard]
    axes: Axes
    dimension: int

    def __post_init__(self) -> None:
        self.laid: dict[Value, Sharding] = {}
        self.ways: dict[Node, Way] = {}
        for node in self.region.nodes:
            if node in self.merges:
                self._merge(node)
            elif isinstance(node, Structured) and any(v in self.laid for v in node.operands):
                way = self._way(node)
                if way is not None:
                    self.ways[node] = way
                    self.laid[node.value] = way.result

    def _merge(self, node: Node) -> None:
        sharding = sharding_of(node.value)
        axes = list(sharding.axes)
        if self.dimension < len(axes):
            axes[self.dimension] = (*axes[self.dimension], *self.axes)
            if self._divides(node.value, found := Sharding.of(axes)):
                self.laid[node.value] = found

    def _divides(self, value: Value, sharding: Sharding) -> bool:
        return all(s % self.mesh.size(a) == 0 for s, a in zip(static_shape(value), sharding.axes))

    def _way(self, node: Structured) -> Way | None:
        """How an op works on the rows that it is given; None where it needs others, or the axes for something else."""
        edge = edge_of(node)
        names = {
            edge.dimensions[p][d]
            for p, v in enumerate(node.operands)
            if v in self.laid
            for d, (new, old) in enumerate(zip(self.laid[v].axes, sharding_of(v).axes))
            if new != old
        }
        if len(names) != 1 or any(sharding_of(v).partial for v in (*node.operands, node.value)):
            return None
        (rows,) = names
        if rows is None or len(rows) != 1 or rows[0] in edge.selected:
            return None
        if any(w.axis == rows[0] for w in edge.windows.values()):
            return None
        known = axes_of_factors(self.mesh, edge)
        way = Split(self.mesh, edge).way({**known, rows[0]: (*known.get(rows[0], ()), *self.axes)})
        if way is None or way.result.partial or not self._divides(node.value, way.result):
            return None
        return way if all(map(self._is_given, node.operands, way.operands)) else None

    def _is_given(self, value: Value, wanted: Sharding) -> bool:
        """Does an operand lie so, or is it there whole?"""
        if value in self.laid:
            return self.laid[value].axes == wanted.axes
        if wanted.axes == sharding_of(value).axes:
            return True
        return not isinstance(value.type, ListType) and self._divides(value, wanted)

    # ------------------------------------------------------------------ what it saves

    @cached_property
    def leaving(self) -> tuple[Value, ...]:
        """What is on rows and needed whole."""
        used = (v for n in self.region.nodes if n not in self.ways for v in n.inputs)
        return tuple(dict.fromkeys(v for v in (*used, *self.region.results) if v in self.laid))

    @cached_property
    def saved(self) -> float:
        """Seconds of sending and of moving through memory; what one op makes for the next is in no memory."""
        if not self.laid:
            return 0.0
        share = 1 / self.mesh.size(self.axes)
        merged = [n.value for n in self.merges if n.value in self.laid]
        seconds = 0.0
        for value in merged:
            seconds += self._sends("all_reduce", self._bytes(value)) - self._sends("reduce_scatter", self._bytes(value))
        seconds -= sum(self._sends("all_gather", self._bytes(v) * share) for v in self.leaving)
        read = (v for n, way in self.ways.items() for v, w in zip(n.operands, way.operands) if self._is_read(v, w))
        made = (v for v in self.leaving if v.node in self.ways)
        moved = sum(map(self._bytes, (*dict.fromkeys(read), *made)))
        return seconds + moved * (1 - share) / self.cluster.memory_bytes_per_second

    def _is_read(self, value: Value, wanted: Sharding) -> bool:
        return value.node not in self.ways and wanted.axes != sharding_of(value).axes

    def _sends(self, kind: str, size: float) -> float:
        return self.cluster.seconds(self.mesh, kind, self.axes, size)

    def _bytes(self, value: Value) -> float:
        """What a device has of it, where it is whole along the axes."""
        split = self.mesh.size(a for d in sharding_of(value).axes for a in d)
        return elements_of(value) * value.dtype.bits / 8 / split

    # ------------------------------------------------------------------ the region

    def applied(self) -> Region:
        made = _Rewriting(self)
        for node in self.region.nodes:
            made.node(node)
        results = tuple(map(made.whole, self.region.results))
        return Region(self.region.parameters, tuple(made.nodes), results)


@dataclass
class _Rewriting:
    rows: _Rows
    nodes: list[Node] = field(default_factory=list)
    values: dict[Value, Value] = field(default_factory=dict)
    shards: dict[tuple[Value, Sharding], Value] = field(default_factory=dict)

    def node(self, node: Node) -> None:
        rows = self.rows
        if node in rows.ways:
            way = rows.ways[node]
            operands = [self.lying(v, w) for v, w in zip(node.operands, way.operands)]
            made: Node = replace(node.with_operands_in_order(operands), shardings=(way.result,))
        else:
            made = node.with_operands({v: self.whole(v) for v in node.inputs})
            if isinstance(node, Shard) and node.value in rows.laid:
                made = replace(made, shardings=(rows.laid[node.value],))
        self.nodes.append(made)
        self.values.update(zip(node.values, made.values))

    def lying(self, value: Value, wanted: Sharding) -> Value:
        new = self.values.get(value, value)
        return new if sharding_of(new).axes == wanted.axes else self.shard(new, wanted)

    def whole(self, value: Value) -> Value:
        """A value as it lay before."""
        new = self.values.get(value, value)
        return self.shard(new, sharding_of(value)) if value in self.rows.laid else new

    def shard(self, value: Value, wanted: Sharding) -> Value:
        if (value, wanted) not in self.shards:
            node = Shard(value, **value.node.spans, shardings=(wanted,))
            self.nodes.append(node)
            self.shards[value, wanted] = node.value
        return self.shards[value, wanted]

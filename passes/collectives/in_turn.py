"""The devices along one axis of the mesh as one device, which does the work of all of them in turn.

What is split over the axis becomes parts in time: an axis over the tokens of a batch makes parts of which one is
computed while another is sent. How parts depend on each other is what sharding has found out: what a part needs of the
others was gathered or summed over the axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from intarsia.ir.dtypes import F32, I64
from intarsia.ir.errors import CompileError
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Module, Node, Parameter, Region, Value
from intarsia.ir.ops import (
    AllGather,
    AllReduce,
    AllSlice,
    AllToAll,
    BroadcastTo,
    Cast,
    Collective,
    CollectivePermute,
    Concat,
    Constant,
    DeviceIndex,
    Elementwise,
    ListGet,
    Loop,
    Pad,
    ReduceScatter,
    Reshape,
    Slice,
)
from intarsia.ir.sharding import Axes, Mesh, MeshAxis, local_extent
from intarsia.ir.sizes import ONE, Size
from intarsia.ir.spmd import Placement, is_partitioned
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.shard.meshes import with_mesh

Parts = tuple[Value, ...]
"""What a value is on each device along the axis; the same value many times where it is the same on all."""

MERGES_OF_BOOLS = {"sum": "or", "prod": "and", "max": "or", "min": "and"}
"""The functions that merge two parts of booleans, by the combiner."""


@dataclass(frozen=True)
class InTurn(Pass):
    """One device does the work of all devices along an axis in turn: nodes once for each, collectives along the axis as
    the slices, concatenations and sums that they are on one device.

    Before:  func @f(%x: f32[4, 8]) {                            with mesh pod(model=2, part=2), %x: f32[8@part, 8]
               %0 = exp %x : f32[4, 8]
               %1 = all_reduce %0 axes=(model,) … : f32[4, 8]
    After:   func @f(%x: f32[8, 8]) {                            with mesh pod(model=2, part=1)
               %0 = slice %x … : f32[4, 8]
               %1 = slice %x … : f32[4, 8]
               %2 = exp %0 : f32[4, 8]
               %3 = exp %1 : f32[4, 8]
               %4 = all_reduce %2 axes=(model,) … : f32[4, 8]
               %5 = all_reduce %3 axes=(model,) … : f32[4, 8]

    Keeps: values, but for the order of sums. Needs: a partitioned program in which nothing is started yet. Leaves: the
    axis with one device.
    """

    name: ClassVar[str] = "in-turn"
    exact: ClassVar[bool] = False
    axis: str = "part"

    def run(self, module: Module, context: Context) -> Module:
        if not is_partitioned(module):
            return module
        placement = Placement.of(module)
        mesh = placement.mesh
        if self.axis not in mesh.sizes:
            raise CompileError("E1901", f"the mesh has no axis '{self.axis}'", hint=f"the mesh is {mesh.said}")
        if mesh.sizes[self.axis] == 1:
            return module
        left = self.left(mesh)
        body = _Turns(self.axis, mesh, left).graph(module.graph.body, placement)
        return with_mesh(module.with_body(body), left)

    def left(self, mesh: Mesh) -> Mesh:
        """The mesh with one device along the axis."""
        return replace(mesh, axes=tuple((n, 1 if n == self.axis else s) for n, s in mesh.axes))


@dataclass
class _Turns:
    axis: str
    mesh: Mesh
    left: Mesh
    nodes: list[Node] = field(default_factory=list)
    parts: dict[Value, Parts] = field(default_factory=dict)
    lists: dict[Value, tuple[Value, int | None, int]] = field(default_factory=dict)  # dimension and extent of parts

    @property
    def count(self) -> int:
        return self.mesh.sizes[self.axis]

    @property
    def alone(self) -> Mesh:
        """The axis as a mesh."""
        return Mesh(((self.axis, self.count),))

    def graph(self, body: Region, placement: Placement) -> Region:
        parameters = [self.parameter(p, whole) for p, whole in zip(body.parameters, placement.parameters)]
        for node in body.nodes:
            self.node(node)
        results = [self.result(v, whole) for v, whole in zip(body.results, placement.results)]
        return Region(tuple(parameters), tuple(self.nodes), tuple(results))

    # ------------------------------------------------------------------ what comes in and goes out

    def parameter(self, old: Parameter, whole: Type) -> Parameter:
        """The parameter with what all devices along the axis have of it, and its parts."""
        d = self.split_dimension(whole, old)
        if d is None:
            self.parts[old.value] = (old.value,) * self.count
            self.lists[old.value] = (old.value, None, 0)
            return old
        extent = old.type.tensor.static_shape[d]
        new = replace(old, type=_with_extent(old.type, d, self.extent(whole, d)))
        if isinstance(new.type, ListType):
            self.lists[old.value] = (new.value, d, extent)
        else:
            self.parts[old.value] = tuple(self.cut(new.value, d, p, extent) for p in range(self.count))
        return new

    def result(self, value: Value, whole: Type) -> Value:
        parts, d = self.parts[value], self.split_dimension(whole, value.node)
        if d is None:
            return parts[0]
        joined = self.add(Concat(parts, d), value.node)
        return self.cut(joined, d, 0, self.extent(whole, d))

    def extent(self, whole: Type, d: int) -> int:
        """What a device has of a dimension on the mesh that is left."""
        assert whole.sharding is not None
        return local_extent(whole.tensor.static_shape[d], self.left.size(whole.sharding.axes[d]))

    def split_dimension(self, whole: Type, node: Node) -> int | None:
        """The dimension of a parameter or result that the axis splits. Raises CompileError E1912 where the parts of one
        device do not lie side by side."""
        if whole.sharding is not None and any(a.name == self.axis for a in whole.sharding.partial):
            hint = f"leave '{self.axis}' out of it: what goes in turn is merged on its device"
            raise CompileError("E1912", f"{whole} is parts along '{self.axis}'", node.span, hint=hint)
        for d, axes in enumerate(whole.sharding.axes if whole.sharding is not None else ()):
            if all(a.name != self.axis for a in axes):
                continue
            own, divides = MeshAxis(self.axis), whole.tensor.static_shape[d] % self.mesh.size(axes) == 0
            if axes != (own,) and (axes[-1] != own or not divides):
                hint = f"let '{self.axis}' be the last axis of a dimension that the devices divide"
                raise CompileError("E1912", f"{whole} does not lie in parts that can go in turn", node.span, hint=hint)
            return d
        return None

    def add(self, node: Node, like: Node | None = None) -> Value:
        if like is not None:
            node = replace(node, **like.spans)
        self.nodes.append(node)
        return node.value

    def cut(self, x: Value, d: int, part: int, extent: int) -> Value:
        """Part number `part` of so many elements along a dimension, with zeros beyond its end."""
        shape = x.tensor.static_shape
        there = max(0, min(extent, shape[d] - part * extent))
        if there == shape[d] == extent:
            return x
        if not there:
            wanted = tuple(Size.of(extent if k == d else s) for k, s in enumerate(shape))
            return self.add(BroadcastTo(self.add(Constant(0, x.dtype)), wanted), x.node)
        found = self.add(Slice.along(x, d, part * extent, there), x.node)
        return found if there == extent else self.add(Pad.along(found, d, 0, extent - there), x.node)

    # ------------------------------------------------------------------ nodes

    def node(self, node: Node) -> None:
        match node:
            case DeviceIndex():
                self.parts[node.value] = tuple(self.index(node, p) for p in range(self.count))
            case Collective() if any(a.name == self.axis for a in node.mesh_axes):
                self.parts[node.value] = self.exchanged(node)
            case ListGet(source, scalars=scalars) if source in self.lists:
                whole, d, extent = self.lists[source]
                made = self.copies(replace(node, source=whole), scalars)
                cut = (m.value if d is None else self.cut(m.value, d, p, extent) for p, m in enumerate(made))
                self.parts[node.value] = tuple(cut)
            case Loop():
                self.loop(node)
            case _:
                for source in node.operands:
                    if source in self.lists and source not in self.parts:
                        self.parts[source] = self.stacked(source)
                made = self.copies(node, node.operands)
                for n, value in enumerate(node.values):
                    self.parts[value] = tuple(m.values[n] for m in made)

    def stacked(self, source: Value) -> Parts:
        """The parts of a list that is split, for an op that reads several of its tensors: of these as one tensor."""
        whole, d, extent = self.lists[source]
        assert isinstance(whole.type, ListType) and d is not None
        rows: list[Value] = []
        for n in range(int(whole.type.length)):
            tensor = self.add(ListGet(whole, Size.of(n)), source.node)
            rows.append(self.add(Reshape(tensor, (ONE, *tensor.tensor.shape)), source.node))
        joined = self.add(Concat(tuple(rows), 0), source.node)
        return tuple(self.cut(joined, d + 1, p, extent) for p in range(self.count))

    def copies(self, node: Node, operands: Sequence[Value]) -> list[Node]:
        """The node for each part; one of them for all whose operands are the same."""
        made: dict[tuple[Value, ...], Node] = {}
        found: list[Node] = []
        for p in range(self.count):
            key = tuple(self.parts[v][p] for v in operands)
            if key not in made:
                new = dict(zip(operands, key))
                made[key] = node.with_operands({v: w for v, w in new.items() if v is not w})
                self.nodes.append(made[key])
            found.append(made[key])
        return found

    def index(self, node: DeviceIndex, p: int) -> Value:
        """The number of a device along axes, of which some are known."""
        total: Value | None = None
        known = 0
        for is_own, axes in self.runs(tuple(map(MeshAxis.parse, node.axes))):
            size = self.mesh.size(axes)
            known *= size
            if is_own:
                known += self.position(p, axes)
            else:
                here = self.add(replace(node, axes=tuple(map(str, axes)), devices=size))
            total = None if total is None else self.scaled(total, size)
            if not is_own:
                total = here if total is None else self.add(Elementwise("add", (total, here)))
        constant = self.add(Constant(known, I64))
        return constant if total is None else self.add(Elementwise("add", (total, constant)))

    def scaled(self, value: Value, times: int) -> Value:
        return self.add(Elementwise("mul", (value, self.add(Constant(times, I64)))))

    def loop(self, node: Loop) -> None:
        """One loop for all, whose states are those of each part where they differ."""
        initial = [self.parts[v] for v in node.initial]
        varying = {n for n, parts in enumerate(initial) if _differ(parts)}
        while True:
            states, body = self.inside(node.body, varying)
            yielded = [body.parts[v] for v in node.body.results]
            more = {n for n in range(len(initial)) if n not in varying and _differ(yielded[n])}
            if not more:
                break
            varying |= more
        varying |= {n for n in range(len(initial), len(yielded)) if _differ(yielded[n])}
        kept = [parts if n in varying else parts[:1] for n, parts in enumerate(yielded)]
        results = tuple(v for parts in kept for v in parts)
        condition = node.condition
        if condition is not None:  # which says the same on all devices
            own, test = self.inside(condition, varying)
            condition = Region(own, tuple(test.nodes), tuple(test.parts[v][0] for v in condition.results))
        made = replace(
            node,
            initial=tuple(v for n, parts in enumerate(initial) for v in (parts if n in varying else parts[:1])),
            scalars=tuple(self.parts[v][0] for v in node.scalars),
            body=Region(states, tuple(body.nodes), results),
            condition=condition,
            stacked=sum(map(len, kept[len(initial) :])),
        )
        self.nodes.append(made)
        values = iter(made.values)
        for old, parts in zip(node.values, kept):
            found = tuple(itertools.islice(values, len(parts)))
            self.parts[old] = found if len(found) == self.count else found * self.count

    def inside(self, region: Region, varying: set[int]) -> tuple[tuple[Parameter, ...], _Turns]:
        """The parameters of a region of a loop for the states that vary or not, and its nodes."""
        inner = _Turns(self.axis, self.mesh, self.left, [], dict(self.parts), self.lists)
        parameters: list[Parameter] = []
        for n, state in enumerate(region.parameters):
            labels = [f"{state.label}_{p}" for p in range(self.count)] if n in varying else [state.label]
            own = [replace(state, label=label) for label in labels]
            parameters += own
            inner.parts[state.value] = tuple(p.value for p in own) * (self.count // len(own))
        for node in region.nodes:
            inner.node(node)
        return tuple(parameters), inner

    # ------------------------------------------------------------------ collectives

    def runs(self, axes: Axes) -> list[tuple[bool, Axes]]:
        """Axes in runs of those that go in turn, and of others; the major ones first."""
        return [(own, tuple(run)) for own, run in itertools.groupby(axes, lambda a: a.name == self.axis)]

    def position(self, p: int, axes: Axes) -> int:
        """The number along axes, parts of the one that goes in turn, of the device with number p along all of it."""
        return self.alone.position(p, axes)

    def group(self, p: int, axes: Axes) -> tuple[int, ...]:
        """The devices that differ from p along axes only, in their order along these."""
        return next(group for group in self.alone.groups(axes) if p in group)

    def exchanged(self, node: Collective) -> Parts:
        parts = self.parts[node.x]
        runs = self.runs(node.mesh_axes)
        match node:
            case AllSlice(dim=dim):
                for own, axes in runs:
                    parts = self.sliced(parts, axes, dim) if own else self.sent(node, parts, axes)
                return parts
            case AllGather(dim=dim):
                for own, axes in reversed(runs):
                    parts = self.gathered(parts, axes, dim) if own else self.sent(node, parts, axes)
                return parts
            case AllReduce(combiner=combiner):
                parts = self.merged(parts, tuple(a for own, axes in runs if own for a in axes), combiner)
                others = tuple(a for own, axes in runs if not own for a in axes)
                return self.sent(node, parts, others) if others else parts
            case ReduceScatter(dim=dim, combiner=combiner):
                parts = self.merged(parts, tuple(a for own, axes in runs if own for a in axes), combiner)
                for own, axes in runs:
                    parts = self.sliced(parts, axes, dim) if own else self.sent(node, parts, axes)
                return parts
            case AllToAll(split=split, join=join) if len(runs) == 1:
                return self.gathered(parts, node.mesh_axes, join, split)
            case CollectivePermute(sources=sources) if len(runs) == 1:
                return tuple(self.taken(parts, p, node.mesh_axes, sources) for p in range(self.count))
        hint = f"lay out what is split over '{self.axis}' so that it moves alone"
        message = f"the {node.name} moves parts that go in turn together with others"
        raise CompileError("E1912", message, node.span, hint=hint)

    def sent(self, node: Collective, parts: Parts, axes: Axes) -> Parts:
        """The collective along the other axes, once for each part that differs."""
        made = replace(node, axes=tuple(map(str, axes)), devices=self.mesh.size(axes))
        found = {x: self.add(replace(made, x=x)) for x in dict.fromkeys(parts)}
        return tuple(found[x] for x in parts)

    def sliced(self, parts: Parts, axes: Axes, dim: int) -> Parts:
        extent = parts[0].tensor.static_shape[dim] // self.mesh.size(axes)
        places = [(x, self.position(p, axes)) for p, x in enumerate(parts)]
        made = {(x, place): self.cut(x, dim, place, extent) for x, place in dict.fromkeys(places)}
        return tuple(made[place] for place in places)

    def gathered(self, parts: Parts, axes: Axes, join: int, split: int | None = None) -> Parts:
        """The parts of a group one after the other along `join`; only the own part along `split` of each, if that is a
        dimension."""
        made: dict[tuple[Value, ...], Value] = {}
        found: list[Value] = []
        for p in range(self.count):
            key = tuple(parts[q] for q in self.group(p, axes))
            if split is not None:
                extent = key[0].tensor.static_shape[split] // len(key)
                key = tuple(self.cut(x, split, self.position(p, axes), extent) for x in key)
            if key not in made:
                made[key] = self.add(Concat(key, join), key[0].node)
            found.append(made[key])
        return tuple(found)

    def merged(self, parts: Parts, axes: Axes, combiner: str) -> Parts:
        """The sum, or maximum …, over each group."""
        groups = [tuple(parts[q] for q in self.group(p, axes)) for p in range(self.count)]
        made = {group: self.sum(group, combiner) for group in dict.fromkeys(groups)}
        return tuple(made[group] for group in groups)

    def sum(self, parts: Sequence[Value], combiner: str) -> Value:
        """Floats of 16 bits are merged in f32, and rounded once."""
        dtype = parts[0].dtype
        merge = MERGES_OF_BOOLS[combiner] if dtype.kind == "bool" else COMBINERS[combiner].function
        narrow = dtype.is_float and dtype.bits == 16
        total, *rest = (self.add(Cast(x, F32)) if narrow else x for x in parts)
        for x in rest:
            total = self.add(Elementwise(merge, (total, x)), parts[0].node)
        return self.add(Cast(total, dtype)) if narrow else total

    def taken(self, parts: Parts, p: int, axes: Axes, sources: Sequence[int]) -> Value:
        source = sources[self.position(p, axes)]
        if source >= 0:
            return parts[self.group(p, axes)[source]]
        shape = parts[p].tensor.shape
        return self.add(BroadcastTo(self.add(Constant(0, parts[p].dtype)), shape))


def _differ(parts: Parts) -> bool:
    return any(v is not parts[0] for v in parts)


def _with_extent(type_: Type, d: int, extent: int) -> Type:
    """The type with another extent of a dimension."""
    if isinstance(type_, ListType):
        element = _with_extent(type_.element, d, extent)
        assert isinstance(element, TensorType)
        return ListType(type_.length, element)
    return replace(type_, shape=tuple(Size.of(extent) if k == d else s for k, s in enumerate(type_.shape)))

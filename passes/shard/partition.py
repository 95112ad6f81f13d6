"""The program of one device: local shapes and explicit collectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value
from intarsia.ir.ops.collective import (
    AllGather,
    AllReduce,
    AllSlice,
    AllToAll,
    CollectivePermute,
    DeviceIndex,
    ReduceScatter,
    Shard,
)
from intarsia.ir.ops.control import Fused, ListGet, Loop
from intarsia.ir.ops.elementwise import Constant
from intarsia.ir.ops.index import Update
from intarsia.ir.sharding import Axes, Mesh
from intarsia.ir.sizes import Size
from intarsia.ir.spmd import is_partitioned, mesh_of
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.shard.blocks import Add, fitted
from intarsia.passes.shard.carried import is_neutral
from intarsia.passes.shard.edges import Place, edge_of, shape_of
from intarsia.passes.shard.halos import Halos, Part, Reads, origin, widened
from intarsia.passes.shard.laid import axes_of_factors, check_laid
from intarsia.passes.shard.local import LocalOp, local_type, on_first, runs_of
from intarsia.passes.shard.meshes import check_shardings, without_shardings
from intarsia.passes.shard.steps import Step, reshard_steps
from intarsia.passes.shard.together import local_part
from intarsia.passes.shard.ways import sharding_of
from intarsia.passes.shard.windows import Halo, Run


@dataclass(frozen=True)
class Partition(Pass):
    """The program that each device of the mesh runs on its part.

    Before:  func @f(%x: f32[8@data, 4]) { … %1 = shard %0 : f32[8@data, 4] … }      with %0: f32[8@data, 4]{sum: model}
    After:   func @f(%x: f32[4, 4]) { … %1 = all_reduce %0 axes=(model,) devices=4 : f32[4, 4] … }

    Keeps: the values of all devices together. Needs: operands that lie as ops need them (`reshard`), numbers for sizes.
    Leaves: no sharding; the header says how parameters and results of the whole lie, in lines `parameter` and `result`.
    """

    name: ClassVar[str] = "partition"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None or is_partitioned(module):
            return module
        check_shardings(module, mesh)
        check_laid(module, mesh)
        body = module.graph.body
        placed = (
            *(f"parameter {p.type}" for p in body.parameters),
            *(f"result {v.type}" for v in body.results),
        )
        made = _Partitioner(mesh, context.checks)
        region = made.region(body, {})
        region = Region(region.parameters, (*made.indices.values(), *region.nodes), region.results)
        return replace(module.with_body(region), header=(*module.header, *placed))


@dataclass(frozen=True)
class DropSharding(Pass):
    """Forget how tensors lie on a mesh: the program runs on one device.

    Before:  func @f(%x: f32[8@data, 4]) { %0 = shard %x : f32[8, 4@data]  return %0 }
    After:   func @f(%x: f32[8, 4]) { return %x }

    Keeps: values. Needs: nothing. Leaves: no sharding and no `shard` node.
    """

    name: ClassVar[str] = "drop-sharding"

    def run(self, module: Module, context: Context) -> Module:
        return without_shardings(module)


@dataclass
class _Partitioner:
    mesh: Mesh
    checks: bool
    indices: dict[Axes, DeviceIndex] = field(default_factory=dict)
    widened: dict[tuple[Value, int, Halo], Value] = field(default_factory=dict)

    def index(self, axes: Axes) -> Value:
        """The number of the device along axes; made once, before everything else."""
        if axes not in self.indices:
            self.indices[axes] = DeviceIndex(tuple(map(str, axes)), self.mesh.size(axes))
        return self.indices[axes].value

    def type(self, type_: Type) -> Type:
        if type_.sharding is None:
            return type_
        if isinstance(type_, ListType):
            return ListType(type_.length, local_type(self.mesh, type_.element, type_.sharding.axes))
        return local_type(self.mesh, type_, type_.sharding.axes)

    def region(self, region: Region, outer: Mapping[Value, Value]) -> Region:
        values = dict(outer)
        parameters: list[Parameter] = []
        for parameter in region.parameters:
            new = replace(parameter, type=self.type(parameter.type))
            parameters.append(new)
            values[parameter.value] = new.value
        nodes: list[Node] = []
        around, self.widened = self.widened, dict(self.widened)
        for node in region.nodes:
            made = self.node(node, values, nodes)
            values.update(zip(node.values, made))
        self.widened = around
        return Region(tuple(parameters), tuple(nodes), tuple(values[v] for v in region.results))

    def node(self, node: Node, values: Mapping[Value, Value], nodes: list[Node]) -> Sequence[Value]:
        """The local values of a node's results."""
        match node:
            case Shard(x):
                return (self.moved(node, x, values[x], nodes),)
            case Loop():
                initial = tuple(values[v] for v in node.initial)
                scalars = tuple(values[v] for v in node.scalars)
                body = self.region(node.body, values)
                condition = None if node.condition is None else self.region(node.condition, values)
                made: Node = replace(
                    node, initial=initial, scalars=scalars, body=body, condition=condition, shardings=()
                )
            case Constant() | ListGet():
                made = replace(node.with_operands_in_order([values[v] for v in node.operands]), shardings=())
            case _:
                made = self.op(node, values, nodes)
        nodes.append(made)
        return made.values

    def op(self, node: Node, values: Mapping[Value, Value], nodes: list[Node]) -> Node:
        edge, add = edge_of(node), _adding(nodes, node)
        of_factor = axes_of_factors(self.mesh, edge)
        wanted = self.type(node.value.type)
        operands = tuple(values[v] for v in node.operands)
        reads = Reads()
        if isinstance(node, Structured | Fused):
            part = local_part(self.mesh, node, edge, of_factor, reads)
            made = self.part(part, {v: values[v] for v in node.inputs}, reads.halos(self.mesh), add)
        elif isinstance(node, Update):
            local = LocalOp(self.mesh, edge, runs_of(self.mesh, edge, of_factor), {}, self.index, add, self.checks)
            made = local.update(node, operands)
        else:
            made = replace(node.with_operands_in_order(operands), shardings=())
        assert made.value.type == wanted, f"{node.name} makes {made.value.type} and not {wanted}"
        return made

    def part(self, part: Part | None, values: dict[Value, Value], halos: Halos | None, add: Add) -> Node:
        """The last op of a part, after the others and after what is taken from neighbours."""
        assert part is not None and halos is not None, "it reads what a device does not have"
        origins: dict[tuple[Value, int], Run] = {}
        for (value, d), halo in halos.items():
            axes = sharding_of(value).axes[d]
            devices = self.mesh.size(axes)
            key = (values[value], d, halo)
            if key not in self.widened:
                self.widened[key] = widened(values[value], d, axes, devices, halo, add)
            values[value] = self.widened[key]
            origins[value, d] = origin(value, d, axes, devices, halo)
        return self.computed(part, values, origins, add)

    def computed(
        self,
        part: Part,
        values: Mapping[Value, Value],
        places: Mapping[tuple[Value, int], Run],
        add: Add,
    ) -> Node:
        """The op of a part, on values that have these places of dimensions that have been widened."""
        operands: list[Value] = []
        origins: dict[Place, Run | None] = {}
        for position, value in enumerate(part.node.operands):
            if (inner := part.made.get(position)) is not None:
                operands.append(add(self.computed(inner, values, places, add)))
                origins.update(((position, d), inner.places(d)) for d in range(value.tensor.rank))
            else:
                operands.append(values[value])
                for d, names in enumerate(part.edge.dimensions[position]):
                    if (value, d) in places:
                        origins[position, d] = places[value, d]
                    elif names and names[0] in part.runs and not sharding_of(value).axes[d]:
                        origins[position, d] = None
        shape = tuple(
            Size.of(run.extent) if (run := part.places(d)) is not None else s
            for d, s in enumerate(part.node.value.tensor.shape)
        )
        local = LocalOp(self.mesh, part.edge, part.runs, origins, self.index, add, self.checks)
        return local.structured(part.node, tuple(operands), TensorType(part.node.value.dtype, shape))

    # ------------------------------------------------------------------ moving

    def moved(self, node: Shard, old: Value, value: Value, nodes: list[Node]) -> Value:
        """A local value laid out anew: the collectives of `reshard_steps`, with padding before and cuts after them."""
        shape = [int(s) for s in shape_of(old)]
        add = _adding(nodes, node)
        for step in reshard_steps(self.mesh, shape, sharding_of(old), sharding_of(node.value)):
            if step.kind == "first":
                if not is_neutral(old, step.combiner):
                    value = add(on_first(value, self.index(step.axes), step.combiner))
                continue
            value = fitted(value, step.before, add)
            value = add(_collective(self.mesh, step, value))
            value = fitted(value, step.after, add)
        return value


def _adding(nodes: list[Node], like: Node) -> Add:
    """Adds nodes that stand in the place of one of the user's line."""

    def add(made: Node) -> Value:
        nodes.append(replace(made, **like.spans))
        return nodes[-1].value

    return add


def _collective(mesh: Mesh, step: Step, x: Value) -> Node:
    axes, devices = tuple(map(str, step.axes)), mesh.size(step.axes)
    match step.kind:
        case "all_reduce":
            return AllReduce(x, axes, devices, step.combiner)
        case "reduce_scatter":
            return ReduceScatter(x, axes, devices, step.dim, step.combiner)
        case "all_gather":
            return AllGather(x, axes, devices, step.dim)
        case "all_to_all":
            return AllToAll(x, axes, devices, step.dim, step.join)
        case "all_slice":
            return AllSlice(x, axes, devices, step.dim)
        case "collective_permute":
            return CollectivePermute(x, axes, devices, step.sources)
    raise AssertionError(step.kind)

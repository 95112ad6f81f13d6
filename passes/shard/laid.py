"""Whether every op can run on what each device has: what `reshard` leaves, and a program written by hand has to be."""

from __future__ import annotations

from collections.abc import Iterable

from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.linear import passes_parts
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Loop
from intarsia.ir.sharding import Axes, Mesh, MeshAxis, Sharding
from intarsia.passes.fuse.report import title
from intarsia.passes.shard.edges import Edge, edge_of, project
from intarsia.passes.shard.ways import Split, sharding_of, whole_windows


def check_laid(module: Module, mesh: Mesh) -> None:
    """Raise CompileError E1909 for an op whose operands do not lie as its result needs them, or that is given parts of
    a sum and is not linear in them."""
    _check_region(module.graph.body, mesh)


def axes_of_factors(mesh: Mesh, edge: Edge) -> dict[str, Axes]:
    """The axes of the mesh over which each factor of an op is split, as its operands and results lie."""
    of_factor: dict[str, Axes] = {}
    for t, value in enumerate(edge.tensors):
        found = project(mesh, edge, t, sharding_of(value).axes).of_factor
        of_factor.update({f: axes for f, axes in found.items() if axes})
    return of_factor


def _check_region(region: Region, mesh: Mesh) -> None:
    for node in region.nodes:
        match node:
            case Shard():
                pass
            case Loop():
                _check_loop(node, mesh)
            case _:
                _check_op(node, mesh)


def _check_loop(node: Loop, mesh: Mesh) -> None:
    for inner in node.regions:
        _check_region(inner, mesh)
    for parameter, initial, after, result in zip(node.states, node.initial, node.body.results, node.values):
        wanted = sharding_of(parameter.value)
        for value in (initial, after, result):
            if sharding_of(value) != wanted:
                raise _refused(node, f"its state is {parameter.type}, and {value.type} comes to it or from it")


def _check_op(node: Node, mesh: Mesh) -> None:
    edge = edge_of(node)
    op, operands = edge.node, [edge.tensors[p] for p in edge.operands]
    kept = [p for p, v in enumerate(operands) if sharding_of(v).partial]
    first = sharding_of(operands[kept[0]] if kept else node.value)
    partial, combiner = (first.partial, first.combiner) if kept else ((), "sum")
    if kept and not (isinstance(op, Structured) and passes_parts(op.space, kept, combiner)):
        raise _refused(node, f"{_types(operands[p] for p in kept)} is parts of what it needs whole")
    way = Split(mesh, edge).way(axes_of_factors(mesh, edge), kept, partial, combiner, whole_windows(edge, edge.tensors))
    found = None if way is None else [*map(_layout, (*way.operands, way.result))]
    if found != [_layout(sharding_of(v)) for v in edge.tensors]:
        raise _refused(node, f"{_types(operands)} cannot give {node.value.type}")


def _layout(sharding: Sharding) -> tuple[tuple[Axes, ...], frozenset[MeshAxis], str]:
    return sharding.axes, frozenset(sharding.partial), sharding.combiner if sharding.partial else ""


def _types(values: Iterable[Value]) -> str:
    return ", ".join(str(v.type) for v in values)


def _refused(node: Node, why: str) -> CompileError:
    hint = "the pass `reshard` lays out operands as ops need them"
    return CompileError("E1909", f"the {title(node)} does not lie as it has to: {why}", node.span, hint=hint)

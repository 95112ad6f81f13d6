"""Whether every op can run on what each device has: what `reshard` leaves, and a program written by hand has to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.linear import passes_parts
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Loop
from intarsia.ir.ops.index import Update
from intarsia.ir.sharding import Axes, Mesh, MeshAxis, Sharding
from intarsia.passes.fuse.report import title
from intarsia.passes.shard.edges import Edge, edge_of, project
from intarsia.passes.shard.ways import Split, sharding_of, sharding_of_stacked, whole_windows


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
    count = len(node.states)
    for emitted, result in zip(node.body.results[count:], node.values[count:]):
        if _layout(sharding_of_stacked(emitted)) != _layout(sharding_of(result)):
            raise _refused(node, f"it stacks {emitted.type} as {result.type}")


def _check_op(node: Node, mesh: Mesh) -> None:
    if is_laid(node, mesh):
        return
    edge = edge_of(node)
    operands = [edge.tensors[p] for p in edge.operands]
    kept = _parts(operands)
    if kept and not passes_parts(edge.node, kept, sharding_of(operands[kept[0]]).combiner):
        raise _refused(node, f"{_types(operands[p] for p in kept)} is parts of what it needs whole")
    raise _refused(node, f"{_types(operands)} cannot give {node.value.type}")


def is_laid(node: Node, mesh: Mesh) -> bool:
    """Can an op run on what each device has of its operands, and give its result as that lies?"""
    edge = edge_of(node)
    laid = [sharding_of(v) for v in edge.tensors]
    kept = _parts([edge.tensors[p] for p in edge.operands])
    partial, combiner = (laid[kept[0]].partial, laid[kept[0]].combiner) if kept else ((), "sum")
    of_factor = axes_of_factors(mesh, edge)
    merges = isinstance(node, Update) and any(of_factor.get(f.name) for f in edge.factors if f.reduced)
    if merges and kept == [0] and _layout(laid[0])[1:] == _layout(laid[-1])[1:]:
        # Each device merges its own writes with its part of the tensor.
        laid[0], kept, partial = laid[0].whole(), [], ()
    if kept and not passes_parts(edge.node, kept, combiner):
        return False
    way = Split(mesh, edge).way(of_factor, kept, partial, combiner, whole_windows(edge, edge.tensors))
    return way is not None and [*map(_layout, (*way.operands, way.result))] == [*map(_layout, laid)]


def _parts(values: Sequence[Value]) -> list[int]:
    return [p for p, v in enumerate(values) if sharding_of(v).partial]


def _layout(sharding: Sharding) -> tuple[tuple[Axes, ...], frozenset[MeshAxis], str]:
    return sharding.axes, frozenset(sharding.partial), sharding.combiner if sharding.partial else ""


def _types(values: Iterable[Value]) -> str:
    return ", ".join(str(v.type) for v in values)


def _refused(node: Node, why: str) -> CompileError:
    hint = "the pass `reshard` lays out operands as ops need them"
    return CompileError("E1909", f"the {title(node)} does not lie as it has to: {why}", node.span, hint=hint)

"""The mesh of a module, and types with and without shardings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node, Parameter, Region, Value
from intarsia.ir.ops.collective import Shard
from intarsia.ir.sharding import Mesh, Sharding
from intarsia.ir.types import TensorType, Type, placed
from intarsia.passes.fuse.report import title


def with_mesh(module: Module, mesh: Mesh) -> Module:
    """The module on another mesh."""
    return replace(module, header=(*(h for h in module.header if not h.startswith("mesh ")), str(mesh)))


def check_shardings(module: Module, mesh: Mesh) -> None:
    """Raise CompileError E1901 for a sharding that does not fit the mesh or the type."""
    for node in (*module.graph.parameters, *module.graph.body.walk()):
        for type_ in node.results:
            if type_.sharding is None:
                continue
            problem = type_.sharding.problem(mesh)
            if problem is None and type_.sharding.partial and not _has_parts(type_):
                problem = f"only a tensor of numbers of 8 bits and more is the {type_.sharding.combiner} of parts"
            if problem is not None:
                hint = f"the mesh is {mesh.said}; an axis of it splits one dimension of a tensor"
                raise CompileError("E1901", f"{type_}: {problem}", node.span, hint=hint)


def fits(module: Module, mesh: Mesh) -> bool:
    """Do all shardings fit the mesh and their types?"""
    try:
        check_shardings(module, mesh)
    except CompileError:
        return False
    return True


def described(value: Value) -> str:
    """What a user calls a value."""
    node = value.node
    if isinstance(node, Parameter) and node.label:
        return f"`{node.label}`"
    return f"the declared type {value.type}" if isinstance(node, Shard) else f"the {title(node)} of {value.type}"


def _has_parts(type_: Type) -> bool:
    return isinstance(type_, TensorType) and type_.dtype.kind != "bool" and not type_.dtype.is_narrow


def require_numbers(module: Module) -> None:
    """Raise CompileError E1904 for a dimension that is split and has no number yet."""
    for node in (*module.graph.parameters, *module.graph.body.walk()):
        for type_ in node.results:
            shape = type_.tensor.shape
            for size, axes in zip(shape, type_.sharding.axes if type_.sharding is not None else ()):
                if axes and size.constant is None:
                    hint = "give its size, as in --dim N=64; a dimension that is split cannot be dynamic"
                    raise CompileError("E1904", f"{type_}: {size} is split and has no number", node.span, hint=hint)


def with_parameters_laid(region: Region, shardings: Sequence[Sharding | None]) -> Region:
    """The region whose parameters lie so; itself where they do."""
    if all(p.type.sharding == s for p, s in zip(region.parameters, shardings)):
        return region
    laid = tuple(replace(p, type=placed(p.type, s)) for p, s in zip(region.parameters, shardings))
    rebuilt = region.rebuild({old.value: new.value for old, new in zip(region.parameters, laid)})
    return Region(laid, rebuilt.nodes, rebuilt.results)


def reshard_values(region: Region, find: Callable[[Value], Sharding | None]) -> Region:
    """The region with the sharding that `find` gives for each value of it and of the regions in it."""
    return _relaid(region, find, {})


def without_shardings(module: Module) -> Module:
    """The module for one device: no type says where its elements lie, and nothing is laid out anew."""
    body = module.graph.body
    if not any(t.sharding for n in (*body.parameters, *body.walk()) for t in n.results):
        return module
    return module.with_body(_relaid(body, lambda value: None, {}, drop=True))


def _relaid(
    region: Region, find: Callable[[Value], Sharding | None], outer: Mapping[Value, Value], drop: bool = False
) -> Region:
    values = dict(outer)
    parameters: list[Parameter] = []
    for parameter in region.parameters:
        new = replace(parameter, type=placed(parameter.type, find(parameter.value)))
        parameters.append(new)
        values[parameter.value] = new.value
    nodes: list[Node] = []
    for node in region.nodes:
        if drop and isinstance(node, Shard):
            values[node.value] = values.get(node.x, node.x)
            continue
        regions: dict[str, Any] = {
            name: _relaid(value, find, values, drop) for name, value in node._fields() if isinstance(value, Region)
        }
        found = tuple(find(v) for v in node.values)
        shardings = found if any(s is not None for s in found) else ()
        changed = replace(node, **regions, shardings=shardings).with_operands(values)
        nodes.append(changed)
        values.update(zip(node.values, changed.values))
    return Region(tuple(parameters), tuple(nodes), tuple(values.get(v, v) for v in region.results))

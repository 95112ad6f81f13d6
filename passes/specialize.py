"""Dimension names become numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import NOT_OWN, Module, Node, Parameter, Region, Value
from intarsia.ir.sizes import Size
from intarsia.ir.substitution import substitute
from intarsia.ir.types import ListType, Type
from intarsia.passes.pipeline import OPEN, Context, Pass


@dataclass(frozen=True)
class Specialize(Pass):
    """Replace dimension names by numbers everywhere; names that the context keeps dynamic stay.

    Before:  func @f(%x: f32[B, 2 * D]) { %0 = reshape %x shape=(B * 2, D) : f32[2 * B, D] … }
    After:   func @f(%x: f32[4, 16]) { %0 = reshape %x shape=(8, 8) : f32[8, 8] … }        with {B=4 D=8}

    Keeps: values. Needs: nothing. Leaves: no name that it was given a number for.

    Raises CompileError: E1403 a name that the graph does not have or a number below 0, E0205 a reshape that does not
    fit these sizes, E0311 a size below 0.
    """

    name: ClassVar[str] = "specialize"
    sizes: tuple[tuple[str, int], ...] = field(default=(), metadata=OPEN)

    def run(self, module: Module, context: Context) -> Module:
        names = {name: number for name, number in self.sizes if name not in context.dynamic}
        for name, number in names.items():
            if name not in module.graph.dimensions:
                known = ", ".join(module.graph.dimensions) or "no dimension names"
                raise CompileError("E1403", f"specialize: @{module.graph.name} has no dimension '{name}'", hint=known)
            if number < 0:
                raise CompileError("E1403", f"specialize: the size {name}={number} is below 0")
        return specialize(module, names) if names else module


def specialize(module: Module, numbers: Mapping[str, int]) -> Module:
    """The module with these dimension names replaced. Raises CompileError where a type does not fit the numbers."""
    names = {name: Size.of(number) for name, number in numbers.items()}
    body = _region(module.graph.body, names, {})
    dimensions = tuple(d for d in module.graph.dimensions if d not in names)
    return module.with_graph(dataclasses.replace(module.graph, body=body, dimensions=dimensions))


def _region(region: Region, names: Mapping[str, Size], outer: Mapping[Value, Value]) -> Region:
    """A copy of a region; `outer` maps the values around it."""
    values = dict(outer)
    parameters: list[Parameter] = []
    for parameter in region.parameters:
        new = dataclasses.replace(parameter, type=substitute(parameter.type, names))
        _check_type(new.type, parameter.type, parameter.span, names)
        parameters.append(new)
        values[parameter.value] = new.value
    nodes: list[Node] = []
    for node in region.nodes:
        rebuilt = _node(node, names, values)
        for old, found in zip(node.results, rebuilt.results):
            _check_type(found, old, node.span, names)
        nodes.append(rebuilt)
        values.update(zip(node.values, rebuilt.values))
    return Region(tuple(parameters), tuple(nodes), tuple(values.get(v, v) for v in region.results))


def _node(node: Node, names: Mapping[str, Size], values: Mapping[Value, Value]) -> Node:
    changed: dict[str, Any] = {}
    for f in dataclasses.fields(node):
        if f.name in NOT_OWN:
            continue
        old = getattr(node, f.name)
        new = _region(old, names, values) if isinstance(old, Region) else substitute(old, names, values)
        if new is not old:
            changed[f.name] = new
    return dataclasses.replace(node, **changed) if changed else node


def _check_type(new: Type, old: Type, span: Span | None, names: Mapping[str, Size]) -> None:
    for size, written in zip(_extents(new), _extents(old)):
        if size.constant is not None and size.constant < 0:
            given = ", ".join(f"{n} = {names[n]}" for n in sorted(written.symbols & names.keys()))
            raise CompileError("E0311", f"the size {written} of {old} is {size}, which is negative, for {given}", span)


def _extents(type_: Type) -> Iterable[Size]:
    if isinstance(type_, ListType):
        return (type_.length, *type_.element.shape)
    return type_.shape

"""Names replaced by sizes, and values by others, in whatever a node holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from intarsia.ir.graph import NOT_OWN, Node, Parameter, Region, Value
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Index, Load
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import ListType, TensorType


def substitute(value: Any, names: Mapping[str, Size], values: Mapping[Value, Value] | None = None) -> Any:
    """A field of a node with names replaced in sizes, types, axes, spaces and expressions, and operands by `values`."""
    match value:
        case Value():
            return values.get(value, value) if values else value
        case Size() | Axis() | Space() | Const() | Index() | Load() | Apply() | Cast() | Bitcast():
            return value.substitute(names)
        case TensorType() | ListType():
            return value.substitute(dict(names))
        case tuple():
            new = tuple(substitute(v, names, values) for v in value)
            return value if all(a is b for a, b in zip(new, value)) else new
    return value


Note = Callable[[Node, Node, Mapping[Value, Value]], None]
"""Is told of a node, its copy, and what has been put in place of other values."""


def copied(
    node: Node,
    names: Mapping[str, Size],
    values: Mapping[Value, Value],
    fresh: Callable[[str], str],
    note: Note = lambda node, copy, values: None,
) -> Node:
    """A new node with names and values replaced, also in its regions, whose loops get counters of their own.

    It is new even where nothing changes: a node is in one region. `note` is told of it and of all nodes inside.
    """
    changed: dict[str, Any] = {}
    if (counter := getattr(node, "counter", None)) is not None:
        changed["counter"] = fresh(counter)
        names = {**names, counter: Size.of(changed["counter"])}
    for f in dataclasses.fields(node):
        if f.name not in (*NOT_OWN, "counter"):
            old = getattr(node, f.name)
            new = (
                _region(old, names, values, fresh, note) if isinstance(old, Region) else substitute(old, names, values)
            )
            if new is not old:
                changed[f.name] = new
    copy = dataclasses.replace(node, **changed)
    note(node, copy, values)
    return copy


def _region(
    region: Region, names: Mapping[str, Size], outer: Mapping[Value, Value], fresh: Callable[[str], str], note: Note
) -> Region:
    values = dict(outer)
    parameters: list[Parameter] = []
    for parameter in region.parameters:
        parameters.append(dataclasses.replace(parameter, type=substitute(parameter.type, names)))
        values[parameter.value] = parameters[-1].value
    nodes: list[Node] = []
    for node in region.nodes:
        nodes.append(copied(node, names, values, fresh, note))
        values.update(zip(node.values, nodes[-1].values))
    return Region(tuple(parameters), tuple(nodes), tuple(values.get(v, v) for v in region.results))

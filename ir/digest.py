"""Structural equality of graphs, which ignores spans and the names of values: `==` on nodes and values is identity."""

from __future__ import annotations

import hashlib
from typing import Any

from intarsia.ir.graph import Graph, Module, Node, Region
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.text_printer import canonical_region_text, canonical_text


def same(a: Module | Graph | Region, b: Module | Graph | Region) -> bool:
    """Do two modules, graphs or regions have the same structure?

    Names of dimensions, axes and counters count, those of values and parameters do not. Two regions must capture the
    same values.
    """
    if isinstance(a, Region) and isinstance(b, Region):
        return a.captures == b.captures and canonical_region_text(a) == canonical_region_text(b)
    return type(a) is type(b) and _text(a) == _text(b)


def digest(module: Module) -> str:
    """A hexadecimal digest of the structure of a module: the same in every process and on every machine."""
    return hashlib.sha256(_text(module).encode()).hexdigest()


def node_key(node: Node) -> tuple[object, ...]:
    """Equal for two nodes of one op whose operands are the same values and whose attributes and regions are equal."""
    return (node.name, node.shardings, *(_field_key(value) for _, value in node._fields()))


def _text(a: Module | Graph | Region) -> str:
    match a:
        case Module(graph, kernels, header):
            return "\n".join((*header, canonical_text(graph), *map(print_kernel, kernels)))
        case Graph():
            return canonical_text(a)
        case Region():
            return canonical_region_text(a)


def _field_key(value: Any) -> object:
    match value:
        case Region():
            return (canonical_region_text(value), value.captures)
        case float() | int() | str():
            return repr(value)  # 0.0 differs from -0.0, 1 from 1.0 and true; nan equals nan
        case tuple():
            return tuple(map(_field_key, value))
    return value

"""A graph as a drawing, in the language of Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.ir.graph import Module, Node, Region, Value


def dot(module: Module) -> str:
    """`digraph` text: a box for each node with its type, an arrow for each operand, a frame around each region."""
    names: dict[Node, str] = {}
    lines = [f'digraph "{module.graph.name}" {{', "  node [shape=box, fontname=monospace, fontsize=10];"]
    lines += _region(module.graph.body, names, "  ")
    for index, value in enumerate(module.graph.results):
        lines.append(f'  out{index} [label="result {index}", shape=ellipse];')
        lines.append(f"  {_name(value, names)} -> out{index};")
    return "\n".join([*lines, "}"]) + "\n"


def _region(region: Region, names: dict[Node, str], indent: str) -> Iterator[str]:
    for parameter in region.parameters:
        names[parameter] = f"n{len(names)}"
        yield f'{indent}{names[parameter]} [label="{parameter.label}\\n{parameter.type}", shape=ellipse];'
    for node in region.nodes:
        for number, inner in enumerate(node.regions):
            yield f"{indent}subgraph cluster_{len(names)}_{number} {{"
            yield f'{indent}  label="{node.name}";'
            yield from _region(inner, names, indent + "  ")
            yield f"{indent}}}"
        names[node] = f"n{len(names)}"
        title = getattr(node, "function", node.name)
        types = "\\n".join(str(t) for t in node.results)
        yield f'{indent}{names[node]} [label="{title}\\n{types}"];'
        sources = dict.fromkeys((*node.operands, *(v for r in node.regions for v in r.results)))
        for value in sources:
            yield f"{indent}{_name(value, names)} -> {names[node]};"


def _name(value: Value, names: dict[Node, str]) -> str:
    return names[value.node]

"""The text of a Module. `ir/text.py` describes the form and offers it; `ir/text_reader.py` reads it back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import Span
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.ops.control import Call, Fused, ListGet, Loop
from intarsia.ir.ops.elementwise import Constant, Elementwise
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.scalar import Const
from intarsia.ir.space import Axis

VERSION = "intarsia.ir 1"

DERIVED = ("dtype", "shape", "types")
"""Fields with these names are those of the result, whose type the text shows anyway."""

_OPERAND = re.compile(r"(?<![\w%])(?<!\w\.)a(\d+)\[")
_WORD = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def module_text(module: Module, debug_info: bool) -> str:
    """The whole module, with a newline at its end."""
    head = "\n".join((VERSION, *module.header))
    graph = "\n".join(_Printer(debug_info).graph(module.graph))
    return "\n\n".join((head, graph, *(print_kernel(k) for k in module.kernels))) + "\n"


def canonical_text(graph: Graph) -> str:
    """The text of a graph in which parameters go by number, not by label: equal for graphs of the same structure."""
    return "\n".join(_Printer(debug_info=False, numbered=True).graph(graph))


def canonical_region_text(region: Region) -> str:
    """The same for a region; what it captures goes by position."""
    printer = _Printer(debug_info=False, numbered=True)
    parameters = [printer.label(p) for p in region.parameters]
    printer.names.update((v, f"%c{position}") for position, v in enumerate(region.captures))
    head = ", ".join(f"{label}: {p.type}" for label, p in zip(parameters, region.parameters))
    return "\n".join((head, *printer.region(region, 1), printer.uses(region.results)))


def node_text(node: Node) -> str:
    """One node, for messages, with what it uses as `%0`, `%1`, …"""
    printer = _Printer(debug_info=False)
    for position, value in enumerate(node.inputs):
        printer.names[value] = f"%{position}"
    printer.count = len(node.inputs)
    return "\n".join(printer.node(node, 0))


@dataclass
class _Printer:
    """Names values as it goes: parameters by their label, results by number."""

    debug_info: bool
    numbered: bool = False
    names: dict[Value, str] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    count: int = 0

    def graph(self, graph: Graph) -> Iterator[str]:
        dimensions = f"[{', '.join(graph.dimensions)}]" if graph.dimensions else ""
        parameters = ", ".join(
            f"{'const ' if p.constant else ''}{self.label(p)}: {p.type}{self.location(p)}" for p in graph.parameters
        )
        yield f"func @{graph.name}{dimensions}({parameters}) {{"
        yield from self.region(graph.body, 1)
        yield f"  return {self.uses(graph.results)}".rstrip()
        yield "}"

    def region(self, region: Region, depth: int) -> Iterator[str]:
        for node in region.nodes:
            yield from self.node(node, depth)

    def node(self, node: Node, depth: int) -> Iterator[str]:
        """The lines of a node. Only the last of several carries the types."""
        margin = "  " * depth
        name = f"%{self.count}"
        self.count += 1
        several = len(node.results) != 1
        for value in node.values:
            self.names[value] = f"{name}#{value.index}" if several else name
        head = f"{margin}{name}{f':{len(node.results)}' if several else ''} = "
        *lines, last = self.body(node, depth)
        types = ", ".join(map(str, node.results))
        lines.append(f"{last} : {types}".rstrip() + self.location(node))
        yield head + lines[0]
        yield from lines[1:]

    def body(self, node: Node, depth: int) -> list[str]:
        """What stands between `=` and the types."""
        match node:
            case Elementwise(function, arguments):
                return [f"{function} {self.uses(arguments)}"]
            case Constant(literal):
                return [f"constant {_attribute(literal)}"]
            case Compute(arguments, space):
                reduction = f"{space.combiner}{_axes(space.reduced)}" if space.combiner else ""
                text = f"compute {_axes(space.axes)} {reduction}({space.body})"
                return [self.with_operands(text, arguments)]
            case Update(base, arguments, axes, targets, operator, body):
                text = f"update a0[{', '.join(map(str, targets))}] {operator} {_axes(axes)} ({body})"
                return [self.with_operands(text, (base, *arguments))]
            case ListGet(source, index, scalars):
                return [f"list_get {self.names[source]}[{self.with_operands(str(index), scalars)}]"]
            case Call(kernel, arguments, _, sizes):
                bounds = f"[{', '.join(map(str, sizes))}]" if sizes else ""
                return [f"call @{kernel}({self.uses(arguments)}){bounds}"]
            case Fused(body):
                return [
                    "fused {",
                    *self.region(body, depth + 1),
                    *self.yields(body, len(body.results), depth),
                    _end(depth),
                ]
            case Loop():
                return self.loop(node, depth)
        return [self.generic(node)]

    def loop(self, node: Loop, depth: int) -> list[str]:
        states = len(node.initial)
        labels = [self.label(p) for p in node.states]
        bounds = self.with_operands(f"{node.counter} in {node.lower}..{node.upper}", node.scalars)
        initial = ", ".join(f"{label} = {self.names[v]}" for label, v in zip(labels, node.initial))
        lines = [f"{'scan' if node.stacked else 'loop'} {bounds} ({initial})"]
        if node.condition is not None:
            self.names.update(zip((p.value for p in node.condition.parameters), labels))
            lines[-1] += " while {"
            lines += [*self.region(node.condition, depth + 1), *self.yields(node.condition, 1, depth), _end(depth)]
            self.names.update(zip((p.value for p in node.states), labels))
        lines[-1] += " {"
        return [*lines, *self.region(node.body, depth + 1), *self.yields(node.body, states, depth), _end(depth)]

    def yields(self, region: Region, count: int, depth: int) -> Iterator[str]:
        """The first `count` results are yielded, the others emitted."""
        margin = "  " * (depth + 1)
        for word, values in (("yield", region.results[:count]), ("emit", region.results[count:])):
            if values:
                yield f"{margin}{word} {self.uses(values)}"

    def generic(self, node: Node) -> str:
        """`name operands attribute=value`, from the fields; those that have their default value are left out."""
        return operation_text(node, self.uses(node.operands))

    # ------------------------------------------------------------------ names

    def uses(self, values: tuple[Value, ...]) -> str:
        return ", ".join(self.names.get(v, "%?") for v in values)

    def label(self, parameter: Parameter) -> str:
        """A name for a parameter that no other one has: its label, if that will do."""
        if self.numbered:
            self.names[parameter.value] = f"%p{len(self.labels)}"
            self.labels.add(f"p{len(self.labels)}")
            return self.names[parameter.value]
        plain = re.sub(r"[^\w.]", "_", parameter.label)
        label = plain if _WORD.fullmatch(plain) else f"p_{plain.replace('.', '_')}"
        unique, count = label, 0
        while unique in self.labels:
            count += 1
            unique = f"{label}_{count}"
        self.labels.add(unique)
        self.names[parameter.value] = f"%{unique}"
        return f"%{unique}"

    def with_operands(self, text: str, values: tuple[Value, ...]) -> str:
        """Put the names of values in place of `a0[`, `a1[`, … in the text of a space."""
        names = {str(position): self.uses((v,)) for position, v in enumerate(values)}
        return _OPERAND.sub(lambda found: f"{names.get(found[1], '%?')}[", text)

    def location(self, node: Node) -> str:
        if not self.debug_info or node.span is None:
            return ""
        return f" loc({', '.join(map(_span, (node.span, *node.more_spans)))})"


def operation_text(node: Node, operands: str = "") -> str:
    """The name and the attributes of a node that is not printed in a form of its own."""
    parts = [node.name, operands]
    for f in dataclasses.fields(node):
        if f.name in node.attributes and f.name not in DERIVED:
            value = getattr(node, f.name)
            if f.default is dataclasses.MISSING or value != f.default:
                parts.append(f"{f.name}={_attribute(value)}")
    return " ".join(p for p in parts if p)


def _axes(axes: tuple[Axis, ...]) -> str:
    return f"[{', '.join(map(str, axes))}]"


def _end(depth: int) -> str:
    return f"{'  ' * depth}}}"


def _span(span: Span) -> str:
    return f'"{span.source.name}":{span.line}:{span.column}'


def _attribute(value: Any) -> str:
    match value:
        case tuple():
            inner = ", ".join(map(_attribute, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
        case str():
            return value if _WORD.fullmatch(value) else f'"{value}"'
        case DType() | Const() | int() | None:
            return str(value)
    return str(value)

"""Equal nodes become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from intarsia.ir.errors import Span
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import Loop
from intarsia.ir.sizes import Size
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.specialize import substitute


@dataclass(frozen=True)
class Cse(Pass):
    """Compute once what is written several times, also where an inner region repeats what is around it.

    Before:  %0 = exp %x : f32[4]              After:  %0 = exp %x : f32[4]
             %1 = exp %x : f32[4]                      %1 = mul %0, %0 : f32[4]
             %2 = mul %0, %1 : f32[4]

    Two loops are equal if they differ in the name of their counter only. The node that stays keeps all spans.

    Keeps: values, bit for bit. Needs: nothing. Leaves: no two equal nodes one of which could stand for the other.
    """

    name: ClassVar[str] = "cse"

    def run(self, module: Module, context: Context) -> Module:
        body = _merge(module.graph.body, {})
        return module if body is module.graph.body else module.with_body(body)


def _merge(region: Region, outer: Mapping[object, Node]) -> Region:
    """The region with equal nodes merged. `outer` are the nodes around it, by key."""
    seen = dict(outer)
    values: dict[Value, Value] = {}
    nodes: dict[Node, list[Span]] = {}
    for node in region.nodes:
        new = _inside(node.with_operands(values), seen)
        first = seen.setdefault(node_key(new), new)
        if first is new:
            nodes[new] = []
        elif first in nodes:
            nodes[first] += [s for s in (new.span, *new.more_spans) if s]
        if first is not node:
            values.update(zip(node.values, first.values))
    results = tuple(values.get(v, v) for v in region.results)
    if len(nodes) == len(region.nodes) and all(a is b for a, b in zip(nodes, region.nodes)):
        return region if results == region.results else replace(region, results=results)
    return _keep_spans(Region(region.parameters, tuple(nodes), results), nodes)


def _keep_spans(region: Region, spans: Mapping[Node, list[Span]]) -> Region:
    """The region with the spans of the nodes that went added to those that stand for them."""
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in region.nodes:
        new = node.with_operands(values)
        more = tuple(dict.fromkeys((*node.more_spans, *(s for s in spans[node] if s != node.span))))
        if more != node.more_spans:
            new = replace(new, more_spans=more)
        if new is not node:
            values.update(zip(node.values, new.values))
        nodes.append(new)
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))


def _inside(node: Node, seen: Mapping[object, Node]) -> Node:
    """The node with its regions merged."""
    changed: dict[str, Any] = {
        f.name: new
        for f in fields(node)
        if isinstance(old := getattr(node, f.name), Region) and (new := _merge(old, seen)) is not old
    }
    return replace(node, **changed) if changed else node


def node_key(node: Node) -> object:
    """What two nodes have in common if one can stand for the other."""
    return _node_key(node, {}, {})


def _node_key(node: Node, local: Mapping[Value, int], counters: Mapping[str, Size]) -> object:
    """`local` numbers the values of the regions around it, `counters` renames those of loops."""
    if isinstance(node, Loop):
        counters = {**counters, node.counter: Size.of(f"#{len(counters)}")}
    return (
        node.name,
        *(
            _key(getattr(node, f.name), local, counters)
            for f in fields(node)
            if f.name not in ("span", "more_spans", "results", "counter")
        ),
    )


def _key(value: Any, local: Mapping[Value, int], counters: Mapping[str, Size]) -> object:
    match value:
        case Value():
            return local.get(value, value)
        case Region(parameters=parameters, nodes=nodes, results=results):
            numbers = dict(local)
            for node in (*parameters, *nodes):
                numbers.update((v, len(numbers) + i) for i, v in enumerate(node.values))
            return (
                tuple(p.type for p in parameters),
                tuple(_node_key(node, numbers, counters) for node in nodes),
                _key(results, numbers, counters),
            )
        case tuple():
            return tuple(_key(v, local, counters) for v in value)
        case float():
            return repr(value)  # 0.0 is not -0.0, and nan is nan
    return (type(value).__name__, substitute(value, counters))

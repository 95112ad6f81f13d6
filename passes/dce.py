"""Nodes that no result needs are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import Call, Fused, Loop
from intarsia.ir.sharding import Sharding
from intarsia.passes.pipeline import Context, Pass


@dataclass(frozen=True)
class Dce(Pass):
    """Drop what no result needs: nodes, states and stacked values of loops, results of fused groups, kernels.

    Before:  %0 = exp %x : f32[4]                                  After:  %0 = add %x, %x : f32[4]
             %1 = add %x, %x : f32[4]                                      return %0
             return %1

    Keeps: values, parameters and the order of the nodes. Needs: nothing. Leaves: no dead node.
    """

    name: ClassVar[str] = "dce"

    def run(self, module: Module, context: Context) -> Module:
        body = prune(module.graph.body, module.graph.results)
        return module if body is module.graph.body else without_dead_kernels(module.with_body(body))


def without_dead_kernels(module: Module) -> Module:
    """The module without kernels that nothing calls."""
    called = {node.kernel for node in module.graph.body.walk() if isinstance(node, Call)}
    return replace(module, kernels=tuple(k for k in module.kernels if k.name in called))


def prune(region: Region, results: Sequence[Value]) -> Region:
    """The region that gives `results`, some of its values, and holds nothing that they do not need."""
    used: set[Value] = set(results)
    kept: list[tuple[Node, Node, Sequence[int]]] = []
    for node in reversed(region.nodes):
        live = [i for i, value in enumerate(node.values) if value in used]
        if live:
            smaller, left = _shrink(node, live)
            used.update(smaller.inputs)
            kept.append((node, smaller, left))
    same_nodes = len(kept) == len(region.nodes) and all(node is smaller for node, smaller, _ in kept)
    if same_nodes and tuple(results) == region.results:
        return region
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node, smaller, left in reversed(kept):
        rebuilt = smaller.with_operands(values)
        nodes.append(rebuilt)
        if rebuilt is not node:
            values.update((node.values[old], new) for old, new in zip(left, rebuilt.values))
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in results))


def _shrink(node: Node, live: Sequence[int]) -> tuple[Node, Sequence[int]]:
    """A node that gives at least the `live` ones of its results, and which ones it gives."""
    match node:
        case Fused(body=body):
            smaller = prune(body, [body.results[i] for i in live])
            return (node, live) if smaller is body else (replace(node, body=smaller, shardings=_of(node, live)), live)
        case Loop():
            return _shrink_loop(node, live)
    return node, range(len(node.results))


def _shrink_loop(loop: Loop, live: Sequence[int]) -> tuple[Loop, Sequence[int]]:
    """A state stays if its result is used, if the condition reads it, or if a state or value that stays needs it."""
    count = len(loop.initial)
    condition = prune(loop.condition, loop.condition.results) if loop.condition else None
    emitted = [i for i in live if i >= count]
    states = [i for i in range(count) if i in live or (condition and i in _read(condition))]
    while True:
        body = prune(loop.body, [loop.body.results[i] for i in (*states, *emitted)])
        needed = sorted({*states, *_read(body)})
        if needed == states:
            break
        states = needed
    left = [*states, *emitted]
    if body is loop.body and condition is loop.condition:
        return loop, left

    def pick(region: Region) -> Region:
        return replace(region, parameters=tuple(region.parameters[i] for i in states))

    initial = tuple(loop.initial[i] for i in states)
    return replace(
        loop,
        initial=initial,
        body=pick(body),
        condition=pick(condition) if condition else None,
        stacked=len(emitted),
        shardings=_of(loop, left),
    ), left


def _of(node: Node, results: Sequence[int]) -> tuple[Sharding | None, ...]:
    """The shardings of some results of a node."""
    return tuple(node.shardings[i] for i in results) if node.shardings else ()


def _read(region: Region) -> set[int]:
    """The positions of the parameters that a region reads."""
    used = {v.node for node in region.nodes for v in node.inputs} | {v.node for v in region.results}
    return {i for i, parameter in enumerate(region.parameters) if parameter in used}

"""Roundings between the ops of one kernel are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import Cast, Fused
from intarsia.passes.dce import prune
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions


@dataclass(frozen=True)
class SkipRounding(Pass):
    """Within a fused group, an op takes the wide value that an optional cast would round.

    Before:  %1 = cast %0 optional=true : bf16[4]           After:  %3 = mul %0, %0 : f32[4]
             %2 = cast %1 : f32[4]
             %3 = mul %2, %2 : f32[4]

    Between groups the rounded value goes through memory, which it halves.

    Keeps: values, or makes them more exact. Needs: `fuse`. Leaves: no such pair of casts in a group.
    """

    name: ClassVar[str] = "skip-rounding"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        body = _region(module.graph.body)
        return module.with_body(body)


def _region(region: Region) -> Region:
    """The region with every group inside it changed."""
    return change_regions(region, lambda node, r: without_roundings(r) if isinstance(node, Fused) else _region(r))


def without_roundings(group: Region) -> Region:
    """The group with values taken before their optional roundings."""
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in group.nodes:
        match node:
            case Cast(Value(Cast(x, _, True) as rounding), dtype) if rounding in group.nodes and x.dtype == dtype:
                values[node.value] = values.get(x, x)
                continue
        new = node.with_operands(values)
        if new is not node:
            values.update(zip(node.values, new.values))
        nodes.append(new)
    if len(nodes) == len(group.nodes):
        return group
    results = tuple(values.get(v, v) for v in group.results)
    return prune(Region(group.parameters, tuple(nodes), results), results)

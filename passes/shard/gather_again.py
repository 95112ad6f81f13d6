"""Parameters that are gathered anew for each use, not kept whole from the forward part to the backward one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Parameter, Region, Value
from intarsia.ir.ops import After, AllGather
from intarsia.passes.pipeline import Context, Pass


@dataclass(frozen=True)
class GatherAgain(Pass):
    """Gather a parameter once more for a reader before which others have been gathered; along `axis`, or any.

    Before:  %0 = all_gather %w axes=(data,)         After:  %0 = all_gather %w axes=(data,)
             %1 = matmul %x, %0                              %1 = matmul %x, %0
             %2 = all_gather %u axes=(data,)                 %2 = all_gather %u axes=(data,)
             …                                               …
             %7 = matmul %6, %0                              %7 = after %w, (%6)
                                                             %8 = all_gather %7 axes=(data,)
                                                             %9 = matmul %6, %8

    So a device has no more weights whole than those that it is using, and sends half as much again: FSDP's resharding
    after the forward part (Zhao and others, "PyTorch FSDP", 2023); ZeRO-3 sends three times the weights.

    Keeps: values. Needs: the program of a device (`partition`). Leaves: gathers of what is there `after` other values,
    so that equal ones are not made one again.
    """

    name: ClassVar[str] = "gather-again"
    axis: str = ""

    def run(self, module: Module, context: Context) -> Module:
        return module.with_body(self._region(module.graph.body))

    def _region(self, region: Region) -> Region:
        places = {node: n for n, node in enumerate(region.nodes)}
        gathered = [n for n, node in enumerate(region.nodes) if self._is_weight(node)]
        used: dict[Value, int] = {}
        values: dict[Value, Value] = {}
        nodes: list[Node] = []
        for n, node in enumerate(region.nodes):
            for value in dict.fromkeys(node.inputs):
                if not self._is_weight(value.node):
                    continue
                others = [v for v in node.inputs if v.node in places and not self._is_weight(v.node)]
                if others and any(used.get(value, n) < g < n for g in gathered):
                    last = max(others, key=lambda v: places[v.node])
                    after = After(value.node.operands[0], (values.get(last, last),), span=node.span)
                    again = value.node.with_operands({value.node.operands[0]: after.value}).at(node.span)
                    nodes += [after, again]
                    values[value] = again.values[0]
                    gathered.append(n)
                used[value] = n
            made = node.with_operands(values)
            nodes.append(made)
            values.update(zip(node.values, made.values))
        return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))

    def _is_weight(self, node: Node) -> bool:
        return isinstance(node, AllGather) and isinstance(node.x.node, Parameter) and self.axis in ("", *node.axes)

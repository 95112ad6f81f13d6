"""What a step of a loop gathers is gathered in the step before it, at the same time as that one computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Parameter, Region, Value, region_of
from intarsia.ir.ops import AllGather, Loop
from intarsia.ir.sizes import Size, minimum
from intarsia.ir.substitution import copied
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions


@dataclass(frozen=True)
class GatherAhead(Pass):
    """Gather in each step of a loop what the next step needs, where that hangs on the counter alone.

    Before:  %0 = loop t in 0..8 (%h = %x) {               After:  %0 = list_get %w[0]
               %1 = list_get %w[t]                                 %1 = all_gather %0 …
               %2 = all_gather %1 …                                %2:2 = loop t in 0..8 (%h = %x, %ahead = %1) {
               %3 = matmul %h, %2                                    %3 = list_get %w[min(t + 1, 7)]
               yield %3                                              %4 = all_gather %3 …
             }                                                       %5 = matmul %h, %ahead
                                                                     yield %5, %4
                                                                   }

    So `overlap` can hide it: the weights of one layer come while the one before it computes, as FSDP prefetches them.
    A device holds those of two layers, and the last step gathers once more than there is need for.

    Keeps: values, bit for bit. Needs: a partitioned program. Leaves: loops whose number of steps depends on data.
    """

    name: ClassVar[str] = "gather-ahead"

    def run(self, module: Module, context: Context) -> Module:
        body = self._region(module.graph.body, context)
        return module.with_body(body)

    def _region(self, region: Region, context: Context) -> Region:
        region = change_regions(region, lambda _, inner: self._region(inner, context))
        values: dict[Value, Value] = {}
        nodes: list[Node] = []
        for node in region.nodes:
            new = node.with_operands(values)
            made = _ahead(new) if isinstance(new, Loop) else ()
            if made:
                self.remark(context, "sharding", "a step gathers what the next one needs", node.span)
                *before, new = made
                nodes += before
            nodes.append(new)
            values.update((old, v) for old, v in zip(node.values, _old_values(node, new)) if old is not v)
        if not values:
            return region
        return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))


def _old_values(old: Node, new: Node) -> tuple[Value, ...]:
    """The results of a loop without those of states that it has more."""
    if not isinstance(old, Loop) or not isinstance(new, Loop):
        return new.values
    return (*new.values[: len(old.initial)], *new.values[len(new.initial) :])


def _ahead(loop: Loop) -> tuple[Node, ...]:
    """What the first step needs, then the loop; nothing where it gathers nothing that can be known before."""
    lower, upper = loop.lower.constant, loop.upper.constant
    found = _known_before(loop)
    if lower is None or upper is None or lower >= upper or not found:
        return ()
    before: list[Node] = []
    own: list[Node] = []
    initial = _copies(found, {loop.counter: Size.of(lower)}, before)
    following = _copies(found, {loop.counter: minimum(Size.of(loop.counter) + 1, Size.of(upper - 1))}, own)
    states = tuple(Parameter(f"ahead_{n}", v.type) for n, v in enumerate(found))
    rebuilt = Region((), loop.body.nodes, loop.body.results).rebuild({v: s.value for v, s in zip(found, states)})
    count = len(loop.initial)
    results = (*rebuilt.results[:count], *following, *rebuilt.results[count:])
    condition = loop.condition
    if condition is not None:
        more = tuple(Parameter(s.label, s.type) for s in states)
        condition = Region((*condition.parameters, *more), condition.nodes, condition.results)
    made = replace(
        loop,
        initial=(*loop.initial, *initial),
        body=region_of((*loop.body.parameters, *states), (*own, *rebuilt.nodes), results),
        condition=condition,
    )
    return (*before, made)


def _known_before(loop: Loop) -> dict[Value, tuple[Node, ...]]:
    """What a step gathers of what hangs on the counter alone, each with the nodes of the body that it needs."""
    needs: dict[Node, dict[Node, None] | None] = dict.fromkeys(loop.body.parameters)  # None: on a state
    found: dict[Value, tuple[Node, ...]] = {}
    for node in loop.body.nodes:
        parts = [needs.get(v.node, {}) for v in node.inputs]
        if node.regions or any(p is None for p in parts):
            needs[node] = None
            continue
        needs[node] = {n: None for p in parts for n in p or ()} | {node: None}
        if isinstance(node, AllGather) and not node.started:
            found[node.value] = tuple(needs[node] or ())
    return found


def _copies(found: Mapping[Value, tuple[Node, ...]], names: Mapping[str, Size], nodes: list[Node]) -> tuple[Value, ...]:
    """The values for another counter, by nodes that are appended."""
    values: dict[Value, Value] = {}
    for needed in found.values():
        for node in needed:
            if node.values[0] not in values:
                nodes.append(copied(node, names, values, lambda name: name))
                values.update(zip(node.values, nodes[-1].values))
    return tuple(values[v] for v in found)

"""The order of calls: what reads a value comes before what changes it in place, so that nothing has to be copied."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from intarsia.ir.graph import Node, Region, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import After, Call, Reshape
from intarsia.passes.regions import change_regions


def without_order(region: Region) -> Region:
    """The region with the values themselves in the place of those `After` others: groups have been formed, and each is
    in the order of execution now."""
    region = change_regions(region, lambda _, inner: without_order(inner))
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in region.nodes:
        if isinstance(node, After):
            values[node.value] = values.get(node.x, node.x)
            continue
        new = node.with_operands(values)
        if new is not node:
            values.update(zip(node.values, new.values))
        nodes.append(new)
    if len(nodes) == len(region.nodes):
        return region
    return Region(region.parameters, tuple(nodes), tuple(values.get(r, r) for r in region.results))


def readers_first(nodes: Sequence[Node], kernels: Mapping[str, Kernel]) -> tuple[Node, ...]:
    """The nodes of a region in an order as close as possible to the given one, in which a call that changes a value
    in place comes after the other nodes that read the value, unless they need its result."""
    position = {node: n for n, node in enumerate(nodes)}
    before: dict[int, set[int]] = {
        n: {position[v.node] for v in node.inputs if v.node in position} for n, node in enumerate(nodes)
    }
    readers: dict[Value, list[int]] = {}
    for n, node in enumerate(nodes):
        for value in node.inputs:
            readers.setdefault(memory_of(value), []).append(n)
    moved = False
    for n, node in enumerate(nodes):
        if isinstance(node, Call):
            for base in changed_in_place(node, kernels[node.kernel]):
                for reader in readers[memory_of(base)]:
                    if reader > n and not _needs(reader, n, before):
                        before[n].add(reader)
                        moved = True
    return _sorted(nodes, before) if moved else tuple(nodes)


def changed_in_place(call: Call, kernel: Kernel) -> list[Value]:
    """The values that a call changes in place."""
    read = [b.role for b in kernel.parameters if b.role in ("in", "inout")]
    return [value for value, role in zip(call.arguments, read, strict=True) if role == "inout"]


def memory_of(value: Value) -> Value:
    """The value whose memory a value is."""
    while isinstance(value.node, Reshape):
        value = value.node.x
    return value


def _needs(node: int, other: int, before: Mapping[int, set[int]]) -> bool:
    """Does a node come after another in every order?"""
    seen, stack = {node}, [node]
    while stack:
        for earlier in before[stack.pop()]:
            if earlier == other:
                return True
            if earlier not in seen:
                seen.add(earlier)
                stack.append(earlier)
    return False


def _sorted(nodes: Sequence[Node], before: Mapping[int, set[int]]) -> tuple[Node, ...]:
    """A topological order, of the nodes that are ready always the first one."""
    after: dict[int, list[int]] = {n: [] for n in before}
    for n, earlier in before.items():
        for e in earlier:
            after[e].append(n)
    open_ = {n: len(earlier) for n, earlier in before.items()}
    ready = [n for n, count in open_.items() if not count]
    order: list[Node] = []
    while ready:
        n = heapq.heappop(ready)
        order.append(nodes[n])
        for later in after[n]:
            open_[later] -= 1
            if not open_[later]:
                heapq.heappush(ready, later)
    assert len(order) == len(nodes), "the order has a cycle"
    return tuple(order)

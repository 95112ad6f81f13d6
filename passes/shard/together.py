"""Which ops are computed together, so that what one gives another is never sent.

A pad before a convolution shifts the parts of the devices: it would take what it lacks from neighbours, and so would
the convolution. Where each device pads what its part of the convolution reads, one of the two is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from intarsia.ir.graph import Node, Structured, Value, region_of
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Fused
from intarsia.ir.sharding import Axes, Mesh
from intarsia.ir.types import ListType
from intarsia.passes.shard.composed import moved, only_moves, reads_in_sizes
from intarsia.passes.shard.edges import Edge, edge_of, shape_of
from intarsia.passes.shard.halos import Part, Reads, part_of
from intarsia.passes.shard.local import runs_of

MOST = 16
"""Parts of a group: an op for each time that it is read."""


def together(
    root: Structured, region: Collection[Node], is_for_one: Callable[[Value], bool]
) -> tuple[Fused, tuple[Node, ...]] | None:
    """An op with those before it, of its region, that only move elements to other places, and where it does that
    itself with the one that computes what it moves for it alone: as a group, and those before it. None where there are
    none."""
    taken: dict[Node, Structured] = {}
    parts: dict[Node, int] = {}

    def take(node: Structured) -> None:
        inner: dict[Value, Value] = {}
        parts[node] = 1
        for value in dict.fromkeys(node.operands):
            before = value.node
            if isinstance(before, Structured) and before in region and joins(node, value, before):
                if before not in taken:
                    take(before)
                more = parts[before] * node.operands.count(value)
                if parts[node] + more <= MOST:
                    parts[node] += more
                    inner[value] = taken[before].value
        taken[node] = replace(node, shardings=()).with_operands(inner)

    def joins(node: Structured, value: Value, before: Structured) -> bool:
        if isinstance(before, Shard) or any(isinstance(v.type, ListType) for v in before.operands):
            return False
        if _shifts(before) or (node is not root and _repeats(before)):
            return not any(reads_in_sizes(node.space, p) for p, v in enumerate(node.operands) if v == value)
        return node is root and _shifts(node) and moved(node.space) is not None and is_for_one(value)

    take(root)
    body = region_of((), tuple(taken.values()), (taken[root].value,))
    if len(body.nodes) == 1:
        return None
    group = Fused(body, **root.spans, shardings=root.shardings)
    return group, tuple(n for n, made in taken.items() if made in body.nodes and n is not root)


def _shifts(node: Structured) -> bool:
    """Does an op only move elements, to other places along a dimension?"""
    return only_moves(node.space) and bool(edge_of(node).windows)


def _repeats(node: Structured) -> bool:
    """Is every element the same?"""
    return only_moves(node.space) and not any(shape_of(v) for v in node.operands)


def local_part(
    mesh: Mesh, node: Structured | Fused, edge: Edge, of_factor: Mapping[str, Axes], reads: Reads
) -> Part | None:
    """What a device computes of an op or a group whose factors are split so; None where it cannot compute it so."""
    runs = runs_of(mesh, edge, of_factor)
    if isinstance(node, Structured):
        return part_of(node, edge, runs, reads)
    root = node.body.results[0].node
    assert isinstance(root, Structured)
    if not runs.keys() <= {a.name for a in root.space.all_axes}:
        return None
    return part_of(root, edge_of(root), runs, reads, node.body.nodes)

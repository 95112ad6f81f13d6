"""Regions with some of their nodes changed, or with the regions inside these changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from intarsia.ir.graph import Node, Region, Value


def change_regions(region: Region, change: Callable[[Node, Region], Region]) -> Region:
    """The region with every region of its nodes changed, and what uses those nodes rebuilt; itself if none changes."""
    return change_nodes(region, lambda node: (change_node_regions(node, lambda r: change(node, r)),))


def change_node_regions(node: Node, change: Callable[[Region], Region]) -> Node:
    """The node with every region of it changed; itself if none changes."""
    changed: dict[str, Any] = {
        f.name: inner
        for f in fields(node)
        if isinstance(old := getattr(node, f.name), Region) and (inner := change(old)) is not old
    }
    return replace(node, **changed) if changed else node


def change_nodes(region: Region, change: Callable[[Node], Sequence[Node]]) -> Region:
    """The region with other nodes, and what uses them rebuilt; itself if none changes.

    `change` gives what takes the place of a node: last one with the same results, perhaps itself, and before that what
    this one needs. It is made of values of the region as it was.
    """
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in region.nodes:
        *before, last = change(node)
        for old, made in (*((n, n) for n in before), (node, last)):
            new = made.with_operands(values)
            if new is not old:
                values.update(zip(old.values, new.values, strict=True))
            nodes.append(new)
    if len(nodes) == len(region.nodes) and all(a is b for a, b in zip(nodes, region.nodes)):
        return region
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))

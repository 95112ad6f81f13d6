"""Passes that go into the regions of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from intarsia.ir.graph import Node, Region, Value


def change_regions(region: Region, change: Callable[[Node, Region], Region]) -> Region:
    """The region with every region of its nodes changed, and what uses those nodes rebuilt; itself if none changes."""
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in region.nodes:
        new = node.with_operands(values)
        changed: dict[str, Any] = {
            f.name: inner
            for f in fields(new)
            if isinstance(old := getattr(new, f.name), Region) and (inner := change(new, old)) is not old
        }
        new = replace(new, **changed) if changed else new
        if new is not node:
            values.update(zip(node.values, new.values))
        nodes.append(new)
    if all(a is b for a, b in zip(nodes, region.nodes)):
        return region
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))

"""What the program of a device sends, and how long that takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import Span
from intarsia.ir.graph import Module, Region
from intarsia.ir.ops.collective import AllSlice, Collective
from intarsia.ir.ops.control import Loop
from intarsia.ir.spmd import Placement


@dataclass(frozen=True)
class Sent:
    """One collective of the program of a device: what each device puts in, how often, and the seconds of all times."""

    kind: str
    axes: tuple[str, ...]
    bytes: int
    times: int
    seconds: float
    span: Span | None


def sent_by(module: Module, cluster: Cluster) -> tuple[Sent, ...]:
    """Everything that a partitioned program sends, in order. A loop whose steps depend on data counts as one step."""
    mesh = Placement.of(module).mesh

    def walk(region: Region, times: int) -> Iterator[Sent]:
        for node in region.nodes:
            steps = 1
            if isinstance(node, Loop):
                count = (node.upper - node.lower).constant
                steps = 1 if count is None else max(0, count)
            for inner in node.regions:
                yield from walk(inner, times * steps)
            if isinstance(node, Collective) and not isinstance(node, AllSlice):
                put_in = node.x.type.bytes_for()
                seconds = cluster.collective_seconds(mesh, node) * times
                yield Sent(node.name, node.axes, put_in, times, seconds, node.span)

    return tuple(walk(module.graph.body, 1))

"""Collectives at the same time as other work: started as early and waited for as late as the program allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from intarsia.ir.cluster import Cluster
from intarsia.ir.events import Task
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import Collective, Done, Loop
from intarsia.ir.spmd import is_partitioned
from intarsia.passes.collectives.listing import listed, ranks
from intarsia.passes.collectives.timeline import COMPUTING, Costs, Report, first_of, sends, timeline_of
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_node_regions
from intarsia.passes.shard.memory import bytes_of, peak_bytes

ROUNDING = 1e-9
"""An order is better if it is so by more than this share."""


@dataclass(frozen=True)
class Overlap(Pass):
    """Start collectives and go on with other work until their results are needed.

    Before:  %0 = all_reduce %x … : f32[4]        After:  %0 = all_reduce %x … started=true : f32[4]
             %1 = matmul %y, %w : f32[4, 4]               %1 = matmul %y, %w : f32[4, 4]
             %2 = add %0, %1 : f32[4, 4]                  %2 = done %0 : f32[4]
                                                          %3 = add %2, %1 : f32[4, 4]

    The nodes of each region come in another order, by list scheduling on the timeline of a cluster; of several orders
    the one that takes least time, of those that need no more memory than a device of the cluster has or than the
    program as it is. What is gathered before it is needed takes at most `prefetch` bytes at once, by default twice the
    largest such tensor: the one in use, and the next.

    Keeps: values, bit for bit. Needs: a partitioned program, best after `fuse`, for it is groups that take time.
    Leaves: an order of execution: passes that put nodes in another one undo it.
    """

    name: ClassVar[str] = "overlap"
    cluster: str = "laptop"
    prefetch: int | None = None

    def run(self, module: Module, context: Context) -> Module:
        if not is_partitioned(module):
            return module
        costs = Costs.of(module, Cluster.read(self.cluster))
        before = timeline_of(module.graph.body.nodes, costs, {})
        held = sum(map(bytes_of, (p.type for p in module.graph.parameters)))
        memory = int(costs.cluster.memory_bytes) - held
        body = _Regions(costs, self.prefetch, memory).region(module.graph.body, {})
        if body is module.graph.body:
            return module
        after = timeline_of(body.nodes, costs, {})
        self.remark(context, "sharding", _told(before, after, costs.cluster.name), None)
        return module.with_body(body)


def _told(before: Report, after: Report, cluster: str) -> str:
    share = after.hidden / after.sending if after.sending else 1.0
    took, takes = before.seconds * 1e6, after.seconds * 1e6
    return f"{share:.0%} of what is sent is hidden on {cluster}: {takes:.4g} us in place of {took:.4g} us"


@dataclass(frozen=True)
class _Regions:
    costs: Costs
    prefetch: int | None
    memory: int

    def region(self, region: Region, sizes: Mapping[str, int]) -> Region:
        """The region in the best order, those inside first; itself where nothing is sent."""
        if not any(map(sends, region.nodes)):
            return region
        values: dict[Value, Value] = {}
        nodes: list[Node] = []
        for node in region.nodes:
            new = node.with_operands(values)
            match new:
                case Done(x):  # as if nothing had been started yet
                    values[node.value] = x
                    continue
                case Collective(started=True):
                    new = replace(new, started=False)
                case Loop():
                    new = self.loop(new, sizes)
            if new is not node:
                values.update(zip(node.values, new.values))
            nodes.append(new)
        results = tuple(values.get(v, v) for v in region.results)
        plain = Region(region.parameters, tuple(nodes), results) if values else region
        return self.ordered(plain, sizes)

    def loop(self, loop: Loop, sizes: Mapping[str, int]) -> Node:
        inner = {**sizes, loop.counter: first_of(loop, sizes)}
        return change_node_regions(loop, lambda region: self.region(region, inner))

    def ordered(self, region: Region, sizes: Mapping[str, int]) -> Region:
        tasks, nodes = self.tasks(region, sizes)
        grown = {
            n: extra
            for n, node in enumerate(nodes)
            if isinstance(node, Collective) and (extra := bytes_of(node.value.type) - bytes_of(node.x.type)) > 0
        }
        limit = self.prefetch if self.prefetch is not None else 2 * max(grown.values(), default=0)
        most = max(self.memory, peak_bytes(region))
        best, seconds = region, timeline_of(region.nodes, self.costs, sizes).seconds
        for rank in ranks(tasks):
            emitter = _Emitter(region)
            found = emitter.run([nodes[n] for n in listed(tasks, rank, grown, limit)])
            for old, new in emitter.copies:
                self.costs.same(old, new)
            takes = timeline_of(found.nodes, self.costs, sizes).seconds
            if takes < seconds * (1 - ROUNDING) and peak_bytes(found) <= most:
                best, seconds = found, takes
        return best

    def tasks(self, region: Region, sizes: Mapping[str, int]) -> tuple[list[Task], list[Node]]:
        """The nodes that take time, and the task of each: it waits for those that it needs, directly or not."""
        tasks: list[Task] = []
        nodes: list[Node] = []
        needs: dict[Node, tuple[int, ...]] = {}
        for node in region.nodes:
            needs[node] = tuple(dict.fromkeys(n for v in node.inputs for n in needs.get(v.node, ())))
            report = timeline_of((node,), self.costs, sizes)
            if report.seconds > 0:
                resource = COMPUTING if isinstance(node, Loop) else report.timeline.tasks[0].resource
                tasks.append(Task(node.name, resource, report.seconds, needs[node]))
                nodes.append(node)
                needs[node] = (len(tasks) - 1,)
        return tasks, nodes


@dataclass
class _Emitter:
    """A region in another order. Nodes that take no time, `done` among them, stand before the first that needs them."""

    old: Region
    values: dict[Value, Value] = field(default_factory=dict)
    started: dict[Value, Collective] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    copies: list[tuple[Node, Node]] = field(default_factory=list)

    def run(self, order: Sequence[Node]) -> Region:
        """`order` holds the nodes that take time."""
        self.values = {v: v for v in self.old.captures} | {p.value: p.value for p in self.old.parameters}
        for node in order:
            self.emit(node)
        results = tuple(map(self.needed, self.old.results))
        for value in self.started:  # what nobody reads is done, too
            self.needed(value)
        return Region(self.old.parameters, tuple(self.nodes), results)

    def emit(self, node: Node) -> None:
        new = node.with_operands({v: self.needed(v) for v in node.inputs})
        self.copies.append((node, new))
        if isinstance(new, Collective) and sends(new):
            new = self.started[node.value] = replace(new, started=True)
        else:
            self.values.update(zip(node.values, new.values))
        self.nodes.append(new)

    def needed(self, value: Value) -> Value:
        """What a value of the old region is now, by nodes that are appended where it has not been needed before."""
        if value not in self.values:
            if value not in self.started:
                self.emit(value.node)
            if value in self.started:
                self.finish(value, self.started[value])
        return self.values[value]

    def finish(self, value: Value, node: Collective) -> None:
        """Wait for what was started; what was started just now is a collective as before."""
        if self.nodes[-1] is node:
            self.nodes[-1] = replace(node, started=False)
        else:
            self.nodes.append(Done(node.value, **node.spans))
        self.values[value] = self.nodes[-1].value

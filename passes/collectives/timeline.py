"""What the program of a device does when: computing on one stream, sending on one for each axis of the mesh.

The model: a node computes for as long as the roofline of the cluster says, its operations or its bytes of memory, in
the order of the program. A collective begins where it stands, when its axis is free, and takes what `Cluster.seconds`
says; the computing stream waits for it where it stands, or at its `done`. All devices do the same at the same time, so
that one stands for all. What is sent does not slow down what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import Span
from intarsia.ir.events import Task, Timeline, common, length, simulate_tasks
from intarsia.ir.graph import Module, Node
from intarsia.ir.ops import (
    After,
    AllSlice,
    Collective,
    Constant,
    DeviceIndex,
    Done,
    Fused,
    ListGet,
    Loop,
    Reshape,
)
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import Placement
from intarsia.ir.work import Work, work
from intarsia.passes.lower.names import kernel_label, op_label

COMPUTING = "computing"
"""The stream of a device that computes."""

STEPS = 100
"""Of a longer loop so many steps are shown, each as long as several."""


@dataclass(frozen=True)
class Costs:
    """Seconds of the nodes of a partitioned program on a cluster. `known` and `titles` keep what has been found out;
    `originals` are the nodes that others are copies of."""

    mesh: Mesh
    cluster: Cluster
    known: dict[tuple[Node, frozenset[tuple[str, int]]], float] = field(default_factory=dict, compare=False)
    titles: dict[Node, str] = field(default_factory=dict, compare=False)
    originals: dict[Node, Node] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(module: Module, cluster: Cluster) -> Costs:
        """Raises CompileError E1901 for a program that is not partitioned."""
        return Costs(Placement.of(module).mesh, cluster)

    def sending(self, node: Collective) -> float:
        """Of a collective on its links."""
        return self.cluster.collective_seconds(self.mesh, node)

    def computing(self, node: Node, sizes: Mapping[str, int]) -> float:
        """Of a node on a device; of a loop, all of its steps without what they send."""
        key = self.originals.get(node, node), frozenset(sizes.items())
        if key not in self.known:
            self.known[key] = self.seconds(self.work(node, sizes))
        return self.known[key]

    def same(self, node: Node, copy: Node) -> None:
        """The copy, and each node in it, takes as long as the node: it is not counted again."""
        for old, new in zip((node, *_inner(node)), (copy, *_inner(copy)), strict=True):
            self.originals[new] = self.originals.get(old, old)

    def title(self, node: Node) -> str:
        """What a timeline calls a node."""
        node = self.originals.get(node, node)
        if node not in self.titles:
            self.titles[node] = kernel_label(node.body.nodes) if isinstance(node, Fused) else op_label(node)
        return self.titles[node]

    def seconds(self, done: Work) -> float:
        """The roofline: operations or bytes of memory, what takes longer."""
        cluster = self.cluster
        return max(done.operations / cluster.operations_per_second, done.bytes / cluster.memory_bytes_per_second)

    def work(self, node: Node, sizes: Mapping[str, int]) -> Work:
        match node:
            case Constant() | Reshape() | ListGet() | After() | Done() | DeviceIndex():
                return Work()
            case AllSlice():
                size = node.value.type.bytes_for(sizes)
                return Work(0, size, size)
            case Collective():
                return Work()
            case Loop():
                inner = {**sizes, node.counter: first_of(node, sizes)}
                step = sum((self.work(n, inner) for r in node.regions for n in r.nodes), Work())
                return step * steps_of(node, sizes)
        return work(node, sizes)


def first_of(loop: Loop, sizes: Mapping[str, int]) -> int:
    return 0 if loop.lower.opaques else loop.lower.evaluate(sizes)


def steps_of(loop: Loop, sizes: Mapping[str, int]) -> int:
    """One where their number depends on data."""
    if loop.lower.opaques or loop.upper.opaques:
        return 1
    return max(0, loop.upper.evaluate(sizes) - loop.lower.evaluate(sizes))


@dataclass(frozen=True)
class Report:
    """A timeline, with the text that each task comes from. `links` are the names of the streams that send."""

    timeline: Timeline
    spans: tuple[Span | None, ...]

    @property
    def seconds(self) -> float:
        return self.timeline.seconds

    @property
    def links(self) -> tuple[str, ...]:
        return tuple(r for r in self.timeline.resources if r != COMPUTING)

    @property
    def computing(self) -> float:
        """Seconds in which the device computes."""
        return length(self.timeline.busy([COMPUTING]))

    @property
    def sending(self) -> float:
        """Seconds in which it sends, along any axis."""
        return length(self.timeline.busy(self.links))

    @property
    def hidden(self) -> float:
        """Seconds in which it sends and computes."""
        return common(self.timeline.busy([COMPUTING]), self.timeline.busy(self.links))

    @property
    def exposed(self) -> float:
        """Seconds in which it only sends."""
        return self.sending - self.hidden


def timeline(module: Module, cluster: Cluster) -> Report:
    """When each node of a partitioned program runs. Best after `fuse`, where pointwise work moves no memory of its own.
    A loop whose steps depend on data counts as one step."""
    return timeline_of(module.graph.body.nodes, Costs.of(module, cluster), {})


def timeline_of(nodes: Sequence[Node], costs: Costs, sizes: Mapping[str, int]) -> Report:
    """The same for nodes in order; `sizes` gives the counters of loops around them."""
    walk = _Walk(costs)
    walk.nodes(nodes, sizes, 1.0)
    return Report(simulate_tasks(walk.tasks), tuple(walk.spans))


def sends(node: Node) -> bool:
    """Is it a collective, or a loop with one in it?"""
    if isinstance(node, Loop):
        return any(isinstance(n, Collective) for r in node.regions for n in r.walk())
    return isinstance(node, Collective) and not isinstance(node, AllSlice)


@dataclass
class _Walk:
    """The tasks in the order of the program. `waiting`: those that the next one to compute waits for; `last`: the one
    that computes last; `running`: those of collectives that are started."""

    costs: Costs
    tasks: list[Task] = field(default_factory=list)
    spans: list[Span | None] = field(default_factory=list)
    waiting: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    running: dict[Node, tuple[int, ...]] = field(default_factory=dict)

    def nodes(self, nodes: Sequence[Node], sizes: Mapping[str, int], times: float) -> None:
        for node in nodes:
            match node:
                case Done(x):
                    self.waiting += self.running.pop(x.node)
                case Collective() if (seconds := self.costs.sending(node)) > 0:
                    sent = self.add(node, node.mesh_axes[0].name, seconds * times, (*self.waiting, *self.last))
                    if node.started:
                        self.running[node] = sent
                    else:
                        self.waiting += sent
                case Loop() if sends(node):
                    steps = steps_of(node, sizes)
                    shown = min(steps, STEPS)
                    for step in range(shown):
                        inner = {**sizes, node.counter: first_of(node, sizes) + step}
                        for region in node.regions[::-1]:  # the condition, then the body
                            self.nodes(region.nodes, inner, times * steps / shown)
                case _:
                    if (seconds := self.costs.computing(node, sizes)) > 0:
                        self.last = self.add(node, COMPUTING, seconds * times, self.waiting)
                        self.waiting = ()

    def add(self, node: Node, resource: str, seconds: float, after: tuple[int, ...]) -> tuple[int, ...]:
        self.tasks.append(Task(self.costs.title(node), resource, seconds, after))
        self.spans.append(node.span or next((n.span for n in _inner(node) if n.span is not None), None))
        return (len(self.tasks) - 1,)


def _inner(node: Node) -> Iterator[Node]:
    return (n for region in node.regions for n in region.walk())

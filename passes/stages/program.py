"""What the devices of a pipeline run: parts of a program by stage and action, what they send, and then the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.sharding import Mesh, MeshAxis
from intarsia.ir.spmd import Placement
from intarsia.ir.text import print_module
from intarsia.passes.collectives.timeline import Costs
from intarsia.passes.shard.memory import bytes_of
from intarsia.passes.stages.cut import AXIS as MICROBATCH
from intarsia.passes.stages.cut import Cut
from intarsia.passes.stages.schedules import Action, Kind, Schedule, Seconds

AXIS = "stage"
"""The axis of the mesh of a pipeline's devices."""


@dataclass(frozen=True)
class Fragment:
    """A part of a program as a program: it makes the values `outputs` of the whole from the values `inputs`."""

    module: Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @cached_property
    def text(self) -> str:
        return print_module(self.module)

    @staticmethod
    def of(module: Module, outputs: Sequence[Value], is_given: Callable[[Value], bool]) -> Fragment:
        """All that the outputs need, up to parameters and to what is given."""
        inputs: dict[Value, Parameter] = {}
        needed: set[Node] = set()
        stack = list(outputs)
        while stack:
            value = stack.pop()
            if isinstance(value.node, Parameter) or is_given(value):
                inputs.setdefault(value, Parameter(f"v{len(inputs)}", value.type))
            elif value.node not in needed:
                needed.add(value.node)
                stack += value.node.inputs
        nodes = tuple(n for n in module.graph.body.nodes if n in needed)
        values = {old: new.value for old, new in inputs.items()}
        region = Region(tuple(inputs.values()), nodes, tuple(outputs)).rebuild(values)
        placed = (*(f"parameter {p.type}" for p in region.parameters), *(f"result {v.type}" for v in region.results))
        header = (str(Placement.of(module).mesh), *placed)
        return Fragment(Module(Graph("fragment", region), header=header), tuple(inputs), tuple(outputs))


@dataclass(frozen=True)
class PipelineProgram:
    """A training step cut in stages, and the order in which devices work on them."""

    cut: Cut
    schedule: Schedule

    def __post_init__(self) -> None:
        assert self.cut.stages == self.schedule.stages
        self.schedule.validate()

    @property
    def body(self) -> Region:
        return self.cut.module.graph.body

    @cached_property
    def placement(self) -> Placement:
        """How data lie on the micro-batches."""
        return Placement.of(self.cut.module)

    @cached_property
    def inner(self) -> Mesh:
        """The devices that work on one stage together."""
        return Mesh(tuple(axis for axis in self.placement.mesh.axes if axis[0] != MICROBATCH))

    @cached_property
    def mesh(self) -> Mesh:
        """All devices: the stages, and for each of them those of `inner`."""
        return Mesh(((AXIS, self.schedule.devices), *self.inner.axes))

    def device(self, node: Node) -> int:
        """The device at which a node of a micro-batch is at home."""
        return self.cut.stage[node] % self.schedule.devices

    @cached_property
    def fragments(self) -> dict[tuple[int, Kind], Fragment]:
        """The program of each stage and kind of action."""
        outputs: dict[tuple[int, Kind], list[Value]] = {
            (stage, kind): [] for stage in range(self.cut.stages) for kind in self.schedule.kinds
        }
        summed = {n.x.node for n in self.cut.parts.sums}
        for node, kind in self.cut.kind.items():
            if node in summed or node in self.cut.needed_in:
                outputs[self.cut.stage[node], self._action(kind)] += node.values
        return {place: self._fragment(place, own) for place, own in outputs.items()}

    def _fragment(self, place: tuple[int, Kind], outputs: Sequence[Value]) -> Fragment:
        def is_given(value: Value) -> bool:
            kind = self.cut.kind.get(value.node)
            return kind is not None and (self.cut.stage[value.node], self._action(kind)) != place

        return Fragment.of(self.cut.module, outputs, is_given)

    def _action(self, kind: Kind) -> Kind:
        """The kind of action that does what is of a kind: both backward ones are one where a schedule does not split
        them."""
        return kind if kind in self.schedule.kinds else "B"

    def sent(self, action: Action) -> tuple[Value, ...]:
        """What an action has the stage send to its neighbour, of its own and of what it was sent."""
        found: list[Value] = []
        for node, places in self.cut.needed_in.items():
            home, stages = self.cut.stage[node], [stage for stage, _ in places]
            onwards = action.kind == "F" and home <= action.stage < max(stages)
            back = action.kind == "B" and home >= action.stage > min(stages)
            if self.cut.kind[node] == action.kind and (onwards or back):
                found += node.values
        return tuple(found)

    @cached_property
    def bytes_sent(self) -> int:
        """What all devices send each other between stages in a step, and for the update; what collectives within a
        stage send is not in it."""
        p, found = self.schedule.devices, 0
        for action in (a for own in self.schedule.actions for a in own):
            to = action.stage + (1 if action.kind == "F" else -1)
            if to % p != action.stage % p:
                found += sum(bytes_of(v.type) for v in self.sent(action))
        found += sum(bytes_of(v.type) * len(one.readers) for one in self.update.shared for v in one.fragment.outputs)
        return found * self.inner.devices

    def seconds(self, cluster: Cluster) -> Seconds:
        """What actions and sending take by the model of a cluster, whose devices are neighbours."""
        costs = Costs.of(self.cut.module, cluster)

        def taken(kind: Kind) -> list[float]:
            fragments = (self.fragments[stage, kind].module.graph.body for stage in range(self.cut.stages))
            return [sum(costs.computing(node, {}) for node in body.nodes) for body in fragments]

        sent = (sum(bytes_of(v.type) for v in self.sent(Action("F", s, 0))) for s in range(self.cut.stages))
        sending = [
            cluster.seconds(self.mesh, "collective_permute", (MeshAxis(AXIS),), size) if size else 0.0 for size in sent
        ]
        weights = taken("W") if self.schedule.splits_backward else [0.0] * self.cut.stages
        return Seconds(taken("F"), taken("B"), weights, sending)

    @cached_property
    def update(self) -> Update:
        return Update.of(self)


@dataclass(frozen=True)
class Shared:
    """A value of the update that one device makes and others read."""

    fragment: Fragment
    owner: int
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Update:
    """What is done once, with the sums over micro-batches, by the device that has them. What needs values of several
    devices is made by the one that has the largest of these, after it has got the others.

    shared: what is sent so, in order. results: the fragment of the results of each device; what needs no sums, such as
    the number of the next step, each makes for itself.
    """

    shared: tuple[Shared, ...]
    results: tuple[Fragment, ...]

    @staticmethod
    def of(program: PipelineProgram) -> Update:
        """Raises CompileError E1913 where a result is about single examples."""
        parts, body = program.cut.parts, program.body
        owner = {n.value: program.device(n.x.node) for n in parts.sums}
        shared: dict[Value, None] = {}
        for node in body.nodes:
            own = [v for v in node.inputs if v in owner and v not in shared]
            if own and node not in parts.sums:
                device = owner[max(own, key=lambda v: bytes_of(v.type))]
                shared.update((v, None) for v in own if owner[v] != device)
                owner.update(dict.fromkeys(node.values, device))
        sums = frozenset(n.value for n in parts.sums)

        def fragment(values: Sequence[Value]) -> Fragment:
            found = Fragment.of(program.cut.module, values, lambda v: v in sums or (v in shared and v not in values))
            if any(v in parts.data for v in found.inputs):
                message = "a result of the step is about single examples, and a pipeline gives sums over them"
                raise CompileError("E1913", message, values[0].node.span)
            return found

        made = {value: fragment([value]) for value in shared}
        devices = range(program.schedule.devices)
        results = [fragment([v for v in dict.fromkeys(body.results) if owner.get(v, d) == d]) for d in devices]
        reads = [(owner[v], f) for v, f in made.items()] + [*enumerate(results)]
        found: list[Shared] = []
        for value, one in made.items():
            readers = sorted({d for d, f in reads if value in f.inputs and d != owner[value]})
            found.append(Shared(one, owner[value], tuple(readers)))
        return Update(tuple(found), tuple(results))

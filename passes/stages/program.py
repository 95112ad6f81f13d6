"""What the devices of a pipeline run: parts of a program by stage and action, what they send, and then the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.ops import AllReduce, CollectivePermute
from intarsia.ir.sharding import Mesh, MeshAxis, Sharding
from intarsia.ir.spmd import Placement
from intarsia.ir.types import TensorType
from intarsia.passes.collectives.timeline import Costs
from intarsia.passes.shard.memory import bytes_of
from intarsia.passes.stages.cut import Cut
from intarsia.passes.stages.schedules import Action, Kind, Schedule, Seconds, run

AXIS = "stage"
"""The axis of the mesh of a pipeline's devices."""


@dataclass(frozen=True)
class Fragment:
    """A part of a program as a program: it makes the values `outputs` of the whole from the values `inputs`."""

    module: Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @staticmethod
    def of(body: Region, outputs: Sequence[Value], is_given: Callable[[Value], bool]) -> Fragment:
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
        nodes = tuple(n for n in body.nodes if n in needed)
        values = {old: new.value for old, new in inputs.items()}
        region = Region(tuple(inputs.values()), nodes, tuple(outputs)).rebuild(values)
        return Fragment(Module(Graph("fragment", region)), tuple(inputs), tuple(outputs))


@dataclass(frozen=True)
class Transfer:
    """A value of a micro-batch that goes from a stage to its neighbour."""

    value: Value
    microbatch: int
    source: int
    target: int


@dataclass(frozen=True)
class Round:
    """What all devices do at the same time: each an action or none; then the permutations that send what these have
    made, each with the transfers that it does."""

    actions: tuple[Action | None, ...]
    sends: tuple[tuple[CollectivePermute, tuple[Transfer, ...]], ...]


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
    def shardings(self) -> dict[Value, Sharding | None]:
        """Those of the parameters."""
        return {p.value: type_.sharding for p, type_ in zip(self.body.parameters, self.placement.parameters)}

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

        return Fragment.of(self.body, outputs, is_given)

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
    def rounds(self) -> tuple[Round, ...]:
        """The whole of a step but for the update, as if each action took as long."""
        one = (1.0,) * self.schedule.stages
        starts = run(self.schedule, Seconds(one, one, one, (0.0,) * self.schedule.stages)).starts
        found: list[Round] = []
        for number in range(int(max(starts.values())) + 1):
            own = [a for a, start in starts.items() if start == number]
            by_device = {a.stage % self.schedule.devices: a for a in own}
            actions = tuple(by_device.get(d) for d in range(self.schedule.devices))
            found.append(Round(actions, self._permutations([t for a in own for t in self._transfers(a)])))
        return tuple(found)

    def _transfers(self, action: Action) -> list[Transfer]:
        target = action.stage + (1 if action.kind == "F" else -1)
        return [Transfer(v, action.microbatch, action.stage, target) for v in self.sent(action)]

    def _permutations(
        self, transfers: Sequence[Transfer]
    ) -> tuple[tuple[CollectivePermute, tuple[Transfer, ...]], ...]:
        """Transfers of one type as permutations, in each of which a device sends and gets at most one of them."""
        groups: list[list[Transfer]] = []
        p = self.schedule.devices
        for new in transfers:
            for group in groups:
                like = all(old.value.type == new.value.type for old in group)
                if like and all(old.source % p != new.source % p and old.target % p != new.target % p for old in group):
                    group.append(new)
                    break
            else:
                groups.append([new])
        found: list[tuple[CollectivePermute, tuple[Transfer, ...]]] = []
        for group in groups:
            sources = [-1] * p
            for one in group:
                sources[one.target % p] = one.source % p
            given = Parameter("sent", group[0].value.type)
            node = CollectivePermute(given.value, (AXIS,), p, tuple(sources), span=group[0].value.node.span)
            found.append((node, tuple(group)))
        return tuple(found)

    def seconds(self, cluster: Cluster) -> Seconds:
        """What actions and sending take by the model of a cluster, whose devices are neighbours."""
        costs = Costs.of(self.cut.module, cluster)

        def taken(kind: Kind) -> list[float]:
            fragments = (self.fragments[stage, kind].module.graph.body for stage in range(self.cut.stages))
            return [sum(costs.computing(node, {}) for node in body.nodes) for body in fragments]

        mesh = Mesh(((AXIS, self.schedule.devices),))
        sent = (sum(bytes_of(v.type) for v in self.sent(Action("F", s, 0))) for s in range(self.cut.stages))
        sending = [
            cluster.seconds(mesh, "collective_permute", (MeshAxis(AXIS),), size) if size else 0.0 for size in sent
        ]
        weights = taken("W") if self.schedule.splits_backward else [0.0] * self.cut.stages
        return Seconds(taken("F"), taken("B"), weights, sending)

    @cached_property
    def update(self) -> Update:
        return Update.of(self)


@dataclass(frozen=True)
class Update:
    """What is done once, with the sums over micro-batches, by the device that has them. What needs values of several
    devices is made by the one that has the largest of these, after the others have been sent to all.

    shared: what is sent so, with the all-reduce that does it, in order. results: the fragment of the results of each
    device. owner: of each value that is shared or a result, the device that makes it.
    """

    shared: tuple[tuple[Fragment, AllReduce], ...]
    results: tuple[Fragment, ...]
    owner: dict[Value, int]

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
            found = Fragment.of(body, values, lambda v: v in sums or (v in shared and v not in values))
            if any(v in parts.data for v in found.inputs):
                message = "a result of the step is about single examples, and a pipeline gives sums over them"
                raise CompileError("E1913", message, values[0].node.span)
            return found

        sends: list[tuple[Fragment, AllReduce]] = []
        for value in shared:
            assert isinstance(value.type, TensorType)
            given = Parameter("sent", value.type)
            node = AllReduce(given.value, (AXIS,), program.schedule.devices, span=value.node.span)
            sends.append((fragment([value]), node))
        by_device = [
            [v for v in dict.fromkeys(body.results) if owner.get(v, 0) == d] for d in range(program.schedule.devices)
        ]
        return Update(tuple(sends), tuple(map(fragment, by_device)), owner)

"""A training step cut into the stages of a pipeline, by what depends on what.

The batch is cut into micro-batches as a mesh axis would cut it, whose devices work one after the other: what remains of
the program is that of a micro-batch, with an all-reduce where micro-batches are summed, and after these what is done
once for a batch, the update. Of the part before them, the nodes that the loss needs are the forward part; a contiguous
part of these is a stage. The nodes of the backward part belong to the last stage in which all that they read is there:
what the stages after it send back, and what it has kept itself. Those that no earlier stage needs are gradients of
weights, which may wait (Qi and others, "Zero Bubble Pipeline Parallelism", 2023): the split follows from dependences.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node, Parameter, Region, Value, reachable
from intarsia.ir.ops import AllReduce, AllSlice, Collective, Compute, DeviceIndex, ListGet
from intarsia.ir.scalar import Load
from intarsia.ir.sharding import Mesh, MeshAxis, Sharding
from intarsia.ir.spmd import Placement, mesh_of
from intarsia.ir.types import Type, placed
from intarsia.passes.collectives.timeline import Costs
from intarsia.passes.pipeline import Context
from intarsia.passes.shard import Partition, Preset, PropagateSharding, Reshard
from intarsia.passes.shard.memory import bytes_of
from intarsia.passes.shard.meshes import with_mesh, without_shardings
from intarsia.passes.stages.layers import with_layers_written_out
from intarsia.passes.stages.schedules import Kind

AXIS = "microbatch"
"""The axis of the mesh whose devices are micro-batches."""


def with_microbatches(module: Module, microbatches: int, context: Context) -> Module:
    """The program of one micro-batch of a training step, with sums over all of them; the step is made simple before
    (`canonicalize,cse,dce`). If it has a mesh, it is that of one of its devices, which work on each stage together.

    Raises CompileError E1901 for a mesh with an axis of ours, E1910 for another program, E1913 where examples of a
    batch depend on each other.
    """
    if (inner := mesh_of(module)) is None:
        module, inner = without_shardings(module), Mesh(())
    if AXIS in inner.sizes:
        raise CompileError("E1901", f"the axis '{AXIS}' is that of a pipeline", hint="give it another name")
    module = with_mesh(module, Mesh(((AXIS, microbatches), *inner.axes)))
    module = with_layers_written_out(Preset("data", AXIS).run(module, context))
    for pass_ in (PropagateSharding(), Reshard(AXIS), Partition()):
        module = pass_.run(module, context)
    once = frozenset(module.graph.body.nodes)
    for node in module.graph.body.walk():
        if not _is_across(node):
            continue
        if isinstance(node, AllReduce) and node not in once:
            message = "a step of a loop sums over the micro-batches"
            raise CompileError("E1913", message, node.span, hint="only loops over layers are cut into stages")
        if isinstance(node, Collective) and not isinstance(node, AllReduce | AllSlice):
            raise CompileError("E1913", f"a micro-batch needs what others have: {node.name}", node.span)
    return _summed_first(module)


def _is_across(node: Node) -> bool:
    """Is it about several micro-batches, or which of them this is?"""
    return isinstance(node, Collective | DeviceIndex) and any(a.name == AXIS for a in map(MeshAxis.parse, node.axes))


def _summed_first(module: Module) -> Module:
    """What is summed over micro-batches and over devices is summed over micro-batches first, so that devices send
    it once."""
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in module.graph.body.nodes:
        made = node.with_operands(values)
        if isinstance(made, AllReduce) and _is_across(made) and len(made.axes) > 1:
            mesh = Placement.of(module).mesh
            for axes in ((AXIS,), tuple(a for a in made.axes if a != AXIS)):
                size = mesh.size(map(MeshAxis.parse, axes))
                made = replace(made, x=made.x if axes == (AXIS,) else made.value, axes=axes, devices=size)
                nodes.append(made)
        else:
            nodes.append(made)
        values.update(zip(node.values, made.values))
    body = module.graph.body
    return module.with_body(Region(body.parameters, tuple(nodes), tuple(values.get(v, v) for v in body.results)))


@dataclass(frozen=True)
class Cut:
    """The program of one micro-batch, and where it is cut: stage s has the forward nodes from `bounds[s]` on, up to
    `bounds[s + 1]`."""

    module: Module
    parts: Parts
    bounds: tuple[int, ...]

    @property
    def stages(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def stage(self) -> dict[Node, int]:
        """The stage of each node of a micro-batch that is at home in one."""
        found: dict[Node, int] = {}
        for s, (start, end) in enumerate(itertools.pairwise(self.bounds)):
            found.update(dict.fromkeys(self.parts.forward[start:end], s))
        last: dict[Node | Value, int] = {}
        for node in self.parts.forward:
            read: list[Node | Value] = [node, *self.parts.sources(node), *self.parts.parameters(node)]
            last.update((other, max(last.get(other, 0), found[node])) for other in read)
        for node in self.parts.backward:
            sources = self.parts.sources(node)
            weights = (v for v in self.parts.parameters(node) if v in last and v not in self.parts.data)
            there = [*(last[v] for v in weights), *(last.get(n, found[n]) for n in sources)]
            found[node] = min(there, default=self.stages - 1)
            if any(other in last and found[other] > found[node] for other in sources):
                raise CompileError("E1913", f"the {node.name} needs what a later stage keeps", node.span)
        return found

    @cached_property
    def kind(self) -> dict[Node, Kind]:
        """In which action of its stage each node is done."""
        found: dict[Node, Kind] = dict.fromkeys(self.parts.forward, "F")
        needed, ahead = set[Node](), set(self.parts.forward)
        for node in reversed(self.parts.backward):
            found[node] = "B" if node in needed else "W"
            for other in self.parts.sources(node):
                if other not in ahead and (node in needed or self.stage[other] > self.stage[node]):
                    needed.add(other)
        return found

    @cached_property
    def needed_in(self) -> dict[Node, set[tuple[int, Kind]]]:
        """For each node that is at home in a stage, the stages and actions that read what it makes, but its own."""
        found: dict[Node, set[tuple[int, Kind]]] = {}
        for node, kind in self.kind.items():
            for other in self.parts.sources(node):
                place = (self.stage[node], kind)
                if other in self.kind and place != (self.stage[other], self.kind[other]):
                    found.setdefault(other, set()).add(place)
        return found

    def kept(self, stage: int) -> int:
        """The bytes that a stage keeps of a micro-batch from its forward action to its backward ones."""
        found = 0
        for node, places in self.needed_in.items():
            there = self.stage[node] <= stage <= max(s for s, _ in places)
            if self.kind[node] == "F" and there and any(s == stage and kind != "F" for s, kind in places):
                found += sum(bytes_of(v.type) for v in node.values)
        return found

    def weights(self, stage: int) -> tuple[Value, ...]:
        """The parameters that the forward part of a stage reads and data do not decide: its weights."""
        own = (n for n in self.parts.forward if self.stage[n] == stage)
        return tuple(dict.fromkeys(v for n in own for v in self.parts.parameters(n) if v not in self.parts.data))


def is_data(type_: Type) -> bool:
    """Does each micro-batch have a part of a parameter of this type?"""
    return type_.sharding is not None and any(a.name == AXIS for a in type_.sharding.used)


def without_microbatches(type_: Type) -> Type:
    """The type of a parameter, as if there were one micro-batch."""
    if not is_data(type_):
        return type_
    own = type_.sharding
    assert own is not None
    return placed(type_, Sharding.of(tuple(tuple(a for a in axes if a.name != AXIS) for axes in own.axes)))


def _is_layer(node: Node, weights: Collection[Node]) -> bool:
    """Does it take the tensor of one layer, of a parameter that has those of all?"""
    if len(node.operands) != 1 or node.operands[0].node not in weights:
        return False
    if isinstance(node, ListGet):
        return node.index.constant is not None
    if not isinstance(node, Compute) or not isinstance(body := node.space.body, Load):
        return False
    return tuple(i.as_name for i in body.indices[1:]) == tuple(a.name for a in node.space.axes)


class Parts:
    """The program of a micro-batch: nodes at home in a stage, forward and backward, in order, and the sums after them.

    What is made of data alone, or of weights alone, is at home nowhere: any stage makes it that needs it.
    """

    def __init__(self, module: Module) -> None:
        body = module.graph.body
        self.sums = tuple(n for n in body.nodes if isinstance(n, AllReduce) and _is_across(n))
        given = zip(body.parameters, Placement.of(module).parameters)
        self.data = frozenset(p.value for p, type_ in given if is_data(type_))
        self.before = reachable(n.x.node for n in self.sums)
        if again := next((n for n in self.sums if n in self.before), None):
            message = "examples of the batch depend on each other"
            raise CompileError("E1913", message, again.span, hint="each stage works on one micro-batch at a time")
        loss = next((v for v in body.results if not v.tensor.shape and v.dtype.is_float), None)
        ahead = reachable([loss.node]) if loss is not None else set()
        totals = [n.x.node for n in self.sums if n in ahead]
        if not totals:
            raise CompileError(
                "E1913", "the step does not give its loss", hint="return what value_and_grad gives first"
            )
        ahead = reachable(totals)
        weights = frozenset(p for p in body.parameters if p.value not in self.data)
        self.layers = frozenset(n.values[0] for n in body.nodes if _is_layer(n, weights))
        home = self._at_home(body)
        self.forward = tuple(n for n in home if n in ahead)
        self.backward = tuple(n for n in home if n not in ahead)
        self.home = frozenset(home)
        self._read: dict[Node, tuple[tuple[Node, ...], tuple[Value, ...]]] = {}

    def _at_home(self, body: Region) -> list[Node]:
        """The nodes before the sums that are made of data and of weights, and what is summed."""
        of_data: set[Node] = {v.node for v in self.data}
        of_weights: set[Node] = {p for p in body.parameters if p.value not in self.data}
        summed = {n.x.node for n in self.sums}
        found: list[Node] = []
        for node in body.nodes:
            if _is_across(node) or any(v.node in of_data for v in node.inputs):
                of_data.add(node)
            if any(v.node in of_weights for v in node.inputs):
                of_weights.add(node)
            if node in self.before and (node in summed or (node in of_data and node in of_weights)):
                found.append(node)
        return found

    def sources(self, node: Node) -> tuple[Node, ...]:
        """The nodes at home that a node reads, itself or through others that are not."""
        return self._reads(node)[0]

    def parameters(self, node: Node) -> tuple[Value, ...]:
        """The parameters that a node reads, itself or through nodes that are not at home; of a list, the tensor."""
        return self._reads(node)[1]

    def _reads(self, node: Node) -> tuple[tuple[Node, ...], tuple[Value, ...]]:
        if node not in self._read:
            sources: dict[Node, None] = {}
            parameters: dict[Value, None] = {}
            for value in node.inputs:
                if value.node in self.home:
                    sources[value.node] = None
                elif isinstance(value.node, Parameter) or value in self.layers:
                    parameters[value] = None
                else:
                    inner = self._reads(value.node)
                    sources.update(dict.fromkeys(inner[0]))
                    parameters.update(dict.fromkeys(inner[1]))
            self._read[node] = tuple(sources), tuple(parameters)
        return self._read[node]


def cut_in_stages(module: Module, stages: int, cluster: Cluster) -> Cut:
    """The program of a micro-batch (`with_microbatches`) cut so that the stage that takes longest takes least.

    Dynamic programming over the places where no more is sent than just before and after them, as between layers. What
    the forward part takes by the roofline of the cluster stands for all of a stage. Raises CompileError E1913 where
    there are too few such places, or the program cannot be cut.
    """
    parts = Parts(module)
    costs = Costs.of(module, cluster)
    ends = [0.0]
    for node in parts.forward:
        ends.append(ends[-1] + costs.computing(node, {}))
    sent = _sent(parts)
    last = len(parts.forward)
    places = [0, *(k for k in range(1, last) if sent[k] <= min(sent[k - 1], sent[k + 1])), last]
    if len(places) <= stages:
        message = f"there are {len(places) - 1} places to cut the program, which is too few for {stages} stages"
        raise CompileError("E1913", message, hint="take fewer stages")
    link = cluster.levels[-1]

    def taken(i: int, j: int) -> float:
        """What keeps a stage or the link to it busy."""
        return max(ends[places[j]] - ends[places[i]], sent[places[i]] / link.bytes_per_second if i else 0.0)

    # best[j]: the longest stage, the bytes sent, and the cuts, of the nodes before place j
    best: list[tuple[float, int, tuple[int, ...]] | None] = [(0.0, 0, (0,)), *(None for _ in places[1:])]
    for _ in range(stages):
        longer: list[tuple[float, int, tuple[int, ...]] | None] = [None]
        for j in range(1, len(places)):
            ways = (
                (max(found[0], taken(i, j)), found[1] + sent[places[i]], (*found[2], places[j]))
                for i, found in enumerate(best[:j])
                if found is not None
            )
            longer.append(min(ways, default=None))
        best = longer
    found = best[-1]
    assert found is not None  # there are as many places
    return Cut(module, parts, found[2])


def _sent(parts: Parts) -> list[int]:
    """The bytes that would be sent forwards if the forward part were cut before each of its nodes."""
    number = {node: n for n, node in enumerate(parts.forward)}
    change = [0] * (len(number) + 2)
    ends: dict[Node, int] = {}
    for node, n in number.items():
        for other in parts.sources(node):
            ends[other] = n
    for node, end in ends.items():
        size = sum(bytes_of(v.type) for v in node.values)
        change[number[node] + 1] += size
        change[end + 1] -= size
    return list(itertools.accumulate(change))

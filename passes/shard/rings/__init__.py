"""Collectives and the products next to them as loops in which blocks go round the devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar, Literal

from intarsia.ir.cluster import Cluster
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import ScheduleError, Span
from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value, region_of
from intarsia.ir.ops.collective import AllGather, CollectivePermute, DeviceIndex, ReduceScatter
from intarsia.ir.ops.control import Loop
from intarsia.ir.ops.elementwise import Cast, Elementwise, axes_for
from intarsia.ir.ops.index import Compute
from intarsia.ir.scalar import Const
from intarsia.ir.sharding import Mesh
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Space
from intarsia.ir.spmd import mesh_of
from intarsia.ir.types import TensorType
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions
from intarsia.passes.shard.blocks import Add, Block, fitted, on_block, put_block
from intarsia.passes.shard.counters import Counters
from intarsia.passes.shard.rings.gathered import Gathered, find_gathered, is_product, unpadded
from intarsia.passes.shard.rings.partial import Chain, empty, evaluate, find_chain, finished, merged, of_block
from intarsia.passes.shard.rings.rounds import Round, find_rounds

Lowering = Literal["gather", "ring", "auto"]

SHARE = 0.25
"""The part of a device's memory from which on what is gathered for one product is too much to hold."""

MOVED = 3
"""How often a sum goes through memory where something is added to it, and that was written before."""


@dataclass(frozen=True)
class Rings(Pass):
    """Work on blocks as they come round the devices, in place of all of them at once.

    Before:  %0 = all_gather %w axes=(data,) devices=4 dim=0 : f32[8, 6]         with %w: f32[2, 6]
             %1 = matmul %x, %0 : f32[5, 6]
    After:   %1:2 = loop ring in 0..3 (%block = %w, %sum = …) {
               %2 = collective_permute %block axes=(data,) devices=4 sources=(3, 0, 1, 2) : f32[2, 6]
               … the columns of %x for the block of which this device has been sent the rows, times these rows …
               yield %2, %sum + … }
             … and the last block …

    So with any chain of reductions along what is gathered, such as attention over keys and values: sums that need a
    maximum are rescaled where it moves. Where the dimension stays, each block gives a part of the result. A
    `reduce_scatter` of a product is a ring of sums: each device adds its part for the device that the sum goes to. The
    bytes that are sent are the same; a permutation can be under way while the product of its step is computed.

    What needs a finished sum takes another round (`find_rounds`), as the gradient of attention does. Sums over the
    devices that each get a block of go round with the blocks.

    lowering: `ring` wherever that can be, `auto` where a model of the `cluster` says that it takes less time, or where
    what is gathered takes too much memory.

    Keeps: values, up to the order of sums. Needs: `partition`. Source of products in rings: Wang et al., "Overlap
    communication with dependent computation via decomposition in large deep learning models", ASPLOS 2023; of
    attention: Li et al., "Sequence parallelism: long sequence training from system perspective", 2021,
    https://arxiv.org/abs/2105.13120; of its gradient: Liu et al., "Ring attention with blockwise transformers for
    near-infinite context", 2023, https://arxiv.org/abs/2310.01889.
    """

    name: ClassVar[str] = "rings"
    exact: ClassVar[bool] = False
    moves_factors: ClassVar[bool] = True
    lowering: Lowering = "ring"
    cluster: str = "laptop"

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None or self.lowering == "gather":
            return module
        rings = _Rings(self, context, mesh, Cluster.read(self.cluster), Counters(module))
        rings.find_indices(module.graph.body)
        body = rings.region(module.graph.body)
        if body is module.graph.body:
            return module
        made = [n for n in rings.indices.values() if n not in body.nodes]
        return module.with_body(Region(body.parameters, (*made, *body.nodes), body.results))


@dataclass
class _Rings:
    settings: Rings
    context: Context
    mesh: Mesh
    cluster: Cluster
    counters: Counters
    indices: dict[tuple[str, ...], DeviceIndex] = field(default_factory=dict)
    declined: set[tuple[Node, ...]] = field(default_factory=set)

    def find_indices(self, region: Region) -> None:
        """The numbers of the device that the program has already."""
        self.indices = {n.axes: n for n in region.nodes if isinstance(n, DeviceIndex)}

    def index(self, node: AllGather | ReduceScatter) -> Value:
        return self.indices.setdefault(node.axes, DeviceIndex(node.axes, node.devices)).value

    def remark(self, message: str, span: Span | None, done: bool = True) -> None:
        self.settings.remark(self.context, "sharding", message, span, done)

    def region(self, region: Region) -> Region:
        """The region with as many rings as there can be."""
        region = change_regions(region, lambda node, inner: self.region(inner))
        while (found := self.next(region)) is not None:
            region = found
        return region

    def next(self, region: Region) -> Region | None:
        """The region with one more ring, or with as many as a set of nodes takes."""
        for through, group in ((t, g) for t in (True, False) for g in find_gathered(region, t)):
            if group.ends not in self.declined:
                if (found := self.gather_rings(region, group, through)) is not None:
                    return found
                self.declined.add(group.ends)
        for node in region.nodes:
            if isinstance(node, ReduceScatter) and (node,) not in self.declined:
                product = _product_of(region, node)
                if product is not None and self.pays((node,), ((product,),), MOVED * node.value.type.bytes_for()):
                    return _replaced(region, self.scatter_ring(node, product))[0]
                self.declined.add((node,))
        return None

    # ------------------------------------------------------------------ what pays

    def pays(
        self, whole: Sequence[AllGather | ReduceScatter], rounds: Sequence[Sequence[Structured]], merged: float
    ) -> bool:
        """Shall these collectives and the work next to them be rings, one for each round? Each step goes through
        `merged` bytes more."""
        if self.settings.lowering == "ring":
            return True
        devices = whole[0].devices
        computing = sum(map(self._seconds, dict.fromkeys(n for work in rounds for n in work)))
        at_once = sum(self.cluster.collective_seconds(self.mesh, n) for n in whole)
        step = sum(self._hop_seconds(n) for n in whole)
        sums = sum(self._hop_seconds(n) for n in whole if isinstance(n, ReduceScatter))
        merging = devices * merged / self.cluster.memory_bytes_per_second
        around = 0.0
        for number, work in enumerate(rounds):
            sending = step if number == len(rounds) - 1 else step - sums
            of_block = sum(map(self._seconds, work)) / devices
            around += (devices - 1) * max(sending, of_block) + of_block + merging
        held = sum(n.value.type.bytes_for() for n in whole if isinstance(n, AllGather))
        return around < at_once + computing or held > SHARE * self.cluster.memory_bytes

    def _hop_seconds(self, node: AllGather | ReduceScatter) -> float:
        """What it takes to send a block to the next device."""
        block = node.x if isinstance(node, AllGather) else node.value
        return self.cluster.seconds(self.mesh, "collective_permute", node.mesh_axes, block.type.bytes_for())

    def _seconds(self, node: Structured) -> float:
        points = math.prod(a.extent.constant or 1 for a in node.space.all_axes)
        if is_product(node.space):
            return 2 * points / self.cluster.operations_per_second
        return 0.0

    # ------------------------------------------------------------------ rings

    def gather_rings(self, region: Region, group: Gathered, again: bool) -> Region | None:
        """The region with the ends of a group made block by block, in one ring for each round, of which there may be
        several where blocks may go round `again`; None where that cannot be, or does not pay."""
        refusals: list[ScheduleError] = []
        span = group.ends[-1].span

        @cache
        def chain_of(turn: Round) -> Chain:
            given = {g.value: g.dim for g in group.gathers}
            return find_chain(turn.members, turn.outputs, given, self.counters.names, self.context.target, span)

        def is_chain(turn: Round) -> bool:
            try:
                chain_of(turn)
            except ScheduleError as error:
                refusals.append(error)
                return False
            return True

        rounds = find_rounds(region, group, is_chain)
        if not rounds or (len(rounds) > 1 and not again) or not all(map(is_chain, rounds)):
            why = f": {refusals[-1]}" if refusals else ""
            self.remark(f"what this needs is gathered at once{why}", span, done=False)
            return None
        chains = [chain_of(turn) for turn in rounds]
        sums = sum(TensorType(p.space.dtype, p.space.shape).bytes_for() for c in chains for p in c.of_role("reduced"))
        whole: list[AllGather | ReduceScatter] = [*group.gathers, *group.scattered.values()]
        if not self.pays(whole, [turn.members for turn in rounds], MOVED * sums):
            self.remark("what this needs is gathered at once, which takes less time", span, done=False)
            return None
        values: dict[Value, Value] = {}
        for turn, chain in zip(rounds, chains):
            region, changed = _replaced(region, self.gather_ring(group, turn, chain, values))
            values = {old: changed.get(new, new) for old, new in (changed | values).items()}
        return region

    def gather_ring(self, group: Gathered, turn: Round, chain: Chain, changed: Mapping[Value, Value]) -> _Ring:
        """What blocks give as they go round once. changed: what stands for some values of the region by now.

        Where sums over the devices go round with the blocks that they belong to, each device adds its part. It begins
        with the block of the device before it, so that both come home in the last step.
        """
        first, span = group.gathers[0], turn.members[-1].span
        gathers = {g.value: g.with_operands(changed) for g in group.gathers}
        arriving = {b: gathers[chain.inputs[b]] for b in chain.given}
        scattered = {n.value: s for n, s in group.scattered.items()}
        travelling = {b: scattered[v] for b, v in zip(chain.outputs, turn.outputs) if v in scattered}
        block = Block(self.index(first), first.devices, int(first.x.tensor.shape[first.dim]), ZERO)
        made = (scattered[v].value if v in scattered else v for v in turn.outputs)
        ring = _Ring(span, tuple(changed.get(v, v) for v in made))
        values = {b: changed.get(v, v) for b, v in chain.inputs.items() if b not in arriving}
        evaluate(chain, "before", values, ring.add)
        stored = [b for b in chain.stored if b not in travelling]
        states = {b: g.x for b, g in arriving.items()}
        states |= {p.target: empty(chain, p.target, ring.add) for p in chain.of_role("reduced")}
        for b in stored:  # with the padding of the last block
            buffer, d = chain.buffers[b], chain.mapped[b]
            shape = (*buffer.extents[:d], Size.of(block.whole), *buffer.extents[d + 1 :])
            states[b] = ring.add(_zeros(shape, buffer.dtype))

        for b, s in travelling.items():
            states[b] = ring.add(_zeros(s.value.tensor.shape, s.value.dtype.accumulator))

        def step(old: Mapping[str, Value], behind: Size, sends: bool, moves: bool, add: Add) -> dict[str, Value]:
            """All that a block is good for. It may be sent on, and what there is of sums may come first."""
            at = replace(block, behind=behind)
            sent = {b: add(_next(g, old[b])) for b, g in arriving.items() if sends}
            moved = {b: add(_next(s, old[b])) for b, s in travelling.items() if moves}
            found = of_block(chain, {**values, **{b: old[b] for b in arriving}}, at, add)
            new = {**old, **sent, **merged(chain, old, found, add)}
            new |= {b: put_block(old[b], found[b], chain.mapped[b], at, add) for b in stored}
            parts = {b: _cast(found[b], old[b].dtype, add) for b in travelling}
            return new | {b: add(Elementwise("add", (moved[b], v))) if moves else v for b, v in parts.items()}

        def steps(lower: int, upper: int, sends: bool = True, moves: bool = True) -> None:
            """Those for some blocks, in a loop: nothing else is fused with what they make."""

            def body(own: Sequence[Value], counter: Size, add: Add) -> Sequence[Value]:
                return tuple(step(dict(zip(states, own)), counter, sends, moves, add).values())

            if lower < upper:
                counter = self.counters.fresh("ring")
                last = ring.loop(counter, Size.of(lower), upper, tuple(states), tuple(states.values()), body)
                states.update(zip(states, last))

        devices = first.devices
        message = f"blocks of {len(arriving)} tensors go round {devices} devices"
        self.remark(message + (f", with {len(travelling)} sums" if travelling else ""), span)
        if travelling:
            states |= {b: ring.add(_next(g, g.x)) for b, g in arriving.items()}
            steps(1, 2, sends=devices > 2, moves=False)
            steps(2, devices)
            if devices == 2:
                states |= {b: g.x for b, g in arriving.items()}
            steps(devices, devices + 1, sends=False)
        else:
            steps(0, devices - 1)
            steps(devices - 1, devices, sends=False)
        values |= states
        for b, s in travelling.items():
            values[b] = _cast(states[b], s.value.dtype, ring.add)
        for b in stored:
            values[b] = fitted(values[b], [int(e) for e in chain.buffers[b].extents], ring.add)
        finished(chain, values, ring.add)
        ring.results = tuple(values[b] for b in chain.outputs)
        return ring

    def scatter_ring(self, node: ReduceScatter, product: Structured) -> _Ring:
        """A product of which each device keeps a part of the sum: sums go round, and each device adds its product."""
        axis, extent = product.space.axes[node.dim].name, int(node.value.tensor.shape[node.dim])
        block = Block(self.index(node), node.devices, extent, ZERO)
        ring = _Ring(node.span, (node.value,))
        self.remark(f"sums go round {node.devices} devices", node.span)

        def part(behind: Size, add: Add) -> Value:
            at = replace(block, behind=behind)
            return on_block(product.space, product.operands, axis, at, {}, add)

        def body(states: Sequence[Value], counter: Size, add: Add) -> Sequence[Value]:
            moved = add(_next(node, states[0]))
            return (add(Elementwise("add", (moved, part(counter + 1, add)))),)

        first = part(ONE, ring.add)
        ring.results = ring.loop(self.counters.fresh("ring"), ONE, node.devices, ("sum",), (first,), body)
        return ring


Body = Callable[[Sequence[Value], Size, Add], Sequence[Value]]
"""What a step makes of the states, for the counter."""


@dataclass
class _Ring:
    """The nodes of a ring, which stand in the place of a line of the user, and its results: what values of the program
    are `replaced` by."""

    span: Span | None
    replaced: tuple[Value, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    results: tuple[Value, ...] = ()

    def add(self, node: Node) -> Value:
        self.nodes.append(replace(node, span=self.span))
        return self.nodes[-1].value

    def loop(
        self, counter: str, lower: Size, upper: int, names: Sequence[str], initial: Sequence[Value], body: Body
    ) -> tuple[Value, ...]:
        """Add a loop, and give its last states."""
        inner = _Ring(self.span)
        parameters = tuple(Parameter(n.replace(".", "_"), v.type) for n, v in zip(names, initial))
        results = tuple(body([p.value for p in parameters], Size.of(counter), inner.add))
        region = Region(parameters, tuple(inner.nodes), results)
        loop = Loop(counter, lower, Size.of(upper), (), tuple(initial), region, span=self.span)
        self.nodes.append(loop)
        return loop.values


def _next(node: AllGather | ReduceScatter, x: Value) -> CollectivePermute:
    """What the device before this one has."""
    n = node.devices
    return CollectivePermute(x, node.axes, n, tuple((p - 1) % n for p in range(n)))


def _zeros(shape: tuple[Size, ...], dtype: DType) -> Compute:
    return Compute((), Space(axes_for(shape), Const(0, dtype), dtype))


def _cast(value: Value, dtype: DType, add: Add) -> Value:
    return value if value.dtype == dtype else add(Cast(value, dtype))


def _product_of(region: Region, node: ReduceScatter) -> Structured | None:
    """The product of which a sum over devices is made, if nothing else needs it, and no sum is rounded on its way."""
    product = unpadded(node).node
    if node.combiner != "sum" or not isinstance(product, Structured) or not is_product(product.space):
        return None
    between = {product, node.x.node, node}
    uses = [n for n in region.nodes if any(v.node in (product, node.x.node) for v in n.inputs)]
    space = product.space
    plain = space.body.dtype == space.dtype and not (space.dtype.is_float and space.dtype.bits < 32)
    others = {v.node for v in region.results} & {product, node.x.node}
    inside = product in region.nodes and not others and between.issuperset(uses)
    return product if plain and inside else None


def _replaced(region: Region, ring: _Ring) -> tuple[Region, dict[Value, Value]]:
    """The region with a ring in place of what it replaces, before all that needs its results; and what stands for
    values that are others now."""
    needed = {v.node for n in ring.nodes for v in n.inputs}
    for node in reversed(region.nodes):
        needed.update(v.node for v in node.inputs if node in needed)
    late = set(ring.replaced)
    before: list[Node] = []
    after: list[Node] = []
    for node in region.nodes:
        is_late = not late.isdisjoint(node.inputs)
        late.update(node.values if is_late else ())
        (after if is_late or (after and node not in needed) else before).append(node)
    values = dict(zip(ring.replaced, ring.results))
    rebuilt: list[Node] = []
    for node in after:
        rebuilt.append(node.with_operands(values))
        values.update((old, new) for old, new in zip(node.values, rebuilt[-1].values) if old not in values)
    results = tuple(values.get(v, v) for v in region.results)
    return region_of(region.parameters, (*before, *ring.nodes, *rebuilt), results), values

"""Collectives and the products next to them as loops in which blocks go round the devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import ScheduleError, Span
from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value
from intarsia.ir.kernel import Buffer
from intarsia.ir.ops.collective import AllGather, CollectivePermute, DeviceIndex, ReduceScatter
from intarsia.ir.ops.control import Loop
from intarsia.ir.ops.elementwise import Elementwise, axes_for
from intarsia.ir.ops.index import Compute
from intarsia.ir.ops.shape import Pad, Slice
from intarsia.ir.scalar import Const
from intarsia.ir.sharding import Mesh
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Space
from intarsia.ir.spmd import mesh_of
from intarsia.ir.types import TensorType
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions
from intarsia.passes.shard.blocks import Add, Block, on_block, put_block
from intarsia.passes.shard.counters import Counters
from intarsia.passes.shard.gathered import Gathered, find_gathered, is_product
from intarsia.passes.shard.partial import empty, evaluate, find_chain, finished, merged, of_block

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

    lowering: `ring` wherever that can be, `auto` where a model of the `cluster` says that it takes less time, or where
    what is gathered takes too much memory.

    Keeps: values, up to the order of sums. Needs: `partition`. Source of products in rings: Wang et al., "Overlap
    communication with dependent computation via decomposition in large deep learning models", ASPLOS 2023; of
    attention: Li et al., "Sequence parallelism: long sequence training from system perspective", 2021,
    https://arxiv.org/abs/2105.13120.
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
        """The region with one more ring."""
        for group in (g for through in (True, False) for g in find_gathered(region, through)):
            if group.members not in self.declined:
                ring = self.gather_ring(group)
                if ring is not None:
                    return _replaced(region, {*group.members, *group.gathers}, group.outputs, ring)
                self.declined.add(group.members)
        for node in region.nodes:
            if isinstance(node, ReduceScatter) and (node,) not in self.declined:
                product = _product_of(region, node)
                if product is not None and self.pays((node,), (product,), MOVED * _bytes(node.value.tensor)):
                    return _replaced(
                        region, {node, product, node.x.node}, (node.value,), self.scatter_ring(node, product)
                    )
                self.declined.add((node,))
        return None

    # ------------------------------------------------------------------ what pays

    def pays(self, whole: Sequence[AllGather | ReduceScatter], work: Sequence[Structured], merged: float) -> bool:
        """Shall these collectives and the work next to them be a ring? Each step goes through `merged` bytes more."""
        if self.settings.lowering == "ring":
            return True
        devices = whole[0].devices
        computing = sum(map(self._seconds, work))
        at_once = sum(self.cluster.collective_seconds(self.mesh, n) for n in whole)
        step = sum(
            self.cluster.seconds(self.mesh, "collective_permute", n.mesh_axes, _bytes(block.tensor))
            for n, block in ((n, n.x if isinstance(n, AllGather) else n.value) for n in whole)
        )
        merging = merged / self.cluster.memory_bytes_per_second
        around = (devices - 1) * max(step, computing / devices) + computing / devices + devices * merging
        held = sum(_bytes(n.value.tensor) for n in whole if isinstance(n, AllGather))
        return around < at_once + computing or held > SHARE * self.cluster.memory_bytes

    def _seconds(self, node: Structured) -> float:
        points = math.prod(a.extent.constant or 1 for a in node.space.all_axes)
        if is_product(node.space):
            return 2 * points / self.cluster.operations_per_second
        return 0.0

    # ------------------------------------------------------------------ rings

    def gather_ring(self, group: Gathered) -> _Ring | None:
        """The members of a group, done block by block."""
        first, span = group.gathers[0], group.members[-1].span
        given = {g.value: g.dim for g in group.gathers}
        try:
            chain = find_chain(group.members, group.outputs, given, self.counters.names, self.context.target, span)
        except ScheduleError as error:
            self.remark(f"what this needs is gathered at once: {error}", span, done=False)
            return None
        accumulators = [TensorType(p.space.dtype, p.space.shape) for p in chain.of_role("reduced")]
        if not self.pays(group.gathers, group.members, MOVED * sum(map(_bytes, accumulators))):
            self.remark("what this needs is gathered at once, which takes less time", span, done=False)
            return None
        self.remark(f"blocks of {len(group.gathers)} tensors go round {first.devices} devices", span)
        gathers = {g.value: g for g in group.gathers}
        arriving = {b: gathers[chain.inputs[b]] for b in chain.given}
        block = Block(self.index(first), first.devices, int(first.x.tensor.shape[first.dim]), ZERO)
        ring = _Ring(span)
        values = {b: v for b, v in chain.inputs.items() if b not in arriving}
        evaluate(chain, "before", values, ring.add)
        sums = {p.target: empty(chain, p.target, ring.add) for p in chain.of_role("reduced")}
        parts = {b: ring.add(_zeros(chain.buffers[b], chain.mapped[b], block.whole)) for b in chain.stored}
        names = (*arriving, *sums, *parts)
        initial = (*(g.x for g in arriving.values()), *sums.values(), *parts.values())

        def step(states: Sequence[Value], at: Block, add: Add) -> dict[str, Value]:
            """All that a block is good for."""
            old = dict(zip(names, states))
            found = of_block(chain, {**values, **{b: old[b] for b in arriving}}, at, add)
            new = merged(chain, old, found, add)
            return new | {b: put_block(old[b], found[b], chain.mapped[b], at, add) for b in parts}

        def body(states: Sequence[Value], counter: Size, add: Add) -> Sequence[Value]:
            sent = [add(_next(g, x)) for g, x in zip(arriving.values(), states)]
            return (*sent, *step(states, replace(block, behind=counter), add).values())

        last = ring.loop(self.counters.fresh("ring"), ZERO, first.devices - 1, names, initial, body)
        values |= step(last, replace(block, behind=Size.of(first.devices - 1)), ring.add)
        for b in parts:
            values[b] = _cut(values[b], chain.buffers[b].extents, ring.add)
        finished(chain, values, ring.add)
        ring.results = tuple(values[b] for b in chain.outputs)
        return ring

    def scatter_ring(self, node: ReduceScatter, product: Structured) -> _Ring:
        """A product of which each device keeps a part of the sum: sums go round, and each device adds its product."""
        axis, extent = product.space.axes[node.dim].name, int(node.value.tensor.shape[node.dim])
        block = Block(self.index(node), node.devices, extent, ZERO)
        ring = _Ring(node.span)
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
    """The nodes of a ring, which stand in the place of a line of the user, and its results."""

    span: Span | None
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


def _zeros(buffer: Buffer, d: int, extent: int) -> Compute:
    """A tensor to put blocks into, with the padding of the last one."""
    shape = (*buffer.extents[:d], Size.of(extent), *buffer.extents[d + 1 :])
    return Compute((), Space(axes_for(shape), Const(0, buffer.dtype), buffer.dtype))


def _cut(value: Value, extents: tuple[Size, ...], add: Add) -> Value:
    """A value without the padding at its end."""
    if value.tensor.shape == extents:
        return value
    return add(Slice(value, (ZERO,) * len(extents), extents, (1,) * len(extents)))


def _product_of(region: Region, node: ReduceScatter) -> Structured | None:
    """The product of which a sum over devices is made, if nothing else needs it, and no sum is rounded on its way."""
    value = node.x
    if isinstance(pad := value.node, Pad) and all(e == ZERO for d, e in enumerate(pad.after) if d != node.dim):
        value = pad.x
    product = value.node
    if node.combiner != "sum" or not isinstance(product, Structured) or not is_product(product.space):
        return None
    between = {product, value.node, node.x.node, node}
    uses = [n for n in region.nodes if any(v.node in (product, node.x.node) for v in n.inputs)]
    space = product.space
    plain = space.body.dtype == space.dtype and not (space.dtype.is_float and space.dtype.bits < 32)
    others = {v.node for v in region.results} & {product, node.x.node}
    inside = product in region.nodes and not others and between.issuperset(uses)
    return product if plain and inside else None


def _replaced(region: Region, members: Set[Node], outputs: Sequence[Value], ring: _Ring) -> Region:
    """The region with a ring in place of some nodes; what needs its results comes after it."""
    below: set[Node] = set(members)
    before: list[Node] = []
    after: list[Node] = []
    for node in region.nodes:
        if node in members:
            continue
        late = any(v.node in below for v in node.inputs)
        (after if late else before).append(node)
        if late:
            below.add(node)
    values = dict(zip(outputs, ring.results))
    rest = Region((), tuple(after), region.results).rebuild(values)
    return Region(region.parameters, (*before, *ring.nodes, *rest.nodes), rest.results)


def _bytes(type_: TensorType) -> float:
    return math.prod(type_.static_shape) * type_.dtype.bits / 8

"""Every op on operands that lie as it needs them, with what has to be sent in between."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import ClassVar

from intarsia.ir.dtypes import F16
from intarsia.ir.errors import Span
from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value
from intarsia.ir.linear import passes_parts
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Fused, ListGet, Loop
from intarsia.ir.ops.elementwise import Cast, Constant
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.ops.shape import BroadcastTo, Concat, Reshape
from intarsia.ir.sharding import Axes, Mesh, Sharding
from intarsia.ir.sizes import ONE, Size
from intarsia.ir.spmd import mesh_of
from intarsia.ir.types import ListType, placed
from intarsia.passes.canonicalize.values import literal_of
from intarsia.passes.dce import prune
from intarsia.passes.fuse.report import bytes_text, title
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.shard.carried import carry_parts
from intarsia.passes.shard.edges import Edge, edge_of, project
from intarsia.passes.shard.halos import Reads
from intarsia.passes.shard.laid import is_laid
from intarsia.passes.shard.meshes import described, require_numbers, with_parameters_laid
from intarsia.passes.shard.readers import Readers
from intarsia.passes.shard.rows import sum_first, take_row
from intarsia.passes.shard.steps import Step, reshard_steps
from intarsia.passes.shard.together import local_part, together
from intarsia.passes.shard.ways import (
    Split,
    Way,
    elements_of,
    sharding_of,
    sharding_of_stacked,
    static_shape,
    whole_windows,
)

BYTES_PER_POINT = 0.01
"""What computing one point of a space costs beside sending: some 100 operations take as long as a byte."""

SUMS = ("all_reduce", "all_slice")
"""Steps that take no more than a sum of what devices have."""

RESULT_MOVED = 2
"""A way that leaves the result otherwise than propagation says has to send so many times less: it surprises."""


@dataclass(frozen=True)
class Reshard(Pass):
    """Lay out operands as ops need them, by `shard` nodes; what an op leaves in parts says so in its type.

    Before:  %0 = matmul %h, %w : f32[8@data, 4]                      with %h: f32[8@data, 6@model], %w: f32[6@model, 4]
    After:   %0 = matmul %h, %w : f32[8@data, 4]{sum: model}
             %1 = shard %0 : f32[8@data, 4]

    Of the ways to split an op over the mesh it takes the one that sends least. Parts of sums are merged as late as
    linear ops allow, and only in part where the result is split.

    With `in_turn`, an axis whose devices work one after the other, as on micro-batches, nothing but sums crosses it
    where there is another way.

    Keeps: values. Needs: a sharding for each tensor (`propagate-sharding`). Leaves: no op on parts of a sum that is not
    linear in them.
    """

    name: ClassVar[str] = "reshard"
    in_turn: str = ""

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None:
            return module
        require_numbers(module)
        resharder = _Resharder(mesh, partial(self.remark, context, "sharding"), self.in_turn)
        body = resharder.region(module.graph.body, {})
        return module.with_body(prune(body, body.results) if resharder.leaves_dead else body)


@dataclass
class _Scope:
    """A region under construction: who reads what in the old one, the loop whose steps it is, its nodes, and the values
    of it that were laid out anew, or taken from outside as a row."""

    readers: Readers
    loop: Loop | None = None
    nodes: list[Node] = field(default_factory=list)
    made: dict[tuple[Value, Sharding], Value] = field(default_factory=dict)
    rows: dict[tuple[object, ...], Value] = field(default_factory=dict)


@dataclass
class _Resharder:
    """homes: the regions, of those that are under way, in which values are made. spent: bytes sent for each op on its
    own, and these with what it computes. leaves_dead: is there a group, and so perhaps an op that nothing reads now?"""

    mesh: Mesh
    remark: Callable[[str, Span | None], None]
    in_turn: str = ""
    scopes: list[_Scope] = field(default_factory=list)
    homes: dict[Value, _Scope] = field(default_factory=dict)
    spent: dict[Value, tuple[float, float]] = field(default_factory=dict)
    leaves_dead: bool = False

    def region(self, region: Region, outer: Mapping[Value, Value], loop: Loop | None = None) -> Region:
        """The region with `shard` nodes; its results lie as the old ones say. What no type lays out is whole."""
        region = with_parameters_laid(region, [sharding_of(p.value) for p in region.parameters])
        values = dict(outer)
        scope = _Scope(Readers(region), loop)
        self.scopes.append(scope)
        self.homes.update((p.value, scope) for p in region.parameters)
        for node in region.nodes:
            self.node(node, values)
        results = tuple(self.laid(values.get(v, v), sharding_of(v)) for v in region.results)
        self.scopes.pop()
        return Region(region.parameters, tuple(scope.nodes), results)

    def add(self, node: Node, scope: _Scope | None = None) -> None:
        scope = scope or self.scopes[-1]
        scope.nodes.append(node)
        self.homes.update((v, scope) for v in node.values)

    def summands(self, node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...]:
        """The operands, but parts of sums where they have been merged and split in one way, for this node alone, which
        passes them on: so that this happens once, to what it makes."""
        scope = self.scopes[-1]
        found = {p: v.node for p, v in enumerate(operands) if isinstance(v.node, Shard) and self.homes.get(v) is scope}
        ways = {(sharding_of(shard.x), sharding_of(shard.value)) for shard in found.values()}
        alone = all(scope.readers.is_for_one(node.operands[p]) for p in found)
        if len(found) < 2 or len(ways) > 1 or not alone:
            return operands
        ((source, _),) = ways
        if not source.partial or not passes_parts(node, list(found), source.combiner):
            return operands
        for shard in dict.fromkeys(found.values()):
            scope.nodes.remove(shard)
            del scope.made[shard.x, sharding_of(shard.value)]
        return tuple(found[p].x if p in found else v for p, v in enumerate(operands))

    def is_merged(self, old: Value, value: Value) -> bool:
        """Are parts to be merged before they are read: once where the reader is in a loop and they are made before it,
        and where they would have to be merged of more elements?"""
        parts, scope = sharding_of(value), self.scopes[-1]
        outside = self.homes[value] is not scope
        return bool(parts.partial) and (outside or scope.readers.would_spread(old, parts.combiner))

    def laid(self, value: Value, wanted: Sharding, like: Node | None = None) -> Value:
        """The value as `wanted` says, by a `shard` node where it lies otherwise: in the region that makes it, so that a
        loop sends what is outside of it once."""
        if sharding_of(value) == wanted:
            return value
        key, home = (value, wanted), self.homes[value]
        if key not in home.made:
            source = like or value.node
            if isinstance(source, Shard | Loop):
                self.tell_layout(value, wanted, source)
            node = Shard(value, **source.spans, shardings=(wanted,))
            self.add(node, home)
            home.made[key] = node.value
        return home.made[key]

    def tell_layout(self, value: Value, wanted: Sharding, node: Shard | Loop) -> None:
        """Say what is sent for a declared type, or for a state that lies alike in each step."""
        steps = reshard_steps(self.mesh, static_shape(value), sharding_of(value), wanted)
        if (sent := sum(s.elements_sent(self.mesh) for s in steps) * value.dtype.bits / 8) > 0:
            why = "as its type says" if isinstance(node, Shard) else "as it has to in each step of a loop"
            becomes = f"{described(value)} becomes {placed(value.type, wanted)}"
            self.remark(f"{becomes}, {why}: each device sends {_bytes(sent)}", node.span)

    def tell_way(self, node: Node, choice: _Choice, way: Way) -> None:
        """Say which way to split an op was taken, where it sends something, and what the next best one would send; what
        cannot be in turn is no way."""
        if 0 < (sent := choice.sent(way, moved=1)) < math.inf:
            others = [s for w in choice.ranked if w != way and (s := choice.sent(w, moved=1)) < math.inf]
            second = f"the next best way would send {_bytes(others[0])}" if others else "there is no other way"
            laid = f"the {title(node)} gives {placed(node.value.type, way.result)}"
            self.remark(f"{laid}: each device sends {_bytes(sent)} for it, {second} (fewest bytes)", node.span)

    def node(self, node: Node, values: dict[Value, Value]) -> None:
        match node:
            case Shard(x):
                values[node.value] = self.laid(values.get(x, x), sharding_of(node.value), node)
                return
            case Loop():
                self.loop(node, values)
                return
            case Update() if self.scopes[-1].loop is not None and (parts := sum_first(node)) is not None:
                summed, added = parts
                values[summed.value] = self.op(summed, tuple(values.get(v, v) for v in summed.operands), values)
                values[node.value] = self.op(added, tuple(values.get(v, v) for v in added.operands), values)
                return
        values[node.value] = self.op(node, tuple(values.get(v, v) for v in node.operands), values)

    def op(self, node: Node, given: tuple[Value, ...], values: Mapping[Value, Value]) -> Value:
        """What an op gives of operands that are laid out as it needs them."""
        operands = self.summands(node, given)
        whole = frozenset(p for p, v in enumerate(operands) if self.is_merged(node.operands[p], v))
        choice = _Choice(self.mesh, edge_of(node), operands, whole, self.in_turn)
        way = choice.best()
        if (of_row := self.of_row(node, operands, way)) is not None:
            value = self.op(of_row, of_row.operands, values)
            self.spent[node.value] = self.spent[of_row.value]
            return value
        if way is None:
            operands = tuple(self.joined(v, node) if isinstance(v.type, ListType) else v for v in operands)
            pairs = zip(node.operands, operands)
            node_of_tensors = node.with_operands_in_order([new if v.type != new.type else v for v, new in pairs])
            choice = _Choice(self.mesh, edge_of(node_of_tensors), operands, whole, self.in_turn)
            way = choice.best()
            assert way is not None  # tensors can always be sent
        self.spent[node.value] = choice.sent(way), choice.cost(way)[0]
        op: Node | None = self.grouped(node, values) if operands == given else None
        if op is None:
            self.tell_way(node, choice, way)
            new_operands = [self.laid(v, wanted, node) for v, wanted in zip(operands, way.operands)]
            op = replace(node.with_operands_in_order(new_operands), shardings=(way.result,))
        wanted = sharding_of(node.value)
        value = self.made(op, wanted)
        if sharding_of(value).axes != wanted.axes:
            value = self.laid(value, wanted, node)
        return value

    def of_row(self, node: Node, operands: tuple[Value, ...], way: Way | None) -> Node | None:
        """The op on the row of a step of what would be sent as a whole before the loop; the row is taken in the loop.
        So no device has the weights of all layers at once."""
        loop = self.scopes[-1].loop
        if loop is None or not isinstance(node, Structured):
            return None
        for position, value in enumerate(operands):
            moves = way is None or sharding_of(value) != way.operands[position]
            if moves and self.homes[value] is self.scopes[-2] and not sharding_of(value).partial:
                found = take_row(node.with_operands_in_order(operands), position, loop)
                if found is not None and is_laid(found[0], self.mesh):
                    row, of_row = found
                    same = self.scopes[-1].rows.setdefault((row.operands, *row.attributes.values()), row.value)
                    if same is row.value:
                        self.add(row)
                    return of_row.with_operands({row.value: same})
        return None

    def made(self, node: Node, wanted: Sharding) -> Value:
        """What an op gives. Parts of a sum may overflow in f16 where the sum does not, so they are merged at once, in
        the type in which the op forms it."""
        if (
            isinstance(node, Structured)
            and sharding_of(node.value).partial
            and node.value.dtype == F16
            and node.space.body.dtype != F16
        ):
            wide = replace(node.space, dtype=node.space.body.dtype)
            parts = Compute(node.operands, wide, **node.spans, shardings=node.shardings)
            self.add(parts)
            merged = self.laid(parts.value, wanted.whole(), node)
            node = Cast(merged, F16, **node.spans, shardings=(sharding_of(merged),))
        self.add(node)
        return node.value

    def grouped(self, node: Node, values: Mapping[Value, Value]) -> Fused | None:
        """The op with others that are computed for it alone, where less is sent then, and no more is computed for it.
        What several ops read counts for each of them in part."""
        readers = self.scopes[-1].readers
        joined = together(node, readers.nodes, readers.is_for_one) if isinstance(node, Structured) else None
        if joined is None:
            return None
        group, before = joined
        apart = [[s / len(readers.of[n.value]) for s in self.spent[n.value]] for n in before]
        sent, cost = (sum(each) for each in zip(self.spent[node.value], *apart))
        edge = edge_of(group)
        operands = tuple(values.get(v, v) for v in edge.tensors[:-1])
        if any(isinstance(v.node, Shard) and v.node not in self.homes[v].nodes for v in operands):
            return None  # an op before it takes parts of the sum in its place
        choice = _Choice(self.mesh, edge, operands, frozenset(), self.in_turn)
        way = choice.best()
        if way is None or choice.sent(way) >= sent or choice.cost(way)[0] > cost:
            return None
        if way.result.partial and node.value.dtype == F16:
            return None  # `made` merges them in another type
        lying = dict(zip(edge.tensors, way.operands))
        reads = Reads(lying.__getitem__)
        if local_part(self.mesh, group, edge, way.of_factor, reads) is None or reads.halos(self.mesh) is None:
            return None
        laid = {old: self.laid(v, wanted, node) for old, v, wanted in zip(edge.tensors, operands, way.operands)}
        self.leaves_dead = True
        return replace(group.with_operands(laid), shardings=(way.result,))

    def joined(self, value: Value, like: Node) -> Value:
        """The tensors of a list as one tensor, which can be sent to where it is needed."""
        assert isinstance(value.type, ListType)
        sharding = sharding_of(value)
        # No op says how a dimension of one element is split.
        axes = tuple(a if extent > 1 else () for a, extent in zip(sharding.axes, static_shape(value)))
        stacked = Sharding.of(((), *axes))
        parts: list[Value] = []
        for n in range(int(value.type.length)):
            one = ListGet(value, Size.of(n), span=like.span, shardings=(sharding,))
            self.add(one)
            tensor = self.laid(one.value, Sharding.of(axes), like)
            row = Reshape(tensor, (ONE, *tensor.tensor.shape), span=like.span, shardings=(stacked,))
            self.add(row)
            parts.append(row.value)
        whole = Concat(tuple(parts), 0, span=like.span, shardings=(stacked,))
        self.add(whole)
        return whole.value

    def loop(self, node: Loop, values: dict[Value, Value]) -> None:
        initial = tuple(
            self.laid(values.get(v, v), sharding_of(p.value), node) for v, p in zip(node.initial, node.states)
        )
        scalars = tuple(self.laid(values.get(v, v), Sharding(()), node) for v in node.scalars)
        inner = dict(values)
        states = [sharding_of(p.value) for p in node.states]
        body = self.region(_with_results(node.body, states), inner, node)
        condition = node.condition
        if condition is not None:
            condition = self.region(with_parameters_laid(condition, states), inner)
        stacked = map(sharding_of_stacked, body.results[len(states) :])
        new = replace(
            node, initial=initial, scalars=scalars, body=body, condition=condition, shardings=(*states, *stacked)
        )
        new = carry_parts(self.mesh, new)
        new = replace(new, initial=tuple(map(self.begun, initial, new.states)))
        self.add(new)
        for old, made in zip(node.values, new.values):
            is_split = sharding_of(made).axes == sharding_of(old).axes
            values[old] = made if is_split else self.laid(made, sharding_of(old), node)

    def begun(self, value: Value, state: Parameter) -> Value:
        """What a state begins with, as the state lies. What changes no sum is on all devices whatever they have."""
        wanted = sharding_of(state.value)
        literal = literal_of(value)
        if wanted.axes != sharding_of(value).axes and wanted.partial and literal is not None:
            number = Constant(literal.value, value.dtype, span=value.node.span, shardings=(Sharding(()),))
            self.add(number)
            whole = BroadcastTo(number.value, value.tensor.shape, span=value.node.span, shardings=(wanted.whole(),))
            self.add(whole)
            value = whole.value
        return self.laid(value, wanted, value.node)


def _bytes(count: float) -> str:
    return bytes_text(Size.of(math.ceil(count)))


def _with_results(region: Region, states: Sequence[Sharding]) -> Region:
    """The region whose first results lie as the states do."""
    nodes = list(region.nodes)
    results = list(region.results)
    for position, wanted in enumerate(states):
        value = results[position]
        if sharding_of(value) != wanted:
            node = Shard(value, span=value.node.span, shardings=(wanted,))
            nodes.append(node)
            results[position] = node.value
    return Region(region.parameters, tuple(nodes), tuple(results))


@dataclass
class _Choice:
    """The ways to split one op, and the best of them. whole: the operands whose parts are to be merged for it."""

    mesh: Mesh
    edge: Edge
    operands: tuple[Value, ...]
    whole: frozenset[int]
    in_turn: str

    @cached_property
    def split(self) -> Split:
        return Split(self.mesh, self.edge)

    @cached_property
    def wanted(self) -> Sharding:
        return sharding_of(self.edge.tensors[-1])

    def best(self) -> Way | None:
        """The cheapest way; None where each one would send a list."""
        return self.ranked[0] if self.ranked else None

    @cached_property
    def ranked(self) -> list[Way]:
        """All ways that send no list, the cheapest first."""
        ways = [w for keep in ((True, False) if self.parts() else (False,)) for w in self.ways(keep)]
        return sorted(filter(self._leaves_lists, ways), key=self.cost)

    def _leaves_lists(self, way: Way) -> bool:
        """Do the lists among the operands lie as they are? They are never sent."""
        pairs = zip(self.operands, way.operands)
        return all(sharding_of(v).axes == s.axes for v, s in pairs if isinstance(v.type, ListType))

    def parts(self) -> tuple[tuple[int, ...], Axes, str] | None:
        """The operands that may stay parts of a sum, the axes along which all of them are, and what merges these."""
        node = self.edge.node
        found = [p for p, v in enumerate(self.operands) if sharding_of(v).partial]
        if not found or not self.whole.isdisjoint(found):
            return None
        shardings = [sharding_of(self.operands[p]) for p in found]
        common = tuple(a for a in shardings[0].partial if all(a in s.partial for s in shardings))
        combiner = shardings[0].combiner
        smaller = elements_of(node.value) <= sum(elements_of(self.operands[p]) for p in found)
        same = all(s.combiner == combiner for s in shardings)
        if common and same and smaller and passes_parts(node, found, combiner):
            return tuple(found), common, combiner
        return None

    def ways(self, keep: bool) -> Iterator[Way]:
        """Every way that the present shardings suggest; `keep` leaves parts of sums as they are."""
        kept, partial, combiner = (self.parts() if keep else None) or ((), (), "sum")
        candidates = [self._candidates(f.name) for f in self.edge.factors]
        whole = whole_windows(self.edge, self.operands)
        for chosen in itertools.islice(itertools.product(*candidates), 4096):
            of_factor = {f.name: a for f, a in zip(self.edge.factors, chosen) if a}
            if (way := self.split.way(of_factor, kept, partial, combiner, whole)) is not None:
                yield way

    def _candidates(self, name: str) -> list[Axes]:
        found: dict[Axes, None] = {}
        values = (*self.operands, self.edge.tensors[-1])
        for t, value in enumerate(values):
            axes = sharding_of(value).axes
            projected = project(self.mesh, self.edge, t, axes).of_factor.get(name, ())
            for count in range(len(projected), 0, -1):
                found[projected[:count]] = None
        found[()] = None
        return list(found)

    def sent(self, way: Way, moved: int = RESULT_MOVED) -> float:
        """Bytes; times `moved` where the result is moved."""
        sent = 0.0
        for value, wanted in zip(self.operands, way.operands):
            sent += self._bytes(value, self._steps(value, sharding_of(value), wanted))
        result = self.edge.tensors[-1]
        steps = self._steps(result, way.result, self.wanted)
        sent += self._bytes(result, steps)
        if any(s.kind not in ("all_reduce", "reduce_scatter", "all_slice") for s in steps):
            sent *= moved
        sent += sum(count * value.dtype.bits / 8 for value, _, count in self.split.taken(way))
        return sent

    def cost(self, way: Way) -> tuple[float, float]:
        """Bytes sent and time computed, in bytes; then what is held."""
        points = math.prod(e or 1 for e in self.edge.extents.values())
        devices = math.prod(self.mesh.size(a) for a in way.of_factor.values())
        held = elements_of(self.edge.tensors[-1]) / self.mesh.size(a for d in way.result.axes for a in d)
        return (self.sent(way) + BYTES_PER_POINT * points / devices, held)

    def _steps(self, value: Value, source: Sharding, target: Sharding) -> tuple[Step, ...]:
        return reshard_steps(self.mesh, static_shape(value), source, target)

    def _bytes(self, value: Value, steps: Sequence[Step]) -> float:
        if any(s.kind not in SUMS and self.in_turn in (a.name for a in s.axes) for s in steps):
            return math.inf
        return sum(s.elements_sent(self.mesh) for s in steps) * value.dtype.bits / 8

"""Sums that a loop carries from step to step, left in parts until it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from intarsia.ir.dtypes import F16
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Parameter, Value, region_of
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Loop
from intarsia.ir.sharding import Axes, Mesh, Sharding
from intarsia.ir.types import placed
from intarsia.passes.canonicalize.values import literal_of
from intarsia.passes.shard.laid import is_laid
from intarsia.passes.shard.meshes import with_parameters_laid
from intarsia.passes.shard.readers import Readers
from intarsia.passes.shard.steps import reshard_steps
from intarsia.passes.shard.ways import sharding_of, static_shape


def carry_parts(mesh: Mesh, loop: Loop) -> Loop:
    """A loop, the body of which `reshard` has laid out, with states as parts where each step only adds parts to them.
    What they begin with is still to be laid out so.

    Before:  %0 = loop t in 0..9 (%g = %zeros) {       After:   %0 = loop t in 0..9 (%g = %zeros) {
               %1 = matmul %a, %b : f32[4]{sum: data}             %1 = matmul %a, %b : f32[4]{sum: data}
               %2 = shard %1 : f32[4]                             %2 = add %g, %1 : f32[4]{sum: data}
               %3 = add %g, %2 : f32[4]                           yield %2
               yield %3                                         } : f32[4]{sum: data}
             } : f32[4]

    So they are merged once, by whatever reads what the loop gives, and not in each step. A state that is split over
    the devices stays so where as much is sent if its parts are merged as soon as they are made: it takes less memory.
    """
    chains = _chains(mesh, loop)
    return _rebuilt(loop, chains) if chains else loop


@dataclass
class _Chain:
    """The nodes, by number, that make the next state of the one before, which nothing else reads, with their values.
    summands: what these read besides that is parts too, but merged; and what it is before. merges: the nodes that do
    this in each step, for the chain alone."""

    mesh: Mesh
    state: Value
    nodes: Mapping[int, Node]
    values: set[Value]
    summands: dict[Value, Value] = field(default_factory=dict)
    merges: list[Node] = field(default_factory=list)
    partial: Axes = ()
    combiner: str = "sum"

    def has(self, value: Value) -> bool:
        return value in self.values or value in self.summands

    def laid(self, value: Value) -> Sharding:
        """How a value of the chain, or a summand, lies as parts."""
        axes = [tuple(a for a in own if a not in self.partial) for own in sharding_of(value).axes]
        return Sharding.of(axes, self.partial, self.combiner)

    def passes_parts(self, inside: frozenset[Node]) -> bool:
        """Does each node pass parts on, of sums over the same axes? Finds the summands."""
        found: list[Sharding] = []
        for node in self.nodes.values():
            own = [v for v in (*node.operands, *node.values) if v in self.values]
            if not isinstance(node, Shard | Loop):
                merged = [v for v in node.operands if v.node in inside and _merges(v.node)]
                self.summands.update((v, v.node.operands[0]) for v in merged)
                own += self.summands.values()
            found += (s for v in own if (s := sharding_of(v)).partial)
        ways = {(s.partial, s.combiner) for s in found}
        if len(ways) != 1:
            return False
        ((self.partial, self.combiner),) = ways
        if self.laid(self.state).problem(self.mesh) is not None:
            return False
        return all(isinstance(n, Shard | Loop) or self._is_laid(n) for n in self.nodes.values())

    def _is_laid(self, node: Node) -> bool:
        """Can a node of the chain run on parts?"""
        own = (v for v in node.operands if self.has(v))
        parts = {v: Parameter("part", placed(v.type, self.laid(v))).value for v in own}
        return is_laid(replace(node.with_operands(parts), shardings=(self.laid(node.value),)), self.mesh)

    def pays(self, loop: Loop, initial: Value) -> bool:
        """Is less sent, or as much at once where the state is not split?"""
        steps = (loop.upper - loop.lower).constant
        now = sum(self._sent(n.value, sharding_of(n.operands[0]), sharding_of(n.value)) for n in self.merges)
        now *= 2 if steps is None else steps
        parts, whole = self.laid(self.state), sharding_of(self.state)
        after = self._sent(self.state, parts, whole)
        if parts.axes == whole.axes:
            return 0 < after <= now
        return after < now and is_neutral(initial, self.combiner)

    def _sent(self, value: Value, source: Sharding, target: Sharding) -> float:
        return sum(s.elements_sent(self.mesh) for s in reshard_steps(self.mesh, static_shape(value), source, target))


def _merges(node: Node) -> bool:
    """Does a node merge parts?"""
    return isinstance(node, Shard) and bool(sharding_of(node.x).partial) and not sharding_of(node.value).partial


def _chains(mesh: Mesh, loop: Loop) -> dict[int, _Chain]:
    """The states that are to be parts."""
    inside, readers = frozenset(loop.body.nodes), Readers(loop.body)
    found: dict[int, _Chain] = {}
    for position, initial in enumerate(loop.initial):
        chain = _chain(mesh, loop, position, readers)
        if chain is not None and chain.passes_parts(inside):
            alone = (v for v in chain.summands if chain.nodes.keys() >= set(readers.of[v]))
            chain.merges = [v.node for v in (*alone, *chain.values) if _merges(v.node)]
            if chain.pays(loop, initial):
                found[position] = chain
    return found


def _chain(mesh: Mesh, loop: Loop, position: int, readers: Readers) -> _Chain | None:
    """What makes the next of a state; None where something else reads it.

    In f16 parts may overflow where their sum does not, so they are merged in each step."""
    body, state = loop.body, loop.states[position].value
    if state.dtype == F16:
        return None
    if loop.condition is not None and loop.condition.parameters[position].value in Readers(loop.condition).of:
        return None
    values, numbers, waiting = {state}, set[int](), [state]
    while waiting:
        value = waiting.pop()
        for n in readers.of.get(value, ()):
            if n == len(body.nodes):
                if value is not body.results[position] or body.results.count(value) > 1:
                    return None
            elif (made := _passed(body.nodes[n], value)) is None:
                return None
            else:
                numbers.add(n)
                waiting += {made} - values
                values.add(made)
    if body.results[position] not in values:
        return None
    return _Chain(mesh, state, {n: body.nodes[n] for n in sorted(numbers)}, values)


def _passed(node: Node, value: Value) -> Value | None:
    """What a node makes of a value that it may pass on as parts."""
    if isinstance(node, Loop):
        own = [n for n, v in enumerate(node.initial) if v is value]
        others = (*node.scalars, *(v for region in node.regions for v in region.captures))
        is_state = len(own) == 1 and value not in others and sharding_of(node.states[own[0]].value).partial
        return node.values[own[0]] if is_state else None
    return node.value if not node.regions and len(node.values) == 1 else None


def _rebuilt(loop: Loop, chains: Mapping[int, _Chain]) -> Loop:
    """The loop with the states of these chains as parts."""
    parameters, laid = list(loop.states), list(loop.shardings)
    for position, one in chains.items():
        laid[position] = one.laid(one.state)
        parameters[position] = replace(parameters[position], type=placed(one.state.type, laid[position]))
    values = {one.state: parameters[position].value for position, one in chains.items()}
    of_value = {value: one for one in chains.values() for value in one.values}
    nodes: list[Node] = []

    def place(value: Value, wanted: Sharding, like: Node) -> Value:
        value = values.get(value, value)
        if sharding_of(value) == wanted:
            return value
        nodes.append(Shard(value, **like.spans, shardings=(wanted,)))
        return nodes[-1].value

    for node in loop.body.nodes:
        chain = of_value.get(node.values[0]) if not isinstance(node, Loop) else None
        if chain is None:
            made = node.with_operands(values)
        elif isinstance(node, Shard):
            values[node.value] = place(node.x, chain.laid(node.value), node)
            continue
        else:
            own = {v: place(chain.summands.get(v, v), chain.laid(v), node) for v in node.operands if chain.has(v)}
            others = {v: values.get(v, v) for v in node.operands}
            made = replace(node.with_operands({**others, **own}), shardings=(chain.laid(node.value),))
        nodes.append(made)
        values.update(zip(node.values, made.values))
    body = region_of(parameters, nodes, [values.get(v, v) for v in loop.body.results])
    states = laid[: len(parameters)]
    condition = loop.condition and with_parameters_laid(loop.condition, states)
    return replace(loop, body=body, condition=condition, shardings=tuple(laid))


def is_neutral(value: Value, combiner: str) -> bool:
    """Is each element what changes nothing where parts are merged, or may it be merged several times?"""
    while isinstance(value.node, Shard):
        value = value.node.x
    literal = literal_of(value)
    return combiner in ("max", "min") or (
        literal is not None and literal.value == COMBINERS[combiner].neutral(value.dtype)
    )

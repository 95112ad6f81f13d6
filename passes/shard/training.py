"""What the tensors of a training step are for, found from what is done with them and not from their names.

A training step takes data, weights and what an optimiser remembers of these, and gives the next weights and states:

    value, g = value_and_grad(loss, wrt=p)(x, y, p)
    p, m, v = map(adam)(p, g, m, v, t, rate)

A result is the next of a parameter of the same type from which it is made element by element. What such a result is
made of besides, and is no parameter, are gradients. A weight is a parameter with a next one that something else reads
too; a state is one that nothing else reads; all other tensors are data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Node, Parameter, Region, Structured, Value, reachable
from intarsia.passes.shard.edges import Edge, edges_of, edges_of_node, shape_of
from intarsia.passes.shard.ways import elements_of

Place = tuple[Value, int]
"""A dimension of a value."""


@dataclass(frozen=True)
class TrainingStep:
    """The roles of the parameters of a region, which is not partitioned yet."""

    body: Region

    @cached_property
    def next(self) -> Mapping[Value, Value]:
        """The next value of each parameter that has one, of those with dimensions."""
        waiting = {
            result: [v for v in made if isinstance(v.node, Parameter) and v.type.plain == result.type.plain]
            for result, made in self._made_of.items()
        }
        found: dict[Value, Value] = {}
        while sure := {r: own[0] for r, own in waiting.items() if len(own) == 1}:
            found.update((parameter, result) for result, parameter in sure.items())
            rest = {r: own for r, own in waiting.items() if r not in sure}
            waiting = {r: [v for v in own if v not in found] for r, own in rest.items()}
        return {p.value: found[p.value] for p in self.body.parameters if p.value in found}

    @cached_property
    def _made_of(self) -> dict[Value, list[Value]]:
        """For each result with dimensions, the values that it is made of element by element."""
        return {r: list(_elements(r)) for r in dict.fromkeys(self.body.results) if shape_of(r)}

    @cached_property
    def _updating(self) -> set[Node]:
        """The nodes between gradients and next values."""
        return {v.node for p, r in self.next.items() for v in (*_inner(r), r)}

    @cached_property
    def weights(self) -> tuple[Value, ...]:
        read = {v for n in self.body.walk() if n not in self._updating for v in n.operands}
        return tuple(v for v in self.next if v in read)

    @cached_property
    def states(self) -> tuple[Value, ...]:
        return tuple(v for v in self.next if v not in self.weights)

    @cached_property
    def data(self) -> tuple[Value, ...]:
        """Parameters with dimensions that are neither."""
        return tuple(p.value for p in self.body.parameters if p.value not in self.next and shape_of(p.value))

    @cached_property
    def gradients(self) -> Mapping[Value, tuple[Value, ...]]:
        """What the next value of each weight is made of that is no parameter: its gradient, or the summands of it."""
        return {
            w: tuple(v for v in self._made_of[self.next[w]] if not isinstance(v.node, Parameter)) for w in self.weights
        }

    @cached_property
    def before_gradients(self) -> tuple[Node, ...]:
        """The nodes that gradients need, in order: the loss and its derivative."""
        needed = reachable(v.node for own in self.gradients.values() for v in own)
        return tuple(n for n in self.body.nodes if n in needed)

    @cached_property
    def classes(self) -> Classes:
        return Classes.of(self.body)

    def require(self) -> TrainingStep:
        """Itself. Raises CompileError E1910 where it gives no next weights, or takes no batch of data."""
        if not self._shared:
            hint = "write a step that takes data and weights, and gives the next weights: docs/gradients.md, Training"
            raise CompileError("E1910", "the program is no training step on a batch of data", hint=hint)
        return self

    def classes_of(self, value: Value) -> tuple[int, ...]:
        """The class of each dimension of a value."""
        return tuple(self.classes.of_place[value, d] for d in range(len(shape_of(value))))

    @cached_property
    def _of_weights(self) -> frozenset[int]:
        return frozenset(c for v in self.next for c in self.classes_of(v))

    @cached_property
    def _shared(self) -> Sequence[Mapping[Value, int]]:
        """Of dimensions of data along which gradients are sums, and no weight is split, the tensors that have them:
        those first that most tensors have."""
        summed = {
            name
            for own in self.gradients.values()
            for v in own
            for edge in edges_of_node(v.node)
            for name in self.classes.reduced(edge)
        }
        found: dict[int, dict[Value, int]] = {}
        for value in self.data:
            for d, name in enumerate(self.classes_of(value)):
                if name in summed and name not in self._of_weights:
                    found.setdefault(name, {}).setdefault(value, d)
        return sorted(found.values(), key=len, reverse=True)

    @property
    def batch(self) -> Mapping[Value, int]:
        """The dimension along which examples lie of each tensor of data that has it."""
        return self.require()._shared[0]

    @property
    def sequence(self) -> Mapping[Value, int]:
        """The next such dimension. Raises CompileError E1910 where there is none."""
        if len(self.require()._shared) < 2:
            raise CompileError("E1910", "the data have one dimension of examples, and none of positions")
        return self._shared[1]

    @cached_property
    def _from_weights(self) -> frozenset[Value]:
        """Weights, and what is made of nothing else."""
        found = set(self.weights)
        for node in self.before_gradients:
            if node.operands and all(v in found for v in node.operands):
                found.update(node.values)
        return frozenset(found)

    @cached_property
    def _products(self) -> tuple[Edge, ...]:
        """The ops that sum over something, before the gradients are there."""
        edges = (edge for node in self.before_gradients for edge in edges_of_node(node))
        return tuple(edge for edge in edges if self.classes.reduced(edge))

    @cached_property
    def hidden(self) -> tuple[int, ...]:
        """Classes of dimensions of weights that no data have, and that are summed over in products with weights only;
        those of more elements first."""
        others = {c for v in self.data for c in self.classes_of(v)}
        for edge in self._products:
            if self._from_weights.isdisjoint(edge.tensors[:-1]):
                others |= self.classes.reduced(edge)
        elements = Counter[int]()
        for weight in self.weights:
            if len(shape_of(weight)) > 1:
                elements.update(dict.fromkeys(self.classes_of(weight), elements_of(weight)))
        return tuple(c for c, _ in elements.most_common() if c not in others)

    @cached_property
    def experts(self) -> tuple[int, ...]:
        """Classes of dimensions that a weight, what it is multiplied with, and the product have, in order."""
        found: dict[int, None] = {}
        for edge in self._products:
            own = [t for t in edge.operands if edge.tensors[t] in self._from_weights]
            rest = [t for t in range(len(edge.tensors)) if t not in own]
            for t in own:
                for d, names in enumerate(edge.dimensions[t]):
                    if names and all(any(names == dims for dims in edge.dimensions[r]) for r in rest):
                        found[self.classes.of_place[edge.tensors[t], d]] = None
        return tuple(found)


def _elements(result: Value) -> Iterator[Value]:
    """The values that one is made of, element by element, up to those that are not made so: parameters, sums …"""
    seen = {result}
    stack = [result]
    while stack:
        value = stack.pop()
        operands = _same_place(value)
        if operands is None:
            yield value
            continue
        for operand in operands:
            if operand not in seen:
                seen.add(operand)
                stack.append(operand)


def _inner(result: Value) -> Iterator[Value]:
    """The values between a result and what it is made of, element by element."""
    seen = {result}
    stack = [result]
    while stack:
        for operand in _same_place(stack.pop()) or ():
            if operand not in seen and _same_place(operand) is not None:
                seen.add(operand)
                stack.append(operand)
                yield operand


def _same_place(value: Value) -> list[Value] | None:
    """The operands of an element-wise node that have all of its dimensions; None for another node."""
    if not isinstance(value.node, Structured):
        return None
    edge = next(iter(edges_of_node(value.node)), None)
    if edge is None or not edge.is_identity or edge.windows or edge.selected:
        return None
    result = edge.dimensions[-1]
    same = [v for v, dims in zip(edge.tensors[:-1], edge.dimensions) if dims == result and shape_of(v)]
    return same or None


@dataclass
class Classes:
    """Dimensions that are split together, as ops pass them on: numbers of classes by value and dimension. Of a
    dimension that is several factors, the major one counts."""

    of_place: dict[Place, int] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)

    @staticmethod
    def of(body: Region) -> Classes:
        found = Classes()
        for parameter in body.parameters:
            for d in range(len(shape_of(parameter.value))):
                found._class((parameter.value, d))
        for edge in edges_of(body):
            first: dict[str, int] = {}
            for value, dims in zip(edge.tensors, edge.dimensions):
                for d, names in enumerate(dims):
                    own = found._class((value, d))
                    if names:
                        found._join(own, first.setdefault(names[0], own))
        found.of_place = {place: found._root(n) for place, n in found.of_place.items()}
        return found

    def reduced(self, edge: Edge) -> set[int]:
        """The classes that an op sums over."""
        names = {f.name for f in edge.factors if f.reduced}
        return {
            self.of_place[value, d]
            for value, dims in zip(edge.tensors, edge.dimensions)
            for d, own in enumerate(dims)
            if own and own[0] in names
        }

    def _class(self, place: Place) -> int:
        if place not in self.of_place:
            self.of_place[place] = len(self.parents)
            self.parents.append(len(self.parents))
        return self.of_place[place]

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def _join(self, a: int, b: int) -> None:
        a, b = sorted((self._root(a), self._root(b)))
        self.parents[b] = a

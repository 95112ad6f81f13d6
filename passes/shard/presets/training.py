"""What the tensors of a training step are for, found from what is done with them and not from their names.

A training step takes data, weights and what an optimiser remembers of these, and gives the next weights and states:

    value, g = value_and_grad(loss, wrt=p)(x, y, p)
    p, m, v = map(adam)(p, g, m, v, t, rate)

A result is the next of a parameter of the same type from which it is made element by element. What such a result is
made of besides, and is no parameter, are gradients. A weight is a parameter with a next one that something else reads
too; a state is one that nothing else reads; all other tensors are data.

A list of tensors, one for each layer, is like one tensor with a first dimension for the layers, as are its gradient and
its next value, which is made row by row; what loops read and write row by row counts as what they go through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Node, Parameter, Region, Structured, Value, reachable
from intarsia.ir.ops.control import ListGet, Loop
from intarsia.ir.ops.index import Update
from intarsia.ir.scalar import loads
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import operand_position
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.passes.shard.edges import Edge, edges_of, edges_of_node, shape_of
from intarsia.passes.shard.ways import elements_of

Place = tuple[Value, int]
"""A dimension of a value."""

EXAMPLE = """
           fn step(x: f32[B, D], y: f32[B, D], p: Weights(D), rate: f32) {
               value, g = value_and_grad(loss, wrt=p)(x, y, p)
               return value, map(descend)(p, g, rate)
           }"""


@dataclass(frozen=True)
class TrainingStep:
    """The roles of the parameters of a region, which is not partitioned yet."""

    body: Region

    @cached_property
    def next(self) -> Mapping[Value, Value]:
        """The next value of each parameter that has one, of those with dimensions."""
        waiting = {
            result: [v for v in made if isinstance(v.node, Parameter) and stacked_type(v.type) == result.type.plain]
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
        """The nodes that gradients need, in order: the loss and its derivative, with what their loops do."""
        needed = reachable(v.node for own in self.gradients.values() for v in own)
        return tuple(n for node in self.body.nodes if node in needed for n in (*_inside(node), node))

    @cached_property
    def classes(self) -> Classes:
        return Classes.of(self.body)

    def require(self) -> TrainingStep:
        """Itself. Raises CompileError E1910 where it gives no next weights, or takes no batch of data."""
        if not self._shared:
            if not self.weights:
                message = "no result is the next value of a parameter, so this is no training step"
            else:
                names = ", ".join(p.label for p in self.body.parameters if p.value in self.weights)
                message = f"no dimension of the data is a batch, along which gradients of {names} are sums"
            span = next((v.node.span for v in reversed(self.body.results) if v.node.span is not None), None)
            raise CompileError("E1910", message, span, hint=f"a training step is such a function:{EXAMPLE}")
        return self

    def classes_of(self, value: Value) -> tuple[int, ...]:
        """The class of each dimension of a value."""
        return tuple(self.classes.of_place[value, d] for d in range(len(shape_of(value))))

    def rows(self, value: Value) -> frozenset[int]:
        """The dimensions of a value along which loops go, row by row: those of layers."""
        return frozenset(d for d, name in enumerate(self.classes_of(value)) if name in self._of_rows)

    @cached_property
    def layered(self) -> frozenset[Value]:
        """Weights, states, and what is made of weights alone, of which loops read rows: those of layers."""
        every = (*self._from_weights, *self.next)
        return frozenset(v for v in every if isinstance(v.type, ListType) or 0 in self.rows(v))

    @cached_property
    def _of_rows(self) -> frozenset[int]:
        found: set[int] = set()
        counters = {node.counter for node in self.body.walk() if isinstance(node, Loop)}
        for node in self.body.walk():
            for value, indices in _subscripts(node):
                own = indices[len(indices) - len(shape_of(value)) :]  # without that of a list
                found.update(
                    c for c, index in zip(self.classes_of(value), own) if not counters.isdisjoint(index.symbols)
                )
        return frozenset(found)

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
            for node in _summing(v)
            for edge in edges_of_node(node)
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
            if node.inputs and all(v in found for v in node.inputs):
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
        others = {c for v in self.data for c in self.classes_of(v)} | self._of_rows
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
    return (value for value, inner in _made(result) if not inner)


def _inner(result: Value) -> Iterator[Value]:
    """The values between a result and what it is made of, element by element."""
    return (value for value, inner in _made(result) if inner and value is not result)


def _made(result: Value) -> Iterator[tuple[Value, bool]]:
    """A value and those that it is made of, element by element, with whether these are made so too."""
    seen, stack = {result}, [result]
    counters: dict[str, Size] = {}
    while stack:
        value = stack.pop()
        if isinstance(value.node, Loop):
            counters[value.node.counter] = value.node.upper
        operands = _same_place(value, counters)
        yield value, bool(operands)
        new = [v for v in operands if v not in seen]
        seen.update(new)
        stack += new


def _same_place(value: Value, counters: Mapping[str, Size]) -> list[Value]:
    """The operands of an element-wise node that have all of its dimensions; of what a loop stacks, what it stacks, and
    of a row, that of which it is the row of the step: of one of the `counters`, which have these ends."""
    if isinstance(value.node, Loop):
        is_stacked = value.index >= len(value.node.initial) and value.node.lower == ZERO
        return [value.node.body.results[value.index]] if is_stacked else []
    if isinstance(value.node, Structured) and value.node.space.reduced:
        return []
    place = tuple(Size.of(f"i{d}") for d in range(len(shape_of(value))))
    same: dict[Value, None] = {}
    for operand, indices in _subscripts(value.node):
        rows = len(indices) - len(place)
        extents = operand.type.extents[:rows]
        is_row = all(counters.get(i.as_name or "") == e for i, e in zip(indices, extents))
        if rows >= 0 and indices[rows:] == place and is_row and indices:
            same[operand] = None
    return list(same)


def _summing(value: Value) -> Iterator[Node]:
    """The nodes that sum up what a value is made of, also in the steps of a loop that adds it up."""
    seen, stack = {value}, [value]
    while stack:
        last = stack.pop()
        node, operands = last.node, list[Value]()
        if isinstance(node, Loop):
            operands = [node.body.results[last.index], *node.initial[last.index : last.index + 1]]
        elif isinstance(node, Update):
            operands = [node.base, *node.arguments]
        elif isinstance(node, Structured) and not node.space.reduced:
            operands = [v for v in node.operands if shape_of(v) == shape_of(last)]
        yield node
        new = [v for v in operands if v not in seen]
        seen.update(new)
        stack += new


def _subscripts(node: Node) -> Iterator[tuple[Value, tuple[Size, ...]]]:
    """What a node reads, and writes to, with the subscripts; its own axes are i0, i1, …"""
    if isinstance(node, Structured):
        names = {a.name: Size.of(f"i{d}") for d, a in enumerate(node.space.axes)}
        for load in node.space.loads():
            yield node.operands[operand_position(load.buffer)], tuple(i.substitute(names) for i in load.indices)
    elif isinstance(node, ListGet):
        yield node.source, (node.index, *(Size.of(f"i{d}") for d in range(len(shape_of(node.value)))))
    elif isinstance(node, Update):
        yield node.base, node.targets
        for load in loads(node.body):
            yield node.operands[operand_position(load.buffer)], load.indices


def stacked_type(type_: Type) -> Type:
    """That of the tensors of a list as one tensor."""
    return TensorType(type_.dtype, type_.extents)


def _inside(node: Node) -> Iterator[Node]:
    for region in node.regions:
        yield from region.walk()


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

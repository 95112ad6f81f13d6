"""What propagation and partitioning see of a graph: tensors that belong together, with the factors of their dimensions.

A node gives one edge between its operands and its result, by `ir/factors.py`; a loop one for each state, between what
it begins with, what the body has and yields, and the result. So no op is named beyond this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from intarsia.ir.factors import Dimension, Factor, Factors, factors
from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops.control import Fused, ListGet, Loop
from intarsia.ir.sharding import Axes, Mesh, MeshAxis
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import operand_position
from intarsia.ir.types import ListType
from intarsia.passes.shard.composed import composed
from intarsia.passes.shard.windows import Window, find_window, is_selected

Place: TypeAlias = tuple[int, int]
"""A dimension of an operand: the numbers of both."""


@dataclass(frozen=True, eq=False)
class Edge:
    """Tensors and the factors of each of their dimensions; the last `results` of the tensors are made by `node`.

    is_flow: one value under several names, as a state of a loop. windows: what is read along a dimension, by operand
    and dimension, where that is more than the element at the same place: the device takes it from its neighbours.
    selected: the factors that data select from, as a gather does; each device selects from what it has, and the sum of
    that over the devices is the result. of_lists: the factors that are the dimension of a list.
    """

    node: Node
    tensors: tuple[Value, ...]
    dimensions: tuple[tuple[Dimension, ...], ...]
    factors: tuple[Factor, ...]
    results: int
    is_identity: bool = False
    is_flow: bool = False
    windows: Mapping[Place, Window] = field(default_factory=dict)
    selected: frozenset[str] = frozenset()
    of_lists: frozenset[str] = frozenset()

    @cached_property
    def extents(self) -> Mapping[str, int | None]:
        """The number of values of each factor; None where it is not known yet."""
        return {f.name: f.extent.constant for f in self.factors}

    @property
    def operands(self) -> range:
        return range(len(self.tensors) - self.results)

    @cached_property
    def spread(self) -> frozenset[int]:
        """The operands that are broadcast: they lack factors of the result that other dimensions of theirs are not 1
        in. Along the dimension of a list no tensor of it is."""
        shown = {f for dims in self.dimensions[len(self.tensors) - self.results :] for d in dims if d for f in d}
        shown -= self.of_lists
        return frozenset(
            t
            for t in self.operands
            if not shown <= {f for d in self.dimensions[t] if d for f in d} and not self._reduces
        )

    @cached_property
    def _reduces(self) -> bool:
        return any(f.reduced for f in self.factors)

    @cached_property
    def passes_all(self) -> bool:
        """Does every element stay where it is? Then nothing is ever sent for this node."""
        return not self._reduces and not self.windows and all(d is not None for dims in self.dimensions for d in dims)

    def window(self, position: int, d: int) -> Window | None:
        """In which window an operand is read along a dimension: one of one element where that is in step."""
        names = self.dimensions[position][d]
        if (found := self.windows.get((position, d))) is not None or names is None or len(names) != 1:
            return found
        return Window(names[0]) if names[0] not in self.selected else None


def shape_of(value: Value) -> tuple[Size, ...]:
    """The dimensions that can be split: those of its tensors for a list."""
    return value.type.tensor.shape


def edges_of(region: Region) -> Iterator[Edge]:
    """All edges of a region and of those in it, in program order."""
    for node in region.nodes:
        for inner in node.regions:
            yield from edges_of(inner)
        yield from edges_of_node(node)


def edges_of_node(node: Node) -> Iterator[Edge]:
    """The edges of one node without those of its regions."""
    match node:
        case Loop(initial=initial, body=body, condition=condition):
            for position, start in enumerate(initial):
                same = [start, body.parameters[position].value, body.results[position], node.values[position]]
                if condition is not None:
                    same.insert(1, condition.parameters[position].value)
                yield _identity(node, same)
            for position in range(len(initial), len(node.values)):
                stacked = node.values[position]
                step = body.results[position]
                yield _identity(node, [step, stacked], last=(None, *_names(step)))
            if (rows := rows_of(node)) and node.stacked:
                yield _along(node, rows)
        case Fused(body):
            for inner, outer in zip(body.results, node.values):
                yield _identity(node, [inner, outer])
        case ListGet(source, scalars=scalars):
            first = _names(node.value) if isinstance(source.type, ListType) else (None, *_names(node.value))
            found = tuple(Factor(f"i{d}", s) for d, s in enumerate(shape_of(node.value)))
            rest = ((),) * len(scalars)
            yield Edge(node, (source, *scalars, node.value), (first, *rest, _names(node.value)), found, 1)
        case _:
            rule = factors(node)
            if rule is not None:
                yield _edge(node, rule)


def _edge(node: Node, rule: Factors) -> Edge:
    dimensions = [
        list(dims[1:] if isinstance(value.type, ListType) else dims)
        for value, dims in zip(node.operands, rule.operands)
    ]
    pairs = zip(node.operands, rule.operands)
    of_lists = (f for value, dims in pairs if isinstance(value.type, ListType) for f in dims[0] or ())
    windows: dict[Place, Window] = {}
    selected: list[Factor] = []
    if isinstance(node, Structured):
        for position, value in enumerate(node.operands):
            if isinstance(value.type, ListType):
                continue
            for d, known in enumerate(dimensions[position]):
                if known is not None:
                    continue
                window = find_window(node.space, position, d, rule)
                if window is not None and all(window.axis not in (names or ()) for names in dimensions[position]):
                    windows[position, d] = window
                    dimensions[position][d] = (window.axis,)
                elif is_selected(node.space, position, d):
                    selected.append(Factor(f"a{position}_{d}", value.tensor.shape[d], "sum"))
                    dimensions[position][d] = (selected[-1].name,)
    identity = isinstance(node, Structured) and not any(f.reduced for f in rule.factors)
    return Edge(
        node,
        (*node.operands, node.value),
        (*map(tuple, dimensions), rule.result),
        (*rule.factors, *selected),
        1,
        identity,
        windows=windows,
        selected=frozenset(f.name for f in selected),
        of_lists=frozenset(of_lists),
    )


def edge_of(node: Node) -> Edge:
    """The edge of an op that has one result, or of a group; one without factors where nothing is said about the op."""
    if isinstance(node, Fused) and len(node.values) == 1 and all(isinstance(n, Structured) for n in node.body.nodes):
        edge = edge_of(composed(node.body))
        return replace(edge, tensors=(*edge.tensors[:-1], node.value))
    return next(iter(edges_of_node(node)), None) or Edge(node, (*node.operands, *node.values), (), (), len(node.values))


def rows_of(loop: Loop) -> tuple[tuple[Value, int], ...]:
    """The values from outside of which each step reads one row, that of its counter, with the dimension of the rows."""
    found: dict[tuple[Value, int], None] = {}
    captured = frozenset(loop.body.captures)
    for node in loop.body.nodes:
        for load in node.space.loads() if isinstance(node, Structured) else ():
            value = node.operands[operand_position(load.buffer)]
            if value in captured and not isinstance(value.type, ListType):
                dims = (d for d, index in enumerate(load.indices) if index.as_name == loop.counter)
                found.update(((value, d), None) for d in dims if loop.upper == value.tensor.shape[d])
    return tuple(found) if loop.lower == ZERO else ()


def _along(loop: Loop, rows: Sequence[tuple[Value, int]]) -> Edge:
    """The steps of a scan, as a dimension of what it reads rows of and of what it stacks."""
    stacked = loop.values[len(loop.initial) :]
    places = (*rows, *((v, 0) for v in stacked))
    dimensions = (tuple(("t",) if k == d else None for k in range(v.tensor.rank)) for v, d in places)
    found = (Factor("t", loop.upper),)
    return Edge(loop, tuple(v for v, _ in places), tuple(dimensions), found, len(stacked), is_flow=True)


def _names(value: Value) -> tuple[Dimension, ...]:
    return tuple((f"i{d}",) for d in range(len(shape_of(value))))


def _identity(node: Node, values: list[Value], last: tuple[Dimension, ...] | None = None) -> Edge:
    """Values that lie alike; `last` are the factors of the last one where these differ."""
    names = _names(values[0])
    found = tuple(Factor(f"i{d}", s) for d, s in enumerate(shape_of(values[0])))
    dimensions = (*(names for _ in values[:-1]), names if last is None else last)
    return Edge(node, tuple(values), dimensions, found, 1, is_identity=True, is_flow=True)


@dataclass(frozen=True)
class Projection:
    """The axes of each factor in one tensor, and the axes that no factor has."""

    of_factor: Mapping[str, Axes]
    others: Axes


def project(mesh: Mesh, edge: Edge, tensor: int, axes: tuple[Axes, ...]) -> Projection:
    """Hand the axes of each dimension to its factors, the major one first, parts of axes where need be."""
    of_factor: dict[str, Axes] = {}
    others: list[MeshAxis] = []
    for dimension, own in zip(edge.dimensions[tensor], axes):
        if not dimension:
            others += own
            continue
        rest = own
        for position, name in enumerate(dimension):
            # Of several factors each is divided exactly, and a minor one only where the major ones are split wholly.
            taken, rest = mesh.take(rest, edge.extents[name]) if len(dimension) > 1 else (rest, ())
            of_factor[name] = taken
            if mesh.size(taken) != edge.extents[name] or position == len(dimension) - 1:
                others += rest
                of_factor.update((n, ()) for n in dimension[position + 1 :])
                break
    return Projection(of_factor, tuple(others))


def dimension_axes(mesh: Mesh, edge: Edge, dimension: Dimension, of_factor: Mapping[str, Axes]) -> Axes:
    """The axes of a dimension whose factors have these."""
    found: Axes = ()
    for name in dimension or ():
        own = of_factor.get(name, ())
        found = (*found, *own)
        if mesh.size(own) != edge.extents[name]:
            break
    return mesh.joined(found)

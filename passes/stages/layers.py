"""Loops over layers written out, so that a pipeline can be cut between layers.

A loop is over layers where each step reads a row of weights, of what an optimiser remembers of them, or of what another
such loop gives: the forward part, the backward part, a norm of gradients, and the update of a list of structs. Written
out, a step reads the weights of its layer and nothing else of these. What loops stack and add up row by row is kept as
rows, which are put together only where something needs all of them at once: the result of a step is the nodes that it
would be with a name for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeAlias

from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Module, Node, Region, Structured, Value, region_of
from intarsia.ir.ops.control import ListGet, Loop
from intarsia.ir.ops.elementwise import Constant, Elementwise, axes_for
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.ops.shape import BroadcastTo, Concat, Reshape
from intarsia.ir.scalar import Expr, Load, loads, transform
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Space, operand, operand_position
from intarsia.ir.substitution import copied
from intarsia.ir.types import ListType, TensorType
from intarsia.passes.canonicalize.values import literal_of
from intarsia.passes.shard.counters import Counters
from intarsia.passes.shard.presets.training import TrainingStep


def with_layers_written_out(module: Module) -> Module:
    """The module of a training step without loops over layers; itself if it has none."""
    step = TrainingStep(module.graph.body)
    loops = (n for n in module.graph.body.nodes if isinstance(n, Loop))
    if not any(_is_over_layers(loop, step.layered.__contains__) for loop in loops):
        return module
    return module.with_body(_Writer(module, step).body())


def _is_over_layers(loop: Loop, is_layered: Callable[[Value], bool]) -> bool:
    """Does each of so many steps read a row of what has some for all layers?"""
    if loop.condition is not None or loop.lower.constant is None or loop.upper.constant is None:
        return False
    rows = (v for v, index in _rows_read(loop.body) if loop.counter in index.symbols and not index.opaques)
    return any(map(is_layered, rows))


def _rows_read(region: Region) -> list[tuple[Value, Size]]:
    """What a region reads, with the first subscript."""
    found: list[tuple[Value, Size]] = []
    for node in region.nodes:
        if isinstance(node, ListGet):
            found.append((node.source, node.index))
        elif isinstance(node, Structured):
            reads = (load for load in node.space.loads() if load.indices)
            found += ((node.operands[operand_position(load.buffer)], load.indices[0]) for load in reads)
    return found


class Rows:
    """The rows of a value along its first dimension, each made when it is needed first, but for those `changed`."""

    def __init__(self, length: int, make: Callable[[int], Value], changed: Mapping[int, Value] | None = None) -> None:
        self.length = length
        self.make = make
        self.changed = changed or {}

    def __getitem__(self, n: int) -> Value:
        return self.changed[n] if n in self.changed else self.make(n)

    def with_row(self, number: int, value: Value) -> Rows:
        """The same with another value in one place."""
        return Rows(self.length, self.make, {**self.changed, number: value})


Known: TypeAlias = "Value | Rows"
"""What stands for a value of the module."""


@dataclass
class _Writer:
    """Writes out the loops. `nodes` are those of the new body so far; values of a step are known by its number."""

    module: Module
    step: TrainingStep
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counters = Counters(self.module)
        self.whole_of: dict[Rows, Value] = {}

    def body(self) -> Region:
        body = self.module.graph.body
        known: dict[Value, Known] = {v: self.rows_of(v) for v in self.step.next if v in self.step.layered}
        for node in body.nodes:
            self.node(node, known, {})
        return region_of(body.parameters, self.nodes, [self.whole(known.get(v, v)) for v in body.results])

    def add(self, node: Node, like: Node) -> Value:
        self.nodes.append(replace(node, span=node.span or like.span, more_spans=node.more_spans or like.more_spans))
        return self.nodes[-1].values[0]

    def rows_of(self, value: Value) -> Rows:
        """The rows of a whole value."""
        length = value.type.extents[0]

        def make(n: int) -> Value:
            if (literal := literal_of(value)) is not None:
                number = self.add(Constant(literal.value, value.dtype), value.node)
                return self.add(BroadcastTo(number, value.tensor.shape[1:]), value.node)
            if isinstance(value.type, ListType):
                return self.add(ListGet(value, Size.of(n)), value.node)
            axes = axes_for(value.tensor.shape[1:])
            place = (Size.of(n), *(Size.of(a.name) for a in axes))
            space = Space(axes, Load(operand(0), place, value.dtype), value.dtype)
            return self.add(Compute((value,), space), value.node)

        return Rows(int(length), cache(make))

    def whole(self, known: Known) -> Value:
        """All rows as one tensor."""
        if isinstance(known, Value):
            return known
        if known not in self.whole_of:
            rows = [known[n] for n in range(known.length)]
            like = rows[0].node
            stacked = [self.add(Reshape(v, (ONE, *v.tensor.shape)), like) for v in rows]
            self.whole_of[known] = self.add(Concat(tuple(stacked), 0), like)
        return self.whole_of[known]

    # ------------------------------------------------------------------ nodes

    def node(self, node: Node, known: dict[Value, Known], names: Mapping[str, Size]) -> None:
        """Add a node of the module, or of a step in which the counters have these values."""
        if (
            isinstance(node, Loop)
            and not names
            and _is_over_layers(node, lambda v: v in self.step.layered or isinstance(known.get(v), Rows))
        ):
            known.update(zip(node.values, self.loop(node, known)))
            return
        found: Known | None = None
        rowed = any(isinstance(known.get(v), Rows) for v in node.operands)
        if isinstance(node, ListGet) and isinstance(rows := known.get(node.source), Rows):
            index = node.index.substitute(names).constant
            found = rows[index] if index is not None else None
        elif isinstance(node, Update):
            found = self.update(node, known, names)
        elif isinstance(node, Structured) and rowed:
            found = self.structured(node, known, names)
        if found is None:
            values = {v: self.whole(k) for v in node.inputs if (k := known.get(v)) is not None}
            self.nodes.append(copied(node, names, values, self.counters.fresh) if names else node.with_operands(values))
            known.update(zip(node.values, self.nodes[-1].values))
        else:
            known[node.values[0]] = found

    def loop(self, loop: Loop, known: dict[Value, Known]) -> list[Known]:
        """The last states of a loop, and the rows that it stacks."""
        states: list[Known] = [known.get(v, v) for v in loop.initial]
        stacked: list[list[Value]] = [[] for _ in range(loop.stacked)]
        for number in range(int(loop.lower), int(loop.upper)):
            own = {**known, **dict(zip((p.value for p in loop.states), states))}
            for node in loop.body.nodes:
                self.node(node, own, {loop.counter: Size.of(number)})
            results = [own.get(v, v) for v in loop.body.results]
            states = results[: len(states)]
            for rows, value in zip(stacked, results[len(states) :]):
                rows.append(self.whole(value))
        return [*states, *(Rows(len(rows), rows.__getitem__) for rows in stacked)]

    def structured(self, node: Structured, known: Mapping[Value, Known], names: Mapping[str, Size]) -> Known | None:
        """An op that reads one row of each value of which there are rows; its rows where it goes along these; the sum
        of rows where it sums along them. None where it needs all of them."""
        space = node.space.substitute(names)
        along: set[tuple[str | None, int]] = set()
        for load in space.loads():
            rows = known.get(node.operands[operand_position(load.buffer)])
            if isinstance(rows, Rows) and load.indices[0].constant is None:
                along.add((load.indices[0].as_name, rows.length))
        if not along:
            return self.on_rows(node, space, known)
        name, length = next(iter(along))
        axis = next((a for a in space.all_axes if a.name == name and a.upper.constant == length), None)
        if len(along) > 1 or axis is None or axis.lower != ZERO:
            return None
        if axis in space.reduced:
            reduced = tuple(a for a in space.reduced if a != axis)
            rest = replace(space, reduced=reduced, combiner=space.combiner if reduced else None)
        elif axis == space.axes[0]:
            rest = replace(space, axes=space.axes[1:])
        else:
            return None

        @cache
        def row(n: int) -> Value:
            return self.on_rows(node, rest.substitute({axis.name: Size.of(n)}), known)

        if axis not in space.reduced:
            return Rows(length, row)
        if space.dtype != space.body.dtype or space.combiner is None:
            return None
        function = COMBINERS[space.combiner].function
        total = row(0)
        for n in range(1, length):
            total = self.add(Elementwise(function, (total, row(n))), node)
        return total

    def on_rows(self, node: Structured, space: Space, known: Mapping[Value, Known]) -> Value:
        """An op with a space that reads single rows."""
        operands: dict[Value, int] = {}

        def read(e: Expr) -> Expr | None:
            if not isinstance(e, Load):
                return None
            value = node.operands[operand_position(e.buffer)]
            found, indices = known.get(value, value), e.indices
            if isinstance(found, Rows):
                found, indices = found[int(indices[0])], indices[1:]
            return Load(operand(operands.setdefault(found, len(operands))), indices, e.dtype)

        body = transform(space.body, rule=read)
        if isinstance(body, Load) and not space.reduced and body.dtype == space.dtype:
            place = tuple(Size.of(a.name) for a in space.axes)
            (source,) = operands
            if body.indices == place and source.type.plain == TensorType(space.dtype, space.shape):
                return source
        return self.add(Compute(tuple(operands), replace(space, body=body)), node)

    def update(self, node: Update, known: Mapping[Value, Known], names: Mapping[str, Size]) -> Known | None:
        """An update of one row as the rows with that one updated."""
        base = known.get(node.base, node.base)
        targets = tuple(t.substitute(names) for t in node.targets)
        reads_old = any(load.buffer == operand(0) for load in loads(node.body))
        if not names or len(targets) < 2 or targets[0].constant is None or reads_old:
            return None
        if any(isinstance(known.get(v), Rows) for v in node.arguments):
            return None
        rows, number = base if isinstance(base, Rows) else self.rows_of(base), int(targets[0])
        values = {v: self.whole(k) for v in node.arguments if (k := known.get(v)) is not None}
        made = copied(replace(node, base=rows[number], targets=targets[1:]), names, values, self.counters.fresh)
        return rows.with_row(number, self.add(made, node))

"""A dimension cut into sections, one for each device that it is split over, as a dimension of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.dtypes import DType
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Loop
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.ops.index import Compute
from intarsia.ir.ops.shape import Pad, Reshape, Slice
from intarsia.ir.scalar import Const, Expr, Index, Load, apply, as_size, transform, where
from intarsia.ir.sharding import Axes, Mesh, Sharding
from intarsia.ir.sizes import Size, minimum
from intarsia.ir.space import Axis, Space, operand, operand_position
from intarsia.ir.types import ListType
from intarsia.passes.lower.stages import Names
from intarsia.passes.shard.checked import space_inside
from intarsia.passes.shard.ways import sharding_of


@dataclass
class Sections:
    """A dimension of `whole` elements in `count` sections of `extent`, one for each device along `axes`; nodes in the
    place of `like` are added to `nodes`. checks: there will be run-time checks."""

    mesh: Mesh
    axes: Axes
    count: int
    extent: int
    whole: int
    like: Node
    nodes: list[Node]
    checks: bool = False
    known: dict[tuple[Value, int], Value] = field(default_factory=dict)

    def add(self, node: Node, axes: Sequence[Axes]) -> Value:
        """Add a node whose result lies so."""
        laid = replace(node, shardings=(Sharding.of(axes),), **self.like.spans)
        self.nodes.append(laid)
        return laid.value

    def free(self, axes: Sequence[Axes]) -> tuple[Axes, ...]:
        """Axes of other dimensions, without those along which there are sections."""
        return tuple(tuple(a for a in own if not any(self.mesh.overlap(a, b) for b in self.axes)) for own in axes)

    def cut(self, value: Value, d: int) -> Value:
        """The value with two dimensions, the number of the section and the place in it, in place of dimension d."""
        if (value, d) not in self.known:
            rest, shape, source = self.free(sharding_of(value).axes), value.tensor.shape, value
            if missing := self.count * self.extent - self.whole:
                source = self.add(Pad.along(value, d, 0, missing), (*rest[:d], self.axes, *rest[d + 1 :]))
            new = (*shape[:d], Size.of(self.count), Size.of(self.extent), *shape[d + 1 :])
            self.known[value, d] = self.add(Reshape(source, new), (*rest[:d], self.axes, (), *rest[d + 1 :]))
        return self.known[value, d]

    def joined(self, value: Value, d: int) -> Value:
        """The inverse of `cut`."""
        own, shape = sharding_of(value).axes, value.tensor.shape
        axes = (*own[: d + 1], *own[d + 2 :])
        all_ = (*shape[:d], Size.of(self.count * self.extent), *shape[d + 2 :])
        value = self.add(Reshape(value, all_), axes)
        if self.count * self.extent == self.whole:
            return value
        return self.add(Slice.along(value, d, 0, self.whole), axes)

    def laid(self, value: Value, axes: Sequence[Axes]) -> Value:
        """The value as its dimensions are to be split."""
        return value if sharding_of(value).axes == tuple(axes) else self.add(Shard(value), axes)

    def filled(self, number: int, shape: Sequence[Size], dtype: DType, axes: Sequence[Axes]) -> Value:
        """A number everywhere."""
        return self.add(Compute((), Space(axes_for(tuple(shape)), Const(number, dtype), dtype)), axes)


@dataclass
class Lift:
    """The nodes of a step for the same step of all sections: their values have one more dimension, the first, which is
    that of the sections. What is the same in each step is moved before the loop."""

    loop: Loop
    sections: Sections
    counter: str
    values: dict[Value, Value] = field(default_factory=dict)
    fixed: dict[Value, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def nodes_of(self, nodes: Sequence[Node], states: Sequence[Value]) -> None:
        """Lift the nodes of a step."""
        self.values.update(zip((p.value for p in self.loop.states), states))
        for node in nodes:
            assert isinstance(node, Structured)
            if any(v in self.values for v in node.operands) or self.loop.counter in _symbols(node.space):
                self.values[node.value] = self.add(node.space, node.operands, sharding_of(node.value).axes)
            else:
                moved = node.with_operands(self.fixed)
                self.sections.nodes.append(moved)
                self.fixed[node.value] = moved.value

    def of(self, value: Value) -> Value:
        """A value of the step, lifted even if it is the same for all sections."""
        if value not in self.values:
            axes = axes_for(value.tensor.shape)
            same = Space(axes, Load(operand(0), tuple(Size.of(a.name) for a in axes), value.dtype), value.dtype)
            self.values[value] = self.add(same, (value,), sharding_of(value).axes)
        return self.values[value]

    def kept(self, new: Value, old: Value) -> Value:
        """A state, which stays as it was after the last step."""
        if self.sections.count * self.sections.extent == self.sections.whole:
            return new
        self.values.update({new: new, old: old})
        axes = axes_for(new.tensor.shape[1:])
        place = tuple(Size.of(a.name) for a in axes)
        inside = apply("lt", Index(Size.of(self.loop.counter)), Index(Size.of(self.sections.whole)))
        body = where(inside, *(Load(operand(n), place, new.dtype) for n in range(2)))
        return self.add(Space(axes, body, new.dtype), (new, old), sharding_of(new).axes[1:])

    def add(self, space: Space, operands: Sequence[Value], axes: Sequence[Axes]) -> Value:
        """An op of the step for all sections."""
        part = Names({a.name for a in space.all_axes} | _symbols(space) | {self.counter}).fresh("part")
        values = [self.values.get(v, self.fixed.get(v, v)) for v in operands]
        rows: dict[tuple[int, int], int] = {}
        here = Size.of(part) * self.sections.extent + Size.of(self.counter)
        is_even = self.sections.count * self.sections.extent == self.sections.whole
        step, within = ({self.loop.counter: p} for p in (here, here if is_even else minimum(here, self.loop.upper - 1)))

        def read(e: Expr) -> Expr | None:
            if not isinstance(e, Load):
                return None
            position = operand_position(e.buffer)
            if operands[position] in self.values:
                return replace(e, indices=(Size.of(part), *(i.substitute(within) for i in e.indices)))
            d = next((d for d, index in enumerate(e.indices) if index.as_name == self.loop.counter), None)
            value = values[position]
            if d is None or isinstance(value.type, ListType) or value.tensor.shape[d] != self.loop.upper:
                return replace(e, indices=tuple(i.substitute(within) for i in e.indices))
            if (position, d) not in rows:
                rows[position, d] = len(values)
                values.append(self.sections.cut(value, d))
            indices = (*e.indices[:d], Size.of(part), Size.of(self.counter), *e.indices[d + 1 :])
            return replace(e, buffer=operand(rows[position, d]), indices=indices)

        def lifted(e: Expr) -> Expr:
            return transform(transform(e, rule=read), step)

        def bounds(old: Sequence[Axis]) -> tuple[Axis, ...]:
            return tuple(Axis(a.name, *(size(b) for b in (a.lower, a.upper))) for a in old)

        def size(old: Size) -> Size:
            return old.substitute(step, lambda value: as_size(lifted(value)))

        if self.sections.checks and not is_even:
            inside = apply("lt", Index(Size.of(self.loop.counter)), Index(self.loop.upper))
            space = space_inside(space, operands, inside)
        first = Axis.of(part, self.sections.count)
        space = replace(
            space, axes=(first, *bounds(space.axes)), reduced=bounds(space.reduced), body=lifted(space.body)
        )
        laid = Sharding.of((self.sections.axes, *self.sections.free(axes)))
        node = Compute(tuple(values), space, **self.loop.spans, shardings=(laid,))
        self.nodes.append(node)
        return node.value


def _symbols(space: Space) -> frozenset[str]:
    bounds = (b.symbols for a in space.all_axes for b in (a.lower, a.upper))
    return space.body.symbols.union(*bounds)

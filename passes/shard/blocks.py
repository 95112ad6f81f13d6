"""An op on one block of a dimension, of which the devices have a block each, and values as large as they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import I64
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.ops.shape import Pad, Slice
from intarsia.ir.scalar import Const, Expr, Index, Load, apply, as_size, transform, where
from intarsia.ir.sizes import ZERO, Size, minimum
from intarsia.ir.space import Axis, Space, operand, operand_position
from intarsia.ir.types import ListType

Add = Callable[[Node], Value]
"""Adds a node to a region, and gives its value."""


@dataclass(frozen=True)
class Block:
    """The block of a dimension that is at hand: that of the device `behind` places before this one.

    index: the number of this device, an i64. extent: elements of a block.
    """

    index: Value
    devices: int
    extent: int
    behind: Size

    @property
    def whole(self) -> int:
        """The elements of all blocks, with the padding at the end."""
        return self.devices * self.extent

    def start(self, index: str) -> Size:
        """Its first element; `index` is the buffer that holds the number of this device."""
        own = Size.opaque(Load(index, (), I64))
        return (own + self.devices - self.behind) % self.devices * self.extent


def on_block(
    space: Space, operands: Sequence[Value], axis: str, block: Block, given: Mapping[int, int], add: Add
) -> Value:
    """An op where one axis runs over a block only: a reduction over the axis is that of the block.

    given: the operands of which only the block is there, with the dimension. Of others that the axis runs along, the
    block is cut out first, so that what remains is an op like any other.
    """
    names = {a.name for a in space.all_axes}
    local = axis
    while local in names:
        local += "'"
    (bounds,) = (a for a in space.all_axes if a.name == axis)
    values = [*operands, block.index]
    place = block.start(operand(len(operands))) + local
    cuts: dict[tuple[int, int], int] = {}

    def read(e: Expr) -> Expr | None:
        if not isinstance(e, Load) or not any(axis in i.symbols for i in e.indices):
            return None
        position = operand_position(e.buffer)
        d = given.get(position, next((d for d, i in enumerate(e.indices) if i.as_name == axis), None))
        if d is None or isinstance(values[position].type, ListType):
            within = _within(place, bounds.upper, block)
            return replace(e, indices=tuple(i.substitute({axis: within}) for i in e.indices))
        assert e.indices[d].as_name == axis, f"a block is read at {e.indices[d]}"
        if position not in given:
            if (position, d) not in cuts:
                cuts[position, d] = len(values)
                values.append(_cut(values[position], d, block, add))
            position = cuts[position, d]
        indices = (*e.indices[:d], Size.of(local), *e.indices[d + 1 :])
        return replace(e, buffer=operand(position), indices=indices)

    body = transform(space.body, rule=read)
    if axis in {a.name for a in space.reduced}:
        nothing = Const(space.neutral, body.dtype)
        if bounds.lower != ZERO:
            body = where(apply("ge", Index(Size.of(axis)), Index(bounds.lower)), body, nothing)
        if bounds.upper != Size.of(block.whole):
            body = where(apply("lt", Index(Size.of(axis)), Index(bounds.upper)), body, nothing)

    def size(old: Size) -> Size:
        return old.substitute({axis: place}, lambda e: as_size(transform(transform(e, rule=read), {axis: place})))

    def axes(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        own = Axis.of(local, block.extent)
        return tuple(own if a is bounds else Axis(a.name, size(a.lower), size(a.upper)) for a in old)

    body = transform(body, {axis: place})
    new = replace(space, axes=axes(space.axes), reduced=axes(space.reduced), body=body)
    return add(Compute(tuple(values), new.rename_axes({local: axis})))


def _within(place: Size, extent: Size, block: Block) -> Size:
    """A place in a dimension, at its end for what is only padding of the last block."""
    return place if extent == Size.of(block.whole) else minimum(place, extent - 1)


def _cut(value: Value, d: int, block: Block, add: Add) -> Value:
    """The block of a value of which this device has all."""
    shape = value.tensor.shape
    axes = axes_for((*shape[:d], Size.of(block.extent), *shape[d + 1 :]))
    indices = [Size.of(a.name) for a in axes]
    indices[d] = _within(block.start(operand(1)) + indices[d], shape[d], block)
    body = Load(operand(0), tuple(indices), value.dtype)
    return add(Compute((value, block.index), Space(axes, body, value.dtype)))


def put_block(whole: Value, value: Value, d: int, block: Block, add: Add) -> Value:
    """A tensor with one block along a dimension replaced."""
    axes = axes_for(value.tensor.shape)
    indices = tuple(Size.of(a.name) for a in axes)
    targets = (*indices[:d], block.start(operand(2)) + indices[d], *indices[d + 1 :])
    body = Load(operand(1), indices, value.dtype)
    return add(Update(whole, (value, block.index), tuple(axes), targets, "=", body))


def fitted(value: Value, shape: Sequence[int], add: Add) -> Value:
    """A value padded or cut at the end of each dimension."""
    have = value.tensor.static_shape
    after = tuple(Size.of(max(0, want - own)) for own, want in zip(have, shape))
    if any(a != ZERO for a in after):
        value = add(Pad(value, (ZERO,) * len(have), after, 0))
    if any(want < own for own, want in zip(have, shape)):
        value = add(Slice(value, (ZERO,) * len(have), tuple(map(Size.of, shape))))
    return value

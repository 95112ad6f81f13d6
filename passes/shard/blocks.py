"""An op on one block of a dimension, of which the devices have a block each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import I64
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.scalar import Const, Expr, Index, Load, apply, transform, where
from intarsia.ir.sizes import ZERO, Size
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
    values = list(operands)
    cuts: dict[tuple[int, int], int] = {}

    def cut(e: Expr) -> Expr | None:
        if not isinstance(e, Load):
            return None
        position = operand_position(e.buffer)
        along = [d for d, index in enumerate(e.indices) if index.as_name == axis]
        d = given.get(position, along[0] if along else None)
        if d is None or (position not in given and isinstance(values[position].type, ListType)):
            return None
        assert e.indices[d].as_name == axis, f"a block is read at {e.indices[d]}"
        if position not in given:
            if (position, d) not in cuts:
                cuts[position, d] = len(values)
                values.append(_cut(values[position], d, block, add))
            position = cuts[position, d]
        indices = (*e.indices[:d], Size.of(local), *e.indices[d + 1 :])
        return replace(e, buffer=operand(position), indices=indices)

    body = space.body
    for found in space.reduced:
        place = Index(Size.of(axis))
        if found.name == axis and found.lower != ZERO:
            body = where(apply("ge", place, Index(found.lower)), body, Const(space.neutral, body.dtype))
        if found.name == axis and found.upper != Size.of(block.whole):
            body = where(apply("lt", place, Index(found.upper)), body, Const(space.neutral, body.dtype))
    body = transform(body, rule=cut)
    values.append(block.index)
    here = {axis: block.start(operand(len(values) - 1)) + local}

    def axes(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis.of(local, block.extent) if a.name == axis else a.substitute(here) for a in old)

    new = replace(space, axes=axes(space.axes), reduced=axes(space.reduced), body=transform(body, here))
    return add(Compute(tuple(values), new.rename_axes({local: axis})))


def _cut(value: Value, d: int, block: Block, add: Add) -> Value:
    """The block of a value of which this device has all."""
    axes = [Axis.of(a.name, block.extent) if n == d else a for n, a in enumerate(axes_for(value.tensor.shape))]
    indices = [Size.of(a.name) for a in axes]
    indices[d] = block.start(operand(1)) + indices[d]
    body = Load(operand(0), tuple(indices), value.dtype)
    return add(Compute((value, block.index), Space(tuple(axes), body, value.dtype)))


def put_block(whole: Value, value: Value, d: int, block: Block, add: Add) -> Value:
    """A tensor with one block along a dimension replaced."""
    axes = axes_for(value.tensor.shape)
    indices = tuple(Size.of(a.name) for a in axes)
    targets = (*indices[:d], block.start(operand(2)) + indices[d], *indices[d + 1 :])
    body = Load(operand(1), indices, value.dtype)
    return add(Update(whole, (value, block.index), tuple(axes), targets, "=", body))

"""Tensors as matrices with a row for each device: what goes to it, or comes from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from intarsia.ir.errors import Span
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import AllGather, Pad, Reshape, Slice, Transpose
from intarsia.ir.sizes import Size


@dataclass
class Rows:
    """Makes rows of tensors, and tensors of rows. `nodes` are those that it has made, for the text `span`."""

    span: Span | None = None
    nodes: list[Node] = field(default_factory=list)

    def add(self, node: Node) -> Value:
        self.nodes.append(node.at(self.span))
        return self.nodes[-1].value

    def of(self, x: Value, dim: int | None, devices: int) -> Value:
        """x as a matrix: a row for what goes to each device along a dimension, or one row."""
        if dim is None:
            return self.reshaped(x, (1, -1))
        shape = x.tensor.static_shape
        apart = (*shape[:dim], devices, shape[dim] // devices, *shape[dim + 1 :])
        order = (dim, *(d for d in range(len(apart)) if d != dim))
        return self.reshaped(self.transposed(self.reshaped(x, apart), order), (devices, -1))

    def gathered(self, rows: Value, node: AllGather) -> Value:
        """What a gather gives, of a row from each device."""
        x, dim = node.x.tensor.static_shape, node.dim
        order = (*range(1, dim + 1), 0, *range(dim + 1, len(x) + 1))
        apart = self.transposed(self.reshaped(rows, (node.devices, *x)), order)
        return self.reshaped(apart, node.value.tensor.static_shape)

    def like(self, rows: Value, value: Value) -> Value:
        """The rows in the shape of a value."""
        return self.reshaped(rows, value.tensor.static_shape)

    def reshaped(self, x: Value, shape: Sequence[int]) -> Value:
        """x in another shape, of which one extent may be -1: what is left."""
        elements = math.prod(x.tensor.static_shape)
        known = math.prod(s for s in shape if s >= 0)
        wanted = tuple(Size.of(s if s >= 0 else elements // max(1, known)) for s in shape)
        return x if wanted == x.tensor.shape else self.add(Reshape(x, wanted))

    def transposed(self, x: Value, order: Sequence[int]) -> Value:
        return x if tuple(order) == tuple(range(len(order))) else self.add(Transpose(x, tuple(order)))

    def cut(self, rows: Value, start: int, width: int) -> Value:
        """So many columns."""
        return rows if width == rows.tensor.static_shape[1] else self.add(Slice.along(rows, 1, start, width))

    def padded(self, rows: Value, width: int) -> Value:
        """The rows with zeros at their ends."""
        more = width - rows.tensor.static_shape[1]
        return self.add(Pad.along(rows, 1, 0, more)) if more else rows

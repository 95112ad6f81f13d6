"""What run-time checks look at: nothing beyond the end of a dimension, where devices have padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from intarsia.ir.dtypes import BOOL, I64
from intarsia.ir.graph import Value
from intarsia.ir.scalar import Const, Expr, Index, where
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.passes.lower.checks import can_fail


def space_inside(space: Space, operands: Sequence[Value], inside: Expr) -> Space:
    """The space, which reads nothing that checks look at where `inside` does not hold."""
    reduced = tuple(Axis(a.name, size_inside(a.lower, inside), size_inside(a.upper, inside)) for a in space.reduced)
    return replace(space, reduced=reduced, body=body_inside(space.body, space.all_axes, operands, inside))


def body_inside(body: Expr, axes: Sequence[Axis], operands: Sequence[Value], inside: Expr) -> Expr:
    """A body over axes, evaluated where `inside` holds if checks look at it."""
    nothing = Const(False if body.dtype == BOOL else 0, body.dtype)
    return where(inside, body, nothing) if can_fail(operands, axes, body) else body


def size_inside(size: Size, inside: Expr) -> Size:
    """An integer expression, 0 where `inside` does not hold if it depends on data."""
    return Size.opaque(where(inside, Index(size), Const(0, I64))) if size.opaques else size

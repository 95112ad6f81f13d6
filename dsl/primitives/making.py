"""Tensors made from nothing but a type or a size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intarsia.dsl.primitives.arguments import Argument, Arguments, Primitive
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import Item, is_weak
from intarsia.ir.dtypes import BOOL, F32, I64
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.ops import BroadcastTo, Cast, Compute
from intarsia.ir.scalar import Apply, Const, Index
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def _filled(builder: Builder, wanted: TensorType, number: Argument, span: Span) -> Value:
    """A scalar, repeated."""
    for position, size in enumerate(wanted.shape):
        builder.bounds.require_nonnegative(size, f"size {position} of {wanted}", span)
    if wanted.dtype.is_narrow and is_weak(number.item):
        # A narrow type has no literals of its own: the number is converted, as a cast would.
        one = builder.as_value(number.item, number.span, F32 if wanted.dtype.is_float else I64)
        scalar = builder.add(Cast(one, wanted.dtype, span=span)).value
    else:
        scalar = builder.as_value(number.item, number.span, wanted.dtype)
    if scalar.tensor.rank or scalar.dtype != wanted.dtype:
        message = f"full({wanted}, …): the value is {scalar.type}, and {wanted.dtype} is wanted"
        raise CompileError("E0304", message, number.span)
    if not wanted.rank:
        return scalar
    return builder.add(BroadcastTo(scalar, wanted.shape, span=span)).value


def _zeros(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    wanted = arguments.type("type")
    return _filled(builder, wanted, Argument(False if wanted.dtype == BOOL else 0, span), span)


def _ones(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    wanted = arguments.type("type")
    return _filled(builder, wanted, Argument(True if wanted.dtype == BOOL else 1, span), span)


def _full(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    return _filled(builder, arguments.type("type"), arguments["value"], span)


def _iota(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    size = arguments.size("n")
    builder.bounds.require_nonnegative(size, "the size of iota", arguments["n"].span)
    axis = Axis.of(builder.axis_symbol("i", None), size)
    space = Space((axis,), Index(Size.of(axis.name)), I64)
    return builder.add(Compute((), space, span=span)).value


def _eye(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    size = arguments.size("n")
    builder.bounds.require_nonnegative(size, "the size of eye", arguments["n"].span)
    row, column = (Axis.of(builder.axis_symbol(name, None), size) for name in "ij")
    diagonal = Apply("eq", (Index(Size.of(row.name)), Index(Size.of(column.name))))
    body = Apply("where", (diagonal, Const(1.0, F32), Const(0.0, F32)))
    space = Space((row, column), body, F32)
    return builder.add(Compute((), space, span=span)).value


MAKING = (
    Primitive("zeros", "type", _zeros),
    Primitive("ones", "type", _ones),
    Primitive("full", "type, value", _full),
    Primitive("iota", "n", _iota),
    Primitive("eye", "n", _eye),
)

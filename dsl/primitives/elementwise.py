"""Scalar functions and bit operations, on elements or with broadcasting on whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from intarsia.dsl.evaluation.operators import apply_function
from intarsia.dsl.primitives.arguments import Arguments, Primitive
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import EXPRESSIONS, Item
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.ops import BitcastOp
from intarsia.ir.scalar import Bitcast

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder

UNARY = (
    "abs", "sign", "floor", "ceil", "round", "exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "rsqrt",
    "sin", "cos", "tan", "tanh", "sinh", "cosh", "asin", "acos", "atan", "erf", "sigmoid", "isnan", "isinf",
    "bit_not", "popcount", "stop_gradient",
)  # fmt: skip
BINARY = (
    "atan2", "pow", "minimum", "maximum", "bit_and", "bit_or", "bit_xor", "shift_left", "shift_right",
)  # fmt: skip


def _scalar_function(name: str) -> Callable[[Builder, Scope, Arguments, Span], Item]:
    def build(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
        parts = [(a.item, a.span) for a in arguments.given.values()]
        return apply_function(builder, scope, name, parts, span)

    return build


def _clip(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """minimum(maximum(x, low), high)"""
    x, low, high = ((a.item, a.span) for a in (arguments["x"], arguments["low"], arguments["high"]))
    raised = apply_function(builder, scope, "maximum", [x, low], span)
    return apply_function(builder, scope, "minimum", [(raised, x[1]), high], span)


def _bitcast(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    item, dtype = arguments.item("x"), arguments.dtype("dtype")
    if not isinstance(item, EXPRESSIONS) and not (scope.frame is not None and _is_scalar(builder, arguments)):
        return builder.add(BitcastOp(arguments.tensor(builder, "x"), dtype, span=span)).value
    element = builder.element(item, arguments["x"].span)
    if element.dtype.bits != dtype.bits:
        message = f"bitcast of {element.dtype} to {dtype}: {element.dtype.bits} bits are not {dtype.bits}"
        raise CompileError("E0202", message, span)
    return Bitcast(dtype, element)


def _is_scalar(builder: Builder, arguments: Arguments) -> bool:
    return arguments.tensor(builder, "x").tensor.rank == 0


ELEMENTWISE = (
    *(Primitive(name, "x", _scalar_function(name)) for name in UNARY),
    *(Primitive(name, "x, y", _scalar_function(name)) for name in BINARY),
    Primitive("where", "condition, x, y", _scalar_function("where")),
    Primitive("clip", "x, low, high", _clip),
    Primitive("bitcast", "x; dtype", _bitcast),
)

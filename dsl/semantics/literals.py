"""Weak numbers: a literal, a dimension, an index or a counter takes the dtype that is asked of it, where it fits."""

from __future__ import annotations

import math

from intarsia.dsl.semantics.values import EXPRESSIONS, Item, describe
from intarsia.ir.dtypes import BOOL, F32, I64, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.scalar import Apply, Const, Expr, Index, as_size, cast
from intarsia.ir.sizes import Size


def adapt(item: Item, dtype: DType, span: Span) -> Expr:
    """A weak number as an expression of `dtype`.

    Raises:
        CompileError: E0208, the literal does not fit; E0202, an integer is wanted as a float.
    """
    match item:
        case bool():
            if dtype == BOOL:
                return Const(item, BOOL)
        case Size():
            if dtype.is_integer:
                return cast(dtype, Index(item))
            if dtype.is_float:
                hint = f"dimensions, indices and counters are integers; cast: {dtype}({item})"
                raise CompileError("E0202", f"the integer {item} is used as {dtype}", span, hint=hint)
        case int():
            if dtype.is_float:
                return _float(float(item), dtype, span)
            if dtype.is_integer:
                if not dtype.least <= item <= dtype.greatest:
                    message = f"the integer {item} does not fit {dtype}, which holds {dtype.least} to {dtype.greatest}"
                    raise CompileError("E0208", message, span, hint="use a wider type: cast the other operand")
                return Const(item, dtype)
        case float():
            if dtype.is_float:
                return _float(item, dtype, span)
            if dtype.is_integer:
                hint = "write an integer, or cast the other operand to a float"
                raise CompileError("E0208", f"the number {item} is used as {dtype}", span, hint=hint)
    hint = "truth values are true and false; bool(x) is true where x is not 0" if dtype == BOOL else ""
    raise CompileError("E0202", f"{describe(item)} is used as {dtype}", span, hint=hint)


def _float(number: float, dtype: DType, span: Span) -> Expr:
    if math.isfinite(number) and abs(number) > largest(dtype):
        message = f"the number {number} does not fit {dtype}, whose largest value is {largest(dtype)}"
        raise CompileError("E0208", message, span, hint="use a wider type: cast the other operand")
    return Const(number, dtype)


def largest(dtype: DType) -> float:
    """The largest finite value of a float type of 16 bits or more."""
    top = (1 << dtype.exponent) - 1 - (dtype.specials == "ieee")
    bias = (1 << (dtype.exponent - 1)) - 1
    return math.ldexp(2.0 - 2.0**-dtype.mantissa, top - bias)


def default_dtype(item: Item) -> DType:
    """The dtype of a weak number where nothing decides."""
    match item:
        case bool():
            return BOOL
        case float():
            return F32
    return I64


def strong(item: Item, span: Span) -> Expr:
    """A scalar with a dtype: a weak number takes its default."""
    if isinstance(item, EXPRESSIONS):
        return item
    return adapt(item, default_dtype(item), span)


def to_size(value: Expr) -> Size:
    """An integer expression as a size: sums and products of i64 become affine, what depends on data opaque."""
    match value:
        case Apply("add", (a, b)) if value.dtype == I64:
            return to_size(a) + to_size(b)
        case Apply("sub", (a, b)) if value.dtype == I64:
            return to_size(a) - to_size(b)
        case Apply("neg", (a,)) if value.dtype == I64:
            return -to_size(a)
        case Apply("mul", (a, b)) if value.dtype == I64:
            left, right = to_size(a), to_size(b)
            if left.constant is not None or right.constant is not None:
                return left * right
    return as_size(value)

"""What machines have no instruction for, written in basic functions: exp, sin, pow and the like.

`expand` rewrites one application; a back end that has an instruction for every other function then has all. The
formulas are in `ir/exponentials.py` and `ir/trigonometry.py`; 16-bit floats are computed in f32. `BOUNDS` states the
largest error in units in the last place of the result (of the smallest normal number where the result is below it),
as tested over the whole range of arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from intarsia.ir import exponentials, trigonometry
from intarsia.ir.dtypes import F32, DType
from intarsia.ir.scalar import Apply, Const, Expr, cast
from intarsia.ir.terms import Term, where

EXPANSIONS: dict[str, Callable[..., Term]] = {
    "exp": exponentials.exp,
    "exp2": exponentials.exp2,
    "expm1": exponentials.expm1,
    "sigmoid": exponentials.sigmoid,
    "sinh": exponentials.sinh,
    "cosh": exponentials.cosh,
    "tanh": exponentials.tanh,
    "erf": exponentials.erf,
    "log": exponentials.log,
    "log2": exponentials.log2,
    "log1p": exponentials.log1p,
    "pow": exponentials.power,
    "sin": trigonometry.sin,
    "cos": trigonometry.cos,
    "tan": trigonometry.tan,
    "asin": trigonometry.asin,
    "acos": trigonometry.acos,
    "atan": trigonometry.atan,
    "atan2": trigonometry.atan2,
}
"""The formula of each function for f32 and f64."""

UNBOUNDED: dict[str, Callable[..., Term]] = {
    "exp": exponentials.exp_unbounded,
    "exp2": exponentials.exp2_unbounded,
    "sigmoid": exponentials.sigmoid_unbounded,
}
"""Shorter ones for machines whose `ldexp` takes any power."""


BOUNDS: dict[str, tuple[float, float]] = {
    "exp": (1.1, 1.1),
    "exp2": (1.0, 1.0),
    "expm1": (1.5, 2.0),
    "sigmoid": (2.5, 2.5),
    "sinh": (2.5, 2.5),
    "cosh": (1.5, 1.6),
    "tanh": (2.7, 2.7),
    "erf": (1.2, 1.2),
    "log": (1.0, 1.0),
    "log2": (2.0, 2.0),
    "log1p": (1.0, 1.0),
    "pow": (0.7, 1.0),
    "sin": (1.7, 1.0),
    "cos": (1.7, 1.0),
    "tan": (4.0, 2.5),
    "asin": (2.5, 2.5),
    "acos": (1.5, 1.5),
    "atan": (2.0, 2.0),
    "atan2": (2.1, 2.1),
}
"""Largest error in f32 and in f64, in units in the last place."""


def is_basic(function: str) -> bool:
    """Is the function one that every back end has?"""
    return function not in EXPANSIONS and function != "stop_gradient"


def expand(expression: Apply, *, unbounded: bool = False) -> Expr:
    """The application in basic functions; one of a basic function as it is. Arguments are left as they are, but for
    constants in those of exponentials. `unbounded`: does the machine's `ldexp` take any power?"""
    name, arguments = expression.function, expression.arguments
    if is_basic(name):
        return expression
    dtype = expression.dtype
    if name == "stop_gradient":
        return arguments[0]
    if name == "pow" and (short := _short_power(Term(arguments[0]), arguments[1])) is not None:
        return short.expr
    if dtype.is_integer:
        return _integer_power(Term(arguments[0]), Term(arguments[1])).expr
    wide = [Term(cast(_computed_in(dtype), a)) for a in arguments]
    formulas = {**EXPANSIONS, **UNBOUNDED} if unbounded else EXPANSIONS
    return cast(dtype, formulas[name](*wide).expr)


def _computed_in(dtype: DType) -> DType:
    return F32 if dtype.bits == 16 else dtype


def _short_power(base: Term, exponent: Expr) -> Term | None:
    """Powers that are a few products."""
    match exponent:
        case Const(1):
            return base
        case Const(2):
            return base * base
        case Const(3):
            return base * base * base
        case Const(4):
            return (base * base) * (base * base)
    return None


def _integer_power(base: Term, exponent: Term) -> Term:
    """By repeated squaring, one bit of the exponent after the other. A negative one gives 1 / base**n truncated."""
    signed = base.dtype.kind == "int"
    bits = base.dtype.bits - signed
    rest = where(exponent < 0, 0, exponent) if signed else exponent
    result, square = base.like(1), base
    for bit in range(bits):
        result = where((rest & (1 << bit)).differs(0), result * square, result)
        square = square * square
    if not signed:
        return result
    inverse = where(base.equals(1), 1, where(base.equals(-1), where((exponent & 1).equals(0), 1, base), 0))
    return where(exponent < 0, inverse, result)

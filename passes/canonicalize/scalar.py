"""Algebra of scalar expressions: rules that hold bit for bit, NaN, infinities and the sign of zero included.

Each rule takes an expression whose parts are already simple and gives a better one, or None. The same rules serve the
bodies of spaces and whole tensors (`canonicalize/elementwise.py`). What rounds differently, x ** 2 as x * x, is marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.conversion import convert, is_exact
from intarsia.ir.dtypes import BOOL, F64, I64, DType, have_same_bits
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, apply, as_size, cast, constant, where
from intarsia.ir.sizes import maximum, minimum

ScalarRule = Callable[[Expr], "Expr | None"]


def simplified(e: Expr) -> Expr | None:
    """The expression after the first rule that applies to its root."""
    for rule in SCALAR_RULES:
        if (better := rule(e)) is not None:
            return better
    return None


def fold(e: Expr) -> Expr | None:
    """f(1, 2) -> its value, computed as the interpreter does, in the dtype of the expression."""
    arithmetic = Arithmetic()
    with np.errstate(all="ignore"):
        match e:
            case Apply(function, arguments) if all(isinstance(a, Const) for a in arguments):
                values = [arithmetic.constant(a) for a in arguments if isinstance(a, Const)]
                found = arithmetic.apply(function, values, [a.dtype for a in arguments])
            case Cast(dtype, Const() as value):
                found = arithmetic.cast(arithmetic.constant(value), value.dtype, dtype)
            case Bitcast(dtype, Const() as value):
                found = arithmetic.bitcast(arithmetic.constant(value), value.dtype, dtype)
            case _:
                return None
    return _const(found, e.dtype)


def _const(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], dtype: DType) -> Const:
    if dtype.is_narrow and dtype.is_float:  # an array of codes, where NumPy has no such type
        array = convert(np.asarray(array), dtype, F64)
    value = np.asarray(array).astype(np.float64 if dtype.is_float else np.int64 if dtype.name != "u64" else np.uint64)
    return constant(value.item(), dtype)


def index_constant(e: Expr) -> Expr | None:
    """index(3) -> 3"""
    match e:
        case Index(size) if size.constant is not None:
            return Const(size.constant, I64)
    return None


def index_arithmetic(e: Expr) -> Expr | None:
    """index(a) + index(b) -> index(a + b), and likewise for - * // % minimum maximum"""
    match e:
        case Apply(function, (left, right)) if e.dtype == I64 and isinstance(left, Index) | isinstance(right, Index):
            if not all(isinstance(a, (Index, Const)) for a in (left, right)):
                return None
            a, b = as_size(left), as_size(right)
            match function:
                case "add":
                    return Index(a + b)
                case "sub":
                    return Index(a - b)
                case "mul":
                    return Index(a * b)
                case "floordiv":
                    return Index(a // b)
                case "mod":
                    return Index(a % b)
                case "minimum":
                    return Index(minimum(a, b))
                case "maximum":
                    return Index(maximum(a, b))
        case Apply("neg", (Index(size),)):
            return Index(-size)
    return None


def constant_right(e: Expr) -> Expr | None:
    """c + x -> x + c, and likewise for * == != and or, and minimum maximum of integers

    Of zeros of both signs, which one a minimum gives depends on their order.
    """
    match e:
        case Apply("minimum" | "maximum", (left, _)) if left.dtype.is_float:
            return None
        case Apply("add" | "mul" | "minimum" | "maximum" | "eq" | "ne" | "and" | "or", (Const() as c, x)):
            return None if isinstance(x, Const) else apply(e.function, x, c)
    return None


def neutral_element(e: Expr) -> Expr | None:
    """x + 0 -> x for integers, x + -0.0 -> x, x - 0 -> x, x * 1 -> x, x / 1 -> x, x ** 1 -> x, x << 0 -> x, …

    Not x + 0.0: it turns -0.0 into 0.0.
    """
    match e:
        case Apply("add", (x, Const(value=0) as c)) if not c.dtype.is_float or math.copysign(1, c.value) < 0:
            return x
        case Apply("sub", (x, Const(value=0) as c)) if not c.dtype.is_float or math.copysign(1, c.value) > 0:
            return x
        case Apply("mul" | "div" | "pow", (x, Const(value=1))):
            return x
        case Apply("floordiv", (x, Const(value=1))) if x.dtype.is_integer:
            return x
        case Apply("shift_left" | "shift_right" | "bit_or" | "bit_xor", (x, Const(value=0))):
            return x
    return None


def integer_absorption(e: Expr) -> Expr | None:
    """x * 0 -> 0, x - x -> 0, x % 1 -> 0, x & 0 -> 0: integers only, for a float may be NaN"""
    if not e.dtype.is_integer:
        return None
    match e:
        case Apply("mul" | "bit_and", (_, Const(value=0))) | Apply("mod", (_, Const(value=1))):
            return Const(0, e.dtype)
        case Apply("sub", (x, y)) if x == y:
            return Const(0, e.dtype)
    return None


def stopped_gradient(e: Expr) -> Expr | None:
    """stop_gradient(x) -> x: gradients have been taken when the program was built"""
    match e:
        case Apply("stop_gradient", (x,)):
            return x
    return None


def negation(e: Expr) -> Expr | None:
    """-(-x) -> x, x * -1 -> -x, x + -y -> x - y, x - -y -> x + y, |-x| -> |x|, ||x|| -> |x|"""
    match e:
        case Apply("neg", (Apply("neg", (x,)),)):
            return x
        case Apply("mul", (x, Const(value=-1))):
            return apply("neg", x)
        case Apply("add", (x, Apply("neg", (y,)))):
            return apply("sub", x, y)
        case Apply("add", (Apply("neg", (x,)), y)):
            return apply("sub", y, x)
        case Apply("sub", (x, Apply("neg", (y,)))):
            return apply("add", x, y)
        case Apply("abs", (Apply("neg" | "abs", (x,)),)):
            return apply("abs", x)
    return None


def divide_by_power_of_two(e: Expr) -> Expr | None:
    """x / 2**k -> x * 2**-k where 2**-k is a normal number: both round the same exact value"""
    match e:
        case Apply("div", (x, Const(value=c, dtype=dtype))) if c != 0 and math.isfinite(c):
            least_normal = 2.0 ** (2 - (1 << (dtype.exponent - 1)))
            if abs(math.frexp(c)[0]) == 0.5 and least_normal <= abs(1 / c) and c != 1:
                return apply("mul", x, Const(1 / c, dtype))
    return None


def small_power(e: Expr) -> Expr | None:
    """x ** 2 -> x * x, x ** 3 -> x * x * x, x ** 4 -> (x * x) * (x * x), x ** -1 -> 1 / x; the last digit may change"""
    match e:
        case Apply("pow", (x, Const(value=n, dtype=dtype))) if not isinstance(x, Const):
            square = apply("mul", x, x)
            if n == 2:
                return square
            if n == 3:
                return apply("mul", square, x)
            if n == 4:
                return apply("mul", square, square)
            if n == -1 and dtype.is_float:
                return apply("div", Const(1.0, dtype), x)
    return None


def selection(e: Expr) -> Expr | None:
    """where(true, a, b) -> a, where(c, a, a) -> a, where(not c, a, b) -> where(c, b, a), where(c, true, false) -> c"""
    match e:
        case Apply("where", (Const(value=c), a, b)):
            return a if c else b
        case Apply("where", (_, a, b)) if a == b:
            return a
        case Apply("where", (Apply("not", (c,)), a, b)):
            return where(c, b, a)
        case Apply("where", (c, Const(True, dtype), Const(False))) if dtype == BOOL:
            return c
        case Apply("where", (c, Const(False, dtype), Const(True))) if dtype == BOOL:
            return apply("not", c)
    return None


def logic(e: Expr) -> Expr | None:
    """c and true -> c, c and false -> false, c or true -> true, c or false -> c, c and c -> c, not not c -> c"""
    match e:
        case Apply("and", (c, Const(value=v))):
            return c if v else Const(False, BOOL)
        case Apply("or", (c, Const(value=v))):
            return Const(True, BOOL) if v else c
        case Apply("and" | "or" | "minimum" | "maximum", (a, b)) if a == b:
            return a
        case Apply("not", (Apply("not", (c,)),)):
            return c
    return None


_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def comparison(e: Expr) -> Expr | None:
    """not (a == b) -> a != b, not (a != b) -> a == b; without NaN also not (a < b) -> a >= b and a == a -> true"""
    match e:
        case Apply("not", (Apply("eq", (a, b)),)):
            return apply("ne", a, b)
        case Apply("not", (Apply("ne", (a, b)),)):
            return apply("eq", a, b)
        case Apply("not", (Apply("lt" | "le" | "gt" | "ge" as name, (a, b)),)) if not a.dtype.is_float:
            return apply(_OPPOSITE[name], a, b)
        case Apply("eq" | "le" | "ge", (a, b)) if a == b and not a.dtype.is_float:
            return Const(True, BOOL)
        case Apply("ne" | "lt" | "gt", (a, b)) if a == b and not a.dtype.is_float:
            return Const(False, BOOL)
    return None


def conversion(e: Expr) -> Expr | None:
    """cast(T, x) -> x for x of type T, cast(T2, cast(T1, x)) -> cast(T2, x) where nothing is lost, bitcasts likewise"""
    match e:
        case Cast(dtype, x) | Bitcast(dtype, x) if x.dtype == dtype:
            return x
        case Cast(last, Cast(middle, x)) if _skips(x.dtype, middle, last):
            return cast(last, x)
        case Bitcast(dtype, Bitcast(middle, x)) if middle.bits >= min(dtype.bits, x.dtype.bits) and have_same_bits(
            dtype, x.dtype
        ):
            return x if x.dtype == dtype else Bitcast(dtype, x)
    return None


def _skips(first: DType, middle: DType, last: DType) -> bool:
    """Is converting to `middle` and on to `last` the same as converting at once?"""
    if first.is_integer and middle.is_integer and last.is_integer:
        return is_exact(first, middle) or last.bits <= middle.bits  # the low bits are kept either way
    if not is_exact(first, middle):
        return False
    # An integer that became a float saturates where an integer keeps its low bits.
    return not (first.is_integer and middle.is_float and last.is_integer) or is_exact(first, last)


SCALAR_RULES: Sequence[ScalarRule] = (
    fold,
    index_constant,
    index_arithmetic,
    constant_right,
    neutral_element,
    integer_absorption,
    stopped_gradient,
    negation,
    divide_by_power_of_two,
    small_power,
    selection,
    logic,
    comparison,
    conversion,
)

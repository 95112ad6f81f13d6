"""The scalar functions: each said once, with its types, its NumPy meaning and its cost.

Elementwise ops of the Graph, index notation and kernels all draw on this table. A back end gives each function that is
`basic` an instruction; the others are expanded into basic ones by `ir/approximations.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from intarsia.ir.dtypes import BOOL, Array, DType

Domain = Literal["float", "integer", "number", "boolean", "any", "integer or bool"]


@dataclass(frozen=True)
class ScalarFunction:
    """A function of one to three scalars.

    `domain` says which dtypes its arguments may have; all arguments have one dtype, which is that of the result
    unless `result_dtype` says otherwise (`where` takes a bool first). `operations` counts scalar arithmetic
    operations, for work estimates.
    """

    name: str
    arity: int
    domain: Domain
    reference: Callable[..., Any]
    description: str
    result_dtype: DType | None = None
    operations: int = 1

    def result(self, dtypes: tuple[DType, ...]) -> DType:
        """The dtype of the result. Raises TypeError, with a message fit for the user, if the arguments do not fit."""
        if len(dtypes) != self.arity:
            raise TypeError(f"{self.name} takes {self.arity} arguments, not {len(dtypes)}")
        if self.name == "where":
            if dtypes[0] != BOOL:
                raise TypeError(f"the condition of where is {dtypes[0]}, not bool")
            dtypes = dtypes[1:]
        if any(d != dtypes[0] for d in dtypes):
            raise TypeError(f"{self.name} of {' and '.join(map(str, dtypes))}: the dtypes differ")
        if not self.accepts(dtypes[0]):
            raise TypeError(f"{self.name} is not defined for {dtypes[0]}")
        return self.result_dtype or dtypes[0]

    def accepts(self, dtype: DType) -> bool:
        if self.domain == "any":
            return True
        if dtype.is_narrow:
            return False
        match self.domain:
            case "float":
                return dtype.is_float
            case "integer":
                return dtype.is_integer
            case "number":
                return dtype != BOOL
            case "boolean":
                return dtype == BOOL
            case _:
                return dtype.is_integer or dtype == BOOL


def _integer_pow(base: Array, exponent: Array) -> Array:
    """Wrapping power; a negative exponent gives 0 unless the base is 1 or -1, as truncating 1 / base**n does."""
    positive = np.maximum(exponent, 0)
    result = np.power(base, positive)
    if np.issubdtype(np.asarray(exponent).dtype, np.signedinteger):
        odd = np.where(exponent % 2 == 0, 1, base)
        inverse = np.where(base == 1, 1, np.where(base == -1, odd, 0))
        result = np.where(exponent < 0, inverse, result)
    return np.asarray(result).astype(np.asarray(base).dtype)


def _pow(base: Array, exponent: Array) -> Array:
    if np.issubdtype(np.asarray(base).dtype, np.integer):
        return _integer_pow(base, exponent)
    return np.asarray(np.power(base, exponent))


def _total(function: Callable[..., Any]) -> Callable[[Array, Array], Array]:
    """An integer division that gives 0 where the divisor is 0."""

    def checked(a: Array, b: Array) -> Array:
        b = np.asarray(b)
        if not np.issubdtype(b.dtype, np.integer):
            return np.asarray(function(a, b))
        return np.where(b == 0, np.zeros((), b.dtype), function(a, np.where(b == 0, np.ones((), b.dtype), b)))

    return checked


def _shift(function: Callable[..., Any]) -> Callable[[Array, Array], Array]:
    """Shift counts are taken modulo the width, as the machine does."""

    def masked(a: Array, b: Array) -> Array:
        bits = np.asarray(a).dtype.itemsize * 8
        return np.asarray(function(a, np.asarray(b) & np.asarray(bits - 1, np.asarray(b).dtype)))

    return masked


def _popcount(x: Array) -> Array:
    x = np.asarray(x)
    unsigned = x.view(f"u{x.dtype.itemsize}")
    bits = np.unpackbits(unsigned[..., None].view(np.uint8), axis=-1)
    return np.asarray(bits.sum(axis=-1)).astype(x.dtype)


def _fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with an exact product, as the machine does it; up to 32 bits in f64, else in two parts.

    Source: Dekker, "A floating-point technique for extending the available precision", 1971 (product and sum).
    """
    a, b, c = np.asarray(a), np.asarray(b), np.asarray(c)
    if a.dtype.itemsize < 8:
        return np.asarray(a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(a.dtype)
    with np.errstate(all="ignore"):
        product = a * b
        high_a, high_b = (x * 134217729.0 - (x * 134217729.0 - x) for x in (a, b))  # 2^27 + 1
        low_a, low_b = a - high_a, b - high_b
        product_error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
        total = product + c
        part = total - product
        total_error = (product - (total - part)) + (c - part)
        exact = total + (total_error + product_error)
    return np.asarray(np.where(np.isfinite(exact), exact, product + c))


def _ldexp(x: Array, power: Array) -> Array:
    """x * 2**power; NaN where the power is, 0 or infinity where that is infinite, even of NaN."""
    x, power = np.asarray(x), np.asarray(power)
    whole = np.nan_to_num(power, posinf=1 << 15, neginf=-(1 << 15))
    with np.errstate(over="ignore", under="ignore"):
        result = np.ldexp(x, np.clip(whole, -(1 << 15), 1 << 15).astype(np.int32)).astype(x.dtype)
    limit = np.where(np.isinf(power), np.maximum(power, 0), power).astype(x.dtype)
    return np.where(np.isnan(power) | np.isnan(x) & np.isinf(power), limit, result)


def _erf(x: Array) -> Array:
    x = np.asarray(x)
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x.astype(np.float64))).astype(x.dtype)


def _rsqrt(x: Array) -> Array:
    x = np.asarray(x)
    return np.asarray(1 / np.sqrt(x)).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    x = np.asarray(x)
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e))).astype(x.dtype)


_TABLE = (
    ScalarFunction("add", 2, "number", np.add, "sum"),
    ScalarFunction("sub", 2, "number", np.subtract, "difference"),
    ScalarFunction("mul", 2, "number", np.multiply, "product"),
    ScalarFunction("div", 2, "float", np.divide, "quotient", operations=1),
    ScalarFunction("floordiv", 2, "number", _total(np.floor_divide), "quotient, rounded down", operations=4),
    ScalarFunction("mod", 2, "number", _total(np.mod), "remainder, sign of the divisor", operations=4),
    ScalarFunction("neg", 1, "number", np.negative, "negation"),
    ScalarFunction("fma", 3, "float", _fma, "a * b + c, rounded once", operations=2),
    ScalarFunction("pow", 2, "number", _pow, "power", operations=20),
    ScalarFunction("minimum", 2, "any", np.minimum, "the smaller one; NaN wins"),
    ScalarFunction("maximum", 2, "any", np.maximum, "the larger one; NaN wins"),
    ScalarFunction("abs", 1, "number", np.abs, "magnitude"),
    ScalarFunction("sign", 1, "number", np.sign, "-1, 0 or 1; NaN stays"),
    ScalarFunction("floor", 1, "float", np.floor, "largest integer not above"),
    ScalarFunction("ceil", 1, "float", np.ceil, "smallest integer not below"),
    ScalarFunction("round", 1, "float", np.rint, "nearest integer, half to even"),
    ScalarFunction("ldexp", 2, "float", _ldexp, "x times 2 to the whole number n; |n| < 2**(exponent bits)"),
    ScalarFunction("exp", 1, "float", np.exp, "e to the x", operations=9),
    ScalarFunction("exp2", 1, "float", np.exp2, "2 to the x", operations=8),
    ScalarFunction("log", 1, "float", np.log, "natural logarithm", operations=12),
    ScalarFunction("log2", 1, "float", np.log2, "logarithm to base 2", operations=12),
    ScalarFunction("log1p", 1, "float", np.log1p, "log(1 + x)", operations=14),
    ScalarFunction("expm1", 1, "float", np.expm1, "exp(x) - 1", operations=12),
    ScalarFunction("sqrt", 1, "float", np.sqrt, "square root"),
    ScalarFunction("rsqrt", 1, "float", _rsqrt, "1 / sqrt(x)", operations=2),
    ScalarFunction("sin", 1, "float", np.sin, "sine", operations=15),
    ScalarFunction("cos", 1, "float", np.cos, "cosine", operations=15),
    ScalarFunction("tan", 1, "float", np.tan, "tangent", operations=20),
    ScalarFunction("tanh", 1, "float", np.tanh, "hyperbolic tangent", operations=15),
    ScalarFunction("sinh", 1, "float", np.sinh, "hyperbolic sine", operations=15),
    ScalarFunction("cosh", 1, "float", np.cosh, "hyperbolic cosine", operations=15),
    ScalarFunction("asin", 1, "float", np.arcsin, "arc sine", operations=15),
    ScalarFunction("acos", 1, "float", np.arccos, "arc cosine", operations=15),
    ScalarFunction("atan", 1, "float", np.arctan, "arc tangent", operations=15),
    ScalarFunction("atan2", 2, "float", np.arctan2, "angle of (y, x)", operations=20),
    ScalarFunction("erf", 1, "float", _erf, "error function", operations=15),
    ScalarFunction("sigmoid", 1, "float", _sigmoid, "1 / (1 + exp(-x))", operations=11),
    ScalarFunction("isnan", 1, "float", np.isnan, "is it not a number", BOOL),
    ScalarFunction("isinf", 1, "float", np.isinf, "is it infinite", BOOL),
    ScalarFunction("eq", 2, "any", np.equal, "equal", BOOL),
    ScalarFunction("ne", 2, "any", np.not_equal, "different", BOOL),
    ScalarFunction("lt", 2, "any", np.less, "less", BOOL),
    ScalarFunction("le", 2, "any", np.less_equal, "less or equal", BOOL),
    ScalarFunction("gt", 2, "any", np.greater, "greater", BOOL),
    ScalarFunction("ge", 2, "any", np.greater_equal, "greater or equal", BOOL),
    ScalarFunction("and", 2, "boolean", np.logical_and, "both"),
    ScalarFunction("or", 2, "boolean", np.logical_or, "one or both"),
    ScalarFunction("not", 1, "boolean", np.logical_not, "not"),
    ScalarFunction("where", 3, "any", np.where, "the second where the first holds, else the third"),
    ScalarFunction("stop_gradient", 1, "any", np.array, "x, for derivatives a constant", operations=0),
    ScalarFunction("bit_and", 2, "integer", np.bitwise_and, "and of the bits"),
    ScalarFunction("bit_or", 2, "integer", np.bitwise_or, "or of the bits"),
    ScalarFunction("bit_xor", 2, "integer", np.bitwise_xor, "exclusive or of the bits"),
    ScalarFunction("bit_not", 1, "integer", np.bitwise_not, "complement of the bits"),
    ScalarFunction("shift_left", 2, "integer", _shift(np.left_shift), "bits moved up; the count modulo the width"),
    ScalarFunction("shift_right", 2, "integer", _shift(np.right_shift), "bits moved down, the sign kept"),
    ScalarFunction("popcount", 1, "integer", _popcount, "number of bits that are 1", operations=3),
)  # fmt: skip

FUNCTIONS: dict[str, ScalarFunction] = {f.name: f for f in _TABLE}


@dataclass(frozen=True)
class Combiner:
    """How a reduction merges values: an associative scalar function and its neutral element."""

    name: str
    function: str
    neutral: Callable[[DType], int | float | bool]
    domain: Domain


COMBINERS: dict[str, Combiner] = {
    c.name: c
    for c in (
        Combiner("sum", "add", lambda t: 0, "number"),
        Combiner("prod", "mul", lambda t: 1, "number"),
        Combiner("max", "maximum", lambda t: t.least, "any"),
        Combiner("min", "minimum", lambda t: t.greatest, "any"),
        Combiner("any", "or", lambda t: False, "boolean"),
        Combiner("all", "and", lambda t: True, "boolean"),
    )
}

"""The functions of CUDA's libdevice in NumPy. They are computed in f64 and rounded, so f32 results are the nearest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from intarsia.ir.dtypes import Array


def _each(function: Callable[[float], float]) -> Callable[[Array], Array]:
    """A function of one number on arrays."""
    over = np.frompyfunc(function, 1, 1)

    def on_arrays(x: Array) -> Array:
        return np.asarray(over(x), np.float64)

    return on_arrays


def _guarded(function: Callable[[float], float]) -> Callable[[float], float]:
    """A function of the standard library with the values that it raises for: infinity at poles and beyond the range."""

    def on_number(x: float) -> float:
        try:
            return function(x)
        except (OverflowError, ValueError):
            return math.nan if x == -math.inf or (x < 0 and x != math.floor(x)) else math.inf

    return on_number


def _round_half_away(x: Array) -> Array:
    whole = np.trunc(x)
    return np.asarray(np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(1.0, x), whole))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "copysign": np.copysign,
    "cos": np.cos,
    "cosh": np.cosh,
    "div_rn": np.divide,
    "erf": _each(math.erf),
    "erfc": _each(math.erfc),
    "exp": np.exp,
    "exp10": lambda x: np.power(10.0, x),
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "fmod": np.fmod,
    "hypot": np.hypot,
    "lgamma": _each(_guarded(math.lgamma)),
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "nearbyint": np.rint,
    "pow": np.power,
    "rcp_rn": np.reciprocal,
    "rint": np.rint,
    "round": _round_half_away,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "sqrt_rn": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
    "tgamma": _each(_guarded(math.gamma)),
    "trunc": np.trunc,
}
"""Functions of floats, all of one type, that give a float of that type."""

TESTS: dict[str, Callable[[Array], Any]] = {
    "isinf": np.isinf,
    "isnan": np.isnan,
    "signbit": np.signbit,
}
"""Functions of a float that give a truth value."""

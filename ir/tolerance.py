"""How far a correct result may be from the reference in f64: error bounds that are carried through the program.

language.md, Numerics, allows `8 * eps(dtype) * (sum of magnitudes of the terms)` per element. `MeasuredArithmetic`
takes that rule through a whole program: it holds a float as a complex number, value + i * bound, so that moving,
selecting and adding elements treat both alike. Every operation adds 8 eps of its result to the bound, a sum 8 eps of
the magnitudes of its terms (a product that is summed is not rounded, as in a fused multiply-add), and the bounds of the
arguments pass through an operation by the change that they make in its result. This is running error analysis; see
Higham, "Accuracy and Stability of Numerical Algorithms", section 3.3.

Decisions are taken on the values alone: where the program compares, sorts or truncates, a result on the edge may differ
from the reference by more than the bound says. `ir/perturbation.py` finds those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intarsia.ir.arithmetic import DoubleArithmetic
from intarsia.ir.conversion import convert, is_exact, smallest
from intarsia.ir.dtypes import BF16, F64, Array, DType
from intarsia.ir.functions import COMBINERS, FUNCTIONS
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate_with
from intarsia.ir.points import Operand
from intarsia.ir.types import TensorType

UNITS = 8.0
"""The eps of a result that a rounding may cost."""

LEAST_NORMAL = 2.0**-126
"""The least number of f32, and of bf16, that is not subnormal."""

EXACT = frozenset(
    ("neg", "abs", "sign", "floor", "ceil", "round", "minimum", "maximum", "where", "isnan", "isinf", "stop_gradient")
)
"""Functions that are not rounded."""


@dataclass(frozen=True, eq=False)
class Expected:
    """What one result of a program should be: its value, in f64 if it is a float, and how far off a result may be."""

    value: Array
    bound: Array
    dtype: DType

    def mismatch(self, actual: Array) -> str | None:
        """What is wrong with a result, or None. NaN matches NaN, and infinities match exactly."""
        if actual.shape != self.value.shape:
            return f"the shape is {actual.shape}, not {self.value.shape}"
        wrong = self.wrong(actual)
        return self.describe(actual, wrong) if wrong.any() else None

    def wrong(self, actual: Array) -> Array:
        """Which elements of a result of the right shape are wrong."""
        if not self.dtype.is_float:
            return np.asarray(actual != self.value)
        found, wanted = convert(actual, self.dtype, F64), self._rounded
        with np.errstate(all="ignore"):
            near = np.abs(found - self.value) <= self.bound
        return np.asarray(~(near | (found == wanted) | (np.isnan(found) & np.isnan(wanted))))

    def describe(self, actual: Array, wrong: Array) -> str:
        """How many elements are wrong, and the first of them."""
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        found = convert(actual, self.dtype, F64) if self.dtype.is_float else actual
        return (
            f"{int(wrong.sum())} of {wrong.size} elements are wrong; first at {list(place)}: "
            f"{found[place]} instead of {self._rounded[place]} (allowed difference {self.bound[place]:.3g})"
        )

    @property
    def _rounded(self) -> Array:
        """The value as the dtype has it: it overflows where the dtype does."""
        if not self.dtype.is_float:
            return self.value
        with np.errstate(all="ignore"):
            return convert(convert(self.value, F64, self.dtype), self.dtype, F64)


def expected(module: Module, inputs: Sequence[Operand], sizes: Mapping[str, int] | None = None) -> tuple[Expected, ...]:
    """The reference in f64, with bounds, for each result of a module."""
    results = evaluate_with(MeasuredArithmetic(), module, inputs, sizes)
    found: list[Expected] = []
    for array, result in zip(results, module.graph.results):
        assert isinstance(result.type, TensorType)
        if result.dtype.is_float:
            found.append(Expected(array.real, array.imag, result.dtype))
        else:
            found.append(Expected(array, np.zeros(array.shape), result.dtype))
    return tuple(found)


def tolerance(module: Module, inputs: Sequence[Operand], sizes: Mapping[str, int] | None = None) -> tuple[Array, ...]:
    """The bound of every element of every result; 0 for integers."""
    return tuple(e.bound for e in expected(module, inputs, sizes))


class MeasuredArithmetic(DoubleArithmetic):
    """Floats as complex numbers: the value in f64, and a bound of the error of a computation in the own dtype."""

    def lift(self, array: Array, dtype: DType) -> Array:
        return super().lift(array, dtype).astype(np.complex128) if dtype.is_float else array

    def storage(self, dtype: DType) -> np.dtype[Any]:
        return np.dtype(np.complex128) if dtype.is_float else dtype.numpy

    def apply(self, function: str, arguments: Sequence[Array], dtypes: Sequence[DType]) -> Array:
        if function == "where":
            return np.where(*arguments)
        dtype = dtypes[-1]
        values = [np.asarray(a.real) if d.is_float else a for a, d in zip(arguments, dtypes)]
        result = super().apply(function, values, dtypes)
        if not dtype.is_float or FUNCTIONS[function].result_dtype is not None:
            return result
        bound = np.zeros(()) if function in EXACT else _rounding(result, dtype)
        for position, (argument, d) in enumerate(zip(arguments, dtypes)):
            if d.is_float:
                bound = bound + self._change(function, values, position, argument.imag, result, dtypes)
        return _pair(result, bound)

    def _change(
        self,
        function: str,
        values: Sequence[Array],
        position: int,
        error: Array,
        result: Array,
        dtypes: Sequence[DType],
    ) -> Array:
        """How much the result moves if one argument is off by `error`, up or down."""
        if not error.any():
            return np.zeros(())
        moved: list[Array] = []
        for signed in (error, -error):
            other = [v + signed if p == position else v for p, v in enumerate(values)]
            moved.append(np.abs(super().apply(function, other, dtypes) - result))
        return _finite(np.fmax(*moved))

    def cast(self, array: Array, source: DType, target: DType) -> Array:
        if not source.is_float:
            value = super().cast(array, source, target)
            return _pair(value, np.zeros(())) if target.is_float else value
        value = super().cast(array.real, source, target)
        if not target.is_float:
            return value
        if is_exact(source, target):
            return _pair(value, array.imag)
        if target.bits >= 16:
            return _pair(value, array.imag + _rounding(value, target))
        # Of a narrow type 8 eps would say nothing; but the exact rounding of a value that is off by the bound is known.
        convert_one = super().cast
        moved = [np.abs(convert_one(array.real + e, source, target) - value) for e in (array.imag, -array.imag)]
        return _pair(value, _finite(np.fmax(*moved)))

    def bitcast(self, array: Array, source: DType, target: DType) -> Array:
        result = super().bitcast(np.asarray(array.real) if source.is_float else array, source, target)
        return _pair(result, np.zeros(())) if target.is_float else result

    def reduce(self, combiner: str, array: Array, axes: tuple[int, ...], dtype: DType) -> Array:
        if not dtype.is_float:
            return super().reduce(combiner, array, axes, dtype)
        total = super().reduce
        value = total(combiner, array.real, axes, dtype)
        match combiner:
            case "sum":
                magnitudes = total("sum", np.abs(array.real), axes, dtype)
                return _pair(value, total("sum", array.imag, axes, dtype) + _rounding(magnitudes, dtype))
            case "prod":
                return self._product(array, axes, dtype)
        above = total(combiner, array.real + array.imag, axes, dtype) - value
        below = value - total(combiner, array.real - array.imag, axes, dtype)
        return _pair(value, _finite(np.fmax(above, below)))

    def _product(self, array: Array, axes: tuple[int, ...], dtype: DType) -> Array:
        """The product over dimensions, one factor after the other."""
        rest = tuple(d for d in range(array.ndim) if d not in axes)
        count = math.prod(array.shape[d] for d in axes)
        factors = array.transpose(*axes, *rest).reshape(count, *(array.shape[d] for d in rest))
        result = np.ones(factors.shape[1:], np.complex128)
        for factor in factors:
            result = self.apply("mul", (result, factor), (dtype, dtype))
        return result

    def accumulate(self, combiner: str, array: Array, axis: int, dtype: DType) -> Array:
        if not dtype.is_float:
            return super().accumulate(combiner, array, axis, dtype)
        if combiner == "sum":
            value, bound, magnitudes = (np.cumsum(a, axis=axis) for a in (array.real, array.imag, np.abs(array.real)))
            return _pair(value, bound + _rounding(magnitudes, dtype))
        moved = np.moveaxis(array, axis, 0)
        rows: list[Array] = []
        for row in moved:
            merged = (rows[-1], row) if rows else (row,)
            function = COMBINERS[combiner].function
            rows.append(self.apply(function, merged, (dtype, dtype)) if len(merged) == 2 else row)
        return np.moveaxis(np.stack(rows), 0, axis) if rows else array

    def merge_at(self, function: str, base: Array, indices: tuple[Array, ...], values: Array, dtype: DType) -> Array:
        if not dtype.is_float:
            return super().merge_at(function, base, indices, values, dtype)
        merge = super().merge_at
        value = merge(function, base.real, indices, values.real, dtype)
        if function in ("maximum", "minimum"):
            above = merge(function, base.real + base.imag, indices, values.real + values.imag, dtype) - value
            below = value - merge(function, base.real - base.imag, indices, values.real - values.imag, dtype)
            return _pair(value, _finite(np.fmax(above, below)))
        touched = np.zeros(base.shape, np.bool_)
        touched[indices] = True
        if function == "add":
            magnitudes = merge("add", np.where(touched, np.abs(base.real), 0), indices, np.abs(values.real), dtype)
            bound = merge("add", base.imag, indices, values.imag, dtype)
            return _pair(value, bound + np.where(touched, _rounding(magnitudes, dtype), 0))
        # The relative errors of the factors of a product add up.
        relative = merge("add", _relative(base), indices, _relative(values) + UNITS * dtype.epsilon, dtype)
        return _pair(value, _finite(np.abs(value) * relative))

    def matmul(self, left: Array, right: Array, dtype: DType) -> Array:
        if not dtype.is_float:
            return super().matmul(left, right, dtype)
        sizes, errors = (np.abs(left.real), np.abs(right.real)), (left.imag, right.imag)
        bound = sizes[0] @ errors[1] + errors[0] @ sizes[1] + _rounding(sizes[0] @ sizes[1], dtype)
        if dtype.bits <= 32 and all(_holds(BF16, size) for size in sizes):
            bound = bound + _flushed(*sizes)
        return _pair(left.real @ right.real, _finite(bound))

    def order(self, array: Array, dtype: DType) -> Array:
        return np.asarray(array.real) if dtype.is_float else array


def _pair(value: Array, bound: Array) -> Array:
    result = np.empty(np.broadcast_shapes(np.shape(value), np.shape(bound)), np.complex128)
    result.real, result.imag = value, bound
    return result


def _finite(bound: Array) -> Array:
    """No bound (0) where it is not a number: there the value is an infinity or NaN, which must match exactly."""
    return np.asarray(np.where(np.isnan(bound), 0, bound))


def _rounding(magnitude: Array, dtype: DType) -> Array:
    """What rounding may cost; the smallest number is what underflow may."""
    lost = UNITS * (dtype.epsilon * np.abs(magnitude) + smallest(dtype))
    return np.asarray(np.where(np.isfinite(magnitude), lost, 0))


def _holds(dtype: DType, values: Array) -> bool:
    """Are all numbers among the values, but for subnormal ones, such as a dtype has?"""
    with np.errstate(all="ignore"):
        held = convert(convert(values, F64, dtype), dtype, F64)
    return bool(np.all((held == values) | np.isnan(values) | (np.abs(values) < LEAST_NORMAL)))


def _flushed(left: Array, right: Array) -> Array:
    """What sums of products of bf16 may lose beside rounding: instructions for them take subnormal numbers as 0, which
    are factors, products or sums."""
    small = [np.where(size < LEAST_NORMAL, size, 0) for size in (left, right)]
    return np.asarray(small[0] @ right + left @ small[1] + 2 * left.shape[-1] * LEAST_NORMAL)


def _relative(array: Array) -> Array:
    return _finite(array.imag / np.abs(array.real))

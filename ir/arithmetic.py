"""Arithmetic on NumPy arrays with the dtypes of the language: what the Graph's interpreter computes with.

`Arithmetic` is the meaning of a program. `DoubleArithmetic` evaluates floats in f64 instead, as a reference to measure
others against; conversions still round, since a program asks for them. `ir/tolerance.py` adds one with error bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intarsia.ir.conversion import convert, is_exact, reinterpret
from intarsia.ir.dtypes import F32, F64, I64, Array, DType
from intarsia.ir.functions import COMBINERS, FUNCTIONS
from intarsia.ir.scalar import Const

UFUNCS: dict[str, Any] = {
    "add": np.add,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "or": np.logical_or,
    "and": np.logical_and,
}
"""The merging functions of reductions and updates as NumPy ufuncs."""


class Arithmetic:
    """Every operation in the dtype of its expression; f16 and bf16 are computed in f32 and rounded once."""

    def lift(self, array: Array, dtype: DType) -> Array:
        """An input as this arithmetic holds it."""
        return array

    def storage(self, dtype: DType) -> np.dtype[Any]:
        """The NumPy type that holds values of a dtype."""
        return dtype.numpy

    def computation(self, dtype: DType) -> DType:
        """The dtype in which operations on a dtype are carried out."""
        if dtype.is_float and dtype.bits <= 16:
            return F32
        return dtype

    def constant(self, value: Const) -> Array:
        exact = F64 if value.dtype.is_float else value.dtype
        if value.dtype.is_narrow and not value.dtype.is_float:
            return self.lift(np.asarray(value.value).astype(value.dtype.numpy), value.dtype)
        return self.lift(convert(np.asarray(value.value, exact.numpy), exact, value.dtype), value.dtype)

    def apply(self, function: str, arguments: Sequence[Array], dtypes: Sequence[DType]) -> Array:
        """A scalar function element by element; `dtypes` are those of the arguments."""
        dtype = dtypes[-1]
        wide = self.computation(dtype)
        if wide == dtype or function == "where":
            return np.asarray(FUNCTIONS[function].reference(*arguments))
        result = FUNCTIONS[function].reference(*(convert(a, dtype, wide) for a in arguments))
        returns_float = FUNCTIONS[function].result_dtype is None
        return convert(np.asarray(result), wide, dtype) if returns_float else np.asarray(result)

    def cast(self, array: Array, source: DType, target: DType) -> Array:
        return convert(array, source, target)

    def bitcast(self, array: Array, source: DType, target: DType) -> Array:
        return reinterpret(array, source, target)

    def reduce(self, combiner: str, array: Array, axes: tuple[int, ...], dtype: DType) -> Array:
        """`array` reduced over dimensions; over no elements the neutral one."""
        wide = self.computation(dtype)
        ufunc = UFUNCS[COMBINERS[combiner].function]
        values = convert(array, dtype, wide)
        neutral = np.asarray(COMBINERS[combiner].neutral(wide), values.dtype)
        plain: dict[str, Any] = {} if values.dtype == np.bool_ else {"dtype": values.dtype}
        return convert(np.asarray(ufunc.reduce(values, axis=axes, initial=neutral, **plain)), wide, dtype)

    def accumulate(self, combiner: str, array: Array, axis: int, dtype: DType) -> Array:
        """Running reduction along one dimension."""
        ufunc = UFUNCS[COMBINERS[combiner].function]
        return np.asarray(ufunc.accumulate(array, axis=axis, dtype=array.dtype))

    def merge_at(self, function: str, base: Array, indices: tuple[Array, ...], values: Array, dtype: DType) -> Array:
        """`base` with `values` merged into it one after the other; equal indices add up. Rounds once."""
        wide = self.computation(dtype)
        result = convert(base, dtype, wide).copy()
        UFUNCS[function].at(result, indices, convert(values, dtype, wide))
        return convert(result, wide, dtype)

    def matmul(self, left: Array, right: Array, dtype: DType) -> Array:
        """Batched matrix product in `dtype`. Integers go through f64 where that is exact, which is much faster."""
        if dtype.is_integer and left.size and right.size:
            largest = float(np.abs(left.astype(np.float64)).max()) * float(np.abs(right.astype(np.float64)).max())
            if largest * left.shape[-1] < 2.0**52:
                exact = np.matmul(left.astype(np.float64), right.astype(np.float64)).astype(np.int64)
                return convert(exact, I64, dtype)
        return np.asarray(np.matmul(left, right))

    def order(self, array: Array, dtype: DType) -> Array:
        """Values that compare in NumPy as the elements of `array` do."""
        return convert(array, dtype, self.computation(dtype))


class DoubleArithmetic(Arithmetic):
    """Floats in f64. Conversions round to the type asked for, all else is as exact as f64."""

    def lift(self, array: Array, dtype: DType) -> Array:
        return convert(array, dtype, F64) if dtype.is_float else array

    def storage(self, dtype: DType) -> np.dtype[Any]:
        return F64.numpy if dtype.is_float else dtype.numpy

    def computation(self, dtype: DType) -> DType:
        return dtype

    def cast(self, array: Array, source: DType, target: DType) -> Array:
        held = F64 if source.is_float else source
        if target.is_float and source.is_float and is_exact(source, target):
            return array
        return DoubleArithmetic.lift(self, convert(array, held, target), target)

    def bitcast(self, array: Array, source: DType, target: DType) -> Array:
        exact = convert(array, F64, source) if source.is_float else array
        return DoubleArithmetic.lift(self, reinterpret(exact, source, target), target)

    def reduce(self, combiner: str, array: Array, axes: tuple[int, ...], dtype: DType) -> Array:
        return super().reduce(combiner, array, axes, F64 if dtype.is_float else dtype)

    def merge_at(self, function: str, base: Array, indices: tuple[Array, ...], values: Array, dtype: DType) -> Array:
        return super().merge_at(function, base, indices, values, F64 if dtype.is_float else dtype)

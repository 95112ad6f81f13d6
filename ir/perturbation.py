"""Results that hang on a rounding: the reference with every rounding moved at random.

Where a program compares, sorts, truncates or meets an infinity, the last digits of a value may decide about all digits
of a result, and no error bound (`ir/tolerance.py`) says by how much. Such results are found by experiment: an element
that leaves its bound when roundings are moved by no more than the tolerance allows each of them was never certain.
This is Monte Carlo arithmetic; see Parker, "Monte Carlo Arithmetic", UCLA CSD-970002, 1997.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from intarsia.ir.arithmetic import DoubleArithmetic
from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import F32, F64, Array, DType
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate_with
from intarsia.ir.points import Operand
from intarsia.ir.tolerance import EXACT, UNITS, Expected

_TRIALS = 24
"""An element on the edge falls to the other side in nearly half of the trials, so that few remain unnoticed."""

_AMPLITUDES = (0.0, 1.0, UNITS / 2, UNITS)
"""Eps by which roundings are moved, in turns: none at all is the rounding of the dtype, and small ones reach the values
that many results are rounded to, such as the 1 of tanh."""


class PerturbedArithmetic(DoubleArithmetic):
    """Every rounded result is off by up to `units` eps at random, then rounded to its dtype; exact ones stay."""

    def __init__(self, seed: int, units: float = UNITS) -> None:
        self._random = np.random.default_rng(seed)
        self._units = units

    def apply(self, function: str, arguments: Sequence[Array], dtypes: Sequence[DType]) -> Array:
        result, dtype = super().apply(function, arguments, dtypes), dtypes[-1]
        if not dtype.is_float or FUNCTIONS[function].result_dtype is not None or function in EXACT:
            return result
        return self._rounded(result, np.abs(result), dtype)

    def reduce(self, combiner: str, array: Array, axes: tuple[int, ...], dtype: DType) -> Array:
        result = super().reduce(combiner, array, axes, dtype)
        if not dtype.is_float or combiner not in ("sum", "prod"):
            return result
        return self._rounded(result, super().reduce(combiner, np.abs(array), axes, dtype), dtype)

    def accumulate(self, combiner: str, array: Array, axis: int, dtype: DType) -> Array:
        result = super().accumulate(combiner, array, axis, dtype)
        if not dtype.is_float or combiner not in ("sum", "prod"):
            return result
        return self._rounded(result, super().accumulate(combiner, np.abs(array), axis, dtype), dtype)

    def merge_at(self, function: str, base: Array, indices: tuple[Array, ...], values: Array, dtype: DType) -> Array:
        result = super().merge_at(function, base, indices, values, dtype)
        if not dtype.is_float or function in EXACT:
            return result
        magnitudes = super().merge_at(function, np.abs(base), indices, np.abs(values), dtype)
        return self._rounded(result, magnitudes, dtype)

    def matmul(self, left: Array, right: Array, dtype: DType) -> Array:
        result = super().matmul(left, right, dtype)
        return self._rounded(result, np.abs(left) @ np.abs(right), dtype) if dtype.is_float else result

    def _rounded(self, result: Array, magnitude: Array, dtype: DType) -> Array:
        """Results moved by a part of their magnitude, but for those that need no rounding.

        Whether a result of f64 was rounded cannot be seen in f64; one with no more digits than f32 has was not.
        """
        short = F32 if dtype == F64 else dtype
        with np.errstate(all="ignore"):
            exact = convert(convert(result, F64, short), short, F64) == result
            moved = result + self._units * self._random.uniform(-1, 1, np.shape(result)) * dtype.epsilon * magnitude
            rounded = moved if dtype == F64 else convert(convert(moved, F64, dtype), dtype, F64)
        return np.asarray(np.where(exact | ~np.isfinite(result), result, rounded))


def uncertain(
    module: Module,
    inputs: Sequence[Operand],
    sizes: Mapping[str, int],
    expected: Sequence[Expected],
    suspects: Sequence[Array],
) -> tuple[Array, ...]:
    """Which of the `suspects` (a mask for each result) hang on a rounding: some trial leaves the bounds there too."""
    found = [np.zeros_like(mask) for mask in suspects]
    for seed in range(_TRIALS):
        if all((mask <= other).all() for mask, other in zip(suspects, found)):
            break
        arithmetic = PerturbedArithmetic(seed, _AMPLITUDES[seed % len(_AMPLITUDES)])
        results = evaluate_with(arithmetic, module, inputs, sizes)
        for position, (wanted, result) in enumerate(zip(expected, results)):
            held = convert(result, F64, wanted.dtype) if wanted.dtype.is_float else result
            found[position] |= suspects[position] & wanted.wrong(held)
    return tuple(found)

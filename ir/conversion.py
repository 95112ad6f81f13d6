"""Conversions between element types, and bit patterns, on NumPy arrays: the meaning of `Cast` and `Bitcast`.

language.md, section 4, Casts: float to float rounds to nearest even, float to int truncates and saturates with NaN as
0, int to int keeps the low bits. Floats of 8 bits or fewer go through a table of their codes, which serves every split
of the bits alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from intarsia.ir.dtypes import BF16, BOOL, F32, F64, Array, DType


def convert(array: Array, source: DType, target: DType) -> Array:
    """The elements of `array`, which are of type `source`, as `target`."""
    if source == target:
        return array
    if target == BOOL:
        return np.asarray(_wide(array, source) != 0)
    if target.is_float:
        return _to_float(_wide(array, source), source, target)
    wide = _wide(array, source)
    return _saturated(wide, target) if source.is_float else _low_bits(wide, target)


def codes(array: Array, dtype: DType) -> Array:
    """The bit pattern of every element, as an unsigned integer of at least `dtype.bits` bits."""
    if dtype.bits >= 8:
        return np.ascontiguousarray(array).view(f"u{dtype.bytes}").reshape(np.shape(array))
    if dtype.is_float:
        bytes_ = np.ascontiguousarray(array).view(np.uint8).reshape(np.shape(array))
    else:
        bytes_ = array.astype(np.int8).view(np.uint8)
    return np.asarray(bytes_ & np.uint8((1 << dtype.bits) - 1))


def from_codes(patterns: Array, dtype: DType) -> Array:
    """The inverse of `codes`."""
    if dtype == BOOL:
        return np.asarray(patterns != 0)
    if dtype.bits >= 8 or dtype.is_float:
        contiguous = np.ascontiguousarray(patterns.astype(f"u{dtype.bytes}"))  # which makes a vector of a scalar
        return contiguous.view(dtype.numpy).reshape(np.shape(patterns))
    return _low_bits(patterns, dtype)


def literal(value: int | float | bool, dtype: DType) -> Array:
    """A literal as a scalar array of the type, converted as a cast would."""
    if not dtype.is_narrow:
        return np.asarray(value).astype(dtype.numpy)
    return convert(np.asarray(float(value)), F64, dtype)


def code_of(value: int | float | bool, dtype: DType) -> int:
    """The bits of a literal as an unsigned integer."""
    return int(codes(literal(value, dtype), dtype))


def reinterpret(array: Array, source: DType, target: DType) -> Array:
    """The bits of every element read as another type of the same width; a narrow element as its code in `u8`, and
    back."""
    patterns = codes(array, source)
    return from_codes(patterns & np.uint8((1 << target.bits) - 1) if target.bits < 8 else patterns, target)


def _wide(array: Array, dtype: DType) -> Array:
    """The same values in a type that NumPy computes with: narrow floats as f32, narrow integers as 8 bits."""
    if dtype == BF16:
        return array.astype(np.float32)
    if not dtype.is_narrow:
        return array
    if dtype.is_float:
        return np.asarray(_code_table(dtype).values[codes(array, dtype)])
    return array.astype(np.int8 if dtype.kind == "int" else np.uint8)


def _to_float(wide: Array, source: DType, target: DType) -> Array:
    if target == BF16:
        # ml_dtypes goes through f32, which would round twice.
        return _odd_f32(wide).astype(BF16.numpy)
    if not target.is_narrow:
        return wide.astype(target.numpy)
    exact = wide.astype(np.float64) if source.is_float or source.bits < 64 else _odd_f32(wide).astype(np.float64)
    patterns = _code_table(target).encode(exact)
    return patterns.view(target.numpy).reshape(wide.shape)


def _odd_f32(wide: Array) -> Array:
    """The values as f32 rounded to odd: rounding that once more to a shorter type rounds correctly.

    Source: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd", IEEE Trans. Computers 2008.
    """
    if wide.dtype in (np.float32, np.float16) or wide.dtype.itemsize <= 2:
        return wide.astype(np.float32)
    nearest = wide.astype(np.float32)
    if wide.dtype.kind == "f":
        back = nearest.astype(np.float64)
        inexact, too_large = (back != wide) & np.isfinite(wide), np.abs(back) > np.abs(wide)
    else:
        # An f64 holds large integers only nearly, so the comparison is between integers.
        lost = nearest >= np.float32(2.0 ** (63 if wide.dtype.kind == "i" else 64))
        back_integer = np.where(lost, np.float32(0), nearest).astype(wide.dtype)
        inexact = lost | (back_integer != wide)
        too_large = lost | np.where(wide < 0, back_integer < wide, back_integer > wide)
    bits = nearest.view(np.uint32)
    truncated = np.where(inexact & too_large, bits - np.uint32(1), bits)  # toward zero
    return np.asarray(np.where(inexact, truncated | np.uint32(1), bits).view(np.float32))


def _saturated(wide: Array, target: DType) -> Array:
    """Floats as integers: truncated, NaN as 0, beyond the range the nearest end of it."""
    truncated = np.trunc(np.where(np.isnan(wide), 0, wide).astype(np.float64))
    low, high = int(target.least), int(target.greatest)
    inside = (truncated > low) & (truncated < high)
    plain = "u8" if target.kind == "uint" else "i8"
    result = np.where(inside, truncated, 0).astype(plain)
    result = np.where(truncated >= high, np.array(high, plain), result)
    result = np.where(truncated <= low, np.array(low, plain), result)
    return _low_bits(result, target)


def _low_bits(wide: Array, target: DType) -> Array:
    """Integers cut to the width of `target`."""
    if not target.is_narrow:
        return wide.astype(target.numpy)
    spare = np.uint8(8 - target.bits)  # a Python integer would widen a scalar under NumPy 1
    raised = np.left_shift(wide.astype(np.uint8), spare)
    cut = np.right_shift(raised.view(np.int8) if target.kind == "int" else raised, spare)
    return np.asarray(cut.astype(target.numpy))


@dataclass(frozen=True, eq=False)
class _CodeTable:
    """The value of every code of a float of at most 8 bits, and the way back."""

    dtype: DType
    values: Array  # f32, one for each code
    midpoints: Array  # f64, between neighbouring non-negative codes; the last is where overflow begins
    nan_code: int

    def encode(self, x: Array) -> Array:
        """Codes (u8) of f64 values, to nearest even."""
        t = self.dtype
        magnitude = np.where(np.isnan(x), 0, np.abs(x))
        code = np.searchsorted(self.midpoints, magnitude, side="left").astype(np.int64)
        is_tie = (code < len(self.midpoints)) & (magnitude == self.midpoints[np.minimum(code, len(self.midpoints) - 1)])
        if t.specials == "scale":
            code = np.where(is_tie, code + 1, code)
            return np.where((x > 0) & (code < 255), code, 255).astype(np.uint8)
        code = np.where(is_tie & (code % 2 == 1), code + 1, code)
        if t.specials == "finite":
            code = np.minimum(code, len(self.midpoints) - 1)
        sign = np.where(np.signbit(x), 1 << (t.bits - 1), 0)
        return np.where(np.isnan(x), self.nan_code ^ sign, code | sign).astype(np.uint8)


@cache
def _code_table(dtype: DType) -> _CodeTable:
    """The codes of a narrow float. As in ml_dtypes, NaN becomes -0 where a type has no NaN."""
    mantissa_bits, bits = dtype.mantissa, dtype.bits
    all_codes = np.arange(1 << bits)
    if dtype.specials == "scale":
        values = np.exp2(all_codes.astype(np.float64) - 127)
        midpoints = values[:255] * 1.5
        values[255] = np.nan
        return _CodeTable(dtype, values.astype(np.float32), midpoints, 255)
    bias = (1 << (dtype.exponent - 1)) - 1
    exponent = (all_codes >> mantissa_bits) & ((1 << dtype.exponent) - 1)
    fraction = (all_codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent == 0, fraction, 1 + fraction) * np.exp2(np.maximum(exponent, 1) - float(bias))
    half = 1 << (bits - 1)
    match dtype.specials:
        case "ieee":
            count = half - (1 << mantissa_bits)
            nan_code = count | (1 << max(mantissa_bits - 1, 0))
        case "nan-only":
            count, nan_code = half - 1, half - 1
        case _:
            count, nan_code = half, half  # -0
    step = np.exp2(float(exponent[count - 1] or 1) - bias - mantissa_bits)
    ladder = np.append(values[:count], values[count - 1] + step)
    midpoints = (ladder[:-1] + ladder[1:]) / 2
    if dtype.specials == "ieee":
        values[count:half] = np.nan
        values[count] = np.inf
    elif dtype.specials == "nan-only":
        values[nan_code] = np.nan
    values[half:] = -values[:half]
    return _CodeTable(dtype, values.astype(np.float32), midpoints, nan_code)


def largest(dtype: DType) -> float:
    """The largest finite number of a float type."""
    if not dtype.is_narrow:
        return (2.0 - 2.0**-dtype.mantissa) * 2.0 ** ((1 << (dtype.exponent - 1)) - 1)
    values = _code_table(dtype).values
    return float(np.max(values[np.isfinite(values)]))


def smallest(dtype: DType) -> float:
    """The smallest positive number of a float type: what underflow can lose."""
    return 2.0 ** (2 - (1 << (dtype.exponent - 1)) - dtype.mantissa) if dtype.specials != "scale" else 2.0**-127


def is_exact(source: DType, target: DType) -> bool:
    """Does every value of `source` have the same value in `target`?"""
    if source == target:
        return True
    if not target.is_float:
        return not source.is_float and source.bits < target.bits and (source.kind != "int" or target.kind == "int")
    if source == BOOL:
        return target.specials != "scale"
    if source.is_integer:
        return source.bits <= target.mantissa + 1 and target in (F32, F64)
    return source.mantissa <= target.mantissa and source.exponent <= target.exponent and target.specials == "ieee"

"""Narrow elements, floats of 8 bits or fewer and integers of 7 or fewer, as functions of their codes.

No target computes with them. `decode` is the value of a code, `encode` the code of a value, both in ordinary
arithmetic on the bits, derived from the definition of the type (`ir/dtypes.py`): one formula for every split of the
bits. `Bitcast` between a narrow type and `u8` is what takes the code out of an element and makes one of it.
"""

from __future__ import annotations

from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, U16, U32, U64, DType
from intarsia.ir.scalar import Bitcast, Cast, Expr, walk
from intarsia.ir.terms import Term, where

_LARGE = 1 << 53
"""An integer of at most this is an f64."""


def decode(x: Expr, dtype: DType, short: bool = False) -> Expr:
    """An element of a narrow type as `dtype`, which is not narrow. Exact, but for the rounding to `dtype` itself.

    short: put together as i8, f16 or, on the way to bf16, bf16, as matrix units take it, if these have all values of
    the type; else in 32 bits.
    """
    code = Term(Bitcast(U8, x))
    if not x.dtype.is_float:
        value = _integer_of(code, x.dtype, dtype, short)
    elif short and dtype == BF16 and x.dtype.specials != "ieee":
        value = _half_of(code, x.dtype, BF16)
    elif short and x.dtype.specials != "scale" and x.dtype.exponent <= F16.exponent:
        value = _half_of(code, x.dtype, F16)
    else:
        value = _float_of(code, x.dtype)
    return value.cast(dtype).expr


def decoded(e: Expr) -> Expr | None:
    """The element of a narrow type of which an expression is the value, as `decode` has it; None if it is none."""
    if isinstance(e, Cast) and e.value.dtype.is_narrow:
        return e.value
    elements = (x.value for x in walk(e) if isinstance(x, Bitcast) and x.value.dtype.is_narrow)
    return next((x for x in elements if e in (decode(x, e.dtype, short=True), decode(x, e.dtype))), None)


def encode(x: Expr, dtype: DType) -> Expr:
    """A value of a type that is computed with as an element of a narrow type (language.md, Casts): floats to nearest
    even, from floats to integers truncated and saturated, from integers to integers the low bits."""
    value = Term(x)
    if x.dtype == BOOL:
        value = value.cast(U8)
    if not dtype.is_float:
        code = _saturated(value, dtype) if x.dtype.is_float else value.cast(U8)
    elif value.dtype.is_integer:
        code = _code_of(_nearly_f64(value) if value.dtype.bits > 16 else value.cast(F32), dtype)
    else:
        code = _code_of(value if x.dtype in (F32, F64) else value.cast(F32), dtype)
    return Bitcast(dtype, code.expr)


def _integer_of(code: Term, dtype: DType, wanted: DType, short: bool) -> Term:
    """A code as an integer: of 32 bits on the way to wide types, as lanes are then, and else a byte. On the way to
    integers, short ones are an i8."""
    wide = wanted.bits >= 32 and not (short and wanted.is_integer)
    code = code.cast(U32) if wide else code
    if dtype.kind == "uint":
        return code.cast(I8) if short and wanted.is_integer else code
    sign = 1 << (dtype.bits - 1)
    return ((code ^ sign) - sign).bitcast(I32 if wide else I8)


def _half_of(code: Term, dtype: DType, half: DType) -> Term:
    """The same as `_float_of` with a number of 16 bits in place of the f32."""
    bits = code.cast(U16)
    if dtype.specials == "scale":
        power = where(bits.equals(0), 1 << (half.mantissa - 1), bits << half.mantissa)
        return where(bits.equals(255), 0x7FC0, power).bitcast(half)
    largest = (1 << (dtype.bits - 1)) - 1
    sign = (bits & (largest + 1)) << (half.bits - dtype.bits)
    value = (((bits & largest) << (half.mantissa - dtype.mantissa)) | sign).bitcast(half)
    if dtype.specials == "ieee":  # f8e5m2: an f16 cut short
        return value
    value = value * 2.0 ** (_bias(half) - _bias(dtype))
    return where((bits & largest).equals(largest), float("nan"), value) if dtype.specials == "nan-only" else value


def _float_of(code: Term, dtype: DType) -> Term:
    """The bits of the code become those of an f32 with the same exponent field. What is missing between the two biases
    is a power of two: multiplying by it is exact, and makes normal numbers of subnormal ones."""
    bits = code.cast(U32)
    if dtype.specials == "scale":  # unsigned powers of two: 0 is the subnormal 2^-127, 255 is NaN
        power = where(bits.equals(0), 1 << 22, bits << 23)
        return where(bits.equals(255), 0x7FC00000, power).bitcast(F32)
    if dtype.specials == "ieee":  # f8e5m2: an f16 cut short
        assert dtype.exponent == F16.exponent
        return (code.cast(U16) << (16 - dtype.bits)).bitcast(F16).cast(F32)
    largest = ((1 << (dtype.bits - 1)) - 1) << (23 - dtype.mantissa)
    if dtype.bits == 8:  # a byte is loaded with its sign in all bits above
        signed = code.bitcast(I8).cast(I32) << (23 - dtype.mantissa)
    else:
        signed = (bits << (32 - dtype.bits)).bitcast(I32) >> (8 - dtype.exponent)
    kept = signed & ((largest | 0x80000000) - (1 << 32))  # without the copies of the sign in between
    value = kept.bitcast(F32) * 2.0 ** (127 - _bias(dtype))
    is_nan = (kept & 0x7FFFFFFF).equals(largest)
    return where(is_nan, float("nan"), value) if dtype.specials == "nan-only" else value


def _bias(dtype: DType) -> int:
    return (1 << (dtype.exponent - 1)) - 1


def _code_of(x: Term, dtype: DType) -> Term:
    """The code of an f32 or f64, to nearest even.

    A normal number: its bits, rounded where the mantissa of the type ends; a carry goes on into the exponent, as it
    should. A smaller one: a multiple of the smallest number of the type, found by adding a number so large that its
    last place is 1.
    """
    unsigned, mantissa, bias = (U64, 52, 1023) if x.dtype == F64 else (U32, 23, 127)
    width = x.dtype.bits
    bits = x.bitcast(unsigned)
    magnitude = bits & ((1 << (width - 1)) - 1)
    is_nan = x.differs(x)
    if dtype.specials == "scale":
        return _scale_code(x, magnitude, is_nan, mantissa, bias)
    drop = mantissa - dtype.mantissa
    odd = (magnitude >> drop) & 1
    rounded = ((magnitude + odd + ((1 << (drop - 1)) - 1)) >> drop) - ((bias - _bias(dtype)) << dtype.mantissa)
    least = 2.0 ** (1 - _bias(dtype))  # the smallest normal number
    large = x.like(2.0**mantissa)
    steps = magnitude.bitcast(x.dtype) * 2.0 ** (_bias(dtype) - 1 + dtype.mantissa)
    subnormal = (steps + large).bitcast(unsigned) - large.bitcast(unsigned)
    code = where(magnitude.bitcast(x.dtype) < least, subnormal, rounded)
    half = 1 << (dtype.bits - 1)
    match dtype.specials:
        case "ieee":
            infinity = ((1 << dtype.exponent) - 1) << dtype.mantissa
            code = where(code > infinity, infinity, code)
            nan = infinity | (1 << max(dtype.mantissa - 1, 0))
        case "nan-only":
            code = where(code > half - 1, half - 1, code)
            nan = half - 1
        case _:
            code = where(code > half - 1, half - 1, code)
            nan = half  # -0: the type has no NaN
    sign = (bits >> (width - 1)) << (dtype.bits - 1)
    return where(is_nan, code.like(nan) ^ sign, code | sign).cast(U8)


def _scale_code(x: Term, magnitude: Term, is_nan: Term, mantissa: int, bias: int) -> Term:
    """The nearest power of two, ties up; NaN for what is not positive or too large."""
    exponent = (magnitude + (1 << (mantissa - 1))) >> mantissa
    low = bias - 127  # the exponent field of 2^-127, which is subnormal in f32
    if low:
        code = where(exponent < low, 0, exponent - low)
    else:
        code = where(magnitude < 3 << (mantissa - 2), 0, where(magnitude < 1 << mantissa, 1, exponent))
    outside = is_nan | (x <= 0.0) | (code > 254)
    return where(outside, 255, code).cast(U8)


def _saturated(x: Term, dtype: DType) -> Term:
    """A float truncated to the range of a narrow integer type; NaN is 0."""
    whole = x.cast(I32)
    low, high = int(dtype.least), int(dtype.greatest)
    return where(whole < low, low, where(whole > high, high, whole)).cast(U8)


def _nearly_f64(x: Term) -> Term:
    """An integer as f64; where that has too few bits, the last one kept says whether any were lost, so that rounding
    again is as if done once."""
    if x.dtype.bits < 64:
        return x.cast(F64)
    lost = (x & 0xFFF).differs(0)
    sticky = (x & ~0xFFF if x.dtype == I64 else x & ((1 << 64) - 4096)) | where(lost, x.like(0x800), x.like(0))
    small = (x <= _LARGE) & (x >= -_LARGE) if x.dtype == I64 else x <= _LARGE
    return where(small, x, sticky).cast(F64)

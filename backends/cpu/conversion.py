"""Conversions between element types as instructions (language.md, section 4, Casts).

Float to float rounds to nearest even, float to int truncates and saturates with NaN as 0, int to int keeps the low
bits. LLVM's own saturating conversions are written out lane by lane on x86, so they are built from comparisons here.
"""

from __future__ import annotations

import numpy as np

from intarsia.backends.cpu.llvm import Function
from intarsia.backends.cpu.values import (
    Value,
    absolute,
    comparison,
    constant,
    element_type,
    instruction,
    intrinsic,
    recast,
    select,
    shuffle,
    vector_type,
    zero,
)
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, U8, U16, U32, DType


def convert(function: Function, value: Value, dtype: DType) -> Value:
    """The value as another dtype."""
    source = value.dtype
    if source == dtype:
        return value
    if dtype == BOOL:
        wide = wide_float(function, value) if source.is_float else value
        return comparison(function, "fcmp une" if source.is_float else "icmp ne", wide, zero(wide.dtype, wide.lanes))
    if dtype.is_float:
        return _float_to_float(function, value, dtype) if source.is_float else _integer_to_float(function, value, dtype)
    if source.is_float:
        return _float_to_integer(function, wide_float(function, value), dtype)
    if source.bits == dtype.bits and source != BOOL:
        return Value(value.text, dtype, value.lanes)
    opcode = "trunc" if source != BOOL and source.bits > dtype.bits else "sext" if source.kind == "int" else "zext"
    return recast(function, opcode, value, dtype)


def wide_float(function: Function, value: Value) -> Value:
    """A 16-bit float as f32, in which it is computed; others as they are."""
    if value.dtype == F16:
        return recast(function, "fpext", value, F32)
    if value.dtype == BF16:
        bits = recast(function, "zext", Value(value.text, U16, value.lanes), U32)
        shifted = instruction(function, "shl", bits, constant(16, U32, value.lanes))
        return recast(function, "bitcast", shifted, F32)
    return value


def bitcast(function: Function, value: Value, dtype: DType) -> Value:
    """The same bits as another type of the same width; the code of a narrow element, and the element of a code."""
    if value.dtype.bits < 8:
        return _low_bits(function, value, value.dtype.bits, U8)
    if dtype.bits < 8:
        return _low_bits(function, value, dtype.bits, dtype)
    if value.dtype == BOOL:
        return recast(function, "zext", value, dtype)
    if dtype == BOOL:
        return recast(function, "trunc", value, dtype)
    return recast(function, "bitcast", value, dtype)


def _low_bits(function: Function, value: Value, bits: int, dtype: DType) -> Value:
    """The low bits of a byte as an element of a type: sign extended if NumPy takes its codes for numbers in a byte."""
    signed = dtype.numpy == np.int8
    byte = Value(value.text, I8 if signed else U8, value.lanes)
    if signed:
        spare = constant(8 - bits, I8, value.lanes)
        byte = instruction(function, "ashr", instruction(function, "shl", byte, spare), spare)
    else:
        byte = instruction(function, "and", byte, constant((1 << bits) - 1, U8, value.lanes))
    return Value(byte.text, dtype, value.lanes)


def _integer_to_float(function: Function, value: Value, dtype: DType) -> Value:
    signed = value.dtype.kind == "int"
    if dtype == BF16 and value.dtype.bits > 16:
        return _float_to_float(function, _nearly_f64(function, value), BF16)
    exact = F32 if dtype in (F16, BF16) else dtype
    if dtype == BF16 and value.dtype.bits <= 8:  # bf16 has as many significant bits: nothing to round
        return _high_half(function, recast(function, "sitofp" if signed else "uitofp", value, exact))
    return _float_to_float(function, recast(function, "sitofp" if signed else "uitofp", value, exact), dtype)


def _nearly_f64(function: Function, value: Value) -> Value:
    """A 32- or 64-bit integer as f64; where that has too few bits, the last one says whether any were lost."""
    opcode = "sitofp" if value.dtype.kind == "int" else "uitofp"
    if value.dtype.bits == 64:
        lanes = value.lanes
        lost = instruction(function, "and", value, constant(0xFFF, value.dtype, lanes))
        sticky = select(
            function,
            comparison(function, "icmp ne", lost, zero(value.dtype, lanes)),
            constant(0x800, value.dtype, lanes),
            zero(value.dtype, lanes),
        )
        kept = instruction(function, "and", value, constant(~0xFFF, value.dtype, lanes))
        short = instruction(function, "or", kept, sticky)
        magnitude = absolute(function, value) if value.dtype.kind == "int" else value
        large = comparison(function, "icmp ugt", magnitude, constant(1 << 53, value.dtype, lanes))
        value = select(function, large, short, value)
    return recast(function, opcode, value, F64)


def _float_to_float(function: Function, value: Value, dtype: DType) -> Value:
    if dtype.bits >= 32:
        wide = wide_float(function, value)
        if wide.dtype == dtype:
            return wide
        return recast(function, "fpext" if dtype.bits > wide.dtype.bits else "fptrunc", wide, dtype)
    if value.dtype == dtype:
        return value
    single = _odd_f32(function, value) if value.dtype == F64 else wide_float(function, value)
    return recast(function, "fptrunc", single, F16) if dtype == F16 else _round_bf16(function, single)


def _odd_f32(function: Function, value: Value) -> Value:
    """f64 as f32 rounded to odd, so that a further rounding to 16 bits is as if done at once.

    Source: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd", IEEE Trans. Computers 2008.
    """
    nearest = recast(function, "fptrunc", value, F32)
    back = recast(function, "fpext", nearest, F64)
    inexact = comparison(function, "fcmp one", back, value)
    larger = comparison(function, "fcmp ogt", intrinsic(function, "fabs", back), intrinsic(function, "fabs", value))
    bits = recast(function, "bitcast", nearest, I32)
    down = instruction(function, "sub", bits, recast(function, "zext", larger, I32))
    odd = instruction(function, "or", down, constant(1, I32, value.lanes))
    return recast(function, "bitcast", select(function, inexact, odd, bits), F32)


def _round_bf16(function: Function, value: Value) -> Value:
    """f32 as bf16 in integer arithmetic: add half of the last place, less one if the result would be odd."""
    lanes = value.lanes
    bits = recast(function, "bitcast", value, U32)
    high = instruction(function, "lshr", bits, constant(16, U32, lanes))
    odd = instruction(function, "and", high, constant(1, U32, lanes))
    bias = instruction(function, "add", odd, constant(0x7FFF, U32, lanes))
    rounded = instruction(function, "lshr", instruction(function, "add", bits, bias), constant(16, U32, lanes))
    quiet = instruction(function, "or", high, constant(0x40, U32, lanes))
    result = select(function, comparison(function, "fcmp uno", value, value), quiet, rounded)
    narrow = recast(function, "trunc", result, U16)
    return Value(narrow.text, BF16, lanes)


def _high_half(function: Function, value: Value) -> Value:
    """f32 as bf16 where the lower half is zero: every second word of 16 bits, which is one shuffle of two vectors."""
    if value.lanes == 1:
        bits = recast(function, "bitcast", value, U32)
        narrow = recast(function, "trunc", instruction(function, "lshr", bits, constant(16, U32)), U16)
        return Value(narrow.text, BF16)
    count = 2 * value.lanes
    halves = Value(function.op(f"bitcast {value} to {vector_type(element_type(BF16), count)}"), BF16, count)
    return shuffle(function, halves, halves, range(1, count, 2))


def _float_to_integer(function: Function, value: Value, dtype: DType) -> Value:
    """f32 or f64 to an integer, by a conversion of what is in range."""
    lanes, signed = value.lanes, dtype.kind == "int"
    low = constant(float(dtype.least), value.dtype, lanes)
    high = constant(float(int(dtype.greatest) + 1), value.dtype, lanes)
    raised = select(function, comparison(function, "fcmp ogt", value, low), value, low)  # NaN becomes the least
    below = comparison(function, "fcmp olt", raised, high)
    inside = select(function, below, raised, zero(value.dtype, lanes))
    # Vector units convert to 32 bits or more, and to signed integers first of all.
    wide = dtype if dtype.bits >= 32 else I32
    opcode = "fptosi" if wide.kind == "int" else "fptoui"
    result = recast(function, opcode, inside, wide)
    if wide != dtype:
        result = Value(recast(function, "trunc", result, dtype).text, dtype, lanes)
    result = select(function, below, result, constant(int(dtype.greatest), dtype, lanes))
    if signed:
        result = select(function, comparison(function, "fcmp uno", value, value), zero(dtype, lanes), result)
    return result


def to_memory(function: Function, value: Value) -> tuple[str, str]:
    """Type and text of the value as it is stored."""
    if value.dtype != BOOL:
        return value.type, value.text
    stored = "i8" if value.lanes == 1 else f"<{value.lanes} x i8>"
    return stored, function.op(f"zext {value} to {stored}")


def from_memory(function: Function, text: str, dtype: DType, lanes: int) -> Value:
    """The value of what was loaded; any byte but 0 is true."""
    if dtype != BOOL:
        return Value(text, dtype, lanes)
    stored = "i8" if lanes == 1 else f"<{lanes} x i8>"
    nothing = "0" if lanes == 1 else "zeroinitializer"
    return Value(function.op(f"icmp ne {stored} {text}, {nothing}"), BOOL, lanes)

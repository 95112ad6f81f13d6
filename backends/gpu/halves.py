"""Numbers that need no more than 16 bits are computed with in 16 bits, two at a time.

The bits of an integer below 128 in those of the bf16 number 128 are 128 more than it, of one below 1024 in those of the
f16 number 1024. What is taken away is known, and the difference is exact; a conversion takes four times as long:

    f32(bitcast(bit_xor(u32(bitcast(w, u8)), 8) - 8, i32))
        =>   f32(bitcast(bit_xor(u16(bitcast(w, u8)), 0x4308), bf16) - 136.0)

A product of two such numbers that is rounded to their type is rounded once either way.
"""

from __future__ import annotations

from intarsia.ir.dtypes import BF16, F16, F32, U8, U16, DType
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, apply, cast, constant

_BASES = {BF16: (0x4300, 128), F16: (0x6400, 1024)}
"""A number whose last place is 1, and how far its last places reach: the bits and the value."""


def small_integer(e: Expr, half: DType) -> Expr | None:
    """An integer that is made of the code of a narrow type as a float of 16 bits, of type `half` if that can hold it;
    None for any other."""
    unsigned, offset = e, 0
    match e:
        case Bitcast(_, Apply("sub", (Apply("bit_xor", (_, Const(a))) as moved, Const(b)))) if a == b:
            unsigned, offset = moved, int(b)
    if unsigned.dtype.kind != "uint" or not _is_made_of_codes(unsigned):
        return None
    limit = _limit(unsigned)
    dtype = half if limit <= _BASES[half][1] else F16
    bits, base = _BASES[dtype]
    if limit > base:
        return None
    match unsigned:
        case Apply("bit_xor", (code, Const(sign))):  # both at once
            unsigned, bits = code, bits | int(sign)
    if isinstance(unsigned, Cast) and unsigned.value.dtype in (U8, U16):  # which loses nothing
        unsigned = unsigned.value
    number = Bitcast(dtype, apply("bit_xor", cast(U16, unsigned), constant(bits, U16)))
    return apply("sub", number, constant(float(base + offset), dtype))


def half_product(dtype: DType, e: Expr) -> Expr | None:
    """A product in f32 that is rounded to a type of 16 bits, in that type; None unless both factors have it."""
    match e:
        case Apply("mul", (left, right)) if e.dtype == F32:
            a, b = _exactly(left, dtype), _exactly(right, dtype)
            return None if a is None or b is None else apply("mul", a, b)
    return None


def _exactly(e: Expr, dtype: DType) -> Expr | None:
    """A number in f32 as one of 16 bits that is the same; None if it may be another."""
    match e:
        case Cast(_, value) if value.dtype == dtype:
            return value
        case Cast(_, value) if value.dtype.is_integer and (found := small_integer(value, dtype)) is not None:
            return found if found.dtype == dtype else None
        case Apply("sub", (Cast(_, a), Cast(_, b))) if a.dtype.is_integer and b.dtype.is_integer:
            left, right = small_integer(a, dtype), small_integer(b, dtype)
            if left is not None and right is not None and left.dtype == right.dtype == dtype:
                return apply("sub", left, right)  # a number of one bit more, which the type has
    return None


def _is_made_of_codes(e: Expr) -> bool:
    """Is it arithmetic on the code of an element of a narrow type?"""
    return any(isinstance(x, Bitcast) and x.value.dtype.is_narrow for x in _parts(e))


def _parts(e: Expr) -> list[Expr]:
    found = [e]
    for part in found:
        found += part.children
    return found


def _limit(e: Expr) -> int:
    """A power of two that an unsigned integer is below."""
    match e:
        case Bitcast(dtype, element) if dtype == U8 and element.dtype.is_narrow:
            return 1 << element.dtype.bits
        case Cast(dtype, value) if value.dtype.kind == "uint":
            return min(_limit(value), 1 << dtype.bits)
        case Apply("bit_and", (value, Const(mask))):
            return min(_limit(value), 1 << int(mask).bit_length())
        case Apply("bit_or" | "bit_xor", (value, Const(mask))):
            return max(_limit(value), 1 << int(mask).bit_length())
        case Apply("shift_right", (value, Const(distance))):
            return max(1, _limit(value) >> int(distance))
    return 1 << e.dtype.bits

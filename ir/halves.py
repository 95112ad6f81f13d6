"""Numbers that need no more than 16 bits are computed with in 16 bits, two at a time, and multiplied by matrix units.

The bits of an integer below 128 in those of the bf16 number 128 are 128 more than it, of one below 1024 in those of the
f16 number 1024. What is taken away is known, and the difference is exact; a conversion takes four times as long:

    f32(bitcast(bit_xor(u32(bitcast(w, u8)), 8) - 8, i32))
        =>   f32(bitcast(bit_xor(u16(bitcast(w, u8)), 0x4308), bf16) - 136.0)

A product of two such numbers that is rounded to their type is rounded once either way.
"""

from __future__ import annotations

from collections.abc import Collection

from intarsia.ir.codes import decode, decoded
from intarsia.ir.dtypes import BF16, F16, F32, I8, U8, U16, DType
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, apply, cast, constant, factors, product_of

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


def factor_in_bf16(e: Expr) -> Expr | None:
    """A factor in f32 as a number of bf16 that is the same, but below 2^-126 in magnitude, where factors may count as 0
    (language.md, Numerics); None if it may be another. A code times a power of two is one, or times a scale of few
    bits."""
    match e:
        case Apply("mul", (left, right)) if e.dtype == F32 and _digits(left) + _digits(right) <= BF16.mantissa + 1:
            a, b = factor_in_bf16(left), factor_in_bf16(right)
            return None if a is None or b is None else apply("mul", a, b)
    return _exactly(e, BF16)


def are_in_bf16(product: Expr, columns: Collection[str]) -> bool:
    """Are the factors of a product of matrices, those with columns and those without, numbers of bf16 like that?"""
    left: list[Expr] = []
    right: list[Expr] = []
    for factor in factors(product):
        (left if factor.symbols.isdisjoint(columns) else right).append(factor)
    return all(side and factor_in_bf16(product_of(side)) is not None for side in (left, right))


def _digits(e: Expr) -> int:
    """How many binary digits a number has at most."""
    match e:
        case Apply("mul", (left, right)):
            return _digits(left) + _digits(right)
    element = decoded(e)
    if element is not None and element.dtype.is_float:
        return element.dtype.mantissa + 1
    if isinstance(e, Cast) and e.value.dtype.is_integer:
        return e.value.dtype.bits if element is None else element.dtype.bits
    return e.dtype.mantissa + 1


def _exactly(e: Expr, dtype: DType) -> Expr | None:
    """A number in f32 as one of 16 bits that is the same; None if it may be another."""
    element = decoded(e)
    if element is not None and element.dtype.is_float and element.dtype.exponent <= dtype.exponent:
        return Cast(dtype, element) if e == Cast(F32, element) else decode(element, dtype, short=True)
    match e:
        case Cast(_, value) if value.dtype == dtype:
            return value
        case Cast(_, value) if value.dtype.is_integer and (found := small_integer(value, dtype)) is not None:
            return found if found.dtype == dtype else None
        case Cast(_, value) if value.dtype in (I8, U8) and dtype.mantissa >= 7:
            return Cast(dtype, value)
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

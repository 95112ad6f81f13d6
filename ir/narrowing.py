"""Integers of 32 bits that always fit into a byte, such as decoded elements of few bits, as bytes."""

from __future__ import annotations

from intarsia.ir.dtypes import I8, U8, DType
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, apply, cast, constant

_WRAPPING = ("add", "sub", "mul", "bit_xor", "bit_and", "bit_or")
"""Functions whose low bits depend on the low bits of their arguments alone."""


def as_byte(e: Expr) -> Expr | None:
    """An integer as i8 or u8, if it always is one."""
    if e.dtype in (I8, U8):
        return e
    found = extremes(e)
    if found is None:
        return None
    wanted = next((dtype for dtype in (U8, I8) if _holds(dtype, found)), None)
    low = None if wanted is None else _low_byte(e)
    return low if low is None or wanted == U8 else Bitcast(I8, low)


def extremes(e: Expr) -> tuple[int, int] | None:
    """Between which numbers an integer lies; None where that is not known."""
    found = bounds(e)
    return found if found is not None and _holds(e.dtype, found) else None


def bounds(e: Expr) -> tuple[int, int] | None:
    """Between which numbers an integer lies, but for multiples of 2^bits of its type; None where that is not known."""
    match e:
        case Const(value) if e.dtype.is_integer:
            return int(value), int(value)
        case Bitcast(_, inner) if inner.dtype.is_narrow:
            return 0, (1 << inner.dtype.bits) - 1
        case Bitcast(_, inner) if inner.dtype.is_integer and e.dtype.is_integer:
            return bounds(inner)
        case Cast(dtype, inner) if dtype.is_integer and inner.dtype.is_integer:
            return extremes(inner)
        case Apply("add" | "sub" | "bit_xor" as function, (left, right)):
            first, second = bounds(left), bounds(right)
            return None if first is None or second is None else _combined(function, first, second)
    return (int(e.dtype.least), int(e.dtype.greatest)) if e.dtype.is_integer and e.dtype.bits <= 16 else None


def _combined(function: str, first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int] | None:
    match function:
        case "add":
            return first[0] + second[0], first[1] + second[1]
        case "sub":
            return first[0] - second[1], first[1] - second[0]
    if first[0] < 0 or second[0] < 0:
        return None
    return 0, (1 << max(first[1], second[1]).bit_length()) - 1


def _holds(dtype: DType, found: tuple[int, int]) -> bool:
    return int(dtype.least) <= found[0] and found[1] <= int(dtype.greatest)


def _low_byte(e: Expr) -> Expr | None:
    """The low bits of an integer, computed from those of its parts."""
    match e:
        case Const(value):
            return constant(int(value) & 0xFF, U8)
        case Bitcast(_, inner) if inner.dtype.is_narrow:
            return e
        case Bitcast(_, inner) | Cast(_, inner) if inner.dtype.is_integer and not inner.dtype.is_narrow:
            return _low_byte(inner)
        case Apply(function, arguments) if function in _WRAPPING:
            parts = [_low_byte(a) for a in arguments]
            return None if None in parts else apply(function, *(p for p in parts if p is not None))
    return cast(U8, e) if e.dtype.is_integer else None

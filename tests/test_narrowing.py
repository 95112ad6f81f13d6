"""Integers of 32 bits that always fit into a byte become bytes, for every element of few bits."""

from __future__ import annotations

import pytest

from intarsia.ir.codes import decode
from intarsia.ir.dtypes import F32, I32, U8, dtype
from intarsia.ir.narrowing import as_byte, bounds
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Load, transform


def value_of(e: Expr) -> int:
    """An integer expression of numbers, as its type holds it."""
    match e:
        case Const(value):
            found = int(value)
        case Bitcast(_, inner) | Cast(_, inner):
            found = value_of(inner)
        case Apply(function, (left, right)):
            a, b = value_of(left), value_of(right)
            found = {"add": a + b, "sub": a - b, "bit_xor": a ^ b}[function]
        case _:
            raise AssertionError(e)
    found %= 1 << e.dtype.bits
    return found - (1 << e.dtype.bits) if e.dtype.is_signed and found >> (e.dtype.bits - 1) else found


@pytest.mark.parametrize("name", ["i1", "i2", "i3", "i4", "i5", "i7", "u1", "u4", "u7"])
def test_every_element(name: str) -> None:
    element = dtype(name)
    assert element is not None
    wide = decode(Load("w", (), element), F32)
    assert isinstance(wide, Cast)
    byte = as_byte(wide.value)
    assert byte is not None and byte.dtype.bits == 8
    least, most = bounds(wide.value) or (0, 0)
    for code in range(1 << element.bits):

        def known(e: Expr, code: int = code) -> Expr | None:
            return Const(code, U8) if isinstance(e, Bitcast) and isinstance(e.value, Load) else None

        assert value_of(transform(byte, rule=known)) == value_of(transform(wide.value, rule=known))
        assert least <= value_of(transform(wide.value, rule=known)) <= most


def test_what_may_not_fit_stays() -> None:
    code = Cast(I32, Load("w", (), U8))
    assert as_byte(Apply("add", (code, Const(1, I32)))) is None
    assert as_byte(Load("w", (), I32)) is None
    assert as_byte(Apply("sub", (code, Const(100, I32)))) is None

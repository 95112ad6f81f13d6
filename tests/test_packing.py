"""Dense packing: each code lies at its own bits of the stream, whatever its width and place."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.ir.dtypes import dtype
from intarsia.ir.packing import pack, pack_elements, packed_bytes, unpack, unpack_elements


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_at_every_place(bits: int) -> None:
    """Each code at each of 9 places among ones and among zeros, against one large number in Python."""
    for background in (0, (1 << bits) - 1):
        for place in range(9):
            for code in range(1 << bits):
                stream = np.full(17, background, np.uint8)
                stream[place] = code
                number = sum(int(c) << (bits * i) for i, c in enumerate(stream))
                packed = pack(stream, bits)
                assert packed.tobytes() == number.to_bytes(packed_bytes(17, bits), "little")
                assert (unpack(packed, bits, 17) == stream).all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64])
def test_lengths(bits: int, count: int) -> None:
    codes = (np.arange(count) * 37 % (1 << bits)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.size == -(-count * bits // 8)
    assert (unpack(packed, bits, count) == codes).all()
    more = np.append(packed, np.full(3, 255, np.uint8))  # what lies behind the stream does not matter
    assert (unpack(more, bits, count) == codes).all()


@pytest.mark.parametrize("name", ["i1", "u1", "i3", "u5", "i4", "i7", "f4e2m1", "f6e3m2", "f5e2m2", "f3e1m1", "f8e4m3"])
def test_elements_come_back(name: str) -> None:
    element = dtype(name)
    assert element is not None
    every = unpack_elements(pack(np.arange(1 << element.bits), element.bits), element, (1 << element.bits,))
    assert every.dtype == element.numpy
    again = unpack_elements(pack_elements(every, element), element, (1 << element.bits,))
    assert again.tobytes() == every.tobytes()
    if element.is_signed and element.is_integer:
        assert every.astype(int).min() == element.least and every.astype(int).max() == element.greatest

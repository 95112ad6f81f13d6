"""Codes of 1 to 8 bits without gaps: element i at bits [i*n, (i+1)*n) of a little-endian stream, across bytes.

Eight codes of n bits fill n bytes, so they are the low n bytes of one word of 64 bits.
"""

from __future__ import annotations

import numpy as np

from intarsia.ir.conversion import codes, from_codes
from intarsia.ir.dtypes import Array, DType


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that so many codes take; bits that are left over in the last one are 0."""
    return (count * bits + 7) // 8


def pack(patterns: Array, bits: int) -> Array:
    """Codes, one in each byte, as a dense stream of bytes."""
    flat = np.asarray(patterns).reshape(-1)
    words = np.zeros((flat.size + 7) // 8, "<u8")
    for position in range(8):
        lane = flat[position::8].astype(np.uint64) & np.uint64((1 << bits) - 1)
        words[: lane.size] |= lane << np.uint64(bits * position)
    return words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)[: packed_bytes(flat.size, bits)]


def unpack(stream: Array, bits: int, count: int) -> Array:
    """The first `count` codes of a stream, one in each byte."""
    groups = (count + 7) // 8
    content = np.zeros(groups * bits, np.uint8)
    used = packed_bytes(count, bits)
    content[:used] = stream[:used]
    padded = np.zeros((groups, 8), np.uint8)
    padded[:, :bits] = content.reshape(groups, bits)
    words = padded.view("<u8").reshape(-1)
    found = np.empty((groups, 8), np.uint8)
    for position in range(8):
        found[:, position] = (words >> np.uint64(bits * position)) & np.uint64((1 << bits) - 1)
    return found.reshape(-1)[:count]


def pack_elements(array: Array, dtype: DType) -> Array:
    """The elements of a type of 8 bits or fewer as a dense stream of bytes."""
    return pack(codes(array, dtype), dtype.bits)


def unpack_elements(stream: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
    """The inverse of `pack_elements`."""
    return from_codes(unpack(stream, dtype.bits, int(np.prod(shape, dtype=np.int64))), dtype).reshape(shape)

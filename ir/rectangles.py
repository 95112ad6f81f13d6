"""Rectangles of a buffer that the lanes of one access touch: what a tensor descriptor moves as a whole.

A descriptor knows the extents of its buffer: it reads 0 outside of them, and writes nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intarsia.ir.kernel import Buffer
from intarsia.ir.sizes import Size, row_major_strides

WHOLE = 16
"""Bytes of which rows, blocks and their beginnings are multiples."""

_DIMENSIONS = 5
_LONGEST = 1 << 30  # coordinates have 32 bits, also of what begins outside


def layout_problem(buffer: Buffer) -> str | None:
    """Why there is no descriptor of a buffer; None if there can be one."""
    if buffer.length is not None or buffer.memory not in ("global", "prepared"):
        return f"{buffer.name} is not one array in memory"
    extents = [extent.constant for extent in buffer.shape]
    if not 1 <= len(extents) <= _DIMENSIONS or any(n is None or not 0 < n < _LONGEST for n in extents):
        return f"{buffer.name} is {buffer}, not 1 to {_DIMENSIONS} dimensions of known extents"
    if buffer.dtype.bits not in (8, 16, 32) or buffer.dtype.kind == "bool":
        return f"the elements of {buffer.name} are {buffer.dtype}"
    for stride in row_major_strides(buffer.shape)[:-1]:
        if (length := int(stride) * buffer.dtype.bytes) % WHOLE:
            return f"rows of {buffer.name} have {length} bytes, no multiple of {WHOLE}"
    return None


def rectangle(buffer: Buffer, indices: Sequence[Size], lanes: Mapping[str, int]) -> tuple[str | None, ...] | None:
    """The axis of lanes along each dimension of what these touch together, None along those where that is one element;
    None where a descriptor cannot move it. lanes: how many each axis has."""
    found: list[str | None] = []
    for index in indices:
        own = [axis for axis in lanes if axis in index.symbols]
        if len(own) > 1 or index.opaques or any(index.coefficient(a) != 1 or a in found for a in own):
            return None
        found.append(own[0] if own else None)
    if not found or (last := found[-1]) is None or lanes[last] * buffer.dtype.bytes % WHOLE:
        return None
    start = indices[-1] - Size.of(last)
    return None if any(step * buffer.dtype.bytes % WHOLE for _, step in start.terms) else tuple(found)

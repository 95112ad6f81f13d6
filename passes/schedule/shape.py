"""What the default schedules look at: strides, extents, amounts of work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from intarsia.ir.kernel import Buffer, Call, Check, For, Kernel, Put, Statement, walk
from intarsia.ir.kernel_access import accesses, expressions, trips
from intarsia.ir.kernel_effort import SORTED
from intarsia.ir.kernel_effort import operations as operations
from intarsia.ir.scalar import Apply, Cast, Expr, Index, Load
from intarsia.ir.sizes import ZERO, Extremum, Quotient, Size, row_major_strides
from intarsia.ir.target import Target

UNKNOWN = 1000
"""What an extent counts as that is no number."""


RAGGED = 16
"""What an extent counts as that depends on data."""


def count(size: Size) -> int:
    """An extent as a number; `UNKNOWN` for each name in it, `RAGGED` where it depends on data. What is cut off at the
    end of a loop counts as what is not, and what shrinks with a name as what it is at first, if it is long."""
    if size.opaques:
        return RAGGED
    names = sorted(size.symbols)
    found = size.evaluate(dict.fromkeys(names, UNKNOWN))
    if found <= 0 and names:
        start = dict.fromkeys(names, 0)
        first = max(size.evaluate(place) for place in (start, *({**start, name: UNKNOWN} for name in names)))
        found = first if first > RAGGED or _is_cut_off(size) else 1
    return max(1 if names else 0, found)


def _is_cut_off(size: Size) -> bool:
    """Is an extent the smaller one of several, or made of such?"""
    return any(
        (isinstance(a, Extremum) and a.name == "min") or (isinstance(a, Quotient) and _is_cut_off(a.numerator))
        for a in size.atoms()
    )


def power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def points(loops: Iterable[For]) -> int:
    """How often a statement inside loops runs, about."""
    return math.prod(count(trips(loop)) for loop in loops)


def work(body: Iterable[Statement]) -> int:
    """Scalar operations of statements and all inside them, about."""
    total = 0
    for statement, loops in walk(tuple(body)):
        if isinstance(statement, (Put, Check)):
            total += points(loops) * (1 + sum(map(operations, expressions(statement))))
    return total


def effort(body: Iterable[Statement]) -> int:
    """Time of statements and all inside them, in about as many nanoseconds: vectors do many operations at once."""
    total = 0
    for statement, loops in walk(tuple(body)):
        if isinstance(statement, Put):
            lanes = math.prod(count(trips(loop)) for loop in loops if loop.kind in ("lane", "dot"))
            once = points(loops) * (1 + operations(statement.value))
            total += once // (4 * lanes) if lanes > 1 else once
        elif isinstance(statement, Call):
            total += points(loops) * count(statement.length) * SORTED
    return total


def stride(buffer: Buffer, indices: Sequence[Size], axis: str) -> int | None:
    """Elements between neighbours along an axis: a number, or None where it is unknown or not constant."""
    strides = row_major_strides(buffer.shape)
    total = ZERO
    for index, step in zip(indices[len(indices) - len(strides) :], strides):
        coefficient = index.coefficient(axis)
        if coefficient is None:
            return None
        total = total + step * coefficient
    return total.constant


GATHER = 1.0
"""Cost of one lane of a load whose neighbours lie apart, against a whole vector that is contiguous; half of that of
a store."""

FAR = 3.0
"""The same where neighbours lie in different cache lines."""

LINE = 64
"""Bytes of a cache line."""

COMBINE = 6.0
"""Cost of combining the lanes of a vector, in the same unit."""


def vector_cost(kernel: Kernel, put: Put, loops: tuple[For, ...], axis: str, lanes: int) -> float:
    """What a statement costs with `axis` as lanes of a vector, in vector instructions; with "" as scalars."""
    length = max(1, next((count(trips(loop)) for loop in loops if loop.axis == axis), 1))
    filled = length / -(-length // lanes) if axis else 1.0
    buffers = kernel.buffers()
    cost = (1 + operations(put.value)) / filled
    for access in dict.fromkeys(accesses((put,))):
        if buffers[access.buffer].memory == "register":
            continue
        buffer = buffers[access.buffer]
        step = stride(buffer, access.indices, axis) if axis else 1
        near = step is not None and abs(step) * buffer.dtype.bytes < LINE
        apart = (GATHER if near else FAR) * (2 if access.writes else 1)
        cost += 1 / filled if step == 1 else 0.0 if step == 0 else apart
    if axis and put.operator != "=" and not any(axis in i.symbols for i in put.indices):
        cost += COMBINE / length
    return cost * points(loops)


def is_contiguous(kernel: Kernel, put: Put, axis: str) -> bool:
    """Are the neighbours of some access of a statement along an axis next to each other in memory?"""
    buffers = kernel.buffers()
    return any(
        buffers[a.buffer].memory != "register" and stride(buffers[a.buffer], a.indices, axis) == 1
        for a in accesses((put,))
    )


def widest(body: Iterable[Statement]) -> int:
    """Bits of the widest element that statements compute with; 32 for shorter floats, which are computed in f32.

    Comparisons of integers that no data decides are masks, whatever the width of the integers.
    """
    values = [s.value for s, _ in walk(tuple(body)) if isinstance(s, Put)]
    seen: set[Expr] = set()
    bits = 8
    while values:
        value = values.pop()
        match value:
            case Apply("lt" | "le" | "gt" | "ge", (Index(a), Index(b))) if not (a.opaques or b.opaques):
                continue
            case Cast(dtype, Index(size)) if not size.opaques:  # computed as a scalar, or in lanes of the narrower type
                bits = max(bits, dtype.bits)
                continue
        if value not in seen:
            seen.add(value)
            bits = max(bits, value.dtype.bits, 32 if value.dtype.is_float else 0)
            values += value.children
    return bits


def lanes_for(body: Iterable[Statement], target: Target) -> int:
    """Lanes in which statements compute, so that the widest element fills a register."""
    return max(1, target.lanes(widest(body)))


def readings(buffer: Buffer, load: Load, loops: Iterable[For]) -> float:
    """How often a load in loops reads each element, about: scales of groups once for each element of a group."""
    return points(x for x in loops if x.axis in load.symbols) / max(1, math.prod(count(s) for s in buffer.shape))


def bytes_of(buffer: Buffer) -> int:
    return math.prod(count(s) for s in buffer.shape) * buffer.dtype.bytes

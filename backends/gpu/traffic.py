"""Bytes that the programs of a launch move between memory and the chip, counted without running them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from intarsia.backends.gpu.triton_kernel import Transfer, TritonKernel
from intarsia.ir.kernel import Kernel
from intarsia.ir.sizes import Size
from intarsia.ir.sizes import product as product_of


def bytes_moved(kernel: TritonKernel, sizes: Mapping[str, int]) -> dict[tuple[str, bool], int]:
    """Bytes that all programs together load from each buffer, and store to it (True), each time that they do. Lanes
    that a mask leaves out count, caches do not; a loop whose bounds depend on data counts as one step."""
    found: dict[tuple[str, bool], int] = {}
    for transfer in kernel.transfers:
        key = (transfer.buffer, transfer.writes)
        moved = transfer.elements * transfer.dtype.bytes * _times(kernel, transfer, sizes)
        found[key] = found.get(key, 0) + moved
    return found


def bytes_touched(moved: Mapping[tuple[str, bool], int], kernel: Kernel, sizes: Mapping[str, int]) -> int:
    """Bytes that the memory has to give and take for what programs of a launch move, if caches hold the rest: at most
    those of each buffer, once in each direction."""
    held = {b.name: product_of(b.extents).evaluate(sizes) * b.dtype.bytes for b in kernel.buffers().values()}
    return sum(min(count, held[buffer]) for (buffer, _), count in moved.items())


def _times(kernel: TritonKernel, transfer: Transfer, sizes: Mapping[str, int]) -> int:
    """How often all programs make a transfer. Axes on which no bound of a loop depends are multiplied out."""
    bounds = [b for _, lower, upper, _ in transfer.loops for b in (lower, upper)]
    needed = frozenset().union(*(b.symbols for b in bounds))
    counts = {axis: count.evaluate(sizes) for axis, count in kernel.programs}
    free = math.prod(n for axis, n in counts.items() if axis not in needed)
    bound = [axis for axis in counts if axis in needed]
    places = product(*(range(counts[axis]) for axis in bound))
    return free * sum(_steps(transfer.loops, {**sizes, **dict(zip(bound, place))}) for place in places)


def _steps(loops: Sequence[tuple[str, Size, Size, int]], names: Mapping[str, int]) -> int:
    """Steps of nested loops, where the names of the outer ones are known."""
    if not loops:
        return 1
    (axis, lower, upper, step), *rest = loops
    if lower.opaques or upper.opaques:
        return _steps(rest, {**names, axis: 0})
    values = range(lower.evaluate(names), upper.evaluate(names), step)
    if not any(axis in bound.symbols for _, low, high, _ in rest for bound in (low, high)):
        return len(values) * _steps(rest, names)
    return sum(_steps(rest, {**names, axis: value}) for value in values)

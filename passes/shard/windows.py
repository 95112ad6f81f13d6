"""Dimensions of operands that are not read in step with the result: at a distance, or where data say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.ir.factors import Dimension
from intarsia.ir.linear import degree
from intarsia.ir.sharding import local_extent
from intarsia.ir.sizes import Size
from intarsia.ir.space import Space, operand


@dataclass(frozen=True)
class Window:
    """Along a dimension, `stride * axis + low` to `stride * axis + high` are read for the element at `axis`.

    others: the reduced axes that the subscripts use too.
    """

    axis: str
    stride: int
    low: int
    high: int
    others: frozenset[str]

    def halo(self, extent: int, result: int, devices: int) -> tuple[int, int] | None:
        """How many elements before and after its own part a device needs of a dimension of `extent`, for its part of
        `result` elements; None where its two neighbours do not have them all."""
        own, made = local_extent(extent, devices), local_extent(result, devices)
        before = after = 0
        for device in range(devices):
            first = self.stride * device * made + self.low
            last = self.stride * (device * made + made - 1) + self.high
            before = max(before, device * own - first)
            after = max(after, last - ((device + 1) * own - 1))
        return (before, after) if max(before, after) <= own else None


def find_window(space: Space, position: int, dimension: int, result: Sequence[Dimension]) -> Window | None:
    """The window in which an operand is read along a dimension, if all its loads are near one axis of the result."""
    whole = {d[0] for d in result if d is not None and len(d) == 1}
    loads = space.loads_of(position)
    ends: list[tuple[int, int]] = []
    strides: set[tuple[str, int]] = set()
    others: set[str] = set()
    reduced = {a.name: a for a in space.reduced}
    for load in loads:
        index = load.indices[dimension]
        axes = [a for a in index.symbols if a in whole]
        if len(axes) != 1 or index.opaques:
            return None
        stride = index.coefficient(axes[0])
        if stride is None or stride <= 0:
            return None
        strides.add((axes[0], stride))
        low = high = 0
        rest = index - Size.of(axes[0]) * stride
        for name in rest.symbols:
            factor, axis = rest.coefficient(name), reduced.get(name)
            if factor is None or axis is None or axis.lower.constant is None or axis.upper.constant is None:
                return None
            first, last = int(axis.lower) * factor, (int(axis.upper) - 1) * factor
            low, high = low + min(first, last), high + max(first, last)
            rest = rest - Size.of(name) * factor
            others.add(name)
        if rest.constant is None:
            return None
        ends.append((low + int(rest), high + int(rest)))
    if len(strides) != 1:
        return None
    ((axis_name, step),) = strides
    return Window(axis_name, step, min(a for a, _ in ends), max(b for _, b in ends), frozenset(others))


def is_selected(space: Space, position: int, dimension: int) -> bool:
    """Do data say where an operand is read along a dimension, and is the result a sum of what is read?"""
    loads = space.loads_of(position)
    by_data = bool(loads) and all(load.indices[dimension].opaques for load in loads)
    plain = all(load.dtype.is_float or load.dtype.kind == "int" for load in loads)
    sums = space.combiner in (None, "sum") and not space.dtype.is_narrow and space.dtype.kind != "bool"
    return by_data and plain and sums and degree(space.body, {operand(position)}) == 1

"""Ranges that depend on data, cut to the tensors that they subscript.

In `sum[p in start[r]..start[r + 1]](value[p] * x[column[p]])` the axis p subscripts `value` and `column` alone, and
data decides where it runs. Cut to their extents, every access by p is in bounds without a clamp, so that it reads
neighbours, and data that makes no sense cannot make the loop run for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from intarsia.ir.scalar import Apply, Expr, Index, Load
from intarsia.ir.sizes import Size, maximum, minimum
from intarsia.ir.space import Axis, Space

Extents = Callable[[str], "tuple[Size, ...]"]
"""The extents of an operand by its name, one for each subscript."""


def cut_ranges(space: Space, extents: Extents) -> Space:
    """The space with `lower..upper` of each reduced axis whose bounds depend on data as max(0, lower)..min(n, upper),
    for the extent n of each dimension that the axis subscripts alone, outside of the arms of a `where`."""
    by_data = {a.name for a in space.reduced if a.lower.opaques or a.upper.opaques}
    if not by_data:
        return space
    found: dict[str, dict[Size, None]] = {name: {} for name in by_data}
    for load in _always_read(space.body):
        for index, extent in zip(load.indices, extents(load.buffer)):
            if (name := index.as_name) in by_data:
                found[name or ""][extent] = None
    return replace(space, reduced=tuple(_cut(a, list(found.get(a.name, ()))) for a in space.reduced))


def _cut(axis: Axis, extents: list[Size]) -> Axis:
    if not extents:
        return axis
    return Axis(axis.name, maximum(0, axis.lower), minimum(axis.upper, *extents))


def _always_read(expression: Expr) -> Iterator[Load]:
    """The loads that the evaluation of an expression makes whatever its conditions say, each once."""
    stack, seen = [expression], set[Expr]()
    while stack:
        e = stack.pop()
        if e in seen:
            continue
        seen.add(e)
        match e:
            case Apply("where", (condition, _, _)):
                stack.append(condition)
            case Load(indices=indices):
                yield e
                stack += reversed([o for i in indices for o in i.opaques])
            case Index(size):
                stack += reversed(size.opaques)
            case _:
                stack += reversed(e.children)

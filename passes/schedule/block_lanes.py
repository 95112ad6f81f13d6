"""Loops of a nest as programs and as lanes of blocks: what every way to cut a nest into blocks starts from."""

from __future__ import annotations

from collections.abc import Sequence

from intarsia.ir.kernel_access import trips
from intarsia.ir.kernel_scan import running_values
from intarsia.ir.schedule import Grid, Reorder, Scan, Vectorize
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.kinds import selects_of_list
from intarsia.passes.schedule.tree import find_loop, perfect_nest

ROW = 8192
"""Elements up to which a row is one block."""


def lanes(b: Builder, axis: str, size: int) -> tuple[str, str]:
    """Blocks of `size` elements along an axis: the axis that counts them, "" if there is one, and the lanes."""
    loop = b.loop(axis)
    if trips(loop).constant == size and loop.lower.constant == 0:
        return "", axis
    return b.split(axis, size)


def independent(b: Builder, top: str) -> list[str]:
    """The axes of the nest that begins with a loop, whose iterations are independent, made its outer ones."""
    nest, _ = perfect_nest(b.loop(top))
    free = [loop.axis for loop in nest if loop.step == 1 and _is_free(b, loop.axis)]
    ordered = [*free, *(loop.axis for loop in nest if loop.axis not in free)]
    if free and ordered != [loop.axis for loop in nest] and not b.attempt(Reorder(tuple(ordered))):
        free = [loop.axis for loop, axis in zip(nest, free) if loop.axis == axis]
    return free


def _is_free(b: Builder, axis: str) -> bool:
    loop, around = find_loop(b.kernel, axis)
    bounds = loop.lower.symbols | loop.upper.symbols
    if selects_of_list(b.kernel, loop):
        return False  # which tensor a program reads is decided when it is launched
    if bounds & {x.axis for x in around} or loop.upper.opaques or loop.lower.opaques:
        return False
    return carried_dependence(b.kernel, loop, around, reductions=False) is None


def share(b: Builder, counters: Sequence[str]) -> None:
    """Let programs share the loops that count blocks, from 0 on."""
    if counters:
        b.take(Grid(tuple(a if b.loop(a).lower.constant == 0 else b.split(a, 1)[0] for a in counters)))


def set_lanes(b: Builder, axes: Sequence[str]) -> None:
    for axis in axes:
        b.take(Scan((axis,)) if running_values(b.loop(axis)) else Vectorize((axis,)))


def outermost(b: Builder, axes: Sequence[str]) -> str:
    return next(a for a in b.axes() if a in axes)

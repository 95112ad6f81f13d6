"""Sideways fusion: groups that read one value over the same range, and do not need each other, become one kernel, which
reads that value once.

What it saves is memory traffic. Groups that share nothing stay apart, for calls of a program cost next to nothing; so
do contractions, which spend their time on arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from intarsia.ir.graph import Value
from intarsia.ir.ops import Cumulative, Update
from intarsia.passes.fuse.members import Member, Point, wide
from intarsia.passes.fuse.rows import Stages

WORTH = 8
"""Groups become one kernel if that saves at least one in so many of the bytes that they read and write."""

STREAMS = 12
"""Arrays that one loop may read and write: more than that, and the prefetchers of a core lose track of them."""


def is_stream(members: Sequence[Member]) -> bool:
    """Does a group compute something from what it goes through in order: element by element, or reducing rows?"""
    plain = not any(m.is_contraction or isinstance(m.node, (Update, Cumulative)) for m in members)
    return plain and any(m.work > 0 or m.is_reduced for m in members)


def run_side_by_side(stages: Stages, value: Value, kind: str) -> bool:
    """Do all stages run over one range, or over the rows of it, and go through `value`, element by element, in one
    order, in which they read everything else too? For sums down columns that is another one than that of their axes; on
    a GPU, which `kind` of target may be, programs share each of these by itself."""
    ranges = [tuple(a.extent for a in wide(stage.space.all_axes)) for stage in stages.stages]
    longest = max(ranges, key=len)
    if any(longest[: len(own)] != own for own in ranges):
        return False
    most = max(len(stage.space.all_axes) for stage in stages.stages)
    # What one of the groups makes itself, and does not store, none of the stages reads.
    orders = {_order(point) for point in stages.reads.get(value, ())} or {tuple(range(most))}
    order = orders.pop()
    own = list(range(most))
    if orders or sorted(order) != own or (kind == "gpu" and list(order) != own):
        return False
    return all(_is_in_order(point, order) for points in stages.reads.values() for point in points)


def _order(point: Point) -> tuple[int, ...]:
    """The numbers of the axes by which a stage reads a value, -1 for what is no axis."""
    names = [a.name for a in point.stage.space.all_axes]
    return tuple(names.index(index.as_name) if index.as_name in names else -1 for index in point.indices)


def _is_in_order(point: Point, order: tuple[int, ...]) -> bool:
    """Does a stage read something along its axes in this order of them?"""
    names = [a.name for a in point.stage.space.all_axes]
    axes: Iterator[str | None] = iter([names[n] for n in order if n < len(names)])
    return all(index.as_name in axes for index in point.indices if index.constant is None)

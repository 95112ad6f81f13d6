"""Sideways fusion: groups that read one value over the same range, and do not need each other, become one kernel, which
reads that value once.

What it saves is memory traffic. Groups that share nothing stay apart, for calls of a program cost next to nothing; so
do contractions, which spend their time on arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from intarsia.ir.graph import Value
from intarsia.ir.ops import Cumulative, Update
from intarsia.ir.sizes import Size
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


def run_side_by_side(stages: Stages, value: Value) -> bool:
    """Do all stages run over one range, or over the rows of it, and read everything in the order of its axes, and
    `value` element by element?"""
    ranges = [tuple(a.extent for a in wide(stage.space.all_axes)) for stage in stages.stages]
    longest = max(ranges, key=len)
    if any(longest[: len(own)] != own for own in ranges):
        return False
    in_order = all(_is_in_order(point) for points in stages.reads.values() for point in points)
    # What one of the groups makes itself, and does not store, none of the stages reads.
    return in_order and all(point.indices == _everything(point.stage) for point in stages.reads.get(value, ()))


def _everything(stage: Member) -> tuple[Size, ...]:
    """The subscripts of what has one element for each point of a stage."""
    return tuple(Size.of(a.name) for a in stage.space.all_axes)


def _is_in_order(point: Point) -> bool:
    axes: Iterator[str | None] = iter([a.name for a in point.stage.space.all_axes])
    return all(index.as_name in axes for index in point.indices if index.constant is None)

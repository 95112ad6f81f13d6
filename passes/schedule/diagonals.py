"""Sweeps in place, each point of which needs the one before it: a few rows go side by side, along diagonals."""

from __future__ import annotations

from functools import partial

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For
from intarsia.ir.kernel_access import trips
from intarsia.ir.schedule import Unroll, Wavefront
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.tree import find_loop, loops_in, perfect_nest

ROWS = (8, 2, 4, 16)
"""Rows that go side by side, the likeliest number first: the latency of one point hides that of the others."""

STEEPEST = 3
"""How far a row keeps behind the one before it, at most."""


def walk_diagonals(b: Builder, top: str) -> None:
    """Walk the two innermost loops of a nest along diagonals, if the iterations of both depend on each other."""
    nest, _ = perfect_nest(b.loop(top))
    if len(nest) < 2 or loops_in(nest[-1].body):
        return
    rows, points = nest[-2:]
    length = trips(points).constant
    if length is None or length <= ROWS[0] * STEEPEST or not all(_is_recurrence(b, loop) for loop in (rows, points)):
        return
    for slope in range(1, STEEPEST + 1):
        what = f"diagonals {slope} * {rows.axis} + {points.axis}"
        if b.together(what, partial(_side_by_side, b, rows, points, slope)):
            return


def _is_recurrence(b: Builder, loop: For) -> bool:
    """Does an iteration need what an earlier one made, other than to reduce?"""
    return carried_dependence(b.kernel, loop, find_loop(b.kernel, loop.axis)[1], reductions=True) is not None


def _side_by_side(b: Builder, rows: For, points: For, slope: int) -> None:
    """Blocks of rows, whose points on each full diagonal are written out."""
    together = b.choose(f"rows of {rows.axis}", ROWS)
    block, row = b.split(rows.axis, together, "peel")
    b.take(Wavefront(row, points.axis, slope))
    full = [loop for loop in loops_in(b.loop(block).body) if trips(loop).constant == together]
    if not full:
        raise ScheduleError("no diagonal has a point in every row")
    b.take(Unroll((full[0].axis,)))

"""Prefix sums on a GPU: rows that several programs share, and axes that are independent of the one that is scanned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from intarsia.ir.kernel import For, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.kernel_scan import running_values
from intarsia.ir.schedule import Accumulate, Distribute, Merge, Reorder, Restart
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.blocks import WIDTH, contiguous_axis
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.shape import count, power_of_two
from intarsia.passes.schedule.tree import find_loop, loops_in, perfect_nest

PROGRAMS = 4
"""Parts of scans for each core."""

ALONG = 4096
"""Elements of a part at least, where rows lie along the scan."""

ACROSS = 256
"""The same where they lie across."""

STEPS = 64
"""Steps of a part of which not even a decision makes fewer."""


def walk_outside(b: Builder) -> None:
    """Make the loops that are independent of a scan, but stand inside of it, the outer ones; so with what follows.

    Before:  for k { for j { run[j] += x[k, j]; t[k, j] = run[j] } }; for k.1 { for j.1 { y[k.1, j.1] = t[k.1, j.1] } }
    After:   for j { for k { run[j] += x[k, j]; t[k, j] = run[j] } }; for j.1 { for k.1 { y[k.1, j.1] = t[k.1, j.1] } }
    """
    for axis in [loop.axis for loop in loops_in(b.waiting())]:
        nest, body = perfect_nest(b.loop(axis))
        if len(nest) < 2 or not running_values(replace(nest[0], body=body)) or _is_free(b, axis):
            continue
        free = [loop for loop in nest[1:] if _is_free(b, loop.axis)]
        places = [nest.index(loop) for loop in (*free, *(loop for loop in nest if loop not in free))]
        around = find_loop(b.kernel, axis)[1]
        if b.attempt(Reorder(tuple(nest[n].axis for n in places))):
            bounds = _bounds((*around, *nest))
            for other in (perfect_nest(loop)[0] for loop in b.waiting()):
                if _bounds(other) == bounds and nest[0].axis not in {x.axis for x in other}:
                    b.attempt(Reorder(tuple(other[len(around) + n].axis for n in places)))


def _bounds(nest: Sequence[For]) -> list[tuple[Size, Size]]:
    return [(loop.lower, loop.upper) for loop in nest]


def _is_free(b: Builder, axis: str) -> bool:
    return carried_dependence(b.kernel, *find_loop(b.kernel, axis), reductions=False) is None


def share_scans(b: Builder) -> None:
    """Where there are too few rows for all cores, let several programs scan each: a launch finds what every part adds
    up to, and the next one scans the parts, each from the sum of those before it."""
    for loop in b.waiting():
        for statement, around in walk((loop,)):
            if isinstance(statement, For) and (running := running_values(statement)):
                buffers = b.kernel.buffers()
                if len(running) == 1 and not buffers[running[0].buffer].shape:
                    _share(b, statement, around, running[0].buffer)
                break


def _share(b: Builder, loop: For, around: tuple[For, ...], buffer: str) -> None:
    rows = math.prod(count(trips(x)) for x in around)
    across = bool(around) and contiguous_axis(b, around[0].axis) in {x.axis for x in around}
    programs = max(1, rows // WIDTH if across else rows)
    length = count(trips(loop))
    wanted = -(-length * programs // (PROGRAMS * b.target.cores))
    part = power_of_two(max(wanted, ACROSS if across else ALONG))
    if programs >= b.target.cores or length <= part:
        return
    part = choose_size(b, f"steps of a part of {loop.axis}", part, STEPS, length // 2)

    def cut() -> None:
        parts, _ = b.split(loop.axis, part)
        sums = b.fresh(buffer)
        b.take(Restart(buffer, parts, sums))
        setter, adder = (x.axis for x in _siblings_before(b, parts)[-2:])
        b.take(Merge((setter, adder)))
        (first, *_) = [x for x in b.loop(setter).body if isinstance(x, For)]
        b.take(Accumulate(sums, first.axis, b.fresh(sums), "register", "set"))
        inside = parts
        for _ in around:
            outer = find_loop(b.kernel, inside)[1][-1].axis
            before = set(b.axes())
            b.take(Distribute(outer, inside))
            (inside,) = set(b.axes()) - before

    b.together(f"parts of {loop.axis}", cut)


def _siblings_before(b: Builder, axis: str) -> list[For]:
    """The loops that stand before another in its block."""
    loop, around = find_loop(b.kernel, axis)
    block = around[-1].body if around else b.kernel.body
    return [s for s in block[: block.index(loop)] if isinstance(s, For)]

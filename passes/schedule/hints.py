"""Steps that change no value: prefetch, fetch and non-temporal writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Buffer, For, Kernel, Put, Statement
from intarsia.ir.kernel import Prefetch as PrefetchStatement
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Fetch, Nontemporal, Prefetch
from intarsia.ir.sizes import ZERO, Size
from intarsia.passes.schedule.shape import LINE
from intarsia.passes.schedule.storage import box_of, most, most_trips
from intarsia.passes.schedule.tree import Body, allocated_in, find_buffer, find_loop, replace_loop, rewrite


def prefetch(kernel: Kernel, step: Prefetch) -> Kernel:
    """See `Prefetch`."""
    per_line = LINE // find_buffer(kernel, step.buffer).dtype.bytes
    loop, _ = find_loop(kernel, step.axis)
    later = {step.axis: Size.of(step.axis) + step.distance * loop.step}
    count = 0

    def change(statement: Statement) -> Body | None:
        nonlocal count
        if not isinstance(statement, Put) or statement.buffer != step.statement:
            return None
        read = [
            tuple(i.substitute(later) for i in load.indices)
            for load in loads(statement.value)
            if load.buffer == step.buffer and step.axis in load.symbols and not any(i.opaques for i in load.indices)
        ]
        found: list[tuple[Size, ...]] = []
        for indices in read:
            if not any(_share_lines(indices, other, per_line) for other in found):
                found.append(indices)
        count += len(found)
        return (*(PrefetchStatement(step.buffer, indices, step.level) for indices in found), statement)

    body = rewrite(kernel.body, change)
    if not count:
        raise ScheduleError(f"no write of {step.statement} reads {step.buffer} along {step.axis}")
    return kernel.with_body(body)


def _share_lines(first: Sequence[Size], second: Sequence[Size], per_line: int) -> bool:
    """Are two accesses so near to each other in a row that fetching one fetches the other, but for the ends?"""
    distance = first[-1] - second[-1] if first else ZERO
    return first[:-1] == second[:-1] and distance.constant is not None and abs(distance.constant) < per_line


def fetch(kernel: Kernel, step: Fetch) -> Kernel:
    """See `Fetch`."""
    buffer = find_buffer(kernel, step.buffer)
    if not buffer.extents:
        raise ScheduleError(f"{step.buffer} is one element")
    loop, around = find_loop(kernel, step.axis)
    inner, path = find_loop(kernel, step.during)
    if loop not in path:
        raise ScheduleError(f"{step.during} is not inside {step.axis}")
    reads = [a for a in accesses(loop.body, (*around, loop)) if a.buffer == step.buffer and a.reads]
    if not reads:
        raise ScheduleError(f"no iteration of {step.axis} reads {step.buffer}")
    if step.buffer in allocated_in(loop.body):
        raise ScheduleError(f"the next iteration of {step.axis} reads nothing else in {step.buffer}")
    reads = [replace(a, loops=(*a.loops[: len(around) + 1], *map(_longest, a.loops[len(around) + 1 :]))) for a in reads]
    box = box_of(kernel, buffer, reads, len(around) + 1)
    later = _later_iteration(loop, around, step.distance)
    first = tuple(index.substitute(later) for index in box.first)
    extents = [(dimension, _number(most(extent), step.buffer)) for dimension, extent in box.kept]
    per_line = max(1, LINE // buffer.dtype.bytes)
    together = _together(buffer, extents, per_line)
    apart = [e for e in extents if e not in together]
    in_row = -(-math.prod(extent for _, extent in together) // per_line)
    lines = in_row * math.prod(extent for _, extent in apart)
    turn, turns = ZERO, 1
    for other in (*path[path.index(loop) + 1 :], inner):
        length = _number(most_trips(other), other.axis)
        turn, turns = turn * length + (Size.of(other.axis) - other.lower) // other.step, turns * length
    if not lines or not turns:
        raise ScheduleError(f"no iteration of {step.during} has anything of {step.buffer} to fetch")
    each = -(-lines // turns)
    found: list[Statement] = []
    for n in range(each):
        line = turn * each + n if each > 1 else turn // (turns // lines)
        rest = line // in_row
        indices = list(first)
        place = line % in_row * per_line
        for dimension, extent in reversed(together[1:]):
            indices[dimension] += place % extent
            place = place // extent
        for dimension, _ in together[:1]:
            indices[dimension] += place
        for dimension, extent in reversed(apart):
            indices[dimension] += rest % extent
            rest = rest // extent
        found.append(PrefetchStatement(step.buffer, tuple(indices), step.level))
    return replace_loop(kernel, step.during, lambda here: replace(here, body=(*found, *here.body)))


def _together(buffer: Buffer, extents: Sequence[tuple[int, int]], per_line: int) -> list[tuple[int, int]]:
    """Of a box, dimensions with their extents, the last one, or as many as fill a line and lie in memory without a gap:
    whole dimensions, and one before them."""
    found: list[tuple[int, int]] = []
    known, filled = dict(extents), 1
    for dimension in reversed(range(len(buffer.extents))):
        extent = known.get(dimension, 1)
        if dimension in known:
            found.insert(0, (dimension, extent))
        filled *= extent
        if buffer.extents[dimension] != Size.of(extent) or filled >= per_line:
            break
    return found


def _later_iteration(loop: For, around: Sequence[For], distance: int) -> dict[str, Size]:
    """The axes so many iterations of a loop later: after the last one, where the loop is alone in another and has a
    known length, come those of the next iteration of that."""
    later = Size.of(loop.axis) + distance * loop.step
    length = most_trips(loop).constant
    if around and around[-1].body == (loop,) and length and loop.lower == ZERO and (loop.upper - loop.lower).constant:
        outer = around[-1]
        turns = later // loop.step
        return {loop.axis: turns % length * loop.step, outer.axis: turns // length * outer.step + outer.axis}
    return {loop.axis: later}


def _longest(loop: For) -> For:
    """A loop of as many iterations as this one may have."""
    return replace(loop, upper=loop.lower + most_trips(loop) * loop.step)


def _number(extent: Size, what: str) -> int:
    if extent.constant is None:
        raise ScheduleError(f"the extent {extent} of {what} is not known")
    return extent.constant


def nontemporal(kernel: Kernel, step: Nontemporal) -> Kernel:
    """See `Nontemporal`."""
    find_buffer(kernel, step.buffer)
    if any(a.buffer == step.buffer and a.reads for a in accesses(kernel.body)):
        raise ScheduleError("the kernel reads it")

    def change(statement: Statement) -> Statement | None:
        if not isinstance(statement, Put) or statement.buffer != step.buffer:
            return None
        return replace(statement, nontemporal=True)

    return kernel.with_body(rewrite(kernel.body, change))

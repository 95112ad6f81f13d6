"""Default schedule of reductions of rows that are longer than a cache: one sweep finds all that depends on one of them.

A row that is read for the maximum, again for the sum and again for the result comes from memory each time. What is made
of it is computed anew where that saves writing and reading it; the sum is found beside the maximum, block by block, and
the variance beside the mean.
"""

from __future__ import annotations

from functools import partial

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Inline, Online, Parts, Tighten
from intarsia.passes.schedule.arrange import merge_rows
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import points, power_of_two
from intarsia.passes.schedule.stages import Stage, definitions_in, expand, stages_in
from intarsia.passes.schedule.sweeps import find_sweep
from intarsia.passes.schedule.tree import allocated_in, loops_in

BLOCK = (4096, 1024, 2048, 8192, 32768)
"""Elements of a row that are worked on at a time, the likeliest number first: they stay in the nearest cache."""

PARTS = 64
"""Parts of a row that cores share. Their number depends on sizes alone, and so do the results."""

PROGRAMS = 4
"""Parts of all rows for each core of a GPU."""

NEAR = 8192
"""Elements of a part at most on a GPU: a program holds them."""


def sweep_long_rows(b: Builder) -> None:
    """Reduce rows that do not stay in the second cache in one sweep, if the kernel is such reductions."""
    found = _long_rows(b)
    if found is not None and points(found[1].kept) >= b.target.cores:
        stages, state, length = found
        b.together(f"sweep over the long rows of {state.put.buffer}", partial(_schedule, b, stages, state, length))


def share_long_rows(b: Builder) -> frozenset[str] | None:
    """Cut rows fewer than cores into parts, each of which is read once, if the kernel is reductions of such rows.
    Returns the loops that go through whole rows afterwards, which had better stay apart from those that merge what the
    parts give; None if it is none."""
    found = _long_rows(b)
    if found is None or points(found[1].kept) >= b.target.cores:
        return None
    stages, state, length = found
    if b.choose(f"rows of {state.put.buffer}", ("in parts", "whole"), looks=1) == "whole":
        return None
    if not b.together(f"parts of the rows of {state.put.buffer}", partial(_share, b, stages, state, length)):
        return None
    whole = (loop for loop in b.outermost() if any(trips(x).constant == length for x in loops_in((loop,))))
    return frozenset(loop.axis for loop in whole)


def _long_rows(b: Builder) -> tuple[tuple[Stage, ...], Stage, int] | None:
    """The stages of a kernel that reduces rows which do not stay in the cache of a core, and of which a sum needs the
    result of another reduction: that one, and how long its rows are."""
    stages = stages_in(b.kernel.body)
    if not isinstance(stages, tuple):
        return None
    state = next((s for s in stages if s.put.operator in ("max=", "+=") and s.reduced and _needing(b, stages, s)), None)
    if state is None or len(state.reduced) > 1:
        return None
    length = trips(state.reduced[0]).constant
    near = b.target.caches[1 if b.target.kind == "cpu" else 0]
    if length is None or length * state.put.value.dtype.bytes <= near:
        return None
    return stages, state, length


def _share(b: Builder, stages: tuple[Stage, ...], state: Stage, length: int) -> None:
    _require_alone(b, stages, state, length)
    if b.target.kind == "cpu":
        least, most = BLOCK[0], b.target.caches[1] // (4 * state.put.value.dtype.bytes)
        width = power_of_two(-(-length // PARTS))
    else:
        least, most = BLOCK[0] // 4, NEAR
        width = power_of_two(-(-length * points(state.kept) // (PROGRAMS * b.target.cores)))
    width = min(most, max(least, width))
    if b.target.kind == "gpu":
        width = choose_size(b, f"elements of a part of {state.put.buffer}", width, least, most)
    b.take(Parts(state.put.buffer, width))
    if b.target.kind == "cpu":
        for loop in loops_in(b.kernel.body):
            if trips(loop).constant == width:
                b.attempt(Tighten(loop.axis))  # nothing is looked at beyond the end of a row


def _needing(b: Builder, stages: tuple[Stage, ...], state: Stage) -> list[Stage]:
    """The sums whose summands need the result of another reduction."""
    definitions = definitions_in(stages, allocated_in(b.kernel.body))
    sums = [s for s in stages if s.put.operator == "+=" and s.reduced]
    return [s for s in sums if any(x.buffer == state.put.buffer for x in loads(expand(s, definitions)))]


def _schedule(b: Builder, stages: tuple[Stage, ...], state: Stage, length: int) -> None:
    _require_alone(b, stages, state, length)
    merge_rows(b)
    name = state.put.buffer
    b.take(Online(name, b.choose(f"elements of {name}", BLOCK)))


def _require_alone(b: Builder, stages: tuple[Stage, ...], state: Stage, length: int) -> None:
    """Compute what is made of rows where it is used. Raises ScheduleError unless what goes through them then are
    reductions."""
    for buffer in _in_between(b, stages, state, length):
        b.take(Inline(buffer))
    sweep = find_sweep(b.kernel, state.put.buffer, b.kernel.body, ())
    if any(s not in sweep.ratios and s not in sweep.shifts for s in sweep.axes if s is not sweep.state):
        raise ScheduleError("more than the reductions goes through the rows")


def _in_between(b: Builder, stages: tuple[Stage, ...], state: Stage, length: int) -> list[str]:
    """The temporaries that hold a number for each element of a row, and those made of the state that sums read."""
    definitions = definitions_in(stages, allocated_in(b.kernel.body))
    read = {x.buffer for s in _needing(b, stages, state) for x in s.reads}
    return [
        buffer
        for buffer, stage in definitions.items()
        if _is_along(stage, length) or (buffer in read and any(x.buffer == state.put.buffer for x in stage.reads))
    ]


def _is_along(stage: Stage, length: int) -> bool:
    return any(trips(loop).constant == length for loop in loops_in((stage.statement,)) if loop in stage.kept)

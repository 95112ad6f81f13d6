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
from intarsia.ir.schedule import Inline, Online
from intarsia.passes.schedule.arrange import merge_rows
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import points
from intarsia.passes.schedule.stages import Stage, definitions_in, expand, stages_in
from intarsia.passes.schedule.sweeps import find_sweep
from intarsia.passes.schedule.tree import allocated_in, loops_in

BLOCK = (4096, 1024, 2048, 8192, 32768)
"""Elements of a row that are worked on at a time, the likeliest number first: they stay in the nearest cache."""


def sweep_long_rows(b: Builder) -> None:
    """Reduce rows that do not stay in the second cache in one sweep, if the kernel is such reductions."""
    stages = stages_in(b.kernel.body)
    if not isinstance(stages, tuple):
        return
    state = next((s for s in stages if s.put.operator in ("max=", "+=") and s.reduced and _needing(b, stages, s)), None)
    if state is None or len(state.reduced) > 1 or points(state.kept) < b.target.cores:
        return
    length = trips(state.reduced[0]).constant
    if length is None or length * state.put.value.dtype.bytes <= b.target.caches[1]:
        return
    name = state.put.buffer
    b.together(f"sweep over the long rows of {name}", partial(_schedule, b, stages, state, length))


def _needing(b: Builder, stages: tuple[Stage, ...], state: Stage) -> list[Stage]:
    """The sums whose summands need the result of another reduction."""
    definitions = definitions_in(stages, allocated_in(b.kernel.body))
    sums = [s for s in stages if s.put.operator == "+=" and s.reduced]
    return [s for s in sums if any(x.buffer == state.put.buffer for x in loads(expand(s, definitions)))]


def _schedule(b: Builder, stages: tuple[Stage, ...], state: Stage, length: int) -> None:
    name = state.put.buffer
    for buffer in _in_between(b, stages, state, length):
        b.take(Inline(buffer))
    sweep = find_sweep(b.kernel, name, b.kernel.body, ())
    if any(s not in sweep.ratios and s not in sweep.shifts for s in sweep.axes if s is not sweep.state):
        raise ScheduleError("more than the reductions goes through the rows")
    merge_rows(b)
    b.take(Online(name, b.choose(f"elements of {name}", BLOCK)))


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

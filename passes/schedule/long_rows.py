"""Default schedule of reductions of rows that are longer than a cache: one sweep finds all that depends on a maximum.

A row that is read for the maximum, again for the sum and again for the result comes from memory each time. What is made
of it is computed anew where that saves writing and reading it; the sum is found beside the maximum, block by block.
"""

from __future__ import annotations

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel_access import trips
from intarsia.ir.schedule import Inline, Online
from intarsia.passes.schedule.arrange import merge_rows
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import points
from intarsia.passes.schedule.stages import Stage, stages_in
from intarsia.passes.schedule.sweeps import find_sweep
from intarsia.passes.schedule.tree import allocated_in, loops_in

BLOCK = 4096
"""Elements of a row that are worked on at a time: they stay in the nearest cache."""


def sweep_long_rows(b: Builder) -> None:
    """Reduce rows that do not stay in the second cache in one sweep, if the kernel is such reductions."""
    stages = stages_in(b.kernel.body)
    if not isinstance(stages, tuple):
        return
    state = next((s for s in stages if s.put.operator == "max=" and s.reduced), None)
    if state is None or len(state.reduced) > 1 or points(state.kept) < b.target.cores:
        return
    length = trips(state.reduced[0]).constant
    if length is None or length * state.put.value.dtype.bytes <= b.target.caches[1]:
        return
    name = state.put.buffer
    b.together(f"sweep over the long rows of {name}", lambda: _schedule(b, name, length))


def _schedule(b: Builder, name: str, length: int) -> None:
    for buffer in _rows_kept(b, length):
        b.take(Inline(buffer))
    sweep = find_sweep(b.kernel, name, b.kernel.body, ())
    if any(s not in sweep.ratios for s in sweep.axes if s is not sweep.state):
        raise ScheduleError("more than the reductions goes through the rows")
    merge_rows(b)
    b.take(Online(name, BLOCK))


def _rows_kept(b: Builder, length: int) -> list[str]:
    """The temporaries that hold a number for each element of a row."""
    stages: tuple[Stage, ...] = stages_in(b.kernel.body)  # type: ignore[assignment]
    whole = {s.put.buffer for s in stages if s.put.operator == "=" and _is_along(s, length)}
    return [buffer for buffer in allocated_in(b.kernel.body) if buffer in whole]


def _is_along(stage: Stage, length: int) -> bool:
    return any(trips(loop).constant == length for loop in loops_in((stage.statement,)) if loop in stage.kept)

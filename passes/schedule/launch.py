"""Steps about how a GPU runs the programs of a launch."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import LANES, Alloc, Buffer, Kernel, Statement
from intarsia.ir.kernel_access import Access, accesses, trips
from intarsia.ir.rectangles import layout_problem, rectangle
from intarsia.ir.schedule import Describe, Programs, Stages, Warps
from intarsia.passes.schedule.tree import find_buffer, loops_in, rewrite


def warps(kernel: Kernel, step: Warps) -> Kernel:
    """See `Warps`."""
    if not 1 <= step.count <= 32 or step.count & (step.count - 1):
        raise ScheduleError("it is no power of two up to 32")
    return replace(kernel, warps=step.count)


def stages(kernel: Kernel, step: Stages) -> Kernel:
    """See `Stages`."""
    if not 1 <= step.count <= 8:
        raise ScheduleError("it is not between 1 and 8")
    return replace(kernel, stages=step.count)


def programs(kernel: Kernel, step: Programs) -> Kernel:
    """See `Programs`."""
    if step.count < 1:
        raise ScheduleError("nobody would do anything")
    if not any(loop.kind == "grid" for loop in loops_in(kernel.body)):
        raise ScheduleError("no loop is over a grid")
    return replace(kernel, programs=step.count)


def describe(kernel: Kernel, step: Describe) -> Kernel:
    """See `Describe`."""
    for name in step.buffers:
        buffer = find_buffer(kernel, name)
        if (problem := layout_problem(buffer)) is not None:
            raise ScheduleError(problem)
        if not any(_is_rectangle(buffer, a) for a in accesses(kernel.body) if a.buffer == name):
            raise ScheduleError(f"no access of {name} by lanes is a rectangle")
    chosen = frozenset(step.buffers)

    def described(buffer: Buffer) -> Buffer:
        return replace(buffer, described=True) if buffer.name in chosen else buffer

    def change(statement: Statement) -> Statement | None:
        return Alloc(described(statement.buffer)) if isinstance(statement, Alloc) else None

    parameters = tuple(map(described, kernel.parameters))
    return replace(kernel, parameters=parameters, body=rewrite(kernel.body, change))


def _is_rectangle(buffer: Buffer, access: Access) -> bool:
    lanes = {loop.axis: int(trips(loop)) for loop in access.loops if loop.kind in LANES}
    return rectangle(buffer, access.indices, lanes) is not None

"""Counting what code generation makes of schedules that were measured. Stops and goes on at any time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from intarsia.backends.cpu.compile import compile_kernel
from intarsia.backends.cpu.counting import Counts, count
from intarsia.ir.errors import CompileError, ScheduleError, Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import Target
from intarsia.passes.schedule.apply import apply
from intarsia.tuning.database import Database, machine_name
from intarsia.workers import map_in_workers


@dataclass(frozen=True)
class Counted:
    """What came of one problem: schedules that were counted, and those whose steps are no longer legal."""

    kind: str
    counted: int
    left: int


def count_all(database: Database, target: Target) -> Iterator[Counted]:
    """Count the code of every schedule that was measured on this kind of machine, one problem after the other; what
    this compiler has counted already is left out."""
    machine = machine_name(target)
    for problem in database.problems():
        schedules = database.uncounted(problem.key, machine)
        if not schedules:
            continue
        kernel = read_kernel(Source("kernel", problem.kernel))
        own = replace(target, cores=problem.cores)
        found = dict(zip(schedules, map_in_workers(partial(_count, kernel=kernel, target=own), schedules)))
        counts = {schedule: counts for schedule, counts in found.items() if counts is not None}
        database.add_counts(problem.key, machine, counts)
        yield Counted(problem.kind, len(counts), len(schedules) - len(counts))


def _count(steps: str, kernel: Kernel, target: Target) -> Counts | None:
    """What is counted in the code of one schedule; None if this version cannot take its steps."""
    try:
        scheduled = apply(kernel, Schedule.parse(steps))
    except (ScheduleError, CompileError):
        return None
    return count(compile_kernel(scheduled, target))

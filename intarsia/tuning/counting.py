"""Counting what code generation makes of schedules that were measured. Stops and goes on at any time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from intarsia.backends.cpu.compile import compile_kernel
from intarsia.backends.cpu.counting import Counts, count
from intarsia.cache import cache_directory
from intarsia.gpu_launches import launches_of_plan
from intarsia.ir.errors import CompileError, ScheduleError, Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import Target
from intarsia.passes.schedule.apply import apply
from intarsia.tuning.database import Database, machine_name
from intarsia.tuning.isolation import plan_alone
from intarsia.workers import map_in_workers

if TYPE_CHECKING:
    from intarsia.backends.gpu.toolchain import CompiledKernel


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
    return count(compile_kernel(scheduled, target)) if target.kind == "cpu" else _count_launches(scheduled, target)


def _launch_codes(kernel: Kernel, target: Target) -> list[CompiledKernel] | None:
    """The code of each launch of a scheduled kernel by itself; None if the tools refuse it."""
    from intarsia.backends.gpu.toolchain import ToolchainError, compile_kernels

    launches = [x for own in launches_of_plan(plan_alone(kernel, target)).values() for x in own]
    try:
        return compile_kernels(launches, target, cache_directory() / "triton")
    except ToolchainError:
        return None


def _count_launches(kernel: Kernel, target: Target) -> Counts | None:
    """The same of the code of a GPU: instructions of the chip, those that move a register to local memory or back, and
    registers of a thread, the most of all launches. None if the tools refuse it."""
    if (codes := _launch_codes(kernel, target)) is None:
        return None
    found = [code.resources for code in codes]
    return Counts(
        sum(r.count("total") for r in found),
        sum(r.count("load_local") + r.count("store_local") for r in found),
        max((r.registers for r in found), default=0),
    )


def code_text(kernel: Kernel, target: Target) -> str | None:
    """What the code of a scheduled kernel takes of a target, in words; None if the tools refuse it."""
    if target.kind == "cpu":
        counts = count(compile_kernel(kernel, target))
        return f"{counts.instructions} instructions, {counts.live} vectors live, {counts.spills or 'no'} spills"
    from intarsia.backends.gpu.toolchain import usage_text

    codes = _launch_codes(kernel, target)
    return None if codes is None else " | ".join(map(usage_text, codes))

"""The pass that schedules every kernel of a module."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from intarsia.ir.errors import CompileError, Remark, ScheduleError
from intarsia.ir.graph import Module, Region
from intarsia.ir.kernel import For, Kernel
from intarsia.ir.kernel_effort import loop_effort
from intarsia.ir.ops import Call, Loop
from intarsia.ir.schedule import Schedule
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.schedule.apply import apply
from intarsia.passes.schedule.choosing import best_schedule
from intarsia.passes.schedule.default import build_schedule
from intarsia.passes.schedule.programs import build_programs
from intarsia.passes.schedule.roundings import with_roundings


@dataclass(frozen=True)
class ScheduleKernels(Pass):
    """Apply to each kernel its default schedule for the target, or the one that the user pins.

    Before:  for i in 0..4096 { y[i] = x[i] * 2.0 }
    After:   parallel i in 0..256 { lane i.0 in 0..16 { y[16 * i + i.0] = x[16 * i + i.0] * 2.0 } }

    Keeps: values, up to the order of reductions. Needs: `lower`. Leaves: the schedule of each kernel in the context.
    """

    name: ClassVar[str] = "schedule"
    exact: ClassVar[bool] = False
    moves_factors: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> Module:
        pinned = pinned_schedules(context.pinned_schedule)
        repeated = frozenset(called_in_loops(module.graph.body))
        free = sorted(
            (k for k in module.kernels if k.name not in pinned and "" not in pinned), key=_effort, reverse=True
        )
        work = partial(schedule_of, context=context, repeated=repeated)
        found = {k.name: scheduled for k, scheduled in zip(free, context.each(work, free))}
        context.applied.clear()
        kernels = tuple(
            self._keep(k, found[k.name], context)
            if k.name in found
            else self._pinned(k, pinned.get(k.name) or pinned[""], context)
            for k in module.kernels
        )
        scheduled = dataclasses.replace(module, kernels=kernels)
        return with_roundings(scheduled) if context.target.kind == "gpu" else scheduled

    def _pinned(self, kernel: Kernel, schedule: Schedule, context: Context) -> Kernel:
        context.schedules[kernel.name] = schedule
        try:
            return apply(kernel, schedule)
        except ScheduleError as error:
            raise ScheduleError(f"kernel {kernel.name}: {error}") from None

    def _keep(self, kernel: Kernel, scheduled: Scheduled, context: Context) -> Kernel:
        context.schedules[kernel.name] = scheduled.schedule
        for remark in scheduled.remarks:
            message = f"{kernel.name}: {remark.message}"
            context.remarks.add(dataclasses.replace(remark, message=message, span=kernel.span))
        return dataclasses.replace(scheduled.kernel, name=kernel.name, span=kernel.span)


@dataclass(frozen=True)
class Scheduled:
    """A kernel after its schedule, and what there is to say about it."""

    kernel: Kernel
    schedule: Schedule
    remarks: tuple[Remark, ...]


def schedule_of(kernel: Kernel, context: Context, repeated: frozenset[str] = frozenset()) -> Scheduled:
    """A kernel with the schedule that nobody pins; `repeated` are the names of those that loops call. Pure: it may run
    in another process."""
    again = kernel.name in repeated
    if (found := _measured(kernel, context)) is not None:
        return found
    if (tried := context.tried.get(dataclasses.replace(kernel, name=""))) is not None:
        built = tried
    elif context.target.kind == "gpu":
        built = build_programs(kernel, context.target, context.writable)
    elif context.predict is None:
        built = build_schedule(kernel, context.target, again, applied=context.applied)
    else:
        built = best_schedule(kernel, context.target, context.predict, again, applied=context.applied)
    return Scheduled(built.kernel, built.schedule, tuple(built.remarks))


def _measured(kernel: Kernel, context: Context) -> Scheduled | None:
    """A kernel with the fastest schedule that was measured; None if none was, or this version cannot take its steps."""
    text = context.measured(kernel)
    if text is None:
        return None
    try:
        schedule = Schedule.parse(text)
        scheduled = apply(kernel, schedule)
    except (ScheduleError, CompileError):  # a step that is not legal, or that there is none of
        return None
    if context.target.kind == "gpu" and context.writable(scheduled) is not None:
        return None
    return Scheduled(scheduled, schedule, (Remark("schedule", "schedule", "the fastest schedule that was measured"),))


def _effort(kernel: Kernel) -> float:
    """About the nanoseconds of a kernel: the longer it takes, the more schedules are looked at."""
    efforts = [loop_effort(s) for s in kernel.body if isinstance(s, For)]
    return sum(math.inf if e is None or e.constant is None else e.constant for e in efforts)


def called_in_loops(region: Region, inside: bool = False) -> Iterator[str]:
    """The kernels that loops of a program call."""
    for node in region.nodes:
        match node:
            case Call() if inside:
                yield node.kernel
            case Loop():
                yield from called_in_loops(node.body, inside=True)


def pinned_schedules(text: str | None) -> dict[str, Schedule]:
    """The schedules of a text by kernel: `kernel NAME:` begins that of one kernel, what stands before is for all."""
    if text is None:
        return {}
    parts = re.split(r"^[ \t]*kernel[ \t]+([\w.]+)[ \t]*:", text, flags=re.MULTILINE)
    found = {name: Schedule.parse(body) for name, body in zip(parts[1::2], parts[2::2])}
    if parts[0].strip():
        found[""] = Schedule.parse(parts[0])
    return found

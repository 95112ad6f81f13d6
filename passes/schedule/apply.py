"""Applying schedules: each step turns a kernel into one with the same meaning, or raises ScheduleError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from intarsia.ir import schedule as steps
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_access import holds_one_write
from intarsia.ir.preparation import preparation_problems
from intarsia.ir.schedule import Schedule, Step
from intarsia.passes.schedule.accumulate import accumulate
from intarsia.passes.schedule.align import align
from intarsia.passes.schedule.distribute import distribute
from intarsia.passes.schedule.factor import factor
from intarsia.passes.schedule.grouping import group
from intarsia.passes.schedule.hints import fetch, nontemporal, prefetch
from intarsia.passes.schedule.kinds import dot, grid, parallel, unroll, vectorize
from intarsia.passes.schedule.launch import describe, programs, stages, warps
from intarsia.passes.schedule.loops import collapse, merge, move, reorder, skew, split
from intarsia.passes.schedule.masks import peel, restrict, tighten, unmask, version, widen
from intarsia.passes.schedule.multiply import multiply
from intarsia.passes.schedule.online import online
from intarsia.passes.schedule.overlap import overlap
from intarsia.passes.schedule.partition import partition
from intarsia.passes.schedule.parts import parts
from intarsia.passes.schedule.reuse import reuse
from intarsia.passes.schedule.scans import restart, scan
from intarsia.passes.schedule.sink import sink
from intarsia.passes.schedule.skipping import skip
from intarsia.passes.schedule.squeeze import squeeze
from intarsia.passes.schedule.storage import inline, localize, pack, stage
from intarsia.passes.schedule.tree import loops_in
from intarsia.passes.schedule.wavefront import wavefront

_APPLY: dict[type[Step], Callable[[Kernel, Any], Kernel]] = {
    steps.Split: split,
    steps.Collapse: collapse,
    steps.Overlap: overlap,
    steps.Partition: partition,
    steps.Peel: peel,
    steps.Align: align,
    steps.Reorder: reorder,
    steps.Skew: skew,
    steps.Wavefront: wavefront,
    steps.Merge: merge,
    steps.Move: move,
    steps.Sink: sink,
    steps.Distribute: distribute,
    steps.Localize: localize,
    steps.Pack: pack,
    steps.Accumulate: accumulate,
    steps.Factor: factor,
    steps.Group: group,
    steps.Multiply: multiply,
    steps.Online: online,
    steps.Parts: parts,
    steps.Inline: inline,
    steps.Reuse: reuse,
    steps.Stage: stage,
    steps.Squeeze: squeeze,
    steps.Restart: restart,
    steps.Vectorize: vectorize,
    steps.Scan: scan,
    steps.Unroll: unroll,
    steps.Dot: dot,
    steps.Parallel: parallel,
    steps.Grid: grid,
    steps.Warps: warps,
    steps.Stages: stages,
    steps.Programs: programs,
    steps.Describe: describe,
    steps.Version: version,
    steps.Unmask: unmask,
    steps.Tighten: tighten,
    steps.Skip: skip,
    steps.Widen: widen,
    steps.Restrict: restrict,
    steps.Fetch: fetch,
    steps.Prefetch: prefetch,
    steps.Nontemporal: nontemporal,
}


def apply_step(kernel: Kernel, step: Step) -> Kernel:
    """The kernel after one step. Raises ScheduleError, which names the step, where it is not legal."""
    try:
        new = _APPLY[type(step)](kernel, step)
        if (problem := next(preparation_problems(new), None)) is not None:
            raise ScheduleError(problem)
        if any(loop.kind == "dot" and not holds_one_write(loop) for loop in loops_in(new.body)):
            raise ScheduleError("a dot loop would hold more than one write")
        return new
    except ScheduleError as error:
        raise ScheduleError(f"{step}: {error}") from None


def apply(kernel: Kernel, schedule: Schedule) -> Kernel:
    """The kernel after all steps of a schedule. Raises ScheduleError at the first that is not legal."""
    for step in schedule:
        kernel = apply_step(kernel, step)
    return kernel

"""The pass that schedules every kernel of a module."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.errors import ScheduleError
from intarsia.ir.graph import Module, Region
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Call, Loop
from intarsia.ir.schedule import Schedule
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.schedule.apply import apply
from intarsia.passes.schedule.choosing import best_schedule
from intarsia.passes.schedule.default import build_schedule


@dataclass(frozen=True)
class ScheduleKernels(Pass):
    """Apply to each kernel its default schedule for the target, or the one that the user pins.

    Before:  for i in 0..4096 { y[i] = x[i] * 2.0 }
    After:   parallel i in 0..256 { lane i.0 in 0..16 { y[16 * i + i.0] = x[16 * i + i.0] * 2.0 } }

    Keeps: values, up to the order of reductions. Needs: `lower`. Leaves: the schedule of each kernel in the context.
    """

    name: ClassVar[str] = "schedule"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        pinned = pinned_schedules(context.pinned_schedule)
        repeated = frozenset(called_in_loops(module.graph.body))
        kernels = tuple(self._schedule(k, pinned, context, k.name in repeated) for k in module.kernels)
        return dataclasses.replace(module, kernels=kernels)

    def _schedule(self, kernel: Kernel, pinned: dict[str, Schedule], context: Context, repeated: bool) -> Kernel:
        own = pinned.get(kernel.name, pinned.get(""))
        if own is not None:
            context.schedules[kernel.name] = own
            try:
                return apply(kernel, own)
            except ScheduleError as error:
                raise ScheduleError(f"kernel {kernel.name}: {error}") from None
        if (tried := context.tried.get(dataclasses.replace(kernel, name=""))) is not None:
            built = tried
        elif context.predict is None:
            built = build_schedule(kernel, context.target, repeated)
        else:
            built = best_schedule(kernel, context.target, context.predict, repeated)
        context.schedules[kernel.name] = built.schedule
        for remark in built.remarks:
            message = f"{kernel.name}: {remark.message}"
            context.remarks.add(dataclasses.replace(remark, message=message, span=kernel.span))
        return dataclasses.replace(built.kernel, name=kernel.name, span=kernel.span)


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

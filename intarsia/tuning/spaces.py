"""The schedules of a kernel by itself."""

from __future__ import annotations

from intarsia.driver import writable
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.candidates import Space


def space_of(kernel: Kernel, target: Target, repeated: bool = False) -> Space:
    """The space of a naive kernel whose sizes are numbers, or given by loops. `repeated`: its result is read again."""
    return Space(kernel, target, repeated, writable)

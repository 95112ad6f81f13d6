"""The step `align`: let the main part of a loop begin where a buffer is at a whole cache line."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Kernel, Put
from intarsia.ir.schedule import Align
from intarsia.ir.sizes import ZERO, Size, minimum, row_major_strides
from intarsia.passes.schedule.masks import require_numbers
from intarsia.passes.schedule.tree import copy_body, facts_for, find_buffer, find_loop, puts_in, replace_loop

LINE = 64
"""Bytes of a cache line, and of the widest vector."""


def align(kernel: Kernel, step: Align) -> Kernel:
    """See `Align`."""
    loop, around = find_loop(kernel, step.axis)
    buffer = find_buffer(kernel, step.buffer)
    put = next((p for p in puts_in(loop.body) if p.buffer == step.buffer), None)
    if put is None or buffer.length is not None:
        raise ScheduleError(f"{step.axis} does not write {step.buffer}")
    place = _place(put, buffer.shape)
    if place.coefficient(step.axis) != 1 or loop.step != 1:
        raise ScheduleError(f"{step.buffer} does not lie along {step.axis}")
    start = place.substitute({step.axis: loop.lower})
    if start.opaques or not start.symbols <= {x.axis for x in around} | set(kernel.sizes):
        raise ScheduleError(f"where {step.buffer} is written depends on more than the loops around {step.axis}")
    # The remainder of -start, written so that start and it add up to multiples of a line.
    whole = max(1, LINE // buffer.dtype.bytes)
    first = -start - (-start // whole) * whole
    extent = loop.upper - loop.lower
    if not facts_for(kernel, around).proves(extent - (whole - 1)):
        first = minimum(first, extent)
    middle = loop.lower + first
    require_numbers(loop, middle)
    (head,) = copy_body(kernel, (replace(loop, upper=middle),))
    return replace_loop(kernel, step.axis, lambda found: (head, replace(found, lower=middle)))


def _place(put: Put, shape: tuple[Size, ...]) -> Size:
    """Elements from the start of a buffer to the one that is written."""
    return sum((index * stride for index, stride in zip(put.indices, row_major_strides(shape))), ZERO)

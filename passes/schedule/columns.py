"""A part of the default schedule: what is read again and again across memory is copied first, so that it lies together.

   for i in 0..n { for p in 0..k { t[i] += x[i, p] * x[p, k] } }
-> for p.0 in 0..k { c[p.0] = x[p.0, k] }; for i in 0..n { for p in 0..k { t[i] += x[i, p] * c[p] } }
"""

from __future__ import annotations

from intarsia.ir.kernel import Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import ROOT, Pack
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import LINE, count, stride

REUSED = 8
"""Iterations that read the same elements, from which on a copy pays."""


def copy_columns(b: Builder) -> None:
    """Copy what every iteration of outer loops reads along one axis in steps of a cache line or more, if something else
    is read along that axis in steps of one."""
    for loop in b.waiting():
        for statement, around in walk((loop,)):
            if isinstance(statement, Put):
                for load in dict.fromkeys(loads(statement.value)):
                    axis = _column_axis(b, statement, load)
                    if axis and any(count(trips(x)) >= REUSED for x in around if x.axis != axis):
                        memory = b.copy_memory(load, ROOT)
                        b.attempt(Pack(load.buffer, ROOT, b.fresh(load.buffer), (axis,), memory))


def _column_axis(b: Builder, put: Put, load: Load) -> str:
    """The only axis along which a load moves, if it does so in long steps while another load makes single ones."""
    axes = [axis for axis in b.axes() if axis in load.symbols]
    if len(axes) != 1 or load.mask or any(i.opaques for i in load.indices):
        return ""
    buffers = b.kernel.buffers()
    steps = {x: stride(buffers[x.buffer], x.indices, axes[0]) for x in loads(put.value)}
    far = steps[load] is None or abs(steps[load] or 0) * buffers[load.buffer].dtype.bytes >= LINE
    return axes[0] if far and 1 in steps.values() else ""

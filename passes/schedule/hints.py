"""Steps that change no value: prefetch and non-temporal writes."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Kernel, Put, Statement
from intarsia.ir.kernel import Prefetch as PrefetchStatement
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Nontemporal, Prefetch
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.tree import Body, find_buffer, find_loop, rewrite


def prefetch(kernel: Kernel, step: Prefetch) -> Kernel:
    """See `Prefetch`."""
    find_buffer(kernel, step.buffer)
    loop, _ = find_loop(kernel, step.axis)
    later = {step.axis: Size.of(step.axis) + step.distance * loop.step}
    count = 0

    def change(statement: Statement) -> Body | None:
        nonlocal count
        if not isinstance(statement, Put) or statement.buffer != step.statement:
            return None
        found = dict.fromkeys(
            tuple(i.substitute(later) for i in load.indices)
            for load in loads(statement.value)
            if load.buffer == step.buffer and step.axis in load.symbols and not any(i.opaques for i in load.indices)
        )
        count += len(found)
        return (*(PrefetchStatement(step.buffer, indices, step.level) for indices in found), statement)

    body = rewrite(kernel.body, change)
    if not count:
        raise ScheduleError(f"no write of {step.statement} reads {step.buffer} along {step.axis}")
    return kernel.with_body(body)


def nontemporal(kernel: Kernel, step: Nontemporal) -> Kernel:
    """See `Nontemporal`."""
    find_buffer(kernel, step.buffer)
    if any(a.buffer == step.buffer and a.reads for a in accesses(kernel.body)):
        raise ScheduleError("the kernel reads it")

    def change(statement: Statement) -> Statement | None:
        if not isinstance(statement, Put) or statement.buffer != step.buffer:
            return None
        return replace(statement, nontemporal=True)

    return kernel.with_body(rewrite(kernel.body, change))

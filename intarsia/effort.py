"""How long a program takes, roughly, as far as that can be told without running it."""

from __future__ import annotations

from collections.abc import Sequence

from intarsia.ir.kernel import Call, For, Kernel, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Repeat
from intarsia.passes.schedule.shape import effort as body_effort

BYTES_PER_NANOSECOND = 8
"""Of a copy."""


def effort_of(plan: Plan) -> int | None:
    """About the nanoseconds of one run on one thread; None where that depends on data, or on sizes that stayed open."""
    kernels = {kernel.name: _kernel_effort(kernel) for kernel in plan.kernels}

    def total(body: Sequence[PlanStatement]) -> int | None:
        efforts = [of_statement(statement) for statement in body]
        return None if None in efforts else sum(e for e in efforts if e is not None)

    def of_statement(statement: PlanStatement) -> int | None:
        match statement:
            case Invoke(kernel):
                return kernels[kernel]
            case Copy(_, _, dtype, elements):
                count = elements.constant
                return None if count is None else count * dtype.bytes // BYTES_PER_NANOSECOND
            case Exchange():
                return None
            case Repeat(_, lower, upper, body=body, condition=condition):
                once, count = total(body), (upper - lower).constant
                return None if once is None or count is None or condition is not None else once * max(0, count)

    return total(plan.body)


def _kernel_effort(kernel: Kernel) -> int | None:
    for statement, _ in walk(kernel.body):
        if isinstance(statement, Call):
            return None
        if isinstance(statement, For):
            extent = trips(statement)
            if extent.opaques or not extent.symbols.isdisjoint(kernel.sizes):
                return None
    return body_effort(kernel.body)

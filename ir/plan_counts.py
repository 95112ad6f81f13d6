"""What a run of a plan does, counted without running it: the sum over its launches of kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from intarsia.ir.kernel_counts import count_operations
from intarsia.ir.plan import Invoke, Plan, PlanStatement, Repeat
from intarsia.ir.sizes import Size


def count_plan_operations(plan: Plan, sizes: Mapping[str, int]) -> int | None:
    """Scalar operations that its kernels do at least, without those of the preparation; None if data decides how often
    a loop of the plan repeats. `sizes` gives the plan's sizes."""
    kernels = {kernel.name: kernel for kernel in plan.kernels}

    @cache
    def launch(name: str, values: tuple[int, ...]) -> int:
        return count_operations(kernels[name], dict(zip(kernels[name].sizes, values, strict=True)))

    def count(body: tuple[PlanStatement, ...], names: Mapping[str, int]) -> int:
        total = 0
        for statement in body:
            if isinstance(statement, Invoke):
                total += launch(statement.kernel, tuple(size.evaluate(names) for size in statement.sizes))
            elif isinstance(statement, Repeat):
                steps = range(statement.lower.evaluate(names), statement.upper.evaluate(names))
                inside = (*statement.test, *statement.body)
                if all(statement.counter not in size.symbols for size in _sizes(inside)):
                    total += len(steps) * count(inside, names) if steps else 0
                else:
                    total += sum(count(inside, {**names, statement.counter: step}) for step in steps)
        return total

    return None if any(_is_open(s) for s in _statements(plan.body)) else count(plan.body, sizes)


def _statements(body: tuple[PlanStatement, ...]) -> Iterator[PlanStatement]:
    """All statements, those inside of others too."""
    for statement in body:
        yield statement
        if isinstance(statement, Repeat):
            yield from _statements((*statement.test, *statement.body))


def _sizes(body: tuple[PlanStatement, ...]) -> Iterator[Size]:
    """What decides how much the kernels of statements do."""
    for statement in _statements(body):
        if isinstance(statement, Invoke):
            yield from statement.sizes
        elif isinstance(statement, Repeat):
            yield from (statement.lower, statement.upper)


def _is_open(statement: PlanStatement) -> bool:
    return isinstance(statement, Repeat) and (
        statement.condition is not None or bool(statement.lower.opaques or statement.upper.opaques)
    )

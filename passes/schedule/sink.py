"""Making values where they are first used: a loop moves into a later one, under the condition that those around that
one are in their first iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Call, Check, For, If, Kernel, Put, Statement, walk
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.scalar import Mask, loads
from intarsia.ir.schedule import Sink
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.dependence import crossing_dependence, describe
from intarsia.passes.schedule.masks import join
from intarsia.passes.schedule.tree import (
    blocks,
    find_loop,
    replace_block,
    replace_loop,
    rewrite,
    substitute,
)


def sink(kernel: Kernel, step: Sink) -> Kernel:
    """See `Sink`."""
    loop, around = find_loop(kernel, step.axis)
    target, outside = find_loop(kernel, step.target)
    block = next(body for body, _ in blocks(kernel) if any(s is loop for s in body))
    through = outside[len(around) :]
    top = (*through, target)[0]
    here = next(n for n, s in enumerate(block) if s is loop)
    there = next((n for n, s in enumerate(block) if s is top), -1)
    if outside[: len(around)] != around or there < 0 or not _leads(top, target, through):
        raise ScheduleError(f"{step.target} is not inside a loop of the same block, with nothing but loops between")
    if here > there:
        raise ScheduleError(f"{step.target} comes first")
    if (loop.lower, loop.upper, loop.step, loop.kind) != (target.lower, target.upper, target.step, target.kind):
        raise ScheduleError(f"{step.axis} and {step.target} differ in bounds or kind")
    _check_order(through)
    _check_uses(kernel, loop, target, block[here + 1 : there + 1])
    moved = substitute(loop.body, {step.axis: Size.of(step.target)})
    if pair := crossing_dependence(kernel, loop.body, _renamed(target, step.axis), {step.axis: ">"}, (*around, loop)):
        raise ScheduleError(f"{describe(pair)} cross iterations of {step.target}")
    first = tuple(other.lower + 1 - other.axis for other in through)
    body = (*_where(moved, first), *target.body)
    kernel = replace_block(kernel, block, (*block[:here], *block[here + 1 :]))
    return replace_loop(kernel, step.target, lambda found: replace(found, body=body))


def _leads(top: For, target: For, through: Sequence[For]) -> bool:
    """Does every iteration of the loops between run the target: is there no `if` on the way?"""
    return all(any(s is inner for s in outer.body) for outer, inner in zip(through, (*through[1:], target)))


def _check_order(through: Sequence[For]) -> None:
    """The first iterations have to come first, and there have to be some wherever there are later ones."""
    axes = {loop.axis for loop in through}
    for loop in through:
        if loop.kind not in ("seq", "unroll"):
            raise ScheduleError(f"{loop.axis} has no first iteration: it is {loop.kind}")
        bounds = (loop.lower, loop.upper)
        if any(b.symbols & axes or b.opaques for b in bounds):
            raise ScheduleError(f"the bounds of {loop.axis} change")


def _check_uses(kernel: Kernel, loop: For, target: For, passed: Sequence[Statement]) -> None:
    """Only the target may use what the loop writes; nothing that the loop would come after may change what it reads."""
    made, read = written_in((loop,)), {a.buffer for a in accesses((loop,)) if a.reads}
    inside = {id(s) for s, _ in walk((loop, target))}
    for statement, _ in walk(kernel.body):
        if isinstance(statement, (For, If, Alloc)):
            used = {load.buffer for b in _bounds(statement) for value in b.opaques for load in loads(value)}
        else:
            used = {a.buffer for a in accesses((statement,))}
        if id(statement) not in inside and (found := used & made):
            raise ScheduleError(f"{min(found)} is used elsewhere")
    if any(kernel.buffers()[name].role != "temp" for name in made):
        raise ScheduleError("it writes a result")
    if changed := (written_in(passed) - made) & read:
        raise ScheduleError(f"{min(changed)} changes before {target.axis}")


def _bounds(statement: Statement) -> tuple[Size, ...]:
    match statement:
        case For(_, lower, upper):
            return (lower, upper)
        case If(condition):
            return condition
    return ()


def _renamed(target: For, axis: str) -> tuple[Statement, ...]:
    return substitute(target.body, {target.axis: Size.of(axis)})


def _where(body: tuple[Statement, ...], condition: Mask) -> tuple[Statement, ...]:
    """Statements whose writes happen only where a condition holds."""

    def change(statement: Statement) -> Statement | None:
        match statement:
            case Put():
                return replace(statement, mask=join(statement.mask, condition))
            case Call() | Check():
                raise ScheduleError("a routine or a check has no mask")
        return None

    return rewrite(body, change) if condition else body

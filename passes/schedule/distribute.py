"""The step that makes two loops of one, the opposite of merging."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Prefetch, Put, Statement
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.schedule import Distribute
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.dependence import carried_dependence, describe
from intarsia.passes.schedule.loops import place_of
from intarsia.passes.schedule.storage import most_trips
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    allocated_in,
    change_loads,
    find_loop,
    rename_axes,
    replace_loop,
    rewrite,
)


def distribute(kernel: Kernel, step: Distribute) -> Kernel:
    """See `Distribute`."""
    loop, around = find_loop(kernel, step.axis)
    here = place_of(loop.body, step.statement)
    if here is None:
        raise ScheduleError(f"{step.statement} does not stand in {step.axis}")
    first, second = loop.body[:here], loop.body[here:]
    if pair := carried_dependence(kernel, loop, around, reductions=False, parts=here):
        raise ScheduleError(f"{describe(pair)} cross iterations of {step.axis}")
    used, made = ({a.buffer for a in accesses(body)} for body in (second, first))
    late = tuple(s for s in first if isinstance(s, Alloc) and s.buffer.name not in made)
    first, second = tuple(s for s in first if s not in late), (*late, *second)
    if not any(not isinstance(s, Alloc) for s in first):
        raise ScheduleError(f"{step.statement} does not stand after anything in {step.axis}")
    both = {s.buffer.name: s.buffer for s in first if isinstance(s, Alloc) and s.buffer.name in used}
    inner = allocated_in(first).keys() & used - both.keys()
    assert not inner, f"{inner} is used outside of where it lives"
    extent = most_trips(loop)
    if any(x in extent.symbols for x in (s.axis for s in around)) or extent.opaques:
        raise ScheduleError(f"{step.axis} runs a different number of times in every iteration around it")
    if uneven := [b.name for b in both.values() if any(loop.axis in s.symbols for s in b.shape)]:
        raise ScheduleError(f"{uneven[0]} is of another size in every iteration of {step.axis}")
    place = (Size.of(loop.axis) - loop.lower) // loop.step
    one = replace(loop, body=_with_element(tuple(s for s in first if not _is_alloc(s, both)), both, place))
    two = replace(loop, body=_with_element(second, both, place))
    name = NameSource(kernel).derived(loop.axis)
    (two_renamed,) = rename_axes((two,), {loop.axis: name})
    allocs = tuple(Alloc(_for_each(b, extent, around)) for b in both.values())
    return replace_loop(kernel, step.axis, lambda _: (*allocs, one, two_renamed))


def _is_alloc(statement: Statement, buffers: dict[str, Buffer]) -> bool:
    return isinstance(statement, Alloc) and statement.buffer.name in buffers


def _for_each(buffer: Buffer, extent: Size, around: tuple[For, ...]) -> Buffer:
    """A temporary with an element for each iteration: no longer in registers."""
    memory = buffer.memory if around and buffer.memory != "register" else "cache" if around else "global"
    return replace(buffer, shape=(extent, *buffer.shape), memory=memory)


def _with_element(body: Body, buffers: dict[str, Buffer], place: Size) -> Body:
    """Statements with one more subscript of some buffers."""

    def load(e: Expr) -> Expr | None:
        return replace(e, indices=(place, *e.indices)) if isinstance(e, Load) and e.buffer in buffers else None

    def change(statement: Statement) -> Statement | None:
        if isinstance(statement, (Put, Prefetch)) and statement.buffer in buffers:
            return replace(statement, indices=(place, *statement.indices))
        return None

    return rewrite(change_loads(body, load), change)

"""The step `reuse`: a temporary lies in the memory of another one that is not needed any more."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Call, For, Kernel, Prefetch, Put, Statement
from intarsia.ir.kernel_access import Access, accesses, written_in
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.schedule import Reuse
from intarsia.passes.schedule.dependence import Order, describe, may_meet
from intarsia.passes.schedule.tree import Body, blocks, change_loads, find_buffer, replace_block, rewrite


def reuse(kernel: Kernel, step: Reuse) -> Kernel:
    """See `Reuse`."""
    old, new = find_buffer(kernel, step.buffer), find_buffer(kernel, step.user)
    if old == new:
        raise ScheduleError("it is one buffer")
    if replace(old, name=new.name) != new:
        raise ScheduleError(f"{old.name}: {old} in {old.memory} and {new.name}: {new} in {new.memory} are not alike")
    both = (Alloc(old), Alloc(new))
    block, around = next(((body, loops) for body, loops in blocks(kernel) if set(both) <= {*body}), ((), ()))
    if not block:
        raise ScheduleError("no block makes both")
    found = [a for a in accesses(block, around) if a.buffer in (old.name, new.name)]
    if any(isinstance(a.statement, Call) for a in found):
        raise ScheduleError("a call uses it")
    volatile = written_in(block)
    for number, write in enumerate(found):
        if not write.writes or write.buffer != new.name:
            continue
        for place, other in enumerate(found):
            if other.buffer == old.name and _comes_first(kernel, write, other, number < place, len(around), volatile):
                raise ScheduleError(f"{describe((write, other))}: the first may be written while the other is in use")
    first, second = sorted(both, key=block.index)
    kept = tuple(Alloc(old) if s == first else s for s in block if s != second)
    return replace_block(kernel, block, _renamed(kept, old.name, new.name))


def _comes_first(
    kernel: Kernel, write: Access, other: Access, is_above: bool, depth: int, volatile: frozenset[str]
) -> bool:
    """May `write` touch an element before `other` does? Both are below a block inside `depth` loops; `is_above` says
    that the write stands first in the text, in another statement or after what its own statement reads."""
    other = replace(other, buffer=write.buffer)
    common = tuple(a for a, b in zip(write.loops, other.loops) if a is b)
    if is_above and may_meet(kernel, write, other, {}, common, volatile):
        return True
    for place in range(depth, len(common)):
        # Only loops that run in order say which of two iterations comes first.
        orders: tuple[Order, ...] = ("<",) if common[place].kind in ("seq", "unroll") else ("<", ">")
        axis = common[place].axis
        if any(may_meet(kernel, write, other, {axis: order}, common[:place], volatile) for order in orders):
            return True
    return False


def _renamed(body: Body, old: str, new: str) -> Body:
    """The statements with `old` in place of `new`."""

    def load(e: Expr) -> Expr | None:
        return replace(e, buffer=old) if isinstance(e, Load) and e.buffer == new else None

    def change(statement: Statement) -> Statement | Body | None:
        match statement:
            case Put() | Prefetch() if statement.buffer == new:
                statement = replace(statement, buffer=old)
        match statement:
            case Put(buffer, indices, "=", Load() as value) if buffer == old and (old, indices) == (
                value.buffer,
                value.indices,
            ):
                return ()  # a copy of one to the other
            case For(body=()):
                return ()
        return statement

    return rewrite(change_loads(body, load), change)

"""Steps about running values: iterations that run at once, and loops that begin with what came before them."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, Call, For, If, Kernel, Put, Statement
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.kernel_scan import running_values, scan_problem
from intarsia.ir.scalar import Const, Expr, Load
from intarsia.ir.schedule import Restart, Scan
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.dependence import carried_dependence, describe
from intarsia.passes.schedule.masks import neutral
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    allocated_in,
    blocks,
    change_loads,
    copy_body,
    find_buffer,
    find_loop,
    rename_axes,
    replace_block,
    replace_loop,
    rewrite,
)


def scan(kernel: Kernel, step: Scan) -> Kernel:
    """See `Scan`."""
    for axis in step.axes:
        loop, around = find_loop(kernel, axis)
        if loop.lower.constant is None or loop.upper.constant is None:
            raise ScheduleError(f"the bounds {loop.lower}..{loop.upper} are not numbers")
        if (problem := scan_refusal(kernel, loop, around)) is not None:
            raise ScheduleError(problem)
        kernel = replace_loop(kernel, axis, lambda found: replace(found, kind="scan"))
    return kernel


def scan_refusal(kernel: Kernel, loop: For, around: tuple[For, ...]) -> str | None:
    """Why the iterations of a loop cannot run at once but for its running values; None if they can."""
    running = {put.buffer for put in running_values(loop)}
    if not running:
        return f"{loop.axis} has no running value"
    if (problem := scan_problem(loop)) is not None:
        return problem

    def unread(e: Expr) -> Expr | None:
        return Const(0, e.dtype) if isinstance(e, Load) and e.buffer in running else None

    # But for what they read of running values, which comes from a scan, the iterations reduce.
    others = replace(loop, body=change_loads(loop.body, unread))
    if (pair := carried_dependence(kernel, others, around, reductions=True)) is not None:
        return f"iterations of {loop.axis} meet at {describe(pair)}"
    return None


# ---------------------------------------------------------------------- restart


def restart(kernel: Kernel, step: Restart) -> Kernel:
    """See `Restart`."""
    loop, _ = find_loop(kernel, step.axis)
    buffer = find_buffer(kernel, step.buffer)
    block = next(body for body, _ in blocks(kernel) if loop in body)
    if buffer.shape or not any(isinstance(s, Alloc) and s.buffer == buffer for s in block):
        raise ScheduleError(f"{step.buffer} is no scalar that lives where {step.axis} stands")
    if loop.step != 1 or loop.kind != "seq":
        raise ScheduleError(f"{step.axis} does not run in single steps, one after the other")
    put = _running(step, loop)
    setter = _setter(step, block, loop, put)
    if loop.upper.opaques or loop.lower.opaques:
        raise ScheduleError(f"how often {step.axis} runs depends on data")
    names = NameSource(kernel)
    names.claim(step.new)
    one, two, three = (names.derived(step.axis) for _ in range(3))
    extent = loop.upper - loop.lower
    sums = Buffer(step.new, buffer.dtype, (extent,), "global")
    start = Put(step.new, (Size.of(one),), "=", setter.value, span=put.span)
    made = (
        Alloc(sums),
        For(one, Size.of(0), extent, (start,)),
        _sums(kernel, loop, put, step.new, two, names),
    )
    assert isinstance(setter.value, Const)
    earlier = (Size.of(loop.axis) - loop.lower - three,)
    before = replace(put, value=Load(step.new, (Size.of(three),), buffer.dtype, earlier, setter.value), mask=())
    inside = (Alloc(buffer), setter, For(three, Size.of(0), extent, (before,)), *loop.body)
    gone = (setter, next(s for s in block if isinstance(s, Alloc) and s.buffer == buffer))
    new = tuple(s for s in block if not any(s is x for x in gone))
    here = new.index(loop)
    return replace_block(kernel, block, (*new[:here], *made, replace(loop, body=inside), *new[here + 1 :]))


def _running(step: Restart, loop: For) -> Put:
    """The only write of the running value in the loop."""
    writes = [a for a in accesses(loop.body) if a.buffer == step.buffer and a.writes]
    if len(writes) != 1 or not isinstance(put := writes[0].statement, Put) or put.operator == "=" or put.atomic:
        raise ScheduleError(f"{step.axis} does not accumulate {step.buffer} in one statement")
    return put


def _setter(step: Restart, block: Body, loop: For, put: Put) -> Put:
    """What sets the running value to the neutral element before the loop, where nothing else uses it."""
    users = [s for s in block if s is not loop and any(a.buffer == step.buffer for a in accesses((s,)))]
    if len(users) != 1 or not isinstance(setter := users[0], Put) or block.index(setter) > block.index(loop):
        raise ScheduleError(f"{step.buffer} is not set right before {step.axis}, or used elsewhere")
    if setter.operator != "=" or setter.mask or not _is_neutral(put, setter.value):
        raise ScheduleError(f"{step.buffer} does not begin with the neutral element")
    return setter


def _is_neutral(put: Put, value: Expr) -> bool:
    """Is it the neutral element of a write, whichever zero that is?"""
    return isinstance(value, Const) and value.value == neutral(put.operator, put.value).value


def _sums(kernel: Kernel, loop: For, put: Put, new: str, axis: str, names: NameSource) -> For:
    """A loop that adds up what every iteration adds to the running value."""
    place = Size.of(loop.axis) - loop.lower

    def change(statement: Statement) -> Statement | None:
        return replace(statement, buffer=new, indices=(place,)) if statement is put else None

    body = copy_body(kernel, rewrite(_Slice(loop, put).body(), change), names)
    (made,) = rename_axes((replace(loop, body=body),), {loop.axis: axis})
    assert isinstance(made, For)
    return made


class _Slice:
    """What a loop does for one accumulating write. needed: the buffers that it reads and that live in the loop; shared:
    those that the loop writes for others, which it must not read."""

    def __init__(self, loop: For, put: Put) -> None:
        self.loop = loop
        self.put = put
        self.local = allocated_in(loop.body).keys()
        self.shared = written_in(loop.body) - self.local
        self.needed: set[str] = set()

    def body(self) -> Body:
        """The statements of the loop that matter. A temporary may be read before the place where it is written."""
        while True:
            before = len(self.needed)
            kept = self._of(self.loop.body)
            if before == len(self.needed):
                return kept

    def _of(self, body: Body) -> Body:
        kept = [k for statement in reversed(body) if (k := self._kept(statement)) is not None]
        return tuple(reversed(kept))

    def _kept(self, statement: Statement) -> Statement | None:
        """What matters of a statement, if anything does."""
        match statement:
            case For() if inner := self._of(statement.body):
                self._need(replace(statement, body=()))
                return replace(statement, body=inner)
            case If(condition, then, otherwise) if any(arms := (self._of(then), self._of(otherwise))):
                self._need(If(condition, ()))
                return If(condition, *arms)
            case Alloc(buffer) if buffer.name in self.needed:
                return statement
            case Put() | Call() if statement is self.put or written_in((statement,)) & self.needed:
                self._need(statement)
                return statement
        return None

    def _need(self, statement: Statement) -> None:
        read = {a.buffer for a in accesses((statement,)) if not a.writes}
        if meets := sorted(read & self.shared):
            what = f"what {self.put.buffer} gets depends on {meets[0]}"
            raise ScheduleError(f"{what}, which the loop over {self.loop.axis} makes")
        self.needed |= read & self.local

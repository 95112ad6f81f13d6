"""The first part of a default schedule: stages that share rows become one loop, temporaries shrink to one row; or to a
block of them."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from intarsia.ir.kernel import For, Kernel, Put
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.scalar import Apply, Const, walk
from intarsia.ir.schedule import Accumulate, Localize, Merge, Move, Partition
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.shape import count, is_contiguous, lanes_for, operations, points
from intarsia.passes.schedule.stages import Stage
from intarsia.passes.schedule.streams import bypassing
from intarsia.passes.schedule.tree import Body, allocated_in, blocks, find_loop, loops_in, perfect_nest, puts_in
from intarsia.passes.schedule.vectors import SHORT

MOST = 4
"""Copies of a statement up to which parts of loops are made."""

MOST_CHOSEN = 36
"""The same where each part reads another operand: the choice would else be made for each element."""

READ = 4
"""Bytes that are read for each element of a row, up to which ends of reductions take longer than reading does."""

LONG = 16
"""Iterations from which on a loop is worth parts."""


def make_parts(b: Builder) -> None:
    """Make parts of the loops of a kernel that is one pointwise stage: a concatenation becomes copies, and the edges of
    a stencil stand apart from its middle."""
    if len(b.outermost()) != 1 or any(put.operator != "=" for put in puts_in(b.kernel.body)):
        return
    for loop in reversed(loops_in(b.kernel.body)):
        if count(trips(loop)) >= LONG:
            before = len(puts_in(b.kernel.body))
            most = MOST_CHOSEN if chooses(loop) else MOST
            if b.attempt(Partition(loop.axis)) and len(puts_in(b.kernel.body)) > max(most, before):
                b.undo()


def chooses(loop: For) -> bool:
    """Does all that stands below one iteration read one of several operands, as rows of a concatenation do?"""
    inner = {own.axis for own in loops_in(loop.body)}
    conditions = (
        e.arguments[0].symbols
        for put in puts_in(loop.body)
        for e in walk(put.value)
        if isinstance(e, Apply) and e.function == "where"
    )
    return any(loop.axis in names and inner.isdisjoint(names) for names in conditions)


def merge_rows(b: Builder, outermost: bool = True, apart: Collection[str] = ()) -> None:
    """Merge loops that follow each other, from the outside inwards, as far as that is legal; what is vectorized stays
    as it is, and so do loops that are to stand `apart`. Without `outermost` only those that stand in others."""
    done: set[str] = set() if outermost else {""}
    while (name := _next_block(b, done)) is not None:
        done.add(name)
        _hoist_initial(b, name)
        axes = [axis for axis in _axes(b, name) if axis not in apart]
        while axes:
            first, *rest = axes
            is_parallel = not name and _is_parallel(b.kernel, first)
            axes = [axis for axis in rest if not _merge(b, first, axis, is_parallel)]


def cut_rows(b: Builder) -> tuple[str, tuple[str, ...]]:
    """Cut the rows of all stages into blocks of one or two vectors: of what there is one of for each row, the logarithm
    of a sum say, which would be a scalar if stages shared single rows. Returns the axis of the blocks, and those of the
    rows in them, which are to stand apart.

    Nothing is done if that is little beside the rest of a row, unless one reduction waits for another, or if a block
    would not stay in half of the first cache, where each stage finds it again. Of very short rows, and of columns,
    lanes run across all stages anyway.
    """
    stages = [stage for loop in b.waiting() if (stage := Stage.of(loop))]
    depth = min((len(stage.loops) for stage in stages), default=0)
    along = [stage for stage in stages if len(stage.loops) > depth]
    single = [stage.put for stage in stages if len(stage.loops) == depth]
    shared = {tuple(trips(loop) for loop in stage.loops[:depth]) for stage in stages}
    if not along or depth == 0 or len(stages) < len(b.waiting()) or len(shared) > 1:
        return "", ()
    row, length = max(points(stage.loops[depth:]) for stage in along), trips(stages[0].loops[depth - 1]).constant or 0
    lanes, size = lanes_for(single, b.target), max(stage.put.value.dtype.bytes for stage in along)
    small = b.target.caches[0] // 4 // max(1, row * size)  # a row may have no elements
    fits = ((2 * lanes, small), (lanes, 2 * small))
    rows = next((n for n, most in fits if n <= most and (length >= 2 * n or length == n)), 0)
    saved = lanes * sum(operations(put.value) for put in single)
    is_little = saved < row * 2 if bypassing(b) else saved < row and not _waits(stages, depth)
    if not rows or is_little or row <= SHORT or not all(_lies_along_rows(b, stage) for stage in along):
        return "", ()
    pairs = [b.split(stage.loops[depth - 1].axis, rows) for stage in stages]
    return pairs[0][0], tuple(inner for _, inner in pairs)


def share_passes(b: Builder, rows: tuple[str, ...]) -> None:
    """Let stages that go through the rows of one block share a pass, where each needs only what the other makes of the
    same element."""
    for axis in rows[1:]:
        if isinstance(put := b.loop(axis).body[0], Put) and isinstance(put.value, Const):
            b.attempt(Move(axis, rows[0]))
    waiting = [axis for axis in rows if isinstance(b.loop(axis).body[0], For)]
    while waiting:
        first, *rest = waiting
        waiting = [axis for axis in rest if not _share_pass(b, first, axis)]


def _share_pass(b: Builder, first: str, second: str) -> bool:
    """Merge two nests down to their innermost loops, or not at all."""
    one, two = ([loop.axis for loop in perfect_nest(b.loop(axis))[0]] for axis in (first, second))
    for done, pair in enumerate(zip(one, two)):
        if len(one) != len(two) or not b.attempt(Merge(pair)):
            for _ in range(done):
                b.undo()
            return False
    return True


def _waits(stages: list[Stage], depth: int) -> bool:
    """Does a reduction need what another one gives? The end of each, one addition after the other, is then a delay that
    the processor does not fill with other rows, if it takes these one at a time. But it reads the next ones meanwhile,
    and more than READ bytes for each element take longer than the delays."""
    needed: set[str] = set()  # what depends on a reduction
    made = {stage.put.buffer for stage in stages}
    read: dict[str, int] = {}  # of every row others
    found = False
    for stage in stages:
        row, *inside = (loop.axis for loop in stage.loops[depth - 1 :])
        along = (x for x in stage.reads if row in x.symbols and x.symbols & {*inside})
        read |= {x.buffer: x.dtype.bytes for x in along if x.buffer not in made}
        waits = any(x.buffer in needed for x in stage.reads)
        found = found or (stage.put.operator != "=" and waits)
        if stage.put.operator != "=" or waits:
            needed.add(stage.put.buffer)
    return found and sum(read.values()) <= READ


def _lies_along_rows(b: Builder, stage: Stage) -> bool:
    return is_contiguous(b.kernel, stage.put, stage.loops[-1].axis)


def _axes(b: Builder, name: str) -> list[str]:
    """The loops of a block that may be merged."""
    waiting = b.waiting()
    return [s.axis for s in _block(b.kernel, name) if isinstance(s, For) and (name or s in waiting)]


def _next_block(b: Builder, done: set[str]) -> str | None:
    """A block with several loops that was not looked at yet, by the axis of its own loop, "" for the kernel."""
    names = ("", *(loop.axis for loop in loops_in(b.waiting())))
    return next((name for name in names if name not in done and len(_axes(b, name)) > 1), None)


def _merge(b: Builder, first: str, second: str, is_parallel: bool) -> bool:
    """Merge two loops if that is legal and leaves a first one parallel that is."""
    parallel = not is_parallel or _is_parallel(b.kernel, second)
    parts = len(find_loop(b.kernel, first)[0].body)
    if not parallel or not b.attempt(Merge((first, second))):
        return False
    if is_parallel and not _is_parallel(b.kernel, first, parts):
        b.undo()
        return False
    return True


def _is_parallel(kernel: Kernel, axis: str, parts: int | None = None) -> bool:
    """Are the iterations of a loop independent; with `parts`, as far as its first statements and the others go?"""
    return carried_dependence(kernel, *find_loop(kernel, axis), reductions=False, parts=parts) is None


def _block(kernel: Kernel, name: str) -> Body:
    return find_loop(kernel, name)[0].body if name else kernel.body


def _hoist_initial(b: Builder, name: str) -> None:
    """Move writes of constants before the first loop of their block, so that they do not keep loops apart."""
    body = _block(b.kernel, name)
    first = next(s for s in body if isinstance(s, For) and s.axis in _axes(b, name))
    for statement in body[body.index(first) + 1 :]:
        if isinstance(statement, Put) and isinstance(statement.value, Const):
            b.attempt(Move(statement.buffer, first.axis))


def localize_all(b: Builder, scalars_only: bool = False) -> None:
    """Shrink each temporary to what one iteration of the innermost loop around its uses touches: a scalar goes into a
    register, more into the cache, or stays where it is with `scalars_only`."""
    for name, buffer in allocated_in(b.kernel.body).items():
        if buffer.memory != "global":
            continue
        around = [[loop.axis for loop in a.loops] for a in accesses(b.kernel.body) if a.buffer == name]
        common = [axes[0] for axes in zip(*around) if len(set(axes)) == 1]
        for axis in reversed(common):
            if b.attempt(Localize(name, axis, "register")):
                if b.kernel.buffers()[name].shape:
                    b.undo()
                    if not scalars_only:
                        b.take(Localize(name, axis, "cache"))
                break


def accumulate_rows(b: Builder) -> None:
    """Let every reduction that starts right after its initial value run in a register, if its target is in memory."""
    for block, _ in tuple(blocks(b.kernel)):
        for setter, loop in pairwise(block):
            if not isinstance(setter, Put) or not isinstance(loop, For) or setter.operator != "=":
                continue
            if b.kernel.buffers()[setter.buffer].memory != "register":
                b.attempt(Accumulate(setter.buffer, loop.axis, b.fresh(setter.buffer), "register", "set"))

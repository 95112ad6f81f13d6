"""Loops whose steps need the whole of a state on a GPU: one program walks all steps of a block of rows.

    for t { for i { for j { … h[i, k] * u[k, j] … } } } ->
    grid i.0 { lane i.1 { for t { for j.0 { lane j.1 { … for k.0 { lane k.1 { … } } } } } } }

Rows are axes along which every stage of a step goes through the states as they lie, such as those of a batch: they do
not need each other. A program owns a block of them, or everything if there are none. What a step leaves for the next
one lies in memory that no other program touches, and is read again after a barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import LANES, For, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Grid, Localize, Merge, Reorder, Stages, Warps
from intarsia.ir.target import Target
from intarsia.passes.schedule.arrange import accumulate_rows, localize_all
from intarsia.passes.schedule.block_lanes import lanes, set_lanes
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.matrix_blocks import sides_of
from intarsia.passes.schedule.shape import count, power_of_two
from intarsia.passes.schedule.tree import allocated_in, find_loop, loops_in, perfect_nest, puts_in

ROWS = (16, 32, 64)
"""Rows of a block: as few as a matrix unit takes, more where there are more blocks than cores."""

COLUMNS = (256, 128, 64)
"""Columns of a product that are computed at once: few blocks, of which the last one is nearly full."""

BARRIER = 32
"""Columns of a product that take as long to compute as threads wait for each other after a block."""

DEPTH = {8: 128, 16: 64, 32: 32, 64: 16}
"""Elements of a sum of products that are multiplied at once, by their bits in memory."""

ELEMENTS = 4096
"""Elements of a block that is computed point by point, or reduced."""


def loop_of_programs(
    kernel: Kernel, target: Target, writable: Callable[[Kernel], str | None]
) -> tuple[Builder, str] | None:
    """The schedule of a kernel that is a loop of steps, and the axis of these; None if it is none, or cannot be
    written."""
    for in_registers in (True, False):
        b = Builder(kernel, target)
        try:
            steps = schedule_steps(b, in_registers)
        except ScheduleError:
            continue
        if writable(b.kernel) is None:
            return b, steps
    return None


def steps_of(b: Builder) -> For | None:
    """The loop over steps that need each other, if the kernel is one, with what comes before and after it."""
    found = [loop for loop in b.outermost() if any(isinstance(s, For) for s in loop.body) and _is_ordered(b, loop)]
    return found[0] if len(found) == 1 and len(found[0].body) > 1 else None


def _is_ordered(b: Builder, loop: For) -> bool:
    return carried_dependence(b.kernel, loop, (), reductions=True) is not None


def schedule_steps(b: Builder, in_registers: bool) -> str:
    """Let each program walk all steps of a block of rows; the axis of the steps. With `in_registers`, what passes
    between the stages of a step stays there, where it is no wider than a block. Raises ScheduleError where that is not
    legal."""
    steps = steps_of(b)
    if steps is None:
        raise ScheduleError("it is no loop of steps that need each other")
    rows = _rows_outside(b, steps.axis)
    _merge_stages(b, steps.axis)
    localize_all(b, scalars_only=True)
    accumulate_rows(b)
    if in_registers and b.choose("states", ("in registers", "in memory")) == "in registers":
        _keep_in_registers(b, steps.axis, ROWS[0] if rows else 1)
    counters, row = _cut_rows(b, rows)
    for loop in _nests(b, steps.axis):
        _block(b, loop, row)
    if row:
        set_lanes(b, (row,))
    if counters:
        b.take(Grid(tuple(counters)))
    b.take(Warps(b.choose("warps", (8, 4, 16))))
    inner = loops_in(b.loop(steps.axis).body)
    if all(x.kind in LANES or trips(x).constant == 1 for x in inner):
        b.take(Stages(1))  # no step reads anything before the one before it is done
    return steps.axis


def _rows_outside(b: Builder, steps: str) -> list[str]:
    """Make loops that hold all of a step, and whose iterations do not need each other, the outer ones, with what comes
    before the steps; their axes."""
    rows: list[str] = []
    while True:
        loops = [s.axis for s in b.loop(steps).body if isinstance(s, For)]
        if len(loops) < len(b.loop(steps).body) or not _one_loop(b, loops, rows, steps):
            return rows
        block = b.loop(rows[-1]).body if rows else b.kernel.body
        nests = [s.axis for s in block if isinstance(s, For)]
        is_first = len(nests) > 1 and b.attempt(Merge(tuple(nests)))
        rows.append(nests[0] if is_first else loops[0])


def _one_loop(b: Builder, loops: Sequence[str], rows: Sequence[str], steps: str) -> bool:
    """Make one loop of all that a step is, if its iterations do not need each other, and bring the steps inside."""
    start = len(b.steps)
    first, *others = loops
    done = not others or b.attempt(Merge(tuple(loops)))
    done = done and carried_dependence(b.kernel, *find_loop(b.kernel, first), reductions=False) is None
    if done and b.attempt(Reorder((*rows, first, steps))):
        loop, around = find_loop(b.kernel, first)
        if carried_dependence(b.kernel, loop, around, reductions=False) is None:
            return True
    while len(b.steps) > start:
        b.undo()
    return False


def _merge_stages(b: Builder, steps: str) -> None:
    """Merge each reduction of a step with its initial value and with what is made of each of its results."""
    loops = [s.axis for s in b.loop(steps).body if isinstance(s, For)]
    first = loops[0] if loops else ""
    for axis in loops[1:]:
        written = {p.buffer for p in puts_in((b.loop(first),))}
        touched = {a.buffer for a in accesses((b.loop(axis),))}
        if not (written & touched and _merge_whole(b, first, axis)):
            first = axis


def _merge_whole(b: Builder, first: str, second: str) -> bool:
    """Merge two nests along all axes of what they make; not at all where that cannot be."""
    kept = [_kept(b.loop(axis)) for axis in (first, second)]
    start = len(b.steps)
    if kept[0] and len(kept[0]) == len(kept[1]) and all(b.attempt(Merge(axes)) for axes in zip(*kept)):
        return True
    while len(b.steps) > start:
        b.undo()
    return False


def _kept(loop: For) -> list[str]:
    """The axes of a nest along which lies what it writes."""
    nest, _ = perfect_nest(loop)
    used = frozenset().union(*(i.symbols for p in puts_in((loop,)) for i in p.indices))
    return [x.axis for x in nest if x.axis in used]


def _keep_in_registers(b: Builder, steps: str, rows: int) -> None:
    """Make tiles of what one stage of a step sets as a whole, and others read element by element."""
    for name in allocated_in(b.kernel.body):
        found = [a for a in accesses(b.kernel.body) if a.buffer == name]
        plain = all(isinstance(a.statement, Put) and a.statement.operator == "=" for a in found)
        whole = all(i.as_name is not None for a in found for i in a.indices)
        if plain and whole and b.attempt(Localize(name, steps, "register")):
            elements = math.prod(power_of_two(count(n)) for n in b.kernel.buffers()[name].shape)
            if rows * elements > ELEMENTS:
                b.undo()


def _cut_rows(b: Builder, rows: Sequence[str]) -> tuple[list[str], str]:
    """Blocks of the last of some independent loops: the axes that count programs, and the lanes."""
    if not rows:
        return [], ""
    *outer, last = rows
    others = math.prod(count(trips(b.loop(a))) for a in outer)
    length = count(trips(b.loop(last)))
    if length == 1:
        return list(rows), ""
    size = next((n for n in ROWS if others * -(-length // n) <= b.target.cores), ROWS[-1])
    size = b.choose("rows of a block", (size, *(n for n in ROWS if n < 2 * length)))
    blocks, lane = lanes(b, last, size)
    return [*outer, *([blocks] if blocks else [])], lane


def _nests(b: Builder, steps: str) -> list[str]:
    """The nests of which a program consists: those of a step, and those before and after the loop of steps."""
    loop, around = find_loop(b.kernel, steps)
    body = around[-1].body if around else b.kernel.body
    return [s.axis for block in (body, loop.body) for s in block if isinstance(s, For) and s.axis != steps]


# ---------------------------------------------------------------------- what a program does


def _block(b: Builder, top: str, row: str) -> None:
    """Make the loops of a nest dimensions of blocks, as far as these stay small."""
    puts = [(s, around) for s, around in walk((b.loop(top),)) if isinstance(s, Put)]
    sums = [(p, around) for p, around in puts if p.operator == "+=" and _shared(p, around)]
    if len(sums) == 1:
        _block_product(b, top, row, *sums[0])
        return
    done: list[str] = []
    for _, around in puts:
        room = ELEMENTS // (count(trips(b.loop(row))) if row else 1)
        for loop in reversed(around):
            if loop.axis in done or loop.axis not in b.axes():
                continue
            extent = min(power_of_two(count(trips(loop))), room)
            if extent < 2 or carried_dependence(b.kernel, *find_loop(b.kernel, loop.axis), reductions=True):
                break
            done += [loop.axis, lanes(b, loop.axis, extent)[1]]
            set_lanes(b, done[-1:])
            room //= extent


def _shared(put: Put, around: Sequence[For]) -> list[For]:
    """The axes of a sum that several of its factors have."""
    kept = frozenset().union(*(i.symbols for i in put.indices))
    inner = [x for x in around if x.axis not in kept and not _sets(x, put.buffer)]
    return [x for x in inner if sum(x.axis in load.symbols for load in loads(put.value)) > 1]


def _sets(loop: For, buffer: str) -> bool:
    """Does a sum begin anew in each iteration of a loop?"""
    return any(p.buffer == buffer and p.operator == "=" for p in puts_in(loop.body))


def _block_product(b: Builder, top: str, row: str, put: Put, around: Sequence[For]) -> None:
    """Blocks of a sum of products: columns and what is summed, and rows if no loop around has them."""
    along = max(_shared(put, around), key=lambda x: count(trips(x))).axis
    nest = [loop.axis for loop in perfect_nest(b.loop(top))[0] if loop.axis != along]
    kept = [a for a in nest if any(a in load.symbols for load in loads(put.value))]
    sides = sides_of(put.value, [*kept, *([row] if row else [])])
    if not kept:
        raise ScheduleError(f"nothing is summed for several elements in {top}")
    if row or sides is None or len(kept) < 2:
        columns, rows = kept[-1:], []
    else:
        columns, rows = kept[-1:], kept[-2:-1]
    bits = max(8, min(load.dtype.bits for load in loads(put.value)))  # codes of fewer bits have a byte each
    most = max(16, power_of_two(count(trips(b.loop(along)))))
    _, deep = lanes(b, along, choose_size(b, f"block along {along}", min(DEPTH[bits], most), 16, min(most, 128)))
    counters: list[str] = []
    inner: list[str] = []
    for axis, widths in (*((a, (64,)) for a in rows), *((a, COLUMNS) for a in columns)):
        length = count(trips(b.loop(axis)))
        most = max(16, power_of_two(length))
        size = min(most, min(widths, key=lambda n: -(-length // n) * (n + BARRIER)))
        blocks, lane = lanes(b, axis, choose_size(b, f"block along {axis}", size, 16, min(most, COLUMNS[0])))
        counters += [blocks] if blocks else []
        inner.append(lane)
    rest = [a for a in nest if a not in (*rows, *columns)]
    if len(inner) + len(counters) + len(rest) > 1:
        b.take(Reorder((*rest, *counters, *inner)))
    set_lanes(b, (deep, *reversed(inner)))

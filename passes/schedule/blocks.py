"""Blocks of a loop nest on a GPU: which loops count programs, and which are dimensions of what a program works on.

The independent outer loops of a nest count programs; their last axes are cut, so that a program works on a block of
them. Loops inside are dimensions of blocks as far as these stay small, and run in steps of a block where they are
longer. A sum of products over one axis gets blocks for matrix units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import LANES, For, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.kernel_scan import running_values
from intarsia.ir.schedule import Accumulate, Collapse, Merge, Move, Reorder
from intarsia.passes.schedule.block_lanes import ROW, independent, lanes, outermost, set_lanes, share
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.matrix_blocks import block_matrix, sides_of
from intarsia.passes.schedule.pieces import keep_pieces
from intarsia.passes.schedule.scans import scan_refusal
from intarsia.passes.schedule.shape import count, points, power_of_two, stride
from intarsia.passes.schedule.tree import find_loop, loops_in, perfect_nest, puts_in

ELEMENTS = 1024
"""Elements of a block that is computed point by point."""

PART = 256
"""Steps of a product at least, where its reduction is cut into parts."""

PARTS = (16, 8, 4, 2)
"""Parts that the reduction of a sum may be cut into, the most first."""

MANY = 4
"""Programs for each core that leave nothing to gain from parts."""

SQUARE = 64
"""Rows and columns of a block that is read along one axis and written along another."""

WIDTH = 64
"""Elements side by side of a block that is reduced across them."""

STEEP = 32
"""Elements that such a block reduces."""

PIECE = 2048
"""Elements of a block of a longer row."""

SHORTEST = 16
"""Elements of a piece of a row at least."""


def block_region(b: Builder, top: str, writable: Callable[[Kernel], str | None]) -> None:
    """Give a loop nest programs and blocks: the first way that can be written. If none can, its loops stay as they are,
    inside one program."""
    mark = b.mark()
    problems = []
    for way in (block_matrix, _block_rows, _block_points, _program_for_each):
        try:
            problem = writable(b.kernel) if way(b, top) else ""
        except ScheduleError as error:
            problem = str(error)
        if problem is None:
            return
        b.withdraw(mark, problem)
        problems += [problem] if problem else []
    for problem in dict.fromkeys(problems):
        b.remark(f"{top} is not cut into blocks: {problem}", done=False)


def _inner(b: Builder, outer: Sequence[str]) -> list[tuple[For, ...]]:
    """For each write inside the outer loops, the loops around it that stand inside them."""
    (first, *_) = outer
    found = []
    for statement, around in walk((b.loop(first),)):
        if isinstance(statement, Put):
            inside = tuple(loop for loop in around if loop.axis not in outer)
            if inside and inside not in found:
                found.append(inside)
    return found


def split_sums(b: Builder, top: str) -> None:
    """Cut a sum, of a product too, with too few blocks for all cores into parts, which are added in order afterwards: a
    launch for the parts, and one for the rest."""
    nest, body = perfect_nest(b.loop(top))
    if len(body) != 1 or not isinstance(put := body[0], Put) or put.operator != "+=":
        return
    kept = [loop for loop in nest if any(loop.axis in i.symbols for i in put.indices)]
    depth = nest[-1]
    length = trips(depth).constant
    if not kept or len(kept) != len(nest) - 1 or depth in kept or length is None:
        return
    sizes = [points((loop, *loops_in(loop.body))) for loop in b.waiting()]
    if sum(2 * size >= points(nest) for size in sizes) > 1:
        return  # other stages go through as much, and had better share rows with this one
    is_product = sides_of(put.value, [loop.axis for loop in kept]) is not None
    across = contiguous_axis(b, top) != depth.axis
    results = math.prod(count(trips(loop)) for loop in kept)
    programs = max(1, results // (WIDTH * WIDTH if is_product else WIDTH if across else 1))
    possible = [p for p in PARTS if length % (p * PART) == 0]
    parts = next((p for p in possible if p * programs <= 2 * b.target.cores), 1) if programs < b.target.cores else 1
    if programs < MANY * b.target.cores:
        parts = b.choose(f"parts of {depth.axis}", (parts, 1, *possible))
    if parts == 1:
        return

    def cut() -> None:
        part, inner = b.split(depth.axis, length // parts)
        axes = (part, *(loop.axis for loop in kept))
        b.take(Reorder(axes))
        sums = b.fresh(put.buffer)
        b.take(Accumulate(put.buffer, part, sums, "global", "add", (part,)))
        setters = [loop.axis for loop in b.outermost() if any(p.buffer == put.buffer for p in puts_in(loop.body))]
        if len(setters) == 2:  # what is set to 0 before the parts are made, and what adds them
            added, *rest = (loop.axis for loop in perfect_nest(b.loop(setters[1]))[0])
            b.take(Reorder((*rest, added)))
            b.attempt(Move(setters[0], rest[0]))
        initial = next(loop for loop in b.outermost() if any(p.buffer == sums for p in puts_in(loop.body)))
        for first, second in zip(perfect_nest(initial)[0], axes):
            b.take(Merge((first.axis, second)))
        b.take(Accumulate(sums, inner, b.fresh(sums), "register", "set"))
        if not (is_product and block_matrix(b, initial.axis)) and not _block_rows(b, initial.axis):
            raise ScheduleError("it has no blocks")

    b.together(f"parts of {depth.axis}", cut)


# ---------------------------------------------------------------------- rows


def _block_rows(b: Builder, top: str) -> bool:
    """Rows that are blocks, several of short ones, pieces of long ones."""
    outer = independent(b, top)
    region = outer[0] if outer else top
    inner = (
        _inner(b, outer) if outer else [around for s, around in walk((b.loop(top),)) if isinstance(s, Put) and around]
    )
    if not inner:
        return False
    across = contiguous_axis(b, region)
    is_across = across in outer and not any(across == loop.axis for loops in inner for loop in loops)
    axes: list[str] = []
    for loops in inner:
        axes += [a for a in _row_lanes(b, loops, STEEP if is_across else ROW) if a not in axes]
    if not outer:
        if not axes:
            return False
        set_lanes(b, axes[::-1])
        return True
    if is_across:
        outer = [*(a for a in outer if a != across), across]
    length = max(points(loop for loop in loops if loop.axis in axes) for loops in _inner(b, outer))
    counters, rows = _cut_rows(b, outer, max(WIDTH, ELEMENTS // length) if is_across else ELEMENTS // length)
    set_lanes(b, (*axes[::-1], *rows[::-1]))
    keep_pieces(b, outermost(b, (*counters, *rows)))
    share(b, counters)
    return True


def contiguous_axis(b: Builder, top: str) -> str:
    """The axis along which most of what a nest moves lies side by side in memory; "" if there is none."""
    moved: dict[str, int] = {}
    buffers = b.kernel.buffers()
    for access in dict.fromkeys(accesses((b.loop(top),))):
        buffer = buffers[access.buffer]
        if buffer.memory not in ("global", "prepared"):
            continue
        for loop in access.loops:
            if stride(buffer, access.indices, loop.axis) == 1:
                volume = math.prod(count(n) for n in buffer.shape) * buffer.dtype.bytes
                moved[loop.axis] = moved.get(loop.axis, 0) + volume
    return max(moved, key=lambda axis: moved[axis]) if moved else ""


def _extent(loop: For) -> int:
    """About how long a loop is. One that gets shorter with a loop around it is as long as it begins."""
    length = trips(loop)
    number = count(length)
    if number > 1 or length.constant is not None or length.opaques:
        return number
    return max(1, length.evaluate(dict.fromkeys(length.symbols, 0)))


def _row_lanes(b: Builder, loops: Sequence[For], most: int) -> list[str]:
    """The lanes of loops around one write: the innermost one, or a piece of it, and those around it that fit."""
    made: list[str] = []
    total = 1
    for loop in reversed(loops):
        if loop.axis not in b.axes():  # cut already, with another write
            made += [a for a in b.axes() if a.startswith(f"{loop.axis}.")][-1:]
            total *= math.prod(count(trips(b.loop(a))) for a in made[-1:])
            continue
        if loop.kind in LANES or not _may_be_lanes(b, loop.axis):
            break
        extent = power_of_two(_extent(loop))
        is_whole = total * extent <= most and not loop.upper.opaques and not loop.upper.symbols
        if not is_whole and total > 1:
            break
        size = extent if is_whole else min(most, PIECE)
        if total == 1:  # what is longer is cut into pieces
            size = choose_size(b, f"block along {loop.axis}", size, min(size, SHORTEST), min(extent, ROW))
        made.append(lanes(b, loop.axis, size)[1])
        total *= size
        if size < extent or not is_whole:
            break
    return made


def _may_be_lanes(b: Builder, axis: str) -> bool:
    loop, around = find_loop(b.kernel, axis)
    if loop.step != 1:
        return False
    if running_values(loop):
        return scan_refusal(b.kernel, loop, around) is None
    return carried_dependence(b.kernel, loop, around, reductions=True) is None


def _cut_rows(b: Builder, outer: Sequence[str], most: int, widest: int = ELEMENTS) -> tuple[list[str], list[str]]:
    """Blocks of the last of some independent loops, of at most so many elements together and along one axis: the axes
    that count them, and their lanes."""
    counters: list[str] = []
    rows: list[str] = []
    for axis in reversed(outer):
        extent = power_of_two(_extent(b.loop(axis)))
        size = min(extent, most, widest)
        if _may_be_lanes(b, axis) and (size > 1 or (axis == outer[-1] and extent > 1)):
            size = choose_size(b, f"block along {axis}", max(1, size), 1, min(extent, ROW))
        if size < 2 or not _may_be_lanes(b, axis):
            counters.insert(0, axis)
            most = 1
            continue
        blocks, lane = lanes(b, axis, size)
        counters[:0] = [blocks] if blocks else []
        rows.insert(0, lane)
        most //= size
    if rows:
        b.take(Reorder((*counters, *rows)))
    return counters, rows


# ---------------------------------------------------------------------- points


def _block_points(b: Builder, top: str) -> bool:
    """Blocks of the independent loops alone; what is inside runs step by step."""
    outer = independent(b, top)
    if not outer:
        return False
    if not any(isinstance(s, For) for s in b.loop(outer[-1]).body):
        outer = _collapsed(b, outer)
    if len(across := _crossing_axes(b, outer)) == 2:  # what is read along one axis and written along another: squares
        outer = [*(a for a in outer if a not in across), *across]
        counters, rows = _cut_rows(b, outer, SQUARE * SQUARE, SQUARE)
    else:
        counters, rows = _cut_rows(b, outer, ELEMENTS)
    set_lanes(b, rows[::-1])
    share(b, counters)
    return True


def _crossing_axes(b: Builder, outer: Sequence[str]) -> list[str]:
    """The axes along which large buffers that a nest touches lie side by side, in order."""
    buffers = b.kernel.buffers()
    found: set[str] = set()
    for access in accesses((b.loop(outer[0]),)):
        buffer = buffers[access.buffer]
        if buffer.memory in ("global", "prepared") and math.prod(map(count, buffer.shape)) > SQUARE * SQUARE:
            found.update(a for a in outer if stride(buffer, access.indices, a) == 1)
    return [a for a in outer if a in found]


def _collapsed(b: Builder, outer: list[str]) -> list[str]:
    """The loops with neighbours made one where they run over memory in order."""
    axes = list(outer)
    for n in range(len(axes) - 1, 0, -1):
        before = set(b.axes())
        if b.attempt(Collapse(axes[n - 1], axes[n])):
            axes[n - 1 : n + 1] = [next(a for a in b.axes() if a not in before)]
    return axes


def _program_for_each(b: Builder, top: str) -> bool:
    """A program for each iteration of the independent loops, one element after the other inside."""
    outer = independent(b, top)
    if not outer:
        return False
    share(b, outer)
    return True

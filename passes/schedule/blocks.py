"""Blocks of a loop nest on a GPU: which loops count programs, and which are dimensions of what a program works on.

The independent outer loops of a nest count programs; their last axes are cut, so that a program works on a block of
them. Loops inside are dimensions of blocks as far as these stay small, and run in steps of a block where they are
longer. A sum of products over one axis gets blocks for matrix units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import LANES, For, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.kernel_scan import running_values
from intarsia.ir.scalar import Cast, Expr, Load, factors, loads
from intarsia.ir.schedule import (
    Accumulate,
    Collapse,
    Describe,
    Grid,
    Merge,
    Move,
    Programs,
    Reorder,
    Scan,
    Stages,
    Vectorize,
)
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.pieces import keep_pieces
from intarsia.passes.schedule.scans import scan_refusal
from intarsia.passes.schedule.shape import count, operations, points, power_of_two, stride
from intarsia.passes.schedule.tree import find_loop, loops_in, perfect_nest, puts_in

ELEMENTS = 1024
"""Elements of a block that is computed point by point."""

ROW = 8192
"""Elements up to which a row is one block."""

GROUP = 8
"""Blocks of rows of a product that go through its columns together."""

PART = 256
"""Steps of a product at least, where its reduction is cut into parts."""

SQUARE = 64
"""Rows and columns of a block that is read along one axis and written along another."""

WIDTH = 64
"""Elements side by side of a block that is reduced across them."""

DESCRIBED_STEPS = 3
"""Steps of a product at least that are under way, where descriptors move its blocks."""

RESERVED = 2048
"""Bytes of shared memory that are left for what a compiler keeps there."""

STEEP = 32
"""Elements that such a block reduces."""

PIECE = 2048
"""Elements of a block of a longer row."""


@dataclass(frozen=True)
class Matrix:
    """A sum of products: the axes of its rows, its columns and of the sum, bits of the elements, and the buffers that
    are multiplied as they lie in memory, if all that is multiplied is."""

    row: str
    column: str
    along: str
    bits: int
    factors: tuple[str, ...]


def block_region(b: Builder, top: str, writable: Callable[[Kernel], str | None]) -> None:
    """Give a loop nest programs and blocks: the first way that can be written. If none can, its loops stay as they are,
    inside one program."""
    start = len(b.steps)
    problems = []
    for way in (_block_matrix, _block_rows, _block_points, _program_for_each):
        try:
            if way(b, top):
                if (problem := writable(b.kernel)) is None:
                    return
                problems.append(problem)
        except ScheduleError as error:
            problems.append(str(error))
        while len(b.steps) > start:
            b.undo()
    for problem in dict.fromkeys(problems):
        b.remark(f"{top} is not cut into blocks: {problem}", done=False)


def lanes(b: Builder, axis: str, size: int) -> tuple[str, str]:
    """Blocks of `size` elements along an axis: the axis that counts them, "" if there is one, and the lanes."""
    loop = b.loop(axis)
    if trips(loop).constant == size and loop.lower.constant == 0:
        return "", axis
    return b.split(axis, size)


def independent(b: Builder, top: str) -> list[str]:
    """The axes of the nest that begins with a loop, whose iterations are independent, made its outer ones."""
    nest, _ = perfect_nest(b.loop(top))
    free = [loop.axis for loop in nest if loop.step == 1 and _is_free(b, loop.axis)]
    ordered = [*free, *(loop.axis for loop in nest if loop.axis not in free)]
    if free and ordered != [loop.axis for loop in nest] and not b.attempt(Reorder(tuple(ordered))):
        free = [loop.axis for loop, axis in zip(nest, free) if loop.axis == axis]
    return free


def _is_free(b: Builder, axis: str) -> bool:
    loop, around = find_loop(b.kernel, axis)
    bounds = loop.lower.symbols | loop.upper.symbols
    lists = {x.name for x in b.kernel.parameters if x.length is not None}
    if any(a.buffer in lists and axis in a.indices[0].symbols for a in accesses(loop.body)):
        return False  # which tensor a program reads is decided when it is launched
    if bounds & {x.axis for x in around} or loop.upper.opaques or loop.lower.opaques:
        return False
    return carried_dependence(b.kernel, loop, around, reductions=False) is None


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


def _share(b: Builder, counters: Sequence[str]) -> None:
    """Let programs share the loops that count blocks, from 0 on."""
    b.take(Grid(tuple(a if b.loop(a).lower.constant == 0 else b.split(a, 1)[0] for a in counters)))


def _set_lanes(b: Builder, axes: Sequence[str]) -> None:
    for axis in axes:
        b.take(Scan((axis,)) if running_values(b.loop(axis)) else Vectorize((axis,)))


# ---------------------------------------------------------------------- products


def _block_matrix(b: Builder, top: str) -> bool:
    """Blocks for matrix units."""
    outer = independent(b, top)
    if len(outer) < 2 or (matrix := _matrix(b, outer)) is None:
        return False
    rows_in_all, columns_in_all, depth = (count(trips(b.loop(a))) for a in (matrix.row, matrix.column, matrix.along))
    batches = math.prod(count(trips(b.loop(a))) for a in outer if a not in (matrix.row, matrix.column))
    is_light = _is_light(b, outer[0])
    sizes = block_sizes(rows_in_all, columns_in_all, depth, batches, matrix.bits, b.target.cores, is_light)
    rows, row = lanes(b, matrix.row, sizes[0])
    columns, column = lanes(b, matrix.column, sizes[1])
    _move_inside(b, matrix.along)
    _, along = lanes(b, matrix.along, sizes[2])
    counters = [a for a in outer if a not in (matrix.row, matrix.column)] + [a for a in (rows, columns) if a]
    nest = [loop.axis for loop in perfect_nest(b.loop(_outermost(b, [*counters, row, column])))[0]]
    rest = [a for a in nest if a not in (*counters, row, column)]
    b.take(Reorder((*counters, row, column, *rest)))
    inner = [loop for loop in loops_in(b.loop(column).body) if loop.axis != along]
    done = [along]
    for loop in inner:
        if not loops_in(loop.body) and loop.axis not in done and not _holds(loop, along):
            done.append(lanes(b, loop.axis, min(ROW, power_of_two(count(trips(loop)))))[1])
    _set_lanes(b, (*done, column, row))
    _share(b, _grouped(b, counters, rows, columns))
    if matrix.bits == 16 and b.target.has_tensor_descriptors:
        _walk(b, matrix, sizes)
    return True


def _walk(b: Builder, matrix: Matrix, sizes: tuple[int, int, int]) -> None:
    """Where an engine moves rectangles, and a core has room for one program only, it walks over blocks of a product, so
    that what the next one begins with is on its way while sums of the last one are written."""
    (nest, *others) = b.outermost()
    blocks = math.prod(count(trips(loop)) for loop in loops_in((nest,)) if loop.kind == "grid")
    rows, columns, depth = sizes
    step = (rows + columns) * depth * matrix.bits // 8
    is_alone = 2 * DESCRIBED_STEPS * step > b.target.shared_memory
    if not matrix.factors or not is_alone or others or blocks <= b.target.cores:
        return
    results = sorted({p.buffer for p in puts_in((nest,)) if b.kernel.buffers()[p.buffer].memory == "global"})
    written = sum(rows * columns * b.kernel.buffers()[name].dtype.bytes for name in results)
    room = b.target.shared_memory - RESERVED - written

    def walk() -> None:
        if room < DESCRIBED_STEPS * step:
            raise ScheduleError("there is no room for what is written beside it")
        b.take(Describe((*matrix.factors, *results)))
        b.take(Programs(b.target.cores))
        b.take(Stages(min(DESCRIBED_STEPS + 1, room // step)))

    b.together("walk over blocks", walk)


def _move_inside(b: Builder, axis: str) -> None:
    """Make an axis of a sum the innermost of the loops that hold nothing but each other."""
    nest, _ = perfect_nest(b.loop(axis))
    if len(nest) > 1:
        b.take(Reorder((*(x.axis for x in nest[1:]), axis)))


def _is_light(b: Builder, top: str) -> bool:
    """Is little done to the sums of a nest, and is all that it touches in whole accesses of memory?"""
    puts = puts_in((b.loop(top),))
    shapes = [b.kernel.buffers()[a.buffer].shape for a in accesses((b.loop(top),))]
    aligned = all((shape[-1].constant or 1) % ALIGNED == 0 for shape in shapes if shape)
    after = [p for p in puts if p.operator == "="]
    blocks = [x for p in after for x in loads(p.value) if len(b.kernel.buffers()[x.buffer].shape) > 1]
    return aligned and not blocks and all(operations(p.value) <= FEW_OPERATIONS for p in after)


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
    is_product = _sides(put.value, [loop.axis for loop in kept]) is not None
    across = contiguous_axis(b, top) != depth.axis
    results = math.prod(count(trips(loop)) for loop in kept)
    programs = max(1, results // (WIDTH * WIDTH if is_product else WIDTH if across else 1))
    parts = next((p for p in (16, 8, 4, 2) if p * programs <= 2 * b.target.cores and length % (p * PART) == 0), 1)
    if parts == 1 or programs >= b.target.cores:
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
        if not (is_product and _block_matrix(b, initial.axis)) and not _block_rows(b, initial.axis):
            raise ScheduleError("it has no blocks")

    b.together(f"parts of {depth.axis}", cut)


def _grouped(b: Builder, counters: list[str], rows: str, columns: str) -> list[str]:
    """The axes that count blocks, so that programs which run at the same time share rows and columns: GROUP blocks of
    rows go through all columns together, and what they read stays in the second cache."""
    if not rows or not columns or (blocks := trips(b.loop(rows)).constant) is None or blocks <= GROUP:
        return counters
    group = next((n for n in range(GROUP, 1, -1) if blocks % n == 0), 1)
    if group == 1:
        return counters
    outer, inner = b.split(rows, group)
    order = [*(a for a in counters if a not in (rows, columns)), outer, columns, inner]
    return order if b.attempt(Reorder(tuple(order))) else [outer if a == rows else a for a in counters] + [inner]


def _holds(loop: For, axis: str) -> bool:
    return any(x.axis == axis for x in loops_in((loop,)))


def _outermost(b: Builder, axes: Sequence[str]) -> str:
    return next(a for a in b.axes() if a in axes)


BLOCKS: dict[int, tuple[tuple[int, int, int], ...]] = {
    8: ((128, 128, 128), (64, 128, 128), (64, 64, 128)),
    16: ((128, 256, 64), (128, 128, 64), (64, 128, 64), (64, 64, 64)),
    32: ((128, 128, 16), (64, 64, 32), (32, 64, 32), (32, 32, 32)),
    64: ((64, 64, 16), (32, 32, 16), (16, 16, 16)),
}
"""Rows, columns and depth of blocks of products by the bits of what is multiplied, the largest first. Sums of
the very largest take half of the registers, which leaves few for what is done to them and for addresses of elements."""

FEW_OPERATIONS = 8
"""Scalar operations on a sum for which registers are left beside the largest blocks."""

ALIGNED = 8
"""Elements of 16 bits that are moved at once."""


def block_sizes(
    rows: int, columns: int, depth: int, batches: int, bits: int, cores: int, is_light: bool
) -> tuple[int, int, int]:
    """Rows, columns and depth of the blocks of a product: the largest ones of which there are enough for all cores.
    `is_light`: little is done to the sums, and rows begin at whole accesses of memory."""

    def fitted(block: tuple[int, int, int]) -> tuple[int, int, int]:
        own = [min(most, max(16, power_of_two(n))) for most, n in zip(block, (rows, columns, depth))]
        return own[0], own[1], max(own[2], 32 if bits == 8 else 16)

    options = [fitted(block) for block in BLOCKS[bits][0 if is_light or bits != 16 else 1 :]]
    return next((o for o in options if batches * -(-rows // o[0]) * -(-columns // o[1]) >= cores), options[-1])


def _matrix(b: Builder, outer: Sequence[str]) -> Matrix | None:
    """The sum of products that does most of the work in a nest, if its sides do not share a row or column."""
    best: tuple[int, Matrix] | None = None
    for statement, around in walk((b.loop(outer[0]),)):
        if not isinstance(statement, Put) or statement.operator != "+=":
            continue
        inside = [loop for loop in around if loop.axis not in outer]
        along = _along(statement, inside)
        sides = _sides(statement.value, outer)
        if along is None or sides is None:
            continue
        rows, columns = sides
        row = max(rows, key=lambda a: (count(trips(b.loop(a))), outer.index(a)))
        column = max(columns, key=lambda a: (count(trips(b.loop(a))), outer.index(a)))
        if outer.index(column) < outer.index(row):
            row, column = column, row
        bits = min(x.dtype.bits for x in loads(statement.value))
        work = math.prod(count(trips(loop)) for loop in around)
        if best is None or work > best[0]:
            best = work, Matrix(row, column, along, bits, _plain_factors(statement.value))
    return None if best is None else best[1]


def _plain_factors(value: Expr) -> tuple[str, ...]:
    """The buffers of which a product multiplies elements of one type as they are; none if it does anything else."""
    inner = [f.value if isinstance(f, Cast) else f for f in factors(value)]
    read = [f for f in inner if isinstance(f, Load)]
    same = len(inner) == len(read) == 2 and read[0].dtype == read[1].dtype
    return tuple(dict.fromkeys(f.buffer for f in read)) if same else ()


def _along(put: Put, inside: Sequence[For]) -> str | None:
    """The longest axis of a sum of products that several factors share; of a convolution, the input channels."""
    shared = [
        loop
        for loop in inside
        if not loop.upper.opaques and count(trips(loop)) >= 4 and _sharing(put.value, loop.axis) >= 2
    ]
    return max(shared, key=lambda loop: (count(trips(loop)), inside.index(loop))).axis if shared else None


def _sharing(value: Expr, axis: str) -> int:
    return sum(axis in x.symbols for x in loads(value))


def _sides(value: Expr, outer: Sequence[str]) -> tuple[set[str], set[str]] | None:
    """The axes on which one factor alone depends, and those of the others."""
    uses = [{a for a in outer if a in f.symbols} for f in factors(value)]
    for n, own in enumerate(uses):
        others = set().union(*(u for m, u in enumerate(uses) if m != n))
        if own - others and others - own:
            return own - others, others - own
    return None


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
        _set_lanes(b, axes[::-1])
        return True
    if is_across:
        outer = [*(a for a in outer if a != across), across]
    length = max(points(loop for loop in loops if loop.axis in axes) for loops in _inner(b, outer))
    counters, rows = _cut_rows(b, outer, max(WIDTH, ELEMENTS // length) if is_across else ELEMENTS // length)
    _set_lanes(b, (*axes[::-1], *rows[::-1]))
    keep_pieces(b, _outermost(b, (*counters, *rows)))
    _share(b, counters)
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
        if total * extent <= most and not loop.upper.opaques and not loop.upper.symbols:
            made.append(lanes(b, loop.axis, extent)[1])
            total *= extent
        elif total == 1:
            made.append(lanes(b, loop.axis, min(most, PIECE))[1])
            break
        else:
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
    _set_lanes(b, rows[::-1])
    _share(b, counters)
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
    _share(b, outer)
    return True

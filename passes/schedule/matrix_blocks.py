"""Blocks of sums of products for the matrix units of a GPU, and walks of programs over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from intarsia.ir.dots import SCALED_DOTS, SCALED_ROWS, Dot, find_dot, find_scaled_dot
from intarsia.ir.dtypes import BF16, F16, U8, U16, DType
from intarsia.ir.errors import ScheduleError
from intarsia.ir.halves import are_in_bf16
from intarsia.ir.kernel import For, Put, walk
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.scalar import Cast, Expr, Load, factors, loads, sides
from intarsia.ir.schedule import ROOT, Describe, Pack, Programs, Reorder, Squeeze, Stages, Unroll
from intarsia.passes.schedule.block_lanes import ROW, independent, lanes, outermost, set_lanes, share
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.codes import LARGE, only_read
from intarsia.passes.schedule.shape import bytes_of, count, operations, power_of_two
from intarsia.passes.schedule.tree import loops_in, perfect_nest, puts_in

GROUP = 8
"""Blocks of rows of a product that go through its columns together."""

DESCRIBED_STEPS = 3
"""Steps of a product at least that are under way, where descriptors move its blocks."""

RESERVED = 2048
"""Bytes of shared memory that are left for what a compiler keeps there."""

BLOCKS: dict[int, tuple[tuple[int, int, int], ...]] = {
    8: ((128, 128, 128), (64, 128, 128), (64, 64, 128)),
    16: ((128, 256, 64), (128, 128, 64), (64, 128, 64), (64, 64, 64)),
    32: ((128, 128, 16), (64, 64, 32), (32, 64, 32), (32, 32, 32)),
    64: ((64, 64, 16), (32, 32, 16), (16, 16, 16)),
}
"""Rows, columns and depth of blocks of products by the bits of what is multiplied, the largest first. Sums of
the very largest take half of the registers, which leaves few for what is done to them and for addresses of elements."""

WIDENED = ((64, 128, 16), (64, 64, 16), (32, 32, 16))
"""The same where factors are widened first: a thread holds all that it needs of them in registers then."""

DECODED = {
    True: ((128, 128, 32), (64, 128, 32), (64, 64, 32)),
    False: ((64, 256, 32), (64, 128, 32), (64, 64, 32)),
}
"""The same where factors of 16 bits are made of codes of fewer than 8, by whether matrix units read factors from shared
memory, as where there are descriptors. Else (sm_80) each warp decodes all that it multiplies by its rows: there are few
rows, so that warps stand side by side, and nothing is decoded twice."""

SCALED = ((128, 128, 128), (128, 64, 128), (128, 32, 128))
"""The same where codes are multiplied with the scales of groups, which takes 128 rows."""

SHARED = (U16, U8)
"""What codes of several blocks share, if it may be."""

DENSE = 6
"""Bits of codes that share words, at most: of 7, eight blocks would be read in each step to save an eighth."""

LONG_STEP = 4
"""Blocks from which on a step is so long that fewer are under way: they take less shared memory."""

MOST_BLOCKS = 8
"""Blocks that share words at most, as they are written out."""

SIDE = (16, 256)
"""Elements along each dimension of a block, at least and at most."""

FEW_OPERATIONS = 8
"""Scalar operations on a sum for which registers are left beside the largest blocks."""

ALIGNED = 8
"""Elements of 16 bits that are moved at once."""


@dataclass(frozen=True)
class Matrix:
    """A sum of products: the axes of its rows, its columns and of the sum, the instruction that takes it as it stands,
    bits of the elements as they are multiplied, those that they have in memory at least, and the buffers that are
    multiplied as they lie in memory, if all that is multiplied is."""

    row: str
    column: str
    along: str
    dot: Dot | None
    bits: int
    stored: int
    factors: tuple[str, ...]

    @property
    def is_scaled(self) -> bool:
        """Does the instruction multiply codes with the scales of groups?"""
        return self.dot in SCALED_DOTS

    @property
    def least(self) -> int:
        """The least depth of blocks."""
        return SIDE[0] if self.dot is None else self.dot.width


def block_matrix(b: Builder, top: str) -> bool:
    """Blocks for matrix units."""
    outer = independent(b, top)
    if len(outer) < 2 or (matrix := _matrix(b, outer)) is None:
        return False
    rows_in_all, columns_in_all, depth = (count(trips(b.loop(a))) for a in (matrix.row, matrix.column, matrix.along))
    batches = math.prod(count(trips(b.loop(a))) for a in outer if a not in (matrix.row, matrix.column))
    extents = (rows_in_all, columns_in_all, depth)
    sizes = block_sizes(extents, batches, _largest(b, matrix, outer[0], depth), matrix.least, b.target.cores)
    sizes = _chosen_sizes(b, matrix, sizes, extents)
    rows, row = lanes(b, matrix.row, sizes[0])
    columns, column = lanes(b, matrix.column, sizes[1])
    _move_inside(b, matrix.along)
    steps, along = lanes(b, matrix.along, sizes[2])
    if matrix.is_scaled:
        _share_bytes_along(b, along, (row, column))
    else:
        _share_words(b, steps, (along, column))
    counters = [a for a in outer if a not in (matrix.row, matrix.column)] + [a for a in (rows, columns) if a]
    nest = [loop.axis for loop in perfect_nest(b.loop(outermost(b, [*counters, row, column])))[0]]
    rest = [a for a in nest if a not in (*counters, row, column)]
    b.take(Reorder((*counters, row, column, *rest)))
    inner = [loop for loop in loops_in(b.loop(column).body) if loop.axis != along]
    done = [along]
    for loop in inner:
        if not loops_in(loop.body) and loop.axis not in done and not _holds(loop, along):
            done.append(lanes(b, loop.axis, min(ROW, power_of_two(count(trips(loop)))))[1])
    set_lanes(b, (*done, column, row))
    share(b, _grouped(b, counters, rows, columns))
    if matrix.bits == 16 and b.target.has_tensor_descriptors:
        _walk(b, matrix, sizes)
    if matrix.dot is not None:
        b.remark(f"{matrix.dot} is multiplied by matrix units, and summed in {matrix.dot.total}")
    return True


def _largest(b: Builder, matrix: Matrix, top: str, depth: int) -> Sequence[tuple[int, int, int]]:
    """The blocks that a product may have, the largest first."""
    if matrix.is_scaled:
        return [(m, n, k if depth % k == 0 else matrix.least) for m, n, k in SCALED]
    if matrix.bits == 32 and matrix.stored < 32:
        return WIDENED
    if matrix.bits == 16 and matrix.stored < 8:
        return DECODED[b.target.has_tensor_descriptors]
    has_room = _is_light(b, top) and matrix.stored == matrix.bits  # what is decoded takes registers as well
    return BLOCKS[matrix.bits][1 if matrix.bits == 16 and not has_room else 0 :]


def _chosen_sizes(
    b: Builder, matrix: Matrix, sizes: tuple[int, int, int], extents: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Rows, columns and depth of blocks as they are decided, each by itself."""
    axes, smallest = (matrix.row, matrix.column, matrix.along), (SIDE[0], SIDE[0], matrix.least)
    rows, columns, depth = (
        choose_size(b, f"block along {axis}", size, low, max(size, min(SIDE[1], power_of_two(extent))))
        for axis, size, low, extent in zip(axes, sizes, smallest, extents)
    )
    return rows, columns, depth


WAYS = ("one for each block", "one for each block, by descriptors", "as many as cores, by descriptors")
"""Programs over the blocks of a product, and what moves these where it is not plain loads."""


def _walk(b: Builder, matrix: Matrix, sizes: tuple[int, int, int]) -> None:
    """Where an engine moves rectangles, and a core has room for one program only, it walks over blocks of a product, so
    that what the next one begins with is on its way while sums of the last one are written."""
    (nest, *others) = b.outermost()
    blocks = math.prod(count(trips(loop)) for loop in loops_in((nest,)) if loop.kind == "grid")
    rows, columns, depth = sizes
    step = (rows + columns) * depth * matrix.bits // 8
    is_alone = 2 * DESCRIBED_STEPS * step > b.target.shared_memory
    if not matrix.factors or others:
        return
    likeliest = WAYS[2 if is_alone and blocks > b.target.cores else 0]
    ways = (likeliest, *(WAYS if blocks > b.target.cores else WAYS[:2]))
    if (way := b.choose(f"programs over {matrix.row} and {matrix.column}", ways)) == WAYS[0]:
        return
    results = sorted({p.buffer for p in puts_in((nest,)) if b.kernel.buffers()[p.buffer].memory == "global"})
    written = sum(rows * columns * b.kernel.buffers()[name].dtype.bytes for name in results)
    room = b.target.shared_memory - RESERVED - written

    def walk() -> None:
        if room < DESCRIBED_STEPS * step:
            raise ScheduleError("there is no room for what is written beside it")
        b.take(Describe((*matrix.factors, *results)))
        if way == WAYS[2]:
            b.take(Programs(b.target.cores))
        most = min(DESCRIBED_STEPS + 1, room // step)
        b.take(Stages(b.choose("steps under way", (most, *range(DESCRIBED_STEPS - 1, room // step + 1)[:4]))))

    b.together("walk over blocks", walk)


def _share_words(b: Builder, steps: str, block: tuple[str, str]) -> None:
    """Let codes of few bits in constant factors share words, as those of one block and the next ones, which are
    multiplied together: a word is read once, and none of its codes has to change places. A word of 16 bits is where a
    number of 16 bits will be."""
    for buffer in b.kernel.inputs:
        bits = buffer.dtype.bits
        if not steps or not buffer.constant or bits > DENSE or bytes_of(buffer) < LARGE:
            continue
        found = only_read(b.kernel, buffer.name)
        if found is None or not {steps, *block} <= found[0].symbols:
            continue
        blocks = count(trips(b.loop(steps)))
        options = ((w, _codes_in_words(bits, w)) for w in SHARED)
        word, shared = next(((w, n) for w, n in options if n <= MOST_BLOCKS and blocks % n == 0), (None, 1))
        if word is not None:
            b.together(f"words of {buffer.name}", partial(_lay_out, b, buffer.name, found, steps, block, word))
            if shared >= LONG_STEP:  # two of these are as far ahead as the usual number of others
                b.take(Stages(b.choose("steps under way", (2, 1, 3, 4))))
            return


def _codes_in_words(bits: int, word: DType) -> int:
    """How many codes fill whole words, of which some may begin in one word and end in the next."""
    return math.lcm(bits, word.bits) // bits


def _share_bytes_along(b: Builder, along: str, own: tuple[str, str]) -> None:
    """Let codes of few bits in constant factors share bytes with their neighbours along the sum."""
    for buffer in b.kernel.inputs:
        bits = buffer.dtype.bits
        if not buffer.constant or bits >= 8 or 8 % bits or bytes_of(buffer) < LARGE:
            continue
        found = only_read(b.kernel, buffer.name)
        if found is None or along not in found[0].symbols:
            continue
        load, around = found
        block = (*(axis for axis in own if axis in load.symbols), along)
        counters = [x.axis for x in around if x.axis in load.symbols and x.axis not in block]

        def lay_out(codes: str = buffer.name, axes: tuple[str, ...] = (*counters, *block)) -> None:
            before, new = set(b.axes()), b.fresh(codes)
            b.take(Pack(codes, ROOT, new, axes, "prepared"))
            *_, last = (axis for axis in b.axes() if axis not in before)
            b.take(Squeeze(new, (last,), "u8", b.fresh(codes)))

        b.together(f"bytes of {buffer.name}", lay_out)


def _lay_out(
    b: Builder, codes: str, found: tuple[Load, tuple[For, ...]], steps: str, block: tuple[str, str], word: DType
) -> None:
    """Lay a constant out in blocks, several of which share words."""
    load, around = found
    bits = b.kernel.buffers()[codes].dtype.bits
    outer, part = b.split(steps, _codes_in_words(bits, word))
    b.take(Unroll((part,)))
    counters = [x.axis for x in around if x.axis in load.symbols and x.axis not in (steps, *block)]
    before, new = set(b.axes()), b.fresh(codes)
    b.take(Pack(codes, ROOT, new, (*counters, outer, part, *block), "prepared"))
    copied = [axis for axis in b.axes() if axis not in before]
    b.take(Squeeze(new, (copied[-1 - len(block)],), word.name, b.fresh(codes)))


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


def _grouped(b: Builder, counters: list[str], rows: str, columns: str) -> list[str]:
    """The axes that count blocks, so that programs which run at the same time share rows and columns: GROUP blocks of
    rows go through all columns together, and what they read stays in the second cache."""
    if not rows or not columns or (blocks := trips(b.loop(rows)).constant) is None:
        return counters
    group = next((n for n in range(GROUP, 1, -1) if blocks % n == 0), 1) if blocks > GROUP else 1
    others = (n for n in (1, 2, 4, GROUP, 2 * GROUP) if blocks % n == 0)
    if (group := b.choose(f"blocks of {rows} that go together", (group, *others))) == 1:
        return counters
    outer, inner = b.split(rows, group)
    order = [*(a for a in counters if a not in (rows, columns)), outer, columns, inner]
    return order if b.attempt(Reorder(tuple(order))) else [outer if a == rows else a for a in counters] + [inner]


def _holds(loop: For, axis: str) -> bool:
    return any(x.axis == axis for x in loops_in((loop,)))


def block_sizes(
    extents: tuple[int, int, int], batches: int, most: Sequence[tuple[int, int, int]], least: int, cores: int
) -> tuple[int, int, int]:
    """Rows, columns and depth of the blocks of a product: the largest ones, of those that it may have, of which there
    are enough for all cores. least: the depth of the smallest."""

    def fitted(block: tuple[int, int, int]) -> tuple[int, int, int]:
        own = [min(size, max(16, power_of_two(n))) for size, n in zip(block, extents)]
        return own[0], own[1], max(own[2], least)

    rows, columns, _ = extents
    options = [fitted(block) for block in most]
    return next((o for o in options if batches * -(-rows // o[0]) * -(-columns // o[1]) >= cores), options[-1])


def _matrix(b: Builder, outer: Sequence[str]) -> Matrix | None:
    """The sum of products that does most of the work in a nest, if its sides do not share a row or column."""
    best: tuple[int, Matrix] | None = None
    for statement, around in walk((b.loop(outer[0]),)):
        if not isinstance(statement, Put) or statement.operator != "+=":
            continue
        inside = [loop for loop in around if loop.axis not in outer]
        along = _along(statement, inside)
        found = sides_of(statement.value, outer)
        if along is None or found is None:
            continue
        rows, columns = found
        row = max(rows, key=lambda a: (count(trips(b.loop(a))), outer.index(a)))
        column = max(columns, key=lambda a: (count(trips(b.loop(a))), outer.index(a)))
        if outer.index(column) < outer.index(row):
            row, column = column, row
        dot = find_dot(b.target, statement) or _scaled_dot(b, statement.value, row, columns, along)
        results = {result.dtype for result in b.kernel.outputs}
        bits = _multiplied_bits(statement.value, results, columns) if dot is None else dot.left.bits
        work = math.prod(count(trips(loop)) for loop in around)
        if best is None or work > best[0]:
            stored = min(x.dtype.bits for x in loads(statement.value))
            best = work, Matrix(row, column, along, dot, bits, stored, _plain_factors(statement.value))
    return None if best is None else best[1]


def _scaled_dot(b: Builder, value: Expr, row: str, columns: set[str], along: str) -> Dot | None:
    """The instruction that multiplies codes with the scales of groups, if that is what a product of whole blocks is."""
    dot = find_scaled_dot(value, columns, along) if b.target.has_scaled_dots else None
    is_whole = dot is not None and count(trips(b.loop(along))) % dot.width == 0
    return dot if is_whole and 2 * count(trips(b.loop(row))) > SCALED_ROWS else None


def _multiplied_bits(value: Expr, results: set[DType], columns: set[str]) -> int:
    """Bits of the elements that a product takes which no dot instruction takes as it stands: those of a factor to which
    the results, and so the other factor, are rounded anyway; of bf16, if it has both; else those of the sum, as factors
    are widened before."""
    kinds = {f.value.dtype if isinstance(f, Cast) else f.dtype for f in factors(value)}
    narrow = min(kinds, key=lambda dtype: dtype.bits)
    if narrow in (BF16, F16) and results == {narrow}:
        return narrow.bits
    return BF16.bits if are_in_bf16(value, columns) else value.dtype.bits


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


def sides_of(value: Expr, outer: Sequence[str]) -> tuple[set[str], set[str]] | None:
    """The axes on which some factors alone depend, and those of the others."""
    return sides([{a for a in outer if a in f.symbols} for f in factors(value)])

"""Chained reductions on a GPU: one program sweeps over the keys of a block of rows, as for attention."""

from __future__ import annotations

import math
from collections.abc import Collection

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, For, Put, Statement
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.kernel_launch import ADDRESSES
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import (
    Distribute,
    Grid,
    Inline,
    Localize,
    Merge,
    Online,
    Parts,
    Reorder,
    Skip,
    Stage,
    Vectorize,
    Warps,
)
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.arrange import accumulate_rows, localize_all, merge_rows
from intarsia.passes.schedule.block_lanes import lanes
from intarsia.passes.schedule.block_options import choose_size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.chain import Chain, chain_of, find_chain
from intarsia.passes.schedule.domains import is_masked
from intarsia.passes.schedule.shape import count, points, power_of_two
from intarsia.passes.schedule.stages import definitions_in, expand
from intarsia.passes.schedule.tree import allocated_in, find_loop, loops_in, puts_in

DEPTH = 128
"""Elements of a sum of products that are multiplied at a time."""

ELEMENTS = 8192
"""Elements of a block of what rows read that do not share it."""

TWICE = 2
"""Programs for each core that parts of the reduced axis give, about."""

MERGED = 16384
"""Elements of all parts of a row of sums at most: a program merges them at once."""

PIECE = 64
"""Parts that are merged at a time where their number is open."""

SHORTEST = 256
"""Elements of such a part, at least."""

WIDEST = 128
"""Elements of a row of sums beyond which fewer rows are in a block."""

BLOCKS = ((128, 64), (128, 32), (64, 64), (64, 32), (32, 32))
"""Rows and keys of a block of elements of 16 bits: the first that its registers allow."""

NARROW = 32
"""Keys of a block at most where masks leave out some: narrow ones leave out more."""

WARPS = 8
"""Warps of a program that sweeps."""

FRAGMENTS = 64
"""Registers of a program, for each row and key of a block, that hold operands on their way to matrix units."""


def prepared_chain(b: Builder) -> Chain | None:
    """The chain that a kernel is, brought into the form that programs want; None if it is none."""
    used = {a.buffer for a in accesses(b.kernel.body) if a.reads}
    for result in b.kernel.outputs:
        if result.role == "out" and result.name in used:
            b.take(Stage(result.name, b.fresh(result.name)))  # what is read again is kept by the program
    return chain_of(b)


def schedule_chain_of_blocks(b: Builder, chain: Chain) -> None:
    """Let each program sweep over the keys of a block of rows. Raises ScheduleError where that is not legal."""
    if not chain.row:
        raise ScheduleError("there are no rows")
    name = chain.sweep.state.put.buffer
    top, sweep_axis = _block(b, chain)
    batch = [r[chain.stages[0]] for r in chain.batch]
    around = frozenset().union(*(s.touched for s in (*chain.sweep.before, *chain.sweep.after)))
    others = [s for s in b.kernel.body if all(loop.axis != top for loop in loops_in((s,)))]
    around -= {a.buffer for a in accesses(others)}
    for buffer in (*(s.put.buffer for s in chain.sums), *sorted(around)):
        if b.kernel.buffers()[buffer].role == "temp" and allocated_in(b.kernel.body)[buffer].memory == "global":
            b.take(Localize(buffer, top, "cache"))
    sweep = b.fresh(sweep_axis)
    b.take(Online(name, 1, (sweep,)))
    localize_all(b)
    if chain.has_masked_sums:
        b.attempt(Skip(sweep))
    batch = _alone(b, top)
    _lanes_everywhere(b, top, sweep)
    b.take(Grid((*batch, top)))
    b.take(Warps(b.choose("warps", (WARPS, 4, 16))))


# ---------------------------------------------------------------------- parts


def width_of_parts(b: Builder, chain: Chain) -> int:
    """The elements of parts of the reduced axis that give all cores work; 0 where there are enough rows for that, and
    where masks give rows different work."""
    rows, keys = block_of_chain(b, chain)
    own, most = chain.sweep.state, MERGED // power_of_two(width_of_sums(chain))
    if chain.sweep.masked or is_masked(expand(own, definitions_in(chain.stages, allocated_in(b.kernel.body))), own):
        return 0
    programs = math.prod(max(1, count(trips(b.loop(r[own])))) for r in chain.batch)
    if chain.row:
        programs *= max(1, -(-count(trips(b.loop(chain.row[own]))) // rows))
    length = count(trips(own.reduced[0]))
    wanted = min(most, TWICE * b.target.cores // programs)
    width = max(SHORTEST, -(-length // max(1, wanted)))
    width = -(-width // keys) * keys
    if programs >= b.target.cores or 2 * width > length:
        return 0
    widths = (width, 2 * width, 4 * width, width // 2 // keys * keys, 0)
    possible = [n for n in widths if not n or (n >= SHORTEST and 2 * n <= length)]
    return b.choose("keys of a part", (width, *possible), lambda n: str(n) if n else "all")


def schedule_chain_in_parts(b: Builder, chain: Chain, width: int) -> None:
    """Let each program sweep over a part of the keys of a block of rows; others merge what they find. Raises
    ScheduleError where that is not legal."""
    name, old = chain.sweep.state.put.buffer, b.kernel.buffers()
    if chain.sweep.state.put.operator != "max=":
        raise ScheduleError("only what is relative to a maximum is swept in parts")
    b.take(Parts(name, width))
    state = next(p.buffer for p in puts_in(b.kernel.body) if p.operator == "max=" and p.buffer not in old)
    schedule_chain_of_blocks(b, find_chain(b, state, alone=True))
    if (parts := (trips(chain.sweep.state.reduced[0]) + (width - 1)) // width).constant is None:
        _merge_in_pieces(b, name, parts, MERGED // (2 * power_of_two(width_of_sums(chain))), old)
    merge_rows(b)
    localize_all(b)
    accumulate_rows(b)


def _merge_in_pieces(b: Builder, name: str, parts: Size, size: int, old: Collection[str]) -> None:
    """Merge parts, whose number is open, some at a time. Ratios are computed where they are used then."""
    for put in puts_in(b.waiting()):
        if put.operator == "=" and put.buffer not in old and any(x.buffer == name for x in loads(put.value)):
            b.take(Inline(put.buffer))
    for loop in loops_in(b.waiting()):
        if trips(loop) == parts:
            b.split(loop.axis, min(size, PIECE))


# ---------------------------------------------------------------------- blocks


def _alone(b: Builder, top: str) -> list[str]:
    """Give a loop, with those around it, a nest of its own; the axes around it. What is found out once for all blocks
    of rows stands in another nest then."""
    inside = top
    for loop in reversed(find_loop(b.kernel, top)[1]):
        before = set(b.axes())
        if any(not isinstance(s, Alloc) and not _is_loop(s, inside) for s in loop.body):
            b.take(Distribute(loop.axis, inside))
            (inside,) = set(b.axes()) - before
        else:
            inside = loop.axis
    return [loop.axis for loop in find_loop(b.kernel, top)[1]]


def _is_loop(statement: Statement, axis: str) -> bool:
    return isinstance(statement, For) and statement.axis == axis


def block_of_chain(b: Builder, chain: Chain) -> tuple[int, int]:
    """Rows and keys of a block."""
    bits = min(x.dtype.bits for s in chain.stages for x in s.reads if b.kernel.buffers()[x.buffer].role == "in")
    width = width_of_sums(chain)
    own = chain.sweep.state
    length = max(16, power_of_two(count(trips(b.loop(chain.sweep.axes[own])))))
    if not chain.is_shared:
        across = points(chain.scores.reduced) if chain.scores is not None else 1
        keys = max(16, min(DEPTH, ELEMENTS // power_of_two(max(width, min(across, DEPTH)))))
        return 1, choose_size(b, "keys of a block", min(keys, length), 16, length)
    rows, keys = _likely_block(b, chain, bits)
    most = max(16, power_of_two(count(trips(b.loop(chain.row[own]))))) if chain.row else rows
    rows = choose_size(b, "rows of a block", min(rows, most), 16, min(most, 2 * DEPTH))
    return rows, choose_size(b, "keys of a block", min(keys, length), 16, min(length, 2 * DEPTH))


def _likely_block(b: Builder, chain: Chain, bits: int) -> tuple[int, int]:
    """Rows and keys of a block of elements of so many bits. Sums of a block of rows, its scores and what is made of
    them are in registers at one time; so are the operands of products in f32, which no matrix unit takes."""
    together = sum(width for width in _widths_of_sums(chain) if width > 1)
    most = 128 if width_of_sums(chain) <= WIDEST else 64
    if bits == 16:
        possible = [(r, k) for r, k in BLOCKS if r <= most and (k <= NARROW or not chain.has_masked_sums)]
        return next((x for x in possible if registers_of_block(b, chain, *x) <= b.target.registers), BLOCKS[-1])
    return (most // 4, 64 if together <= 64 else 32) if bits <= 32 else (most // 8, 16)


def registers_of_block(b: Builder, chain: Chain, rows: int, keys: int) -> int:
    """About the registers of a thread that sweeps over blocks of elements of 16 bits: the elements of all products and
    what is made of them, the sums, and what the rows are multiplied with where matrix units take it from registers, or
    where a loop begins at a block that is not known before: that takes about as many."""
    held = rows * (keys * (1 + len(chain.products)) + sum(_widths_of_sums(chain)))
    if not b.target.multiplies_shared_memory or chain.has_masked_sums:
        held += rows * sum(min(DEPTH, points(p.reduced)) for p in chain.products) // 2 + FRAGMENTS * (rows + keys)
    return ADDRESSES + held // (32 * WARPS)


def width_of_sums(chain: Chain) -> int:
    """Elements of the widest row of sums."""
    return max(_widths_of_sums(chain))


def _widths_of_sums(chain: Chain) -> list[int]:
    """Elements of a row of each sum."""
    taken = {r[s] for r in (*chain.batch, chain.row) if r for s in chain.sums}
    return [points(loop for loop in s.kept if loop.axis not in taken) for s in chain.sums]


def _block(b: Builder, chain: Chain) -> tuple[str, str]:
    """Blocks of rows and keys in every stage, and one loop around all of them. Returns the axes that count blocks."""
    rows, keys = block_of_chain(b, chain)
    tops: list[str] = []
    panel = ""
    for stage in chain.stages:
        row = chain.row[stage]
        batch = [r[stage] for r in chain.batch]
        rest = [loop.axis for loop in stage.loops if loop.axis not in (row, *batch)]
        top, *inner = b.split(row, rows) if chain.is_shared else (row,)
        order = [top, *inner, *rest]
        if stage in chain.sweep.axes:
            axis = chain.sweep.axes[stage]
            blocks, key = b.split(axis, keys)
            rest[rest.index(axis)] = key
            order = [top, blocks, *inner, *rest]
            if stage is chain.sweep.state:
                panel = blocks
        b.take(Reorder((*batch, *order)))
        tops.append(top)
    for axes in (*([r[s] for s in chain.stages] for r in chain.batch), tops):
        b.take(Merge(tuple(axes)))
    return tops[0], panel


def _lanes_everywhere(b: Builder, top: str, sweep: str) -> None:
    """All loops inside that have a known length, but for the sweep itself, are dimensions of blocks."""
    for loop in reversed(loops_in(b.loop(top).body)):
        length = trips(loop).constant
        if length is None or length == 1 or loop.axis == sweep:
            continue
        if loop.lower.constant != 0:
            raise ScheduleError(f"{loop.axis} does not begin at 0")
        if any(isinstance(s, For) and trips(s).constant is None for s in loops_in(loop.body)):
            continue
        most = power_of_two(length)
        if length > DEPTH and _is_summed(loop):
            # A step at a time: the whole would fill the chip's memory.
            most = choose_size(b, f"block along {loop.axis}", DEPTH, 16, min(most, 2 * DEPTH))
        _, lane = lanes(b, loop.axis, most)
        b.take(Vectorize((lane,)))


def _is_summed(loop: For) -> bool:
    """Is a loop the inner reduction of one product?"""
    return all(isinstance(s, Put) and not any(loop.axis in i.symbols for i in s.indices) for s in loop.body)

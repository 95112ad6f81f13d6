"""Chained reductions on a GPU: one program sweeps over the keys of a block of rows, as for attention."""

from __future__ import annotations

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, For, Put, Statement
from intarsia.ir.kernel_access import trips
from intarsia.ir.schedule import Distribute, Grid, Localize, Merge, Online, Reorder, Stage, Vectorize, Warps
from intarsia.passes.schedule.arrange import localize_all
from intarsia.passes.schedule.blocks import lanes, power_of_two
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.chained import Chain, chain_of
from intarsia.passes.schedule.shape import count, points
from intarsia.passes.schedule.tree import allocated_in, find_loop, loops_in, puts_in

DEPTH = 128
"""Elements of the reduction of a score that are multiplied at a time."""

WIDEST = 128
"""Elements of a row of sums beyond which fewer rows are in a block."""


def schedule_chain_of_blocks(b: Builder) -> bool:
    """Schedule a kernel that is one chain of reductions. Returns whether it is one."""
    accumulated = {put.buffer for put in puts_in(b.kernel.body) if put.operator != "="}
    for result in b.kernel.outputs:
        if result.role == "out" and result.name in accumulated:
            b.take(Stage(result.name, b.fresh(result.name)))  # sums are kept by the program, not in memory
    chain = chain_of(b)
    if chain is None:
        return False
    name = chain.sweep.state.put.buffer
    top, sweep_axis = _block(b, chain)
    batch = [r[chain.stages[0]] for r in chain.batch]
    around = frozenset().union(*(s.touched for s in (*chain.sweep.before, *chain.sweep.after)))
    for buffer in (*(s.put.buffer for s in chain.sums), *sorted(around)):
        if b.kernel.buffers()[buffer].role == "temp" and allocated_in(b.kernel.body)[buffer].memory == "global":
            b.take(Localize(buffer, top, "cache"))
    sweep = b.fresh(sweep_axis)
    b.take(Online(name, 1, (sweep,)))
    localize_all(b)
    batch = _alone(b, top)
    _lanes_everywhere(b, top, sweep)
    b.take(Grid((*batch, top)))
    b.take(Warps(8))
    return True


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
    """Rows and keys of a block at most. Sums of a block of rows, its scores and weights are in registers at one time;
    so are the operands of products in f32, which no matrix unit takes from shared memory."""
    bits = min(x.dtype.bits for s in chain.stages for x in s.reads if b.kernel.buffers()[x.buffer].role == "in")
    taken = {chain.row[s] for s in chain.sums} | {r[s] for r in chain.batch for s in chain.sums}
    width = max(points(loop for loop in s.kept if loop.axis not in taken) for s in chain.sums)
    rows, keys = (128, 64) if bits == 16 else (32, 64 if width <= 64 else 32) if bits <= 32 else (16, 16)
    return (rows if width <= WIDEST else rows // 2), keys


def _block(b: Builder, chain: Chain) -> tuple[str, str]:
    """Blocks of rows and keys in every stage, and one loop around all of them. Returns the axes that count blocks."""
    most_rows, most_keys = block_of_chain(b, chain)
    rows = min(most_rows, max(16, power_of_two(count(trips(b.loop(chain.row[chain.sweep.state]))))))
    keys = min(most_keys, max(16, power_of_two(count(trips(b.loop(chain.sweep.axes[chain.sweep.state]))))))
    tops: list[str] = []
    panel = ""
    for stage in chain.stages:
        row = chain.row[stage]
        top, inner = b.split(row, rows)
        batch = [r[stage] for r in chain.batch]
        rest = [loop.axis for loop in stage.loops if loop.axis not in (row, *batch)]
        order = [top, inner, *rest]
        if stage in chain.sweep.axes:
            axis = chain.sweep.axes[stage]
            blocks, key = b.split(axis, keys)
            rest[rest.index(axis)] = key
            order = [top, blocks, inner, *rest]
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
            most = DEPTH  # a step at a time: the whole would fill the chip's memory
        _, lane = lanes(b, loop.axis, most)
        b.take(Vectorize((lane,)))


def _is_summed(loop: For) -> bool:
    """Is a loop the inner reduction of one product?"""
    return all(isinstance(s, Put) and not any(loop.axis in i.symbols for i in s.indices) for s in loop.body)

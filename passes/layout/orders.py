"""Naive kernels that keep tensors in memory with their dimensions in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Prefetch, Put, Statement
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import Expr, Load, loads
from intarsia.ir.schedule import Reorder
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.apply import apply_step
from intarsia.passes.schedule.tree import change_loads, perfect_nest, rewrite

Order: TypeAlias = tuple[int, ...]
"""The dimensions of a tensor, the outermost in memory first."""


def last(place: int, rank: int) -> Order:
    """The order in which one dimension comes last, and the others stay in theirs."""
    return (*(d for d in range(rank) if d != place), place)


def is_same(order: Order, shape: tuple[Size, ...]) -> bool:
    """Do elements lie in an order as they lie without it? Dimensions of one element may be anywhere."""
    long = [d for d in order if shape[d].constant != 1]
    return long == sorted(long)


def stages(kernel: Kernel) -> Iterator[tuple[tuple[For, ...], Put]]:
    """The nests of a naive kernel that hold one statement, each with its loops, the outermost first."""
    for statement in kernel.body:
        loops, body = perfect_nest(statement) if isinstance(statement, For) else ((), (statement,))
        if len(body) == 1 and isinstance(put := body[0], Put):
            yield loops, put


def is_whole(kernel: Kernel, buffer: str) -> bool:
    """Does a kernel want rows of a buffer, as routines do? Then its last dimension stays the last."""
    rank = len(kernel.buffers()[buffer].extents)
    return any(a.buffer == buffer and len(a.indices) < rank for a in accesses(kernel.body))


def with_orders(kernel: Kernel, orders: Mapping[str, Order]) -> Kernel:
    """A naive kernel whose buffers have their dimensions in other orders.

        for c { for p { y[c, p] = x[c, p] } }   ->   for p { for c { y[p, c] = x[p, c] } }      y, x: (1, 0)

    Loops follow the order of what they write, and temporaries that of the loops by which they are read last, as if the
    program had been written so. Each element is what it was: loops that reduce stay in their order.
    """
    orders = _with_temporaries(kernel, orders)

    def moved(name: str, indices: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(indices[d] for d in orders[name]) if name in orders else indices

    def buffer(old: Buffer) -> Buffer:
        return replace(old, shape=moved(old.name, old.shape))

    def change(statement: Statement) -> Statement | None:
        match statement:
            case Put() | Prefetch():
                return replace(statement, indices=moved(statement.buffer, statement.indices))
            case Alloc(old):
                return Alloc(buffer(old))
        return None

    def rule(e: Expr) -> Expr | None:
        return replace(e, indices=moved(e.buffer, e.indices)) if isinstance(e, Load) and e.buffer in orders else None

    body = change_loads(rewrite(kernel.body, change), rule)
    made = replace(kernel, parameters=tuple(map(buffer, kernel.parameters)), body=body)
    for loops, put in tuple(stages(made)):
        axes = {loop.axis for loop in loops}
        wanted = tuple(name for i in put.indices if (name := i.as_name) in axes and name is not None)
        if put.buffer in orders and wanted != tuple(x.axis for x in loops if x.axis in wanted):
            made = _reordered(made, wanted)
    return made


def _reordered(kernel: Kernel, axes: tuple[str, ...]) -> Kernel:
    """A kernel with loops in another order, if that is legal."""
    try:
        return apply_step(kernel, Reorder(axes))
    except ScheduleError:
        return kernel


def _with_temporaries(kernel: Kernel, orders: Mapping[str, Order]) -> dict[str, Order]:
    """The orders, and those of the temporaries that are read element by element where something in one of them is
    written."""
    found = dict(orders)
    for _, put in reversed(tuple(stages(kernel))):
        if put.buffer not in found:
            continue
        axes = [put.indices[d].as_name for d in found[put.buffer]]
        for load in dict.fromkeys(loads(put.value)):
            names = [index.as_name for index in load.indices]
            is_plain = None not in names and len(set(names)) == len(names) and set(names) <= set(axes)
            if is_plain and load.buffer not in found and kernel.buffers()[load.buffer].role == "temp":
                found[load.buffer] = tuple(sorted(range(len(names)), key=lambda d: axes.index(names[d])))
    return found

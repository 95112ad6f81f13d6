"""Results that a kernel may write where one of its operands lies: each element is read before it is written.

    kernel f(x: f32[N], y: f32[N], out z: f32[N])       kernel f(y: f32[N], inout z: f32[N])
      for i in 0..N { z[i] = 2.0 * x[i] + y[i] }    =>    for i in 0..N { z[i] = 2.0 * z[i] + y[i] }

The test is that of schedule steps (`schedule/dependence.py`), on the scheduled kernel: no iteration that writes an
element comes before, or runs beside, another that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import takewhile

from intarsia.ir.kernel import Buffer, Call, For, If, Kernel, Put, Statement, walk
from intarsia.ir.kernel_access import Access, accesses, written_in
from intarsia.ir.scalar import loads
from intarsia.passes.lower.stages import rename_buffers
from intarsia.passes.schedule.dependence import Order, may_meet
from intarsia.passes.schedule.tree import Body, rewrite


@cache
def may_overwrite(kernel: Kernel, operand: str, result: str) -> bool:
    """May a kernel be given one piece of memory for an operand and a result? Of several pairs, each is to be asked for
    when those before it are one: statements that may move do so in one order or another."""
    buffers = kernel.buffers()
    if not _alike(buffers[operand], buffers[result]):
        return False
    kernel, found, volatile, branches = _with_last(kernel, result)
    if any(isinstance(a.statement, Call) for _, a in found if a.buffer in (operand, result)):
        return False  # what a routine reads after it has written is not known
    reads = [(n, replace(a, buffer=result)) for n, a in found if a.buffer == operand]
    writes = [(n, a) for n, a in found if a.buffer == result and a.writes]
    return not any(
        may_meet(kernel, write, read, order, shared, volatile | {operand})
        for r, read in reads
        for w, write in writes
        for order, shared in _before(write, read, w < r and not _are_apart(write, read, branches))
    )


@cache
def _with_last(
    kernel: Kernel, result: str
) -> tuple[Kernel, Sequence[tuple[int, Access]], frozenset[str], Mapping[int, Branches]]:
    """A kernel that writes a result last; its accesses, what it writes, and where its statements are."""
    kernel = kernel.with_body(_written_last(kernel.body, result))
    found = list(enumerate(accesses(kernel.body)))
    return kernel, found, frozenset(written_in(kernel.body)), dict(_branches(kernel.body, {}))


Branches = Mapping[int, bool]
"""Of each `If` around a statement, by identity: is it in the first branch?"""


def _branches(body: Body, around: Branches) -> Iterator[tuple[int, Branches]]:
    """Every statement, by identity, and where it is."""
    for statement in body:
        yield id(statement), around
        match statement:
            case For(body=inner):
                yield from _branches(inner, around)
            case If(_, then, otherwise):
                yield from _branches(then, {**around, id(statement): True})
                yield from _branches(otherwise, {**around, id(statement): False})


def _are_apart(first: Access, second: Access, branches: Mapping[int, Branches]) -> bool:
    """Are two accesses in different branches, of which an iteration takes one?"""
    here, there = branches[id(first.statement)], branches[id(second.statement)]
    return any(there.get(key, branch) != branch for key, branch in here.items())


def _written_last(body: Body, result: str) -> Body:
    """A body in which statements that only write a result come after all others, where they may: a step of Adam sets
    the mean of the gradients, and then reads the old one again for the parameter."""
    first: list[Statement] = []
    last: list[Statement] = []
    passed: list[Statement] = []
    for statement in body:
        match statement:
            case For(body=inner):
                statement = replace(statement, body=_written_last(inner, result))
            case If(_, then, otherwise):
                branches = (_written_last(b, result) for b in (then, otherwise))
                statement = If(statement.condition, *branches)
        if written_in((statement,)) == {result}:
            last.append(statement)
        else:
            first.append(statement)
            passed += [statement] if last else []
    reads = {a.buffer for a in accesses(last) if a.reads}
    if result in {a.buffer for a in accesses(passed)} or reads & written_in(passed):
        return body
    return (*first, *last)


def _alike(operand: Buffer, result: Buffer) -> bool:
    same = operand.dtype == result.dtype and operand.shape == result.shape
    return same and operand.role == "in" and result.role == "out" and operand.length is None and not operand.constant


@cache
def operands_of_results(kernel: Kernel) -> Mapping[str, frozenset[str]]:
    """The buffers that the elements of each result are made of, as far as its own statements show."""
    found: dict[str, frozenset[str]] = {b.name: frozenset() for b in kernel.outputs}
    for statement, _ in walk(kernel.body):
        if isinstance(statement, Put) and statement.buffer in found:
            found[statement.buffer] |= {load.buffer for load in loads(statement.value)}
    return found


def _as_one(kernel: Kernel, operand: str, result: str) -> Kernel:
    names = {name: name for name in kernel.buffers()}
    return rename_buffers(kernel, names | {operand: result})


def _before(write: Access, read: Access, is_earlier: bool) -> Iterator[tuple[Mapping[str, Order], tuple[For, ...]]]:
    """Where the iterations of a write may lie that happen before, or at the same time as, those of a read: the order
    along the first loop around both in which they differ, and the loops in which they do not.

    `is_earlier`: in one iteration of these loops the write comes before the read.
    """
    around = tuple(a for a, _ in takewhile(lambda pair: pair[0] is pair[1], zip(write.loops, read.loops)))
    for depth, loop in enumerate(around):
        yield {loop.axis: "<"}, around[:depth]
        if loop.kind not in ("seq", "unroll"):
            yield {loop.axis: ">"}, around[:depth]
    if is_earlier:
        yield {}, around


def with_overwritten(kernel: Kernel, operands: Mapping[str, str]) -> Kernel:
    """The kernel that changes operands in place: `operands` says which one lies where each of some results does, in the
    order in which `may_overwrite` was asked."""

    for result, operand in operands.items():
        kernel = _as_one(kernel.with_body(_written_last(kernel.body, result)), operand, result)
    left = [b for b in kernel.parameters if b.role == "in" and b.name not in operands]
    made = [replace(b, role="inout") if b.name in operands else b for b in kernel.parameters if b.role != "in"]

    def through_cache(statement: Statement) -> Statement | None:
        """What was read a moment ago is in the cache: a store past it would gain nothing."""
        if isinstance(statement, Put) and statement.buffer in operands:
            return replace(statement, nontemporal=False)
        return None

    return replace(kernel, parameters=(*left, *made), body=rewrite(kernel.body, through_cache))

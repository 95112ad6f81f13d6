"""Is a kernel well formed? Names, ranks, dtypes, scopes, promises of loop kinds; and which accesses are in bounds.

What `problems` finds is a bug of the pass that made the kernel. `unproved_accesses` is weaker: an access that it lists
may still be fine, ir/proofs could not show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import BOOL
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import (
    FIXED,
    PUT_FUNCTIONS,
    Alloc,
    Buffer,
    Call,
    Check,
    For,
    If,
    Kernel,
    Prefetch,
    Put,
    Statement,
    walk,
)
from intarsia.ir.kernel_access import expressions, holds_one_write, sizes_of
from intarsia.ir.kernel_scan import scan_problem
from intarsia.ir.kernel_text import print_statement
from intarsia.ir.preparation import preparation_problems
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Expr, Load, loads
from intarsia.ir.sizes import Size


def verify_kernel(kernel: Kernel) -> None:
    """Raises AssertionError, with every problem in its message, if the kernel is not well formed."""
    found = problems(kernel)
    assert not found, f"kernel {kernel.name}: " + "; ".join(found)


def problems(kernel: Kernel) -> tuple[str, ...]:
    """What is wrong with a kernel, in the order of its text."""
    return (*_names(kernel), *_Structure(kernel).check(), *preparation_problems(kernel))


def _names(kernel: Kernel) -> Iterator[str]:
    for word in ("warps", "stages", "programs"):
        if getattr(kernel, word) < 0:
            yield f"{getattr(kernel, word)} {word}"
    axes = [s.axis for s, _ in walk(kernel.body) if isinstance(s, For)]
    buffers = [b.name for b in kernel.parameters]
    buffers += [s.buffer.name for s, _ in walk(kernel.body) if isinstance(s, Alloc)]
    for name, count in Counter((*axes, *buffers, *kernel.sizes)).items():
        if count > 1:
            yield f"the name {name} is used {count} times"
    for buffer in kernel.parameters:
        if buffer.memory != "global":
            yield f"parameter {buffer.name} is {buffer.memory}"
        if buffer.described and buffer.length is not None:
            yield f"list {buffer.name} is described"
        if buffer.length is not None and buffer.role != "in":
            yield f"list {buffer.name} is written"
        if buffer.constant and buffer.role != "in":
            yield f"constant {buffer.name} is written"


@dataclass(frozen=True)
class _Scope:
    """What a statement may use: loops around it, by axis, and buffers."""

    loops: dict[str, For]
    buffers: dict[str, Buffer]
    sizes: frozenset[str]

    def with_loop(self, loop: For) -> _Scope:
        return _Scope({**self.loops, loop.axis: loop}, dict(self.buffers), self.sizes)

    def inner(self) -> _Scope:
        return _Scope(self.loops, dict(self.buffers), self.sizes)


class _Structure:
    """The walk that checks statements in their scopes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.found: list[str] = []

    def check(self) -> list[str]:
        scope = _Scope({}, {b.name: b for b in self.kernel.parameters}, frozenset(self.kernel.sizes))
        for buffer in self.kernel.parameters:
            for extent in buffer.extents:
                self.size(extent, scope, f"the shape of {buffer.name}")
        self.block(self.kernel.body, scope)
        return self.found

    def block(self, body: tuple[Statement, ...], scope: _Scope) -> None:
        for statement in body:
            self.statement(statement, scope)

    def statement(self, statement: Statement, scope: _Scope) -> None:
        where = print_statement(statement).partition("\n")[0]
        for size in sizes_of(statement):
            self.size(size, scope, where)
        for expression in expressions(statement):
            self.expression(expression, scope, where)
        match statement:
            case For():
                self.loop(statement, where)
                self.block(statement.body, scope.with_loop(statement))
            case If(_, then, otherwise):
                self.block(then, scope.inner())
                self.block(otherwise, scope.inner())
            case Alloc(buffer):
                self.alloc(buffer, scope, where)
                scope.buffers[buffer.name] = buffer
            case Put():
                self.put(statement, scope, where)
            case Prefetch(buffer, indices):
                self.access(buffer, indices, scope, where)
            case Check(_, condition):
                if condition.dtype != BOOL:
                    self.found.append(f"{where}: the condition is {condition.dtype}")
            case Call(_, reads, writes):
                for name, indices in (*reads, *writes):
                    self.access(name, (*indices, Size.of(0)), scope, where)

    def loop(self, loop: For, where: str) -> None:
        if loop.step < 1:
            self.found.append(f"{where}: step {loop.step}")
        if loop.kind in FIXED and (loop.lower.constant is None or loop.upper.constant is None):
            self.found.append(f"{where}: the bounds of a {loop.kind} loop are not numbers")
        if loop.kind == "dot" and not holds_one_write(loop):
            self.found.append(f"{where}: a dot loop holds one write and nothing else")
        if loop.kind == "scan" and (problem := scan_problem(loop)):
            self.found.append(f"{where}: {problem}")

    def alloc(self, buffer: Buffer, scope: _Scope, where: str) -> None:
        if buffer.role != "temp":
            self.found.append(f"{where}: role {buffer.role}")
        for extent in buffer.shape:
            self.size(extent, scope, where)
        if buffer.memory == "register" and any(s.constant is None for s in buffer.shape):
            self.found.append(f"{where}: a register buffer whose shape is not known")

    def put(self, put: Put, scope: _Scope, where: str) -> None:
        buffer = self.access(put.buffer, put.indices, scope, where)
        if buffer is None:
            return
        if put.value.dtype != buffer.dtype:
            self.found.append(f"{where}: {buffer.name} is {buffer.dtype}, the value {put.value.dtype}")
        if put.operator != "=" and not FUNCTIONS[PUT_FUNCTIONS[put.operator]].accepts(buffer.dtype):
            self.found.append(f"{where}: {put.operator} on {buffer.dtype}")
        if buffer.role == "in":
            self.found.append(f"{where}: writes an input")

    def expression(self, expression: Expr, scope: _Scope, where: str) -> None:
        for load in loads(expression):
            buffer = self.access(load.buffer, load.indices, scope, where)
            if buffer is not None and buffer.dtype != load.dtype:
                self.found.append(f"{where}: {load} is read as {load.dtype}, {buffer.name} is {buffer.dtype}")
            if load.other is not None and load.other.dtype != load.dtype:
                self.found.append(f"{where}: {load} gives {load.other.dtype} elsewhere")
        unknown = expression.symbols - scope.loops.keys() - scope.sizes
        if unknown:
            self.found.append(f"{where}: {', '.join(sorted(unknown))} not in scope")

    def size(self, size: Size, scope: _Scope, where: str) -> None:
        unknown = size.symbols - scope.loops.keys() - scope.sizes
        if unknown:
            self.found.append(f"{where}: {', '.join(sorted(unknown))} not in scope")

    def access(self, name: str, indices: tuple[Size, ...], scope: _Scope, where: str) -> Buffer | None:
        buffer = scope.buffers.get(name)
        if buffer is None:
            self.found.append(f"{where}: buffer {name} not in scope")
            return None
        if len(indices) != len(buffer.extents):
            self.found.append(f"{where}: {len(indices)} subscripts of {name}: {buffer}")
        if buffer.memory == "register":
            for axis in sorted({n for i in indices for n in i.symbols} & scope.loops.keys()):
                if scope.loops[axis].kind not in FIXED:
                    self.found.append(
                        f"{where}: register {name} is subscripted by the {scope.loops[axis].kind} axis {axis}"
                    )
        return buffer


# ---------------------------------------------------------------------- bounds


def unproved_accesses(kernel: Kernel, facts: Facts | None = None) -> tuple[str, ...]:
    """The accesses that could not be shown to stay inside their buffers.

    Loop bounds, conditions and masks count as facts, as do sizes not being negative, and `facts`. A value that depends
    on data is unknown unless it is clamped.
    """
    found: dict[str, None] = {}
    buffers = kernel.buffers()
    facts = facts or Facts()
    sizes = tuple(map(Size.of, kernel.sizes))  # as facts of their own they count as known before all axes
    facts = Facts((*sizes, *facts.nonnegative), facts.names | frozenset(kernel.sizes))
    for statement, known in _with_facts(kernel.body, facts):
        own = known.given(*(m - 1 for m in statement.mask)) if isinstance(statement, Put) else known
        places: list[tuple[str, tuple[Size, ...], Facts]] = []
        if isinstance(statement, Put):
            places.append((statement.buffer, statement.indices, own))
        for load in (found_load for e in expressions(statement) for found_load in loads(e)):
            places.append((load.buffer, load.indices, own.given(*(m - 1 for m in load.mask))))
        for name, indices, here in places:
            for index, extent in zip(indices, buffers[name].extents):
                if not (here.proves(index) and here.proves_below(index, extent)):
                    shown = Load(name, indices, buffers[name].dtype)
                    found[f"{shown} of {buffers[name]}: {index} in 0..{extent}"] = None
    return tuple(found)


def _with_facts(body: tuple[Statement, ...], facts: Facts) -> Iterator[tuple[Statement, Facts]]:
    """Every statement with what holds where it runs."""
    for statement in body:
        yield statement, facts
        match statement:
            case For(axis, lower, upper, inner, _, step):
                known = facts.within(axis, lower, upper)
                if facts.is_sum_of_nonnegative(lower):
                    known = replace(known, names=facts.names | {axis})
                if step > 1 and (last := _last(lower, upper, step)) is not None:
                    known = known.given(last - axis)
                yield from _with_facts(inner, known)
            case If(condition, then, otherwise):
                yield from _with_facts(then, facts.given(*(c - 1 for c in condition)))
                # Of several conditions one fails, which one is not known.
                yield from _with_facts(otherwise, facts.given(*(-c for c in condition[:1] if len(condition) == 1)))


def _last(lower: Size, upper: Size, step: int) -> Size | None:
    """The last value of an axis with a step, if it can be said without a quotient."""
    extent = upper - lower
    if all(c % step == 0 for _, c in extent.terms):
        return upper - step
    if extent.constant is not None:
        return lower + (extent.constant - 1) // step * step
    return None

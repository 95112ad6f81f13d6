"""What the emitter must know of a kernel before it starts: how each loop is written, and where each temporary lives.

Nothing is chosen here. A loop is written as its kind says, or one element after another where that cannot be done (a
`lane` loop of unknown length, or around another one): kinds never change the meaning. A `register` buffer is held in
registers if every subscript is known when the code is written, else in memory; a small buffer of another memory is held
in registers too where that is so, as a compiler does with local variables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from intarsia.ir.kernel import Alloc, Buffer, Call, Check, For, If, Kernel, Prefetch, Put, Statement
from intarsia.ir.scalar import Expr, Index, Load
from intarsia.ir.sizes import Size

Mode: TypeAlias = Literal["sequential", "unrolled", "lanes", "dot", "parallel"]

WRITTEN_OUT: frozenset[Mode] = frozenset({"unrolled", "dot"})
"""Modes of loops whose axes are numbers while the code is written."""

_MOST_LANES = 256
_MOST_REGISTERS = 4096  # elements of one register buffer
_FEW_VECTORS = 32  # of a buffer that the schedule has not put into registers


@dataclass(frozen=True)
class Layout:
    """How a register buffer is held: dimension `dimension` in vectors of `lanes`, the others apart.

    A buffer that is `private` to the iterations of a lane loop has one lane for each of them in every element.
    """

    dimension: int | None = None
    lanes: int = 1
    private: bool = False


@dataclass(frozen=True)
class Access:
    """One subscripted use of a buffer, with the loops around it from the outermost."""

    buffer: str
    indices: tuple[Size, ...]
    loops: tuple[For, ...]
    is_write: bool


@dataclass(frozen=True)
class Analysis:
    """The mode of every loop by its axis, and the layout of every buffer that is held in registers."""

    modes: dict[str, Mode]
    registers: dict[str, Layout]

    @property
    def is_scalar(self) -> bool:
        """Has no schedule made vectors of any loop?"""
        return "lanes" not in self.modes.values()


def analyse(kernel: Kernel) -> Analysis:
    modes: dict[str, Mode] = {}
    _choose_modes(kernel.body, modes, frozenset(), inside_parallel=False, inside_lanes=False)
    accesses: dict[str, list[Access]] = {}
    for access in uses(kernel.body):
        accesses.setdefault(access.buffer, []).append(access)
    registers: dict[str, Layout] = {}
    for buffer, loops in allocations(kernel.body):
        layout = _layout(buffer, loops, accesses.get(buffer.name, []), modes)
        if layout is not None and (buffer.memory == "register" or _vectors(buffer, layout) <= _FEW_VECTORS):
            registers[buffer.name] = layout
    return Analysis(modes, registers)


# ---------------------------------------------------------------------- loops


def trip_count(loop: For) -> int | None:
    """How many iterations, if that is a number."""
    length = (loop.upper - loop.lower).constant
    return None if length is None else max(0, -(-length // loop.step))


def _choose_modes(
    body: tuple[Statement, ...],
    modes: dict[str, Mode],
    known: frozenset[str],
    *,
    inside_parallel: bool,
    inside_lanes: bool,
) -> None:
    """`known` are the axes whose values are numbers while the code is written."""
    for statement in body:
        match statement:
            case For():
                mode = _mode(statement, known, inside_parallel=inside_parallel, inside_lanes=inside_lanes)
                modes[statement.axis] = mode
                _choose_modes(
                    statement.body,
                    modes,
                    known | {statement.axis} if mode in WRITTEN_OUT else known,
                    inside_parallel=inside_parallel or mode == "parallel",
                    inside_lanes=inside_lanes or mode == "lanes",
                )
            case If(_, then, otherwise):
                for arm in (then, otherwise):
                    _choose_modes(arm, modes, known, inside_parallel=inside_parallel, inside_lanes=inside_lanes)


def _mode(loop: For, known: frozenset[str], *, inside_parallel: bool, inside_lanes: bool) -> Mode:
    count = trip_count(loop)
    countable = (loop.lower.symbols | loop.upper.symbols) <= known
    match loop.kind:
        case "parallel" | "grid" if not (inside_parallel or inside_lanes):
            return "parallel"
        case "unroll":
            return "unrolled" if countable else "sequential"
        case "dot":
            return ("dot" if inside_lanes else "unrolled") if countable else "sequential"
        case "lane":
            if count is not None and 1 < count <= _MOST_LANES and not inside_lanes and _fits_lanes(loop):
                return "lanes"
            return "unrolled" if countable and count is not None and count <= 64 else "sequential"
    return "sequential"


def _fits_lanes(loop: For) -> bool:
    """Can the whole body run for all iterations at once? Control flow must be the same for all of them."""
    axis = loop.axis
    private = {s.buffer.name for s in statements(loop.body) if isinstance(s, Alloc)}

    def uniform(size: Size) -> bool:
        return axis not in size.symbols and not any(load.buffer in private for load in loads_of_size(size))

    for statement in statements(loop.body):
        match statement:
            case For():
                if statement.kind in ("lane", "parallel", "grid"):
                    return False
                if not (uniform(statement.lower) and uniform(statement.upper)):
                    return False
            case If(condition):
                if not all(map(uniform, condition)):
                    return False
            case Alloc(buffer):
                if buffer.memory != "register":
                    return False
            case Call():
                return False
    return all(axis not in i.symbols for a in uses(loop.body) if a.buffer in private for i in a.indices)


# ---------------------------------------------------------------------- registers


def _layout(buffer: Buffer, outside: tuple[For, ...], accesses: list[Access], modes: dict[str, Mode]) -> Layout | None:
    """The layout of a buffer allocated inside the loops `outside`; None if it has to be in memory."""
    elements = 1
    for extent in buffer.shape:
        if extent.constant is None:
            return None
        elements *= extent.constant
    if elements > _MOST_REGISTERS:
        return None
    private = any(modes[loop.axis] == "lanes" for loop in outside)
    best: Layout | None = None
    for access in sorted(accesses, key=lambda a: not a.is_write):
        inner = access.loops[len(outside) :]
        if any(modes[loop.axis] == "parallel" for loop in inner):
            return None
        lane = next((loop for loop in access.loops if modes[loop.axis] == "lanes"), None)
        static = {loop.axis for loop in access.loops if modes[loop.axis] in WRITTEN_OUT}
        dimension = _lane_dimension(access.indices, lane, static)
        if dimension == "none":
            continue
        if dimension == "many" or private:
            return None
        assert isinstance(dimension, int) and lane is not None
        if best is None:
            best = Layout(dimension, trip_count(lane) or 1)
    if private:
        lane = next(loop for loop in outside if modes[loop.axis] == "lanes")
        return Layout(None, trip_count(lane) or 1, private=True)
    return best or Layout()


def _vectors(buffer: Buffer, layout: Layout) -> int:
    """How many registers a buffer takes."""
    elements = math.prod(int(extent) for extent in buffer.shape)
    return elements if layout.private else -(-elements // layout.lanes)


def _lane_dimension(indices: tuple[Size, ...], lane: For | None, static: set[str]) -> int | Literal["none", "many"]:
    """Which dimension the lanes run along; "many" also stands for subscripts that are not known."""
    found: int | Literal["none", "many"] = "none"
    for dimension, index in enumerate(indices):
        names = index.symbols - static
        if not index.opaques and not names:
            continue
        if index.opaques or lane is None or names != {lane.axis} or not index.coefficient(lane.axis):
            return "many"
        if not lane.lower.symbols <= static:
            return "many"
        if found != "none":
            return "many"
        found = dimension
    return found


# ---------------------------------------------------------------------- walking


def statements(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """Every statement, a loop before what is in it."""
    for statement in body:
        yield statement
        match statement:
            case For():
                yield from statements(statement.body)
            case If(_, then, otherwise):
                yield from statements(then)
                yield from statements(otherwise)


def allocations(body: tuple[Statement, ...], loops: tuple[For, ...] = ()) -> Iterator[tuple[Buffer, tuple[For, ...]]]:
    """Every temporary with the loops around it."""
    for statement in body:
        match statement:
            case Alloc(buffer):
                yield buffer, loops
            case For():
                yield from allocations(statement.body, (*loops, statement))
            case If(_, then, otherwise):
                yield from allocations((*then, *otherwise), loops)


def uses(body: tuple[Statement, ...], loops: tuple[For, ...] = ()) -> Iterator[Access]:
    """Every use of every buffer."""
    for statement in body:
        match statement:
            case For(_, lower, upper, inner):
                yield from _uses_in_sizes((lower, upper), loops)
                yield from uses(inner, (*loops, statement))
            case If(condition, then, otherwise):
                yield from _uses_in_sizes(condition, loops)
                yield from uses((*then, *otherwise), loops)
            case Put(buffer, indices, _, value, mask):
                yield Access(buffer, indices, loops, is_write=True)
                yield from _uses_in_sizes((*indices, *mask), loops)
                yield from _uses_in_expressions((value,), loops)
            case Check(_, condition, values):
                yield from _uses_in_expressions((condition, *values), loops)
            case Call(_, reads, writes, length):
                for name, indices in (*reads, *writes):
                    # The row is taken as a whole: its subscript is not known.
                    row = (*indices, Size.opaque(Index(length)))
                    yield Access(name, row, loops, is_write=(name, indices) in writes)
                    yield from _uses_in_sizes(indices, loops)
            case Prefetch(_, indices):
                yield from _uses_in_sizes(indices, loops)


def _uses_in_sizes(sizes: tuple[Size, ...], loops: tuple[For, ...]) -> Iterator[Access]:
    for size in sizes:
        for load in loads_of_size(size):
            yield Access(load.buffer, load.indices, loops, is_write=False)


def _uses_in_expressions(expressions: tuple[Expr, ...], loops: tuple[For, ...]) -> Iterator[Access]:
    for expression in expressions:
        for load in loads_of(expression):
            yield Access(load.buffer, load.indices, loops, is_write=False)


def loads_of_size(size: Size) -> Iterator[Load]:
    for value in size.opaques:
        yield from loads_of(value)


def loads_of(expression: Expr) -> Iterator[Load]:
    """Every load, shared sub-expressions once, those in subscripts and masks included."""
    seen: set[int] = set()
    stack = [expression]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        stack.extend(e.children)
        match e:
            case Load():
                yield e
                stack.extend(o for i in (*e.indices, *e.mask) for o in i.opaques)
            case Index(size):
                stack.extend(size.opaques)

"""The last part of a default schedule: what comes from memory is fetched early, what goes there bypasses the caches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from intarsia.ir.kernel import For, Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import Nontemporal, Prefetch
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import LINE, bytes_of, count, operations, readings, stride

AHEAD = (8192, 0, 2048, 4096, 16384)
"""Bytes that a single pass over memory fetches ahead: two pages are likeliest; the machine itself stops at the end of
one."""

AGAIN = 4
"""How often a pass reads each element, from which on fetching it for each time costs more than waiting for it once."""

REST = 16
"""A row of which at most one part in so many stands apart, as what fills no vector does, is one piece with the next."""

DENSE = 12
"""Operations of one element from which on a pass leaves the machine's own prefetchers too little room."""

WHOLE = 8
"""Cache lines written one after the other from which on the ends of them do not matter."""


@dataclass(frozen=True)
class _Pass:
    """A statement that reads a buffer along a vector, all loops around it, and those that go one after the other."""

    put: Put
    load: Load
    around: tuple[For, ...]
    loops: tuple[For, ...]


def fetch_early(b: Builder) -> None:
    """Fetch rows of large inputs before they are needed.

    Where several passes run over a row, the first one waits for memory; the second one, which finds the row in the
    cache, fetches the next row meanwhile. A single pass that computes much, or reduces what lies together, fetches its
    own row ahead.
    """
    for buffer in b.kernel.inputs:
        if bytes_of(buffer) < b.target.caches[1]:
            continue
        for top in b.outermost():
            passes = _passes(b, buffer.name, top)
            if len(passes) > 1:
                _fetch_next_row(b, buffer.name, passes)
            elif passes:
                is_likely = _reduces_much(b, passes[0]) or operations(passes[0].put.value) > DENSE
                ahead = b.choose(f"bytes ahead of {buffer.name}", AHEAD if is_likely else (0, *AHEAD))
                if ahead:
                    _fetch_ahead(b, buffer.name, passes[0], ahead)


def _reduces_much(b: Builder, one: _Pass) -> bool:
    """Does a pass only reduce, and long enough to profit?"""
    return one.put.operator != "=" and _run(b, one) >= 2 * AHEAD[0]


def _passes(b: Builder, name: str, top: For) -> list[_Pass]:
    """The passes over a buffer in a nest, one for each loop, and for each result: first and last iterations may stand
    apart."""
    found: dict[str, _Pass] = {}
    buffers = b.kernel.buffers()
    for statement, around in walk((top,)):
        if not isinstance(statement, Put) or not around or around[-1].kind != "lane":
            continue
        loops = tuple(loop for loop in around if loop.kind not in ("lane", "unroll"))
        for load in loads(statement.value):
            along = load.buffer == name and stride(buffers[name], load.indices, around[-1].axis) == 1
            along = along and readings(buffers[name], load, around) < AGAIN
            if along and loops and loops[-1].axis in load.symbols:
                other = found.get(statement.buffer)
                if other is None or count(trips(other.loops[-1])) < count(trips(loops[-1])):
                    found[statement.buffer] = _Pass(statement, load, around, loops)
    passes: dict[str, _Pass] = {}
    for one in found.values():
        passes.setdefault(one.loops[-1].axis, one)
    return list(passes.values())


def _fetch_next_row(b: Builder, name: str, passes: list[_Pass]) -> None:
    """Let the second pass fetch what the next iteration of the loop around it and the first one reads, if that fits a
    cache."""
    first, second = passes[:2]
    shared = [a for a, b in zip(first.loops, second.loops) if a.axis == b.axis]
    if not shared or not any(shared[-1].axis in i.symbols for i in second.load.indices):
        return
    row = math.prod(count(trips(x)) for x in _inside(b, shared[-1], second)) * second.load.dtype.bytes
    if LINE * 4 <= row <= b.target.caches[1] // 4:
        b.attempt(Prefetch(name, second.put.buffer, shared[-1].axis, 1, 1 if row <= b.target.caches[0] // 2 else 2))


def _inside(b: Builder, row: For, one: _Pass) -> list[For]:
    """The loops of a pass inside that over rows, along which it moves through its buffer."""
    around = next(around for statement, around in walk((row,)) if statement is one.put)
    return [loop for loop in around[1:] if loop.axis in one.load.symbols]


def _run(b: Builder, one: _Pass) -> int:
    """How many bytes that lie together a pass goes through from the first to the last, perhaps in several rows."""
    buffer = b.kernel.buffers()[one.load.buffer]
    run = buffer.dtype.bytes
    for loop in reversed(one.around):
        step = stride(buffer, one.load.indices, loop.axis)
        apart = (step or 0) * loop.step * buffer.dtype.bytes
        if run <= apart <= run + run // REST:
            run = apart * count(trips(loop))
        elif loop.kind != "unroll":
            break
    return run


def _fetch_ahead(b: Builder, name: str, one: _Pass, ahead: int) -> None:
    """Fetch what a pass reads some iterations later; not what it reads across the vectors too, line by line."""
    buffer = b.kernel.buffers()[name]
    lane = next(around[-1].axis for statement, around in walk(b.kernel.body) if statement is one.put)
    if any(stride(buffer, x.indices, lane) not in (0, 1) for x in loads(one.put.value) if x.buffer == name):
        return
    step = stride(b.kernel.buffers()[name], one.load.indices, one.loops[-1].axis)
    if step and len(one.loops) > 1:
        b.attempt(Prefetch(name, one.put.buffer, one.loops[-1].axis, max(1, ahead // (step * one.load.dtype.bytes))))


def bypassing(b: Builder, repeated: bool = False) -> list[str]:
    """The results that could not stay in the caches anyway. What the next step of a loop may read stays as long as
    there is any room for it."""
    last = b.target.caches[-1]
    if sum(bytes_of(buffer) for buffer in b.kernel.parameters) < (last if repeated else last // 2):
        return []
    return [buffer.name for buffer in b.kernel.outputs if bytes_of(buffer) >= last // 4]


def bypass_caches(b: Builder, repeated: bool) -> None:
    """Write whole vectors of such results past the caches, where what is written together are whole lines."""
    written: dict[str, list[bool]] = {}
    for statement, around in walk(b.kernel.body):
        if isinstance(statement, Put) and any(loop.kind == "lane" for loop in around):
            written.setdefault(statement.buffer, []).append(_fills_lines(b, statement, around))
    likely, large = bypassing(b, repeated), b.target.caches[min(1, len(b.target.caches) - 1)]
    for name in [buffer.name for buffer in b.kernel.outputs if bytes_of(buffer) >= large]:
        places = ["past the caches", "to the caches"] if name in likely else ["to the caches", "past the caches"]
        if repeated:
            del places[1:]  # a kernel that is timed by itself says nothing about who reads this next
        if any(written.get(name, ())) and b.choose(f"writes of {name}", places) == "past the caches":
            b.attempt(Nontemporal(name))


def _fills_lines(b: Builder, put: Put, around: tuple[For, ...]) -> bool:
    """Are most of the cache lines that a statement writes written from end to end at once? If not, a line would go to
    memory in pieces."""
    buffer = b.kernel.buffers()[put.buffer]
    together = buffer.dtype.bytes
    for loop in reversed(around):
        step = stride(buffer, put.indices, loop.axis)
        apart = None if step is None else step * buffer.dtype.bytes
        if apart is None or together >= WHOLE * LINE or apart % LINE == together % LINE == 0:
            break
        if apart != together:
            return False
        together *= count(trips(loop))
    return True

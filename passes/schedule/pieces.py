"""Reductions in pieces on a GPU: what is reduced stays a block until the last piece, and is one number only then."""

from __future__ import annotations

from intarsia.ir.kernel import LANES, For, Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.schedule import Accumulate
from intarsia.passes.schedule.builder import Builder


def keep_pieces(b: Builder, top: str) -> None:
    """Let every reduction along lanes that runs in several steps add up block by block in the loop nest of `top`.

    Before:  for j.0 { lane j.1 { s += x[2048 * j.0 + j.1] } }
    After:   for j.0 { lane j.1 { t[j.1] += x[2048 * j.0 + j.1] } }; lane j.2 { s += t[j.2] }
    """
    for statement, around in walk((b.loop(top),)):
        if not isinstance(statement, Put) or statement.operator == "=":
            continue
        used = frozenset().union(*(i.symbols for i in statement.indices))
        reduced = [loop for loop in around if loop.axis not in used]
        steps = [loop for loop in reduced if loop.kind == "seq" and trips(loop).constant != 1]
        if (first := _outermost_of(steps, around)) is None:
            continue
        inside = around[around.index(first) :]
        if lanes := tuple(loop.axis for loop in reduced if loop.kind in LANES and loop in inside):
            b.attempt(Accumulate(statement.buffer, first.axis, b.fresh(statement.buffer), "register", "add", lanes))


def _outermost_of(steps: list[For], around: tuple[For, ...]) -> For | None:
    """The outermost of the innermost loops around a write that hold nothing else and are steps, or lanes between."""
    found = None
    for n in range(len(around) - 1, -1, -1):
        loop = around[n]
        if n + 1 < len(around) and loop.body != (around[n + 1],):
            break
        if loop in steps:
            found = loop
        elif loop.kind == "grid":
            break
    return found

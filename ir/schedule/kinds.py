"""The schedule steps that say how the iterations of a loop run."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import OfAxes


@dataclass(frozen=True)
class Vectorize(OfAxes):
    """Run the iterations of loops at once, as the lanes of a vector: `vectorize j`.

        for j in 0..16 { y[j] = x[j] }   ->   lane j in 0..16 { y[j] = x[j] }

    The bounds are numbers. Refused where one iteration needs what another makes; a write that accumulates over the axis
    is fine: the lanes are reduced.
    """


@dataclass(frozen=True)
class Unroll(OfAxes):
    """Write the iterations of loops out one after the other: `unroll i`. The bounds are numbers."""


@dataclass(frozen=True)
class Parallel(OfAxes):
    """Let threads share the iterations of loops: `parallel i`. Refused where one iteration touches what another writes;
    accumulating writes count, unless they are atomic."""


@dataclass(frozen=True)
class Grid(OfAxes):
    """Let the programs of a GPU launch share the iterations of loops: `grid i`. Refused as `parallel` is."""

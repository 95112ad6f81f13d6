"""Is the core that something is timed on ours alone just now?

A core often runs two threads, and where machines are rented the other one may be somebody else's. While that one
computes, what depends on how fast instructions come takes up to 1.6 times as long, for milliseconds or for seconds, and
nothing in this system tells. A sum of Python's numbers takes as much longer: it is asked before and after what is
timed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

NUMBERS = tuple(range(3000))
"""What is summed: some ten microseconds."""

ASKED = 2
"""Times that they are summed, of which the least counts: an interrupt is no neighbour."""

SLOWER = 1.25
"""By how much that takes longer than ever if the core is shared."""

PAUSE = 1e-3
"""Seconds between two questions."""


@dataclass
class Calm:
    """How fast the sum was at best."""

    _least: float = math.inf

    def is_calm(self) -> bool:
        """Is the sum about as fast as it ever was?"""
        took = min(_sum() for _ in range(ASKED))
        self._least = min(self._least, took)
        return took <= SLOWER * self._least

    def wait(self, patience: float) -> float:
        """Wait until it is, for so many seconds at most; returns how many are left of them."""
        end = time.monotonic() + patience
        while not self.is_calm() and time.monotonic() < end:
            time.sleep(PAUSE)
        return max(0.0, end - time.monotonic())


CALM = Calm()
"""One for the process: what it compares with must have been seen once."""


def _sum() -> float:
    start = time.perf_counter()
    sum(NUMBERS)
    return time.perf_counter() - start

"""Timing by medians, and numbers with units."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def elapsed(call: Callable[[], object]) -> float:
    """Seconds of one run, by the clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(call: Callable[[], object], seconds: float = 1.0, most: int = 200) -> list[float]:
    """Seconds of each of several runs after a warm-up, for about `seconds` in total."""
    return samples(lambda: elapsed(call), seconds, most)


def samples(timed: Callable[[], float], seconds: float = 1.0, most: int = 200) -> list[float]:
    """The same for what says itself how long it took."""
    timed()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or (len(found) < most and time.perf_counter() < end):
        found.append(timed())
    return found


def median_and_spread(samples: Sequence[float]) -> tuple[float, float]:
    """Median, and the distance between the quartiles."""
    ordered = sorted(samples)
    quarter = len(ordered) // 4
    return statistics.median(ordered), ordered[-1 - quarter] - ordered[quarter]


def duration_text(seconds: float) -> str:
    """`1.5 s`, `20 ms` or `7.1 us`: three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size_text(count: float) -> str:
    """`512 B`, `3.2 KiB`, …: three digits or more."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, of which each row has as many texts."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]

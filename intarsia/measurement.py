"""Timing by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def measure(call: Callable[[], object], seconds: float = 1.0, most: int = 200) -> list[float]:
    """Seconds of each of several runs after a warm-up, for about `seconds` in total."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or (len(samples) < most and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return samples


def median_and_spread(samples: Sequence[float]) -> tuple[float, float]:
    """Median, and the distance between the quartiles."""
    ordered = sorted(samples)
    quarter = len(ordered) // 4
    return statistics.median(ordered), ordered[-1 - quarter] - ordered[quarter]

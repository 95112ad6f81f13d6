"""Does a program gain by the schedules that were found for its kernels, each by itself?

In a program a kernel finds other data in the caches, and leaves other data there, than when it is run again and again.
So the whole program is timed as well. First with all schedules that were found, and with all but one, by turns: one
without which the program is faster is not taken. Then with those that are left, and with none: if the program is not
faster with them, none is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeAlias

from intarsia.tuning.measuring import by_turns

LEAST_ROUNDS, MOST_ROUNDS = 7, 40
"""How often versions of a program take turns, unless they are so slow that a few times have to do."""

SLOW_ROUNDS = 3
"""Rounds in any case."""

TURN = 20e-3
"""Seconds that a version is run in each of its turns, at least once."""

Run: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Verdict:
    """Seconds of a program with default schedules, and with those that are taken; the kernels that keep the default
    one."""

    before: float
    after: float
    kept: frozenset[str]


def check_program(
    names: Collection[str],
    version: Callable[[frozenset[str]], Run],
    seconds: float,
    progress: Callable[[int], object] = lambda rounds: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Which of these kernels should keep their default schedules. `version` makes the program with the schedules that
    were found for some of them. It takes about so many seconds, more where a few runs take longer."""
    every = taken = frozenset(names)

    def timed(ways: Sequence[frozenset[str]]) -> list[list[float]]:
        return _take_turns(list(map(version, ways)), seconds / 2, progress, clock)

    if len(every) > 1:
        order = sorted(every)
        together, *others = timed([every, *(every - {name} for name in order)])
        taken -= {name for name, without in zip(order, others) if is_faster(without, together)}
    after, before = timed([taken, frozenset()])
    if not is_faster(after, before):
        taken, after = frozenset(), before
    return Verdict(median(before), median(after), every - taken)


def is_faster(some: Sequence[float], others: Sequence[float]) -> bool:
    """Is one version clearly faster than another: in three of four rounds?"""
    return _quartiles(some, others)[1] < 1


def _quartiles(some: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile of the ratio of both, of the same round each."""
    low, _, high = quantiles([a / b for a, b in zip(some, others)], method="inclusive")
    return low, high


def _take_turns(
    runs: Sequence[Run], seconds: float, progress: Callable[[int], object], clock: Callable[[], float]
) -> list[list[float]]:
    """Seconds of each version in every round, until it is clear which of the others are faster than the first one, or
    the time is over."""
    samples: list[list[float]] = [[] for _ in runs]
    start = clock()
    for run in runs:
        run()  # memory is there, and code in the caches
    for count in range(1, MOST_ROUNDS + 1):
        for n in by_turns(len(runs), count):
            samples[n].append(_turn(runs[n], clock))
        progress(count)
        is_over = count >= SLOW_ROUNDS and clock() - start >= seconds
        if is_over or (count >= LEAST_ROUNDS and all(_is_clear(own, samples[0]) for own in samples[1:])):
            break
    return samples


def _is_clear(some: Sequence[float], others: Sequence[float]) -> bool:
    low, high = _quartiles(some, others)
    return low > 1 or high < 1


def _turn(run: Run, clock: Callable[[], float]) -> float:
    """The least seconds of the runs of one turn."""
    start, least = clock(), float("inf")
    while (before := clock()) - start < TURN:
        run()
        least = min(least, clock() - before)
    return least

"""Times of schedules of one kernel: each is compiled, checked against the default one, and timed by turns with the
others, so that a slow spell of the machine hits all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.candidates import Candidate
from intarsia.tuning.benches import Bench, Runnable, bench_of
from intarsia.tuning.calls import ONCE, Runs


@dataclass(frozen=True)
class Rounds:
    """How often candidates take turns, and how often at most one whose best rounds still differ. patience: seconds, in
    all, to wait until nobody else uses the core."""

    least: int = 3
    most: int = 6
    patience: float = 0.2


TURNS = 3
"""After so many rounds, a round begins with the same candidate again."""

HOPELESS = 4.0
"""What was so many times slower than the best one in two rounds is not timed again."""

QUIET = 0.08
"""How far the second best round may lie above the best one: beyond, nobody knows the time, and it is not kept."""

TOLERANCE = {16: 3e-2, 32: 2e-3, 64: 1e-9}
"""How far results may differ from those of the default schedule, in units of the largest one, by bits of a float: sums
are added in another order."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: the median of all samples in the best round. spread: how far the second best round was above
    that, as a part of it; of a single round, how far its median was above its least sample. runs: samples in all."""

    seconds: float
    spread: float
    runs: int

    @property
    def is_quiet(self) -> bool:
        return self.spread <= QUIET


REFUSED = Timing(math.inf, math.inf, 0)
"""Of a schedule that the tools refuse, because a core has no room for it."""


class WrongResult(Exception):
    """A candidate computes something else than the default schedule: a fault of the compiler."""


class Stopwatch:
    """Times candidates for one kernel on a bench. What a run reads and writes stays the same for all. Its time is the
    mean of several `runs` with other sizes, where the kernel has sizes."""

    def __init__(self, bench: Bench, runs: Runs = ONCE, rounds: Rounds = Rounds()) -> None:
        self._bench = bench
        self._calls = len(runs)
        self._rounds = rounds
        self._wanted: list[Array] | None = None
        self._runs: dict[str, Runnable | None] = {}

    @staticmethod
    def of(kernel: Kernel, target: Target, seed: int = 0, runs: Runs = ONCE, rounds: Rounds = Rounds()) -> Stopwatch:
        """For a naive kernel, on the machine that a target is."""
        return Stopwatch(bench_of(kernel, target, runs, seed), runs, rounds)

    def time(self, candidates: Sequence[Candidate], progress: Callable[[], object] = lambda: None) -> list[Timing]:
        """Their times, in order: of hopeless ones after two rounds, of unsteady ones after more than of others, and
        `REFUSED`. The first one is taken to be right if none was timed before. Raises WrongResult."""
        new = [c for c in candidates if str(c.schedule) not in self._runs]
        for candidate, run in zip(new, self._bench.compiled([c.kernel for c in new])):
            self._runs[str(candidate.schedule)] = run
            if run is not None:
                self._require_right(run, candidate)
        runs = [self._runs[str(c.schedule)] for c in candidates]
        samples: list[list[list[float]]] = [[] for _ in runs]
        with self._bench.undisturbed(self._rounds.patience):
            for round_ in range(self._rounds.most):
                for n in by_turns(len(runs), round_):
                    run = runs[n]
                    least = min((min(s) for own in samples for s in own), default=0.0)
                    hopeless = round_ > 1 and samples[n] and min(map(min, samples[n])) > HOPELESS * least
                    is_open = round_ < self._rounds.least or not self._timing(samples[n]).is_quiet
                    if run is not None and is_open and not hopeless:
                        samples[n].append(run.samples())
                progress()
        return [self._timing(own) for own in samples]

    def _timing(self, rounds: Sequence[Sequence[float]]) -> Timing:
        """One round whose median is near the best one says that this was no accident."""
        if not rounds:
            return REFUSED
        medians = sorted(map(statistics.median, rounds))
        next_best = medians[1] / medians[0] if len(rounds) > 1 else medians[0] / min(rounds[0])
        return Timing(medians[0] / self._calls, next_best - 1, sum(map(len, rounds)))

    def _require_right(self, run: Runnable, candidate: Candidate) -> None:
        results = run.results()
        if self._wanted is None:
            self._wanted = [np.array(r) for r in results]
        for got, wanted in zip(results, self._wanted):
            if not is_close(got, wanted):
                raise WrongResult(f"{candidate}\n{candidate.schedule}")


def by_turns(count: int, round_: int) -> Iterator[int]:
    """All numbers, from another one on in each round."""
    start = round_ * count // TURNS
    return (n % count for n in range(start, start + count))


def is_close(got: Array, wanted: Array) -> bool:
    """Are two results the same, but for the order of sums? Axes that a schedule has made one are told by the second."""
    got = got.reshape(wanted.shape)
    if got.dtype.kind not in "fV":
        return bool(np.array_equal(got, wanted))
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    finite = np.isfinite(b)
    largest = float(np.max(np.abs(b[finite]), initial=0.0))
    tolerance = TOLERANCE[max(16, got.dtype.itemsize * 8)] * max(largest, 1e-30)
    same = np.array_equal(a[~finite], b[~finite], equal_nan=True)
    return bool(same and np.all(np.abs(a[finite] - b[finite]) <= tolerance))

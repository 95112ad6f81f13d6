"""Times of schedules of one kernel: each is compiled, checked against the default one, and timed by turns with the
others, so that a slow spell of the machine hits all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from intarsia.executable import Executable
from intarsia.ir.dtypes import Array
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.candidates import Candidate
from intarsia.runtime.native import address_of
from intarsia.runtime.threads import THREADS
from intarsia.tuning.calls import ONCE, Runs
from intarsia.tuning.calm import CALM
from intarsia.tuning.isolation import compile_alone, random_inputs
from intarsia.tuning.placing import place, placed
from intarsia.workers import map_in_workers


@dataclass(frozen=True)
class Rounds:
    """How often candidates take turns, and how often at most one whose best rounds still differ. patience: seconds, in
    all, to wait until nobody else uses the core."""

    least: int = 3
    most: int = 6
    patience: float = 0.2


TURNS = 3
"""After so many rounds, a round begins with the same candidate again."""

SAMPLES = 5
"""Samples of a candidate in each round."""

SAMPLE = 300e-6
"""Seconds of a sample at least: shorter runs are repeated."""

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


class WrongResult(Exception):
    """A candidate computes something else than the default schedule: a fault of the compiler."""


class Stopwatch:
    """Times candidates for one kernel on this machine. What a run reads and writes stays the same for all. Its time is
    the mean of several `runs` with other sizes, where the kernel has sizes."""

    def __init__(
        self, kernel: Kernel, target: Target, seed: int = 0, runs: Runs = ONCE, rounds: Rounds = Rounds()
    ) -> None:
        self._kernel = kernel
        self._target = target
        self._sizes = runs
        self._rounds = rounds
        given = random_inputs(kernel, seed)
        results = [np.zeros(tuple(map(int, b.shape)), b.dtype.numpy) for b in kernel.parameters if b.role != "in"]
        arrays = placed([*given, *results])
        self._inputs, self._results = arrays[: len(given)], arrays[len(given) :]
        self._wanted: list[Array] | None = None
        self._runs: dict[str, Callable[[], object]] = {}

    def time(self, candidates: Sequence[Candidate], progress: Callable[[], object] = lambda: None) -> list[Timing]:
        """Their times, in order: of hopeless ones after two rounds, of unsteady ones after more than of others. The
        first one is taken to be right if none was timed before. Raises WrongResult."""
        work = partial(compile_alone, target=self._target, runs=self._sizes)
        new = [c for c in candidates if str(c.schedule) not in self._runs]
        for candidate, executable in zip(new, map_in_workers(work, [c.kernel for c in new])):
            self._runs[str(candidate.schedule)] = self._run_of(executable, candidate)
        runs = [self._runs[str(c.schedule)] for c in candidates]
        samples: list[list[list[float]]] = [[] for _ in runs]
        patience = self._rounds.patience
        with _threads_of(self._target), on_one_core(self._target):
            for round_ in range(self._rounds.most):
                for n in by_turns(len(runs), round_):
                    least = min((min(s) for own in samples for s in own), default=0.0)
                    hopeless = round_ > 1 and min(map(min, samples[n])) > HOPELESS * least
                    if not hopeless and (round_ < self._rounds.least or not self._timing(samples[n]).is_quiet):
                        found, patience = _calm_samples(runs[n], patience)
                        samples[n].append(found)
                progress()
        return [self._timing(own) for own in samples]

    def _timing(self, rounds: Sequence[Sequence[float]]) -> Timing:
        """One round whose median is near the best one says that this was no accident."""
        medians = sorted(map(statistics.median, rounds))
        next_best = medians[1] / medians[0] if len(rounds) > 1 else medians[0] / min(rounds[0])
        return Timing(medians[0] / len(self._sizes), next_best - 1, sum(map(len, rounds)))

    def _run_of(self, executable: Executable, candidate: Candidate) -> Callable[[], object]:
        call, fixed = executable.prepare({}), len(self._inputs) + len(self._results)
        prepared = executable.prepared(self._inputs, {})
        prepared = placed(prepared, fixed) if prepared else []
        workspace = place([call.workspace], fixed + len(prepared)) if call.workspace else []
        inputs, results = ([address_of(a) for a in arrays] for arrays in ((*self._inputs, *prepared), self._results))
        room = address_of(workspace[0]) if workspace else 0
        owners = (executable, prepared, workspace)
        for result in self._results:
            result.view(np.uint8).fill(255)  # what the last candidate left would hide what this one does not write
        call.into(inputs, results, room)
        if self._wanted is None:
            self._wanted = [r.copy() for r in self._results]
        for got, wanted in zip(self._results, self._wanted):
            if not is_close(got, wanted):
                raise WrongResult(f"{candidate}\n{candidate.schedule}")

        def run() -> object:
            call.into(inputs, results, room)
            return owners

        return run


def by_turns(count: int, round_: int) -> Iterator[int]:
    """All numbers, from another one on in each round."""
    start = round_ * count // TURNS
    return (n % count for n in range(start, start + count))


def _calm_samples(run: Callable[[], object], patience: float) -> tuple[list[float], float]:
    """Samples of a round during which nobody else used the core, as far as so many seconds of waiting allow, and what
    is left of these."""
    found: list[float] = []
    while True:
        patience = CALM.wait(patience)
        start = time.perf_counter()
        more = _samples(run)
        found = min(found or more, more, key=statistics.median)
        if not patience or CALM.is_calm():
            return found, patience
        patience = max(0.0, patience - (time.perf_counter() - start))


def _samples(run: Callable[[], object]) -> list[float]:
    run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    repeats = max(1, int(SAMPLE / max(once, 1e-7)))
    found: list[float] = []
    for _ in range(SAMPLES if once < 0.1 else 2):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        found.append((time.perf_counter() - start) / repeats)
    return found


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


@contextmanager
def _threads_of(target: Target) -> Iterator[None]:
    """Run on as many threads as the target has cores, whatever the process uses otherwise."""
    before = THREADS.get()
    THREADS.set(target.cores)
    try:
        yield
    finally:
        THREADS.set(before)


@contextmanager
def on_one_core(target: Target) -> Iterator[None]:
    """Stay on one core while single-threaded code is timed, where the system can do that."""
    if target.cores > 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)

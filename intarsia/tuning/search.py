"""Searching for a fast schedule: candidates are predicted, the best few are measured, and that corrects the prediction.

Each round makes new candidates from the best ones (one decision changed, or choices of two mixed) and from anywhere,
measures those that look fastest and one that is drawn blindly, and then learns how every option of every decision
moves the time away from what was predicted, by ridge regression on the choices. After the evolutionary search of
Zheng et al., "Ansor", OSDI 2020, with a model that is refitted in a millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeAlias

import numpy as np

from intarsia.costmodel.correction import corrected
from intarsia.costmodel.estimating import estimate
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.candidates import Candidate, Space
from intarsia.tuning.calls import SINGLE, Calls
from intarsia.tuning.database import Database, ProblemRow, Row, machine_name
from intarsia.tuning.isolation import problem_key
from intarsia.tuning.measuring import REFUSED, Stopwatch, Timing
from intarsia.tuning.spaces import space_of

BATCH = 6
"""Candidates that are measured together."""

MADE = 24
"""New candidates in each round, of which the most promising are measured."""

MAKING = 3.0
"""Seconds after which a round makes no more of them: schedules of large kernels take a second each."""

PARENTS = 4
"""The best ones, which others are made from."""

PATIENCE = 8
"""Rounds without a better one, or without any new one, after which there is nothing left to find."""

LEAST = 1e-9
"""Seconds: nothing is predicted to take less."""

Predictor: TypeAlias = Callable[[Sequence[Kernel]], Sequence[float]]
"""Seconds of schedules of one kernel, the default one first."""


@dataclass(frozen=True)
class Trial:
    """A candidate that was measured, and when: seconds since the search began."""

    candidate: Candidate
    timing: Timing
    after: float


@dataclass
class Result:
    """What a search of one kernel found. size: about how many candidates there are."""

    kernel: str
    size: int
    trials: list[Trial] = field(default_factory=list)

    def add(self, timed: Sequence[tuple[Candidate, Timing]], after: float) -> None:
        """What was measured `after` so many seconds: new candidates, and known ones, whose better time counts."""
        known = {id(trial.candidate): n for n, trial in enumerate(self.trials)}
        for candidate, timing in timed:
            place = known.get(id(candidate))
            if place is None:
                self.trials.append(Trial(candidate, timing, after))
            elif timing.seconds < self.trials[place].timing.seconds:
                self.trials[place] = replace(self.trials[place], timing=timing)

    @property
    def measured(self) -> list[Trial]:
        """The trials, the fastest first."""
        return sorted(self.trials, key=lambda t: t.timing.seconds)

    @property
    def best(self) -> Trial:
        return self.measured[0]

    @property
    def default(self) -> Trial:
        """The default schedule, which is the first trial."""
        return self.trials[0]

    @property
    def gain(self) -> float:
        """The time of the default schedule over that of the best."""
        return self.default.timing.seconds / self.best.timing.seconds

    def best_so_far(self) -> Iterator[tuple[float, float]]:
        """(seconds since the start, seconds of the best so far) after each trial."""
        best = float("inf")
        for trial in self.trials:
            best = min(best, trial.timing.seconds)
            yield trial.after, best


@dataclass(frozen=True)
class Budget:
    """When a search ends: after so many seconds or trials, whichever comes first."""

    seconds: float = 30.0
    trials: int = 1000


@dataclass(frozen=True)
class Forecast:
    """What a predictor says of the candidates of one kernel on a target; each is asked about once, for reading the
    features off a kernel takes longer than everything else between two batches."""

    default: Candidate
    target: Target
    predict: Predictor
    _known: dict[str, float] = field(default_factory=dict)

    def log_seconds(self, candidates: Sequence[Candidate]) -> list[float]:
        """log2 seconds of candidates, in order."""
        texts = [str(c.schedule) for c in candidates]
        new = {text: c.kernel for text, c in zip(texts, candidates) if text not in self._known}
        seconds = self.predict([self.default.kernel, *new.values()])[1:] if new else []
        self._known.update(zip(new, np.log2(np.maximum(seconds, LEAST)).tolist()))
        return [self._known[text] for text in texts]

    def analytic(self, candidates: Sequence[Candidate]) -> Candidate:
        """The one that the analytic model likes best."""
        return min(candidates, key=lambda c: estimate(c.kernel, self.target).seconds)


def search(
    kernel: Kernel,
    target: Target,
    predict: Predictor,
    budget: Budget,
    database: Database | None = None,
    source: str = "",
    progress: Callable[[Result], None] = lambda result: None,
    seed: int = 0,
    calls: Calls = SINGLE,
) -> Result:
    """Search the schedules of a naive kernel that is called so. Every measurement goes to the database.

    The default schedule and the best one take part in every round, so that what is found is not what a slow spell of
    the machine spared. Raises WrongResult where a candidate computes something else.
    """
    start, random = time.monotonic(), Random(seed)
    space, stopwatch = space_of(kernel, target, calls.is_read_again), Stopwatch.of(kernel, target, runs=calls.runs)
    key, machine = problem_key(kernel, target), machine_name(target)
    problem = ProblemRow(key, "tuned", source, print_kernel(kernel), target.cores)
    result, forecast = Result(kernel.name, space.size), Forecast(space.default, target, predict)
    seen = {str(space.default.schedule)}
    batch, idle = [space.default], 0
    while batch:
        best = result.best.timing.seconds if result.trials else float("inf")
        again = list(dict.fromkeys(t.candidate for t in (result.default, result.best))) if result.trials else []
        timings = stopwatch.time([*again, *batch])
        now = time.monotonic() - start
        timed = [(c, t) for c, t in zip([*again, *batch], timings) if t is not REFUSED]
        result.add(timed, now)
        if database is not None:
            database.add(problem, machine, [Row(key, str(c.schedule), c.choices, t) for c, t in timed])
        progress(result)
        idle = 0 if result.best.timing.seconds < best else idle + 1
        left = budget.trials - len(result.trials)
        if idle >= PATIENCE or left <= 0 or now >= budget.seconds:
            break
        batch = _next(space, result, seen, forecast, random)[:left]
    return result


def _next(space: Space, result: Result, seen: set[str], forecast: Forecast, random: Random) -> list[Candidate]:
    """The candidates to measure next: those that look fastest, and one that anything could be said of. The first time
    the analytic model's favourite is among them, so that no learned model can make a search worse than that."""
    made: list[Candidate] = []
    start = time.monotonic()
    for candidate in _made(space, result, random):
        if (text := str(candidate.schedule)) not in seen:
            seen.add(text)
            made.append(candidate)
        if len(made) == MADE or (made and time.monotonic() - start > MAKING):
            break
    if len(made) <= BATCH:
        return made
    predicted = dict(zip(map(id, made), _corrected(made, result, forecast)))
    blind = made.pop()
    ranked = sorted(made, key=lambda c: predicted[id(c)])
    if len(result.trials) == 1:
        favourite = forecast.analytic(made)
        ranked.remove(favourite)
        ranked.insert(0, favourite)
    seen.difference_update(str(c.schedule) for c in ranked[BATCH - 1 :])  # they may be looked at again
    return [*ranked[: BATCH - 1], blind]


def _made(space: Space, result: Result, random: Random) -> Iterator[Candidate]:
    """New candidates, perhaps known ones among them: from the best, and from anywhere."""
    parents = [t.candidate for t in result.measured[:PARENTS]]
    for n in range(4 * MADE):
        match n % 4:
            case 0 | 1:
                yield space.mutate(random.choice(parents), random)
            case 2 if len(parents) > 1:
                yield space.cross(random.choice(parents), random.choice(parents), random)
            case _:
                yield space.draw(random)


def _corrected(made: Sequence[Candidate], result: Result, forecast: Forecast) -> Sequence[float]:
    """log2 seconds of candidates: the prediction, and by how much predictions were wrong for such choices."""
    timed = [t.candidate for t in result.trials]
    predicted = np.array(forecast.log_seconds([*timed, *made]))
    off = np.log2([t.timing.seconds for t in result.trials]) - predicted[: len(timed)]
    found = corrected([c.choices for c in timed], off, [c.choices for c in made], predicted[len(timed) :])
    return list(map(float, found))

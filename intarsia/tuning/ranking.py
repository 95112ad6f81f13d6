"""Ranking schedules without running any: by the predictor alone, and then by what the code of the best few takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from random import Random

from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.candidates import Candidate, Space
from intarsia.tuning.calls import SINGLE, Calls
from intarsia.tuning.counting import code_text
from intarsia.tuning.search import PARENTS, Budget, Forecast, Predictor
from intarsia.tuning.spaces import space_of
from intarsia.workers import map_in_workers

SHOWN = 4
"""Schedules that are compiled, beside the default one."""

IDLE = 200
"""Candidates in a row that are not the fastest, after which there is nothing left to find."""

ANYWHERE = 0.3
"""The part of them that are drawn from anywhere, and not made from the best ones."""


@dataclass(frozen=True)
class Ranked:
    """A schedule, its predicted seconds, and what its code takes of the machine; None where the tools refuse it."""

    candidate: Candidate
    seconds: float
    code: str | None


@dataclass(frozen=True)
class Ranking:
    """The default schedule and the best others of a kernel, the fastest first. size: about how many there are;
    predicted: how many were looked at."""

    size: int
    predicted: int
    default: Ranked
    best: Sequence[Ranked]


def rank(
    kernel: Kernel, target: Target, predict: Predictor, budget: Budget, calls: Calls = SINGLE, seed: int = 0
) -> Ranking:
    """Look for schedules of a naive kernel that are predicted to be fast: next to the default one, next to the best
    ones, and anywhere."""
    space = space_of(kernel, target, calls.is_read_again)
    seconds = _predicted(space, Forecast(space.default, target, predict), budget, Random(seed))
    default = str(space.default.schedule)
    found = [seconds[default], *_best({text: own for text, own in seconds.items() if text != default}, SHOWN)]
    texts = map_in_workers(partial(code_text, target=target), [candidate.kernel for _, candidate in found])
    first, *others = [Ranked(candidate, own, text) for (own, candidate), text in zip(found, texts)]
    return Ranking(space.size, len(seconds), first, others)


def _predicted(space: Space, forecast: Forecast, budget: Budget, random: Random) -> dict[str, tuple[float, Candidate]]:
    """Predicted seconds of many candidates, by the texts of their schedules."""
    start, found, idle = time.monotonic(), dict[str, tuple[float, Candidate]](), 0
    first, neighbours = iter((space.default,)), space.neighbours()
    while idle < IDLE and (not found or (time.monotonic() - start < budget.seconds and len(found) < budget.trials)):
        candidate = next(first, None) or next(neighbours, None)
        if candidate is None and random.random() < ANYWHERE:
            candidate = space.draw(random)
        elif candidate is None:
            candidate = space.mutate(random.choice(_best(found, PARENTS))[1], random)
        own = 2.0 ** forecast.log_seconds([candidate])[0]
        idle = 0 if not found or own < _best(found, 1)[0][0] else idle + 1
        found.setdefault(str(candidate.schedule), (own, candidate))
    return found


def _best(found: dict[str, tuple[float, Candidate]], count: int) -> list[tuple[float, Candidate]]:
    return nsmallest(count, found.values(), key=lambda own: own[0])

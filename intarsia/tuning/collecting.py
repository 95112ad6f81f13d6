"""Collecting measurements to learn from: schedules of many kernels, timed and kept. Stops and goes on at any time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from zlib import crc32

from intarsia.costmodel.problems import Problem
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.target import Target
from intarsia.options import Options
from intarsia.passes.schedule.candidates import Candidate, Space
from intarsia.tuning.database import Database, ProblemRow, Row, machine_name
from intarsia.tuning.isolation import is_measurable, problem_key
from intarsia.tuning.measuring import Rounds, Stopwatch
from intarsia.tuning.spaces import space_of

EXHAUSTIVE = 500
"""Candidates of a space of which all can be timed."""

ROUNDS = Rounds(5, 15, patience=5.0)
"""More than where tuning is in a hurry: what is learned from should be right."""

UNSURE = 1.2
"""What is dropped might have been the best schedule if it came so near to it; then the best one is not known."""


@dataclass(frozen=True)
class Collected:
    """What came of one kernel. dropped: candidates during which the machine was busy. gain: the time of the
    default schedule over that of the best."""

    problem: ProblemRow
    kept: int
    dropped: int
    gain: float


def kernels_of(text: str, target: Target) -> tuple[Kernel, ...]:
    """The naive kernels of a program with one function `f`, on a target."""
    compilation = Compilation(load(Source("problem.ita", text)).build("f"), {}, Options())
    compilation.target = target
    return tuple(dataclasses.replace(k, name="kernel") for k in compilation.kernels.kernels if is_measurable(k))


def collect(
    problems: Iterator[Problem],
    database: Database,
    target: Target,
    samples: int,
    exhaustive: int,
) -> Iterator[Collected]:
    """Time `samples` schedules of each kernel, or all of them where there are at most `exhaustive`; what is finished
    already is left out. Raises WrongResult where a schedule computes something else."""
    machine = machine_name(target)
    finished = database.finished(machine)
    for problem in problems:
        for kernel in kernels_of(problem.text, target):
            key = problem_key(kernel, target)
            if key in finished:
                continue
            candidates, whole = _choose(space_of(kernel, target), samples, min(exhaustive, EXHAUSTIVE), key)
            timings = Stopwatch.of(kernel, target, rounds=ROUNDS).time(candidates)
            best = min(t.seconds for t in timings)
            whole &= all(t.is_quiet or t.seconds > UNSURE * best for t in timings)
            row = ProblemRow(key, problem.kind, problem.text, print_kernel(kernel), target.cores, whole)
            rows = [Row(key, str(c.schedule), c.choices, t) for c, t in zip(candidates, timings) if t.is_quiet]
            database.add(row, machine, rows)
            database.finish(key, machine, whole)
            finished[key] = whole
            yield Collected(row, len(rows), len(candidates) - len(rows), timings[0].seconds / best)


def _choose(space: Space, samples: int, exhaustive: int, key: str) -> tuple[list[Candidate], bool]:
    """The candidates to time, the default one first, and whether they are all."""
    every = list(islice(space.all(), exhaustive + 1)) if space.size <= 2 * exhaustive else []
    if every and len(every) <= exhaustive:
        return every, True
    return space.sample(samples, Random(crc32(key.encode()))), False

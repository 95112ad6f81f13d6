"""From a database of measurements to the columns that models are fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from intarsia.backends.cpu.counting import Counts
from intarsia.costmodel.dataset import COUNTS, Dataset, Floats
from intarsia.costmodel.features import NAMES_BY_KIND, features
from intarsia.costmodel.tokens import token_features
from intarsia.ir.errors import ScheduleError, Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import Target
from intarsia.passes.schedule.apply import apply
from intarsia.tuning.database import Database, ProblemRow, Row
from intarsia.tuning.spaces import space_of
from intarsia.workers import map_in_workers

LEAST = 3
"""Schedules of a problem at least: fewer say nothing about a choice."""


def dataset_of(
    database: Database, machine: str, target: Target, progress: Callable[[int, int], None] = lambda done, total: None
) -> Dataset:
    """All problems of a machine that were measured in several ways. `target`: that machine; only its cores differ."""
    found = [(problem, rows) for problem in database.problems() if (rows := database.rows(problem.key, machine))]
    read: list[_Read] = []
    step = 32
    for start in range(0, len(found), step):
        read += map_in_workers(partial(_read, target=target), found[start : start + step])
        progress(min(start + step, len(found)), len(found))
    read = [r for r in read if len(r.rows) >= LEAST and r.default is not None]
    lengths = [len(r.rows) for r in read]
    every = [row for r in read for row in r.rows]
    problems = [r.problem for r in read]

    def texts(values: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        return np.array(values, dtype=object)

    return Dataset(
        features=np.concatenate([r.features for r in read]),
        tokens=np.concatenate([r.tokens for r in read]),
        seconds=np.array([r.timing.seconds for r in every], np.float32),
        spread=np.array([r.timing.spread for r in every], np.float32),
        problem=np.repeat(np.arange(len(read)), lengths).astype(np.int32),
        is_default=np.array([n == r.default for r in read for n in range(len(r.rows))]),
        schedule=texts([r.schedule for r in every]),
        choices=texts([json.dumps(dict(r.choices)) for r in every]),
        kind=texts([p.kind for p in problems]),
        source=texts([p.source for p in problems]),
        kernel=texts([p.kernel for p in problems]),
        cores=np.array([p.cores for p in problems], np.int32),
        whole=np.array([p.whole for p in problems]),
        counts=np.concatenate([_counts(database.counts(r.problem.key, machine), r.rows) for r in read]),
        names=NAMES_BY_KIND[target.kind],
        machine=machine,
    )


def _counts(known: Mapping[str, Counts], rows: Sequence[Row]) -> Floats:
    """What was counted in the code of some schedules: (rows, COUNTS), NaN where nothing was."""
    nothing = (np.nan,) * len(COUNTS)
    found = [[getattr(known[r.schedule], n) for n in COUNTS] if r.schedule in known else nothing for r in rows]
    return np.array(found, np.float32)


@dataclass(frozen=True)
class _Read:
    """What is known of a problem: its rows, with the features and token counts of each, and which is the default."""

    problem: ProblemRow
    rows: list[Row]
    default: int | None
    features: Floats
    tokens: Floats


def _read(found: tuple[ProblemRow, list[Row]], target: Target) -> _Read:
    """The rows of one problem whose steps this version can take; some of another version it may not know."""
    problem, rows = found
    kernel = read_kernel(Source("kernel", problem.kernel))
    own = replace(target, cores=problem.cores)
    kept: list[Row] = []
    scheduled: list[Kernel] = []
    for row in rows:
        with suppress(ScheduleError):
            scheduled.append(apply(kernel, Schedule.parse(row.schedule)))
            kept.append(row)
    problem = replace(problem, whole=problem.whole and len(kept) == len(rows))
    default = _default(kept, space_of(kernel, own).default.schedule)
    numbers = np.array([features(k, own) for k in scheduled], np.float32)
    return _Read(problem, kept, default, numbers, np.array([token_features(k) for k in scheduled], np.float32))


def _default(rows: Sequence[Row], schedule: Schedule) -> int | None:
    """Which row is that of the default schedule; where it has changed since, and was not measured, the former one."""
    places = {row.schedule: n for n, row in enumerate(rows)}
    former = next((n for n, row in enumerate(rows) if not row.choices), None)
    return places.get(str(schedule), former)

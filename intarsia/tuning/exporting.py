"""From a database of measurements to the columns that models are fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from intarsia.backends.cpu.counting import Counts
from intarsia.costmodel.dataset import COUNTS, Dataset, Floats
from intarsia.costmodel.features import features
from intarsia.costmodel.tokens import token_features
from intarsia.ir.errors import Source
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import Target
from intarsia.passes.schedule.apply import apply
from intarsia.tuning.database import Database, ProblemRow, Row
from intarsia.workers import map_in_workers

LEAST = 3
"""Schedules of a problem at least: fewer say nothing about a choice."""


def dataset_of(
    database: Database, machine: str, target: Target, progress: Callable[[int, int], None] = lambda done, total: None
) -> Dataset:
    """All problems of a machine that were measured in several ways. `target`: that machine; only its cores differ."""
    found: list[tuple[ProblemRow, list[Row]]] = []
    for problem in database.problems():
        rows = database.rows(problem.key, machine)
        if len(rows) >= LEAST and any(not row.choices for row in rows):
            found.append((problem, rows))
    columns: list[tuple[Floats, Floats]] = []
    step = 32
    for start in range(0, len(found), step):
        columns += map_in_workers(partial(_columns, target=target), found[start : start + step])
        progress(min(start + step, len(found)), len(found))
    lengths = [len(rows) for _, rows in found]
    every = [row for _, rows in found for row in rows]
    problems = [problem for problem, _ in found]

    def texts(values: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        return np.array(values, dtype=object)

    return Dataset(
        features=np.concatenate([f for f, _ in columns]),
        tokens=np.concatenate([t for _, t in columns]),
        seconds=np.array([r.timing.seconds for r in every], np.float32),
        spread=np.array([r.timing.spread for r in every], np.float32),
        problem=np.repeat(np.arange(len(found)), lengths).astype(np.int32),
        is_default=np.array([not r.choices for r in every]),
        schedule=texts([r.schedule for r in every]),
        choices=texts([json.dumps(dict(r.choices)) for r in every]),
        kind=texts([p.kind for p in problems]),
        source=texts([p.source for p in problems]),
        kernel=texts([p.kernel for p in problems]),
        cores=np.array([p.cores for p in problems], np.int32),
        whole=np.array([p.whole for p in problems]),
        counts=np.concatenate([_counts(database.counts(p.key, machine), rows) for p, rows in found]),
        machine=machine,
    )


def _counts(known: Mapping[str, Counts], rows: Sequence[Row]) -> Floats:
    """What was counted in the code of some schedules: (rows, COUNTS), NaN where nothing was."""
    nothing = (np.nan,) * len(COUNTS)
    found = [[getattr(known[r.schedule], n) for n in COUNTS] if r.schedule in known else nothing for r in rows]
    return np.array(found, np.float32)


def _columns(found: tuple[ProblemRow, list[Row]], target: Target) -> tuple[Floats, Floats]:
    """Features and token counts of the schedules of one problem."""
    problem, rows = found
    kernel = read_kernel(Source("kernel", problem.kernel))
    own = replace(target, cores=problem.cores)
    scheduled = [apply(kernel, Schedule.parse(row.schedule)) for row in rows]
    return np.stack([features(k, own) for k in scheduled]), np.stack([token_features(k) for k in scheduled])

"""How well other things than time are predicted: what is counted in the code of a kernel, from features and from text.

After "ML-driven Hardware Cost Model for MLIR" (Das and Mannarswamy, 2023), which predicts instructions and the pressure
on registers from the tokens of what the compiler prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from intarsia.costmodel.dataset import COUNTS, Dataset
from intarsia.costmodel.evaluation import Floats, by_shape, spearman
from intarsia.costmodel.training import fit

LEAST = 5
"""Problems at least: each fold judges one."""


def targets(data: Dataset) -> dict[str, Any]:
    """For each of COUNTS, how boosting predicts log2(1 + count) of unseen shapes from the features and from the tokens
    of a kernel: R2, mean error, Spearman's correlation within a problem. Nothing where too little was counted."""
    data = data.select(np.flatnonzero(np.isfinite(data.counts).all(axis=1)))
    if len(np.unique(data.problem)) < LEAST:
        return {}
    seen = {"features": data.features, "text": data.tokens}
    found: dict[str, Any] = {"rows": len(data)}
    for column, name in enumerate(COUNTS):
        wanted = np.log2(1 + data.counts[:, column])
        found[name] = {
            "median": float(np.median(data.counts[:, column])),
            "models": {model: _judged(data, x, wanted) for model, x in seen.items()},
        }
    return found


def _judged(data: Dataset, x: Floats, wanted: Floats) -> dict[str, float]:
    """Every problem is judged once, by a model that has not seen it."""
    predicted = np.zeros_like(wanted)
    for fitted, judged in by_shape(data, 0):
        if len(fitted) and len(judged):
            predicted[judged] = fit("boosting", x[fitted], wanted[fitted], _weights(data, fitted), 0).predict(x[judged])
    ranks = [
        spearman(predicted[own], wanted[own])
        for own in map(data.rows_of, np.unique(data.problem)[:, None])
        if np.ptp(wanted[own]) > 0
    ]
    variance = float(np.var(wanted))
    return {
        "r2": 1 - float(np.mean((wanted - predicted) ** 2)) / variance if variance else float("nan"),
        "mean_error": float(np.mean(np.abs(np.exp2(predicted - wanted) - 1))),
        "spearman": float(np.mean(ranks)) if ranks else float("nan"),
    }


def _weights(data: Dataset, rows: npt.NDArray[np.intp]) -> Floats:
    """Every problem counts about the same."""
    problem = data.problem[rows]
    return (1 / np.sqrt(np.bincount(problem)[problem])).astype(np.float32)


def target_table(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a report: a count, its median, what it is predicted from, and how well."""
    rows: list[tuple[str, ...]] = []
    for name in COUNTS if found else ():
        median = f"{found[name]['median']:g}"
        for model, own in found[name]["models"].items():
            rows.append((name, median, model, f"{own['r2']:.3f}", f"{own['mean_error']:.1%}", f"{own['spearman']:.2f}"))
    return rows

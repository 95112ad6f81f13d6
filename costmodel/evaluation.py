"""How good a model chooses: metrics within a problem, averaged over problems that it was not fitted to.

A problem is judged by what was measured of it: the *regret* of a choice is how much slower it is than the best. Only
problems of which every candidate was timed have a known best; for others the best of a sample stands in, and they are
left out of the regrets. Ranks are compared within a problem, never across.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intarsia.costmodel.dataset import Dataset

Floats = npt.NDArray[np.float32]

TOPS = (1, 3, 5, 10)
"""Numbers of candidates that are measured before one is chosen."""

TIE = 0.02
"""Times closer than this part of each other, or than both of them are uncertain, are not told apart by measuring, so
pairs of them count for nothing."""


@dataclass(frozen=True)
class Judgement:
    """Of one problem: regret by the number of candidates measured, recall of the best by that number, rank
    correlations, the share of pairs in the right order, the time of the default over that of the first choice, and
    seconds of that choice."""

    regret: Mapping[int, float]
    recall: Mapping[int, float]
    spearman: float
    kendall: float
    pairs: float
    gain: float
    first: float


def judge(predicted: Floats, seconds: Floats, spread: Floats, default: int | None) -> Judgement:
    """Judge predictions for the candidates of one problem; lower predictions are to be faster. spread: by which part
    of it a time is uncertain."""
    order = np.argsort(predicted, kind="stable")
    best = seconds.min()
    truth = np.argsort(seconds, kind="stable")
    gap = np.log2(seconds[:, None] / seconds[None, :])
    told = np.triu(np.abs(gap) > np.log2(1 + np.maximum(TIE, spread[:, None] + spread[None, :])), 1)
    agree = np.sign(predicted[:, None] - predicted[None, :]) == np.sign(gap)
    right = float(agree[told].mean()) if told.any() else 1.0
    return Judgement(
        {k: float(seconds[order[:k]].min() / best - 1) for k in TOPS},
        {k: len(set(order[:k].tolist()) & set(truth[:k].tolist())) / min(k, len(seconds)) for k in TOPS},
        spearman(predicted, seconds),
        2 * right - 1,
        right,
        float(seconds[default] / seconds[order[0]]) if default is not None else float("nan"),
        float(seconds[order[0]]),
    )


def spearman(a: Floats, b: Floats) -> float:
    """The rank correlation of two rows of numbers."""
    return _correlation(_ranks(a), _ranks(b))


def _ranks(values: Floats) -> Floats:
    """Ranks, ties in the middle of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse].astype(np.float32)


def _correlation(a: Floats, b: Floats) -> float:
    if a.std() == 0 or b.std() == 0:
        return 1.0 if a.std() == b.std() else 0.0
    return float(np.corrcoef(a, b)[0, 1])


def judgements(data: Dataset, rows: npt.NDArray[Any], predicted: Floats) -> list[Judgement]:
    """Judge each problem among some rows; `predicted` belongs to these rows."""
    found = []
    for problem in np.unique(data.problem[rows]):
        own = data.problem[rows] == problem
        places = rows[own]
        defaults = np.flatnonzero(data.is_default[places])
        first = int(defaults[0]) if len(defaults) else None
        found.append(judge(predicted[own], data.seconds[places], data.spread[places], first))
    return found


def summary(found: Sequence[Judgement]) -> dict[str, Any]:
    """The numbers of a report for several problems."""

    def spread(values: Sequence[float]) -> dict[str, float]:
        return {
            "median": float(np.median(values)),
            "mean": float(np.mean(values)),
            "p90": float(np.quantile(values, 0.9)),
            "worst": float(np.max(values)),
        }

    gains = np.array([j.gain for j in found if np.isfinite(j.gain)])
    return {
        **{f"top{k}_regret": spread([j.regret[k] for j in found]) for k in TOPS},
        **{f"recall@{k}": float(np.mean([j.recall[k] for j in found])) for k in TOPS},
        "spearman": float(np.mean([j.spearman for j in found])),
        "kendall": float(np.mean([j.kendall for j in found])),
        "pairwise_accuracy": float(np.mean([j.pairs for j in found])),
        "gain_over_default": float(np.exp(np.log(gains).mean())) if len(gains) else float("nan"),
        "problems": len(found),
    }


# ---------------------------------------------------------------------- splits


def by_shape(data: Dataset, seed: int, folds: int = 5) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Rows to fit and rows to judge: problems of every kind are in both, each problem in one of them."""
    order = np.random.default_rng(seed).permutation(data.problems)
    for fold in range(folds):
        held = order[fold::folds]
        judged = np.isin(data.problem, held)
        yield np.flatnonzero(~judged), np.flatnonzero(judged)


def by_kind(data: Dataset, seed: int, folds: int = 8) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """The same with all problems of some kinds held out, a few kinds together."""
    kinds = np.random.default_rng(seed).permutation(sorted(set(data.kind.tolist())))
    for fold in range(min(folds, len(kinds))):
        held = np.flatnonzero(np.isin(data.kind.astype(str), kinds[fold::folds]))
        judged = np.isin(data.problem, held)
        yield np.flatnonzero(~judged), np.flatnonzero(judged)


Predictor = Callable[[Dataset, npt.NDArray[Any], npt.NDArray[Any], int], Floats]
"""log2 seconds for rows to judge, after fitting to other rows: (data, rows to fit, rows to judge, seed)."""


def analytic(data: Dataset, fitted: npt.NDArray[Any], judged: npt.NDArray[Any], seed: int) -> Floats:
    """The analytic model by itself."""
    found: Floats = data.estimate[judged]
    return found


def default(data: Dataset, fitted: npt.NDArray[Any], judged: npt.NDArray[Any], seed: int) -> Floats:
    """The default schedule first, others at random."""
    noise = np.random.default_rng(seed).random(len(judged))
    return np.where(data.is_default[judged], -1, noise).astype(np.float32)


def at_random(data: Dataset, fitted: npt.NDArray[Any], judged: npt.NDArray[Any], seed: int) -> Floats:
    """Any order."""
    return np.random.default_rng(seed).random(len(judged)).astype(np.float32)


"""The baselines."""

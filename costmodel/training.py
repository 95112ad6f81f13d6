"""Fitting models with scikit-learn, and turning them into plain arrays. Compiling never imports this.

All learn log2(measured / estimate of the analytic model). Every problem weighs about the same, however many of its
schedules were timed, and schedules that are near the best one count more: it is among them that a choice is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from intarsia.costmodel.dataset import Dataset
from intarsia.costmodel.forest import Forest
from intarsia.costmodel.learned import LearnedModel, beside

Floats = npt.NDArray[np.float32]

NEAR = 1.0
"""How steeply the weight of a row falls with log2 of its time over the best one of its problem."""

QUANTILES = (0.1, 0.9)
"""Of the residual: between them is the truth four times out of five."""


def weights(data: Dataset) -> Floats:
    """What each row counts: (n,), 1 in the mean."""
    log = np.log2(data.seconds)
    best = np.full(data.problems, np.inf)
    np.minimum.at(best, data.problem, log)
    count = np.bincount(data.problem, minlength=data.problems)
    found = np.exp2(-NEAR * (log - best[data.problem])) / np.sqrt(count[data.problem])
    scaled: Floats = (found / found.mean()).astype(np.float32)
    return scaled


TREES = 300
"""Trees of a model that ships."""

DEPTH = 8
"""Of a tree at most: a thousand rows are predicted in time that is proportional to it."""


def boosting(
    seed: int, loss: str = "squared_error", quantile: float | None = None, trees: int = TREES
) -> HistGradientBoostingRegressor:
    """Histogram gradient boosting, as it is fitted to about ten thousand rows."""
    return HistGradientBoostingRegressor(
        loss=loss, quantile=quantile, max_iter=trees, learning_rate=0.08, max_leaf_nodes=31, max_depth=DEPTH,
        min_samples_leaf=8,
        l2_regularization=1.0, max_features=0.5, random_state=seed,
    )  # fmt: skip


REGRESSORS: dict[str, Callable[[int], Any]] = {
    "boosting": boosting,
    "boosting of medians": lambda seed: boosting(seed, "absolute_error"),
    "short boosting": lambda seed: boosting(seed, trees=100),
    "random forest": lambda seed: RandomForestRegressor(100, min_samples_leaf=2, max_features=0.3, random_state=seed),
    "extra trees": lambda seed: ExtraTreesRegressor(100, min_samples_leaf=2, max_features=0.6, random_state=seed),
    "ridge": lambda seed: make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))),
}
"""Models by name, from a seed."""


def fit(name: str, inputs: Floats, targets: Floats, weight: Floats, seed: int) -> Any:
    """A fitted model of scikit-learn."""
    model = REGRESSORS[name](seed)
    if name == "ridge":
        return model.fit(inputs, targets, ridgecv__sample_weight=weight)
    return model.fit(inputs, targets, sample_weight=weight)


def forest_of(model: HistGradientBoostingRegressor) -> Forest:
    """A fitted gradient boosting model as plain arrays."""
    tables = [predictor.nodes for (predictor,) in model._predictors]
    starts = np.cumsum([0, *map(len, tables)])
    nodes = np.concatenate(tables)
    offset = np.repeat(starts[:-1], list(map(len, tables)))
    leaf = nodes["is_leaf"].astype(bool)
    own = np.arange(len(nodes))
    return Forest(
        base=float(np.ravel(model._baseline_prediction)[0]),
        roots=starts[:-1].astype(np.int32),
        feature=np.where(leaf, -1, nodes["feature_idx"]).astype(np.int32),
        threshold=np.where(leaf, 0, nodes["num_threshold"]).astype(np.float32),
        left=np.where(leaf, own, nodes["left"] + offset).astype(np.int32),
        right=np.where(leaf, own, nodes["right"] + offset).astype(np.int32),
        value=np.where(leaf, nodes["value"], 0).astype(np.float32),
        depth=int(nodes["depth"].max()),
    )


MOST = 1.5
"""log2 ratios are cut off here: how much slower a bad schedule is does not matter."""


def ratios(data: Dataset, columns: Floats) -> tuple[Floats, Floats]:
    """What ratios are predicted from, of columns such as the features, and log2 of the times over those of the default
    schedules: (n, c) to (n, 2 * c), (n,)."""
    defaults = np.zeros(data.problems, np.intp)
    defaults[data.problem[data.is_default]] = np.flatnonzero(data.is_default)
    first = defaults[data.problem]
    log = np.log2(data.seconds)
    return beside(columns[first], columns), np.clip(log - log[first], -MOST, MOST)


CALIBRATED = 0.2
"""The part of the problems by which bounds are moved, and to which they are not fitted."""


def fit_bounds(data: Dataset, rows: npt.NDArray[np.intp], seed: int, trees: int = TREES) -> tuple[Forest, Forest]:
    """Forests for two quantiles of the residual, fitted to some rows: four times out of five the truth is between them,
    of kernels too that are not among these.

    What is fitted to rows of one kernel is too narrow for those of another. So both bounds are moved apart until they
    hold as often as they should on problems that were left out for that: split conformal quantile regression, after
    Romano, Patterson and Candès, NeurIPS 2019, by problem.
    """
    problems = np.random.default_rng(seed).permutation(np.unique(data.problem[rows]))
    left_out = np.isin(data.problem[rows], problems[: max(1, round(CALIBRATED * len(problems)))])
    fitted, others = (rows[~left_out], rows[left_out]) if len(problems) > 1 else (rows, rows)
    x, y, w = data.features, data.residual, weights(data)
    low, high = (
        forest_of(boosting(seed, "quantile", quantile, trees).fit(x[fitted], y[fitted], sample_weight=w[fitted]))
        for quantile in QUANTILES
    )
    outside = np.maximum(low.predict(x[others]) - y[others], y[others] - high.predict(x[others]))
    moved = float(np.quantile(outside, QUANTILES[1] - QUANTILES[0]))
    return replace(low, base=low.base - moved), replace(high, base=high.base + moved)


def fit_residual(data: Dataset, seed: int, trees: int = TREES) -> Forest:
    """A forest for the residual. It learns the median, which no kernel that is far off moves."""
    model = boosting(seed, "absolute_error", trees=trees)
    return forest_of(model.fit(data.features, data.residual, sample_weight=weights(data)))


def train(data: Dataset, seed: int = 0, trees: int = TREES) -> LearnedModel:
    """The model that ships: boosting for the residual, its bounds and the ratio, with the range of what it has seen."""
    low, high = fit_bounds(data, np.arange(len(data)), seed, trees)
    sides, log = ratios(data, data.features)
    return LearnedModel(
        fit_residual(data, seed, trees),
        low,
        high,
        forest_of(boosting(seed, trees=trees).fit(sides, log, sample_weight=weights(data))),
        least=data.features.min(axis=0),
        most=data.features.max(axis=0),
        names=data.names,
        machine=data.machine,
    )

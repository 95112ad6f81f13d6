"""The experiments that a report is made of: every model on problems and on kinds that it was not fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intarsia.costmodel.correction import corrected
from intarsia.costmodel.dataset import Dataset
from intarsia.costmodel.evaluation import (
    TOPS,
    Floats,
    Judgement,
    Predictor,
    analytic,
    at_random,
    by_kind,
    by_shape,
    default,
    judgements,
    summary,
)
from intarsia.costmodel.targets import targets
from intarsia.costmodel.training import boosting, fit, fit_bounds, ratios, weights

Rows = npt.NDArray[Any]

CACHES = ("share cache", "share memory", "cache ", "memory traffic", "footprint", "crowding", "streams", "short runs")
"""How the names of features about caches begin."""

ROOFLINE = ("estimate", "share ")
"""How the names of what the analytic model says begin."""

MEASURED = 24
"""Schedules that a search measures at most."""


def learned(
    name: str = "boosting",
    without: Sequence[str] = (),
    part: float = 1.0,
    text: bool = False,
    target: Literal["ratio", "residual", "time"] = "ratio",
) -> Predictor:
    """A fitted model. without: features that it does not see, by how their names begin. part: of the problems that it
    is fitted to. text: it sees the tokens alone. target: what it learns: the time over that of the default schedule,
    that over the analytic estimate, or the time itself."""

    def predict(data: Dataset, fitted: Rows, judged: Rows, seed: int) -> Floats:
        if part < 1.0:
            every = np.unique(data.problem[fitted])
            few = np.random.default_rng(seed).permutation(every)[: max(2, round(part * len(every)))]
            fitted = fitted[np.isin(data.problem[fitted], few)]
        columns = [n for n, f in enumerate(data.names) if not f.startswith(tuple(without))] if without else slice(None)
        x = data.tokens if text else data.features[:, columns]
        if target == "ratio":
            base, (x, y) = np.zeros_like(data.estimate), ratios(data, x)
        else:
            base = data.estimate if target == "residual" else np.zeros_like(data.estimate)
            y = np.log2(data.seconds) - base
        model = fit(name, x[fitted], y[fitted], weights(data)[fitted], seed)
        found: Floats = base[judged] + model.predict(x[judged]).astype(np.float32)
        return found

    return predict


def pairwise(data: Dataset, fitted: Rows, judged: Rows, seed: int) -> Floats:
    """A ranker: boosting on the differences of features of two schedules of one problem says by how much one is slower;
    a schedule scores its mean over the others."""
    generator = np.random.default_rng(seed)
    x, y = data.features, np.log2(data.seconds)
    pairs = []
    for problem in np.unique(data.problem[fitted]):
        own = fitted[data.problem[fitted] == problem]
        pairs.append(generator.choice(own, (4 * len(own), 2)))
    one, other = np.concatenate(pairs).T
    model = boosting(seed).fit(x[one] - x[other], np.clip(y[one] - y[other], -2, 2))
    found = np.zeros(len(judged), np.float32)
    for problem in np.unique(data.problem[judged]):
        places = np.flatnonzero(data.problem[judged] == problem)
        own = x[judged[places]]
        against = own[generator.permutation(len(own))[:16]]
        differences = (own[:, None, :] - against[None, :, :]).reshape(-1, own.shape[1])
        found[places] = model.predict(differences).reshape(len(own), -1).mean(axis=1)
    return found


BASELINES: dict[str, Predictor] = {
    "default schedule": default,
    "random": at_random,
    "analytic": analytic,
    "learned": learned(),
}
"""What every choice is compared with, and the model that ships."""

OTHERS: dict[str, Predictor] = {
    "random forest": learned("random forest"),
    "extra trees": learned("extra trees"),
    "ridge": learned("ridge"),
    "pairwise ranker": pairwise,
    "residual": learned("boosting of medians", target="residual"),
    "text": learned("short boosting", text=True, target="residual"),
    "text alone": learned("short boosting", text=True, target="time"),
    "without the estimate": learned(without=ROOFLINE),
    "without caches": learned(without=CACHES),
    "10 % of the data": learned(part=0.1),
    "30 % of the data": learned(part=0.3),
}
"""Other models, and models that lack something: judged on unseen shapes."""

SEEDED = "learned"
"""What is fitted with several seeds."""

WORTHS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Parts of the default schedule's time from which on another one is chosen."""

WORSE = 1.1
"""A choice that takes so many times as long as another one is clearly worse."""

GEMM = (
    "matmul",
    "square_matmul",
    "transposed_matmul",
    "batched_matmul",
    "skinny_matmul",
    "streamed_matmul",
    "large_matmul",
)
"""Kinds of problems that are a product of two matrices of floats, and nothing else."""

LOW_BIT = ("coded_matmul", "dot_matmul", "dequantised_matmul")
"""Kinds of products of something else than wide floats."""

TIMED: dict[str, Callable[[Dataset], npt.NDArray[np.bool_]]] = {
    "gemm": lambda data: np.isin(data.kind.astype(str), GEMM) & (data.cores == 1),
    "gemm, two cores": lambda data: np.isin(data.kind.astype(str), GEMM) & (data.cores == 2),
    "low-bit products": lambda data: np.isin(data.kind.astype(str), LOW_BIT),
    "all kinds": lambda data: np.ones(data.problems, bool),
}
"""The groups of problems of which predicted times are judged by themselves: (p,) which belong to one."""

FEW = 5
"""Schedules that are measured before one is chosen, where that is compared with the analytic model's choice."""

Split = Callable[[Dataset, int], Iterator[tuple[Rows, Rows]]]


def run(data: Dataset, seeds: int, progress: Callable[[str], object] = lambda what: None) -> dict[str, Any]:
    """All figures of a report, and under `predicted` what its pictures show: log2 seconds. Regrets are of problems of
    which every candidate was timed."""
    found: dict[str, Any] = {
        "machine": data.machine,
        "rows": len(data),
        "problems": data.problems,
        "whole problems": int(data.whole.sum()),
        "spread": {"median": float(np.median(data.spread)), "p90": float(np.quantile(data.spread, 0.9))},
        "best over default": _gain_of_best(data),
    }
    splits: dict[str, tuple[Split, Mapping[str, Predictor]]] = {
        "unseen_shapes": (by_shape, BASELINES | OTHERS),
        "unseen_ops": (by_kind, BASELINES),
    }
    first: dict[str, Floats] = {}
    for name, (split, predictors) in splits.items():
        models: dict[str, Any] = {}
        for model, predictor in predictors.items():
            progress(f"{name}: {model}")
            each = [held_out(data, split, predictor, seed) for seed in range(seeds if model == SEEDED else 1)]
            models[model] = _joined([summary(judged(data, predicted)) for predicted in each])
            first.setdefault(model, each[0])
            if model == SEEDED:
                few = _measured_few(data, each[0])
        found[name] = {**models[SEEDED], "models": models, "measured few": few}
    progress("choices")
    found["choices"] = _choices(data, first[SEEDED])
    progress("times")
    bounds = _predicted_bounds(data)
    found |= {
        name: _times(data, (first["residual"], *bounds), own) for name, of in TIMED.items() if (own := of(data)).any()
    }
    progress("counts")
    found["targets"] = targets(data)
    progress("searches")
    found["best so far"] = _searches(data, first[SEEDED])
    return {**found, "predicted": first["residual"]}


def held_out(data: Dataset, split: Split, predictor: Predictor, seed: int) -> Floats:
    """What a model says of every row, fitted to other problems: (n,)."""
    found = np.zeros_like(data.estimate)
    for fitted, rows in split(data, seed):
        found[rows] = predictor(data, fitted, rows, seed)
    return found


def judged(data: Dataset, predicted: Floats) -> list[Judgement]:
    """Judgements of all problems of which every candidate was timed, for predictions of all rows."""
    kept = np.flatnonzero(data.whole[data.problem])
    return judgements(data, kept, predicted[kept])


def _choices(data: Dataset, predicted: Floats) -> dict[str, Any]:
    """What comes of choosing by predicted ratios, if the default schedule is left only for one that is predicted to
    take at most some part of its time. By that part: how many choices are not the default schedule, the time of that
    over the chosen one's in the mean and at worst, and beside what the analytic model would have chosen, the share of
    clearly worse choices and the worst one."""
    rows = np.arange(len(data))
    other = np.array([j.first for j in judgements(data, rows, data.estimate)])
    found: dict[str, Any] = {}
    for worth in WORTHS:
        guarded = np.where(data.is_default, np.float32(np.log2(worth)), predicted)
        chosen = judgements(data, rows, guarded)
        gain, beside = np.array([j.gain for j in chosen]), np.array([j.first for j in chosen]) / other
        found[f"{worth:g}"] = {
            "changed": float(np.mean(gain != 1)),
            "over default": float(np.exp(np.log(gain).mean())),
            "worst": float(gain.min()),
            "worse than analytic": float(np.mean(beside > WORSE)),
            "worst beside analytic": float(beside.max()),
        }
    return found


def _measured_few(data: Dataset, predicted: Floats) -> dict[str, dict[str, float]]:
    """What comes of measuring FEW schedules of each problem, those that look fastest, and in a second way with the
    analytic model's choice in the place of the last of them, as `tune` does: the time of the best of them over that
    of the analytic model's choice. The share of problems where that is clearly worse, and the worst."""
    found = {}
    for name, with_analytic in (("those that look fastest", False), ("one of them the analytic choice", True)):
        beside = []
        for problem in range(data.problems):
            own = data.rows_of([problem])
            choice = int(np.argmin(data.estimate[own]))
            few = np.argsort(predicted[own], kind="stable")[:FEW]
            few = np.append(few[: FEW - 1], choice) if with_analytic else few
            beside.append(float(data.seconds[own][few].min() / data.seconds[own][choice]))
        ratio = np.array(beside)
        found[name] = {
            "mean": float(np.exp(np.log(ratio).mean())),
            "worse": float(np.mean(ratio > WORSE)),
            "worst": float(ratio.max()),
        }
    return found


def _joined(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and how far from them 95 of 100 repetitions of the first numbers would lie."""
    first = each[0]
    found: dict[str, Any] = {}
    for name, value in first.items():
        if isinstance(value, Mapping):
            found[name] = {key: float(np.mean([e[name][key] for e in each])) for key in value}
        else:
            found[name] = float(np.mean([e[name] for e in each]))
    asked = {"top1_regret": [e["top1_regret"]["median"] for e in each]}
    asked["pairwise_accuracy"] = [e["pairwise_accuracy"] for e in each]
    found["by seed"] = asked
    if len(each) > 1:
        found["95 %"] = {k: float(1.96 * np.std(v, ddof=1) / np.sqrt(len(v))) for k, v in asked.items()}
    return found


def _gain_of_best(data: Dataset) -> float:
    """The time of the default schedule over that of the best one, geometric mean over problems."""
    gains = []
    for problem in range(data.problems):
        own = data.rows_of([problem])
        defaults = own[data.is_default[own]]
        if len(defaults):
            gains.append(float(data.seconds[defaults[0]] / data.seconds[own].min()))
    return float(np.exp(np.mean(np.log(gains))))


def _predicted_bounds(data: Dataset) -> tuple[Floats, Floats]:
    """Between which log2 seconds all rows should be, as unseen shapes: (n,) each."""
    low, high = np.zeros_like(data.estimate), np.zeros_like(data.estimate)
    for fitted, rows in by_shape(data, 0):
        for bound, model in zip((low, high), fit_bounds(data, fitted, 0)):
            bound[rows] = data.estimate[rows] + model.predict(data.features[rows])
    return low, high


def _times(data: Dataset, predicted: tuple[Floats, Floats, Floats], of: npt.NDArray[np.bool_]) -> dict[str, float]:
    """How well the times of some problems are predicted: R2 of log time, mean error, and the bounds that hold."""
    rows = of[data.problem]
    y, (p, low, high) = np.log2(data.seconds[rows]), (values[rows] for values in predicted)
    return {
        "r2": float(1 - np.mean((y - p) ** 2) / np.var(y)),
        "mean_error": float(np.mean(np.abs(np.exp2(p - y) - 1))),
        "rmse_log2": float(np.sqrt(np.mean((y - p) ** 2))),
        "coverage": float(np.mean((low <= y) & (y <= high))),
        "rows": len(y),
    }


def _searches(data: Dataset, predicted: Floats) -> dict[str, list[float]]:
    """The mean regret after 1, 2, … measurements of unseen shapes: in a random order, in that of the analytic and that
    of the learned model, and with the learned one corrected by what was measured."""
    curves: dict[str, list[npt.NDArray[Any]]] = {}
    for problem in np.flatnonzero(data.whole).tolist():
        rows = data.rows_of([problem])
        seconds = data.seconds[rows]
        choices = [json.loads(text) for text in data.choices[rows]]
        orders = {
            "random": np.random.default_rng(problem).permutation(len(rows)),
            "analytic": np.argsort(data.estimate[rows], kind="stable"),
            "learned": np.argsort(predicted[rows], kind="stable"),
            "learned + measured": _searched(predicted[rows], seconds, choices),
        }
        for name, order in orders.items():
            best = np.minimum.accumulate(seconds[order]) / seconds.min() - 1
            curves.setdefault(name, []).append(np.pad(best, (0, max(0, MEASURED - len(best))))[:MEASURED])
    return {name: np.mean(found, axis=0).tolist() for name, found in curves.items()}


def _searched(predicted: Floats, seconds: Floats, choices: Sequence[Mapping[str, int]]) -> npt.NDArray[np.intp]:
    """The order in which a search that corrects itself after every measurement would go."""
    order: list[int] = []
    left = list(range(len(seconds)))
    guess = predicted.astype(np.float64)
    while left and len(order) < MEASURED:
        n = min(left, key=lambda i: guess[i])
        order.append(n)
        left.remove(n)
        if left:
            off = np.log2(seconds[order]) - predicted[order]
            guess[left] = corrected([choices[i] for i in order], off, [choices[i] for i in left], predicted[left])
    return np.array([*order, *left])


def table(found: Mapping[str, Any], split: str) -> list[tuple[str, ...]]:
    """The rows of a report about one split: a model, its regrets (median and p90), and what else is asked of it."""
    rows = []
    for name, values in found[split]["models"].items():
        regrets = [f"{values[f'top{k}_regret']['median']:.1%} / {values[f'top{k}_regret']['p90']:.1%}" for k in TOPS]
        others = [f"{values[key]:.2f}" for key in ("recall@5", "spearman", "kendall", "pairwise_accuracy")]
        rows.append((name, *regrets, *others, f"{values['gain_over_default']:.3f}"))
    return rows

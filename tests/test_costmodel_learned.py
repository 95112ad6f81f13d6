"""What a learned model sees of a kernel, and what it makes of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from intarsia.costmodel.analytic import estimate
from intarsia.costmodel.correction import corrected
from intarsia.costmodel.dataset import COUNTS, Dataset, load_file
from intarsia.costmodel.evaluation import (
    analytic,
    at_random,
    by_kind,
    by_shape,
    default,
    judge,
    judgements,
    spearman,
    summary,
)
from intarsia.costmodel.experiments import BASELINES, OTHERS, run
from intarsia.costmodel.features import FEATURES, NAMES, features
from intarsia.costmodel.forest import Forest
from intarsia.costmodel.learned import load_model
from intarsia.costmodel.problems import KINDS, problems
from intarsia.costmodel.tokens import COLUMNS, token_features, tokens
from intarsia.costmodel.training import boosting, fit_bounds, forest_of, train, weights
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.schedule.candidates import Space
from intarsia.tuning.report import write_report

TARGET = TARGETS["cpu:x86-avx512"]


def scheduled(text: str, **choices: int) -> Kernel:
    compilation = Compilation(load(Source("p", text)).build("f"), {}, Options(target=TARGET.name))
    (kernel,) = compilation.kernels.kernels
    return Space(kernel, TARGET).candidate(choices).kernel


MATMUL = "fn f(a: f32[96, 128], b: f32[128, 192]) -> f32[96, 192] { return a @ b }"


def test_features_say_what_they_mean() -> None:
    found = dict(zip(NAMES, features(scheduled(MATMUL), TARGET).tolist()))
    assert found.keys() == FEATURES.keys() and all(map(math.isfinite, found.values()))
    assert found["estimate"] == pytest.approx(math.log2(estimate(scheduled(MATMUL), TARGET).seconds), rel=1e-5)
    assert found["multiply-adds"] > 0.9 and found["vector share"] > 0.9 and found["filled lanes"] > 0.9
    assert 2 ** found["parameter bytes"] == pytest.approx(4 * (96 * 128 + 128 * 192 + 96 * 192), rel=1e-4)
    assert found["depth"] >= 4 and found["gathers"] == found["slow functions"] == 0.0
    divided = features(scheduled("fn f(x: bf16[64, 512]) -> bf16[64, 512] { return x / (x + 1.0) }"), TARGET)
    other = dict(zip(NAMES, divided.tolist()))
    assert other["slow functions"] > 0.3 and other["narrow loads"] == 1.0 and other["multiply-adds"] == 0.0
    taken = features(scheduled("fn f(t: f32[99, 64], i: i64[9]) -> f32[9] { return tensor[n](t[i[n], i[n]]) }"), TARGET)
    assert dict(zip(NAMES, taken.tolist()))["gathers"] > 0.0


def test_tokens_forget_names_and_keep_sizes() -> None:
    assert tokens("for i.0 in 0..64 { y[i.0] = 2.5 }") == (
        ["for", "name", "in", "0", "..", "2^6", "{", "name", "[", "name", "]", "=", "number", "}"]
    )
    one, same = (scheduled(f"fn f({n}: f32[64, 32]) -> f32[64, 32] {{ return exp({n}) }}") for n in ("x", "other"))
    assert token_features(one).shape == (COLUMNS,)
    np.testing.assert_array_equal(token_features(one), token_features(same))
    assert not np.array_equal(token_features(one), token_features(scheduled(MATMUL)))


def test_problems_of_every_kind_compile() -> None:
    drawn = list(problems(3, 2 * len(KINDS)))
    assert len({p.text for p in drawn}) == len(drawn) and {p.kind for p in drawn} == set(KINDS)
    assert [p.text for p in problems(3, 5)] == [p.text for p in drawn[:5]]
    for problem in Random(1).sample(drawn, 6):
        compilation = Compilation(load(Source("p", problem.text)).build("f"), {}, Options(target=TARGET.name))
        assert compilation.scheduled.kernels, problem.text


# ---------------------------------------------------------------------- models


def made_up(problem_count: int = 18, each: int = 12, seed: int = 0) -> Dataset:
    """Rows whose time is the estimate times a function of two features."""
    random = np.random.default_rng(seed)
    n = problem_count * each
    x = random.normal(size=(n, len(NAMES))).astype(np.float32)
    problem = np.repeat(np.arange(problem_count), each).astype(np.int32)
    x[:, 0] = -14 + problem % 5
    seconds = np.exp2(x[:, 0] + np.maximum(x[:, 3], 0) + 0.5 * np.abs(x[:, 7])).astype(np.float32)
    counts = np.exp2(np.stack([5 + np.abs(x[:, 4]), np.abs(x[:, 5]), 4 + x[:, 6] / 4], axis=1)).astype(np.float32)
    counts[n // 2 :: 7] = np.nan
    texts = np.array([f"s{n}" for n in range(n)], dtype=object)
    names = np.array([f"p{n}" for n in range(problem_count)], dtype=object)
    kinds = np.array([("a", "b", "c")[n % 3] for n in range(problem_count)], dtype=object)
    return Dataset(
        x, random.integers(0, 3, (n, 8)).astype(np.float32), seconds, np.zeros(n, np.float32), problem,
        np.arange(n) % each == 0, texts, texts, kinds, names, names, np.ones(problem_count, np.int32),
        np.ones(problem_count, bool), counts, machine="some machine",
    )  # fmt: skip


def test_bounds_hold_as_often_as_they_say() -> None:
    data = made_up(90, 4)
    data = replace(data, seconds=data.seconds * np.exp2(np.random.default_rng(2).normal(size=90))[data.problem])
    first, others = np.flatnonzero(data.problem < 60), np.flatnonzero(data.problem >= 60)
    low, high = (b.predict(data.features[others]) for b in fit_bounds(data, first, 0, trees=40))
    assert 0.6 < np.mean((low <= data.residual[others]) & (data.residual[others] <= high)) < 0.95


def test_a_forest_says_what_scikit_learn_says(tmp_path: Path) -> None:
    data = made_up()
    model = boosting(0, trees=25).fit(data.features, data.residual, sample_weight=weights(data))
    forest = forest_of(model)
    other = np.random.default_rng(1).normal(size=(50, len(NAMES))).astype(np.float32)
    np.testing.assert_allclose(forest.predict(other), model.predict(other), rtol=1e-4, atol=1e-4)
    np.savez(tmp_path / "f.npz", **forest.arrays("x"))
    with np.load(tmp_path / "f.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(Forest.of(found, "x").predict(other), forest.predict(other))


@pytest.mark.slow
def test_a_model_learns_and_knows_what_it_has_not_seen(tmp_path: Path) -> None:
    data = made_up()
    model = train(data, trees=25)
    model.save(tmp_path / "m.npz")
    same = load_model(tmp_path / "m.npz")
    assert same is not None and same.machine == "some machine" and load_model(tmp_path / "none.npz") is None
    rows = made_up(seed=5).features
    truth = np.log2(made_up(seed=5).seconds)
    np.testing.assert_array_equal(same.log_seconds(rows), model.log_seconds(rows))
    assert np.abs(same.log_seconds(rows) - truth).mean() < 0.7 * np.abs(rows[:, 0] - truth).mean()
    inside = [p.low <= s <= p.high for p, s in zip(same.predictions(rows), made_up(seed=5).seconds) if p.is_known]
    assert 0.5 < np.mean(inside) <= 1.0
    strange = rows[:1] + 100
    (prediction,) = same.predictions(strange)
    assert not prediction.is_known and prediction.seconds == pytest.approx(2.0 ** float(strange[0, 0]), rel=1e-4)
    ratios = same.log_ratios(data.features[0], data.features[1:12])
    assert spearman(ratios, np.log2(data.seconds[1:12])) > 0.8
    far = same.log_ratios(strange[0], rows[1:12])
    np.testing.assert_allclose(far, rows[1:12, 0] - strange[0, 0], rtol=1e-4)


def test_a_dataset_reads_back(tmp_path: Path) -> None:
    data = made_up()
    data.save(tmp_path / "d.npz")
    same = load_file(tmp_path / "d.npz")
    np.testing.assert_array_equal(same.features, data.features)
    assert same.kind.tolist() == data.kind.tolist() and same.names == NAMES and same.machine == data.machine
    few = same.select(same.rows_of([1, 2]))
    np.testing.assert_array_equal(same.counts, data.counts)
    assert len(few) == 24 and few.problems == data.problems and set(few.problem.tolist()) == {1, 2}
    assert few.counts.shape == (24, 3)


def test_columns_without_counts_are_read(tmp_path: Path) -> None:
    made_up().save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as found:
        np.savez(tmp_path / "old.npz", **{name: found[name] for name in found.files if name != "counts"})
    counts = load_file(tmp_path / "old.npz").counts
    assert counts.shape == (len(made_up()), 3) and np.isnan(counts).all()


def test_judging_choices() -> None:
    seconds = np.array([2.0, 1.0, 4.0, 1.001], np.float32)
    sure = np.zeros(4, np.float32)
    perfect = judge(np.log2(seconds), seconds, sure, default=0)
    assert (
        perfect.regret[1] == 0 and perfect.pairs == perfect.spearman == perfect.kendall == 1.0 and perfect.gain == 2.0
    )
    worst = judge(-seconds, seconds, sure, default=0)
    assert worst.regret == {1: 3.0, 3: pytest.approx(0.001, rel=1e-3), 5: 0.0, 10: 0.0}
    assert worst.pairs == 0.0 and worst.kendall == -1.0 and worst.recall[1] == 0.0 and worst.recall[5] == 1.0
    unsure = judge(-seconds, seconds, sure + 0.6, default=0)
    assert unsure.pairs == 0.0 and judge(-seconds, seconds, sure + 3.0, default=0).pairs == 1.0
    found = summary([perfect, worst])
    assert found["top1_regret"]["worst"] == 3.0 and found["problems"] == 2
    assert found["gain_over_default"] == pytest.approx(math.sqrt(2.0 * 0.5))


def test_splits_never_share_a_problem() -> None:
    data = made_up()
    for split in (by_shape(data, 1), by_kind(data, 1)):
        judged = []
        for fitted, held in split:
            assert not set(data.problem[fitted]) & set(data.problem[held])
            judged += held.tolist()
        assert sorted(judged) == list(range(len(data)))
    rows = np.arange(len(data))
    for baseline in (analytic, default, at_random):
        assert len(judgements(data, rows, baseline(data, rows, rows, 0))) == data.problems
    assert all(j.gain == 1.0 for j in judgements(data, rows, default(data, rows, rows, 0)))


def test_measuring_some_corrects_the_others() -> None:
    effects = {("a", 1): 1.0, ("b", 1): -2.0, ("b", 2): 0.5}
    choices = [{"a": a, "b": b} for a in (0, 1) for b in (0, 1, 2)]
    choices = [{n: o for n, o in c.items() if o} for c in choices]
    truth = np.array([sum(effects[c] for c in own.items()) for own in choices])
    predicted = np.zeros(6)
    known = [0, 1, 3, 4]
    found = corrected([choices[i] for i in known], truth[known], choices, predicted)
    assert found.argmin() == truth.argmin() == 1
    assert found[5] > found[4] and found[2] == pytest.approx(truth[known].mean(), abs=0.5)


@pytest.mark.slow
def test_a_report_of_everything(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = made_up(12, 6)
    texts = np.array([json.dumps({"a": n % 6} if n % 6 else {}) for n in range(len(data))], dtype=object)
    data = replace(data, choices=texts, kind=np.array(["matmul", "softmax"] * 6, dtype=object))
    found = run(data, 2)
    write_report(data, found, tmp_path)
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["unseen_shapes"]["top1_regret"]["median"] >= 0 and kept["gemm"]["rows"] == 36
    assert set(kept["unseen_ops"]["models"]) == set(BASELINES)
    assert set(kept["unseen_shapes"]["models"]) == set(BASELINES | OTHERS)
    assert kept["best so far"]["random"][-1] == pytest.approx(0.0)
    page = (tmp_path / "report.md").read_text()
    assert "| analytic |" in page and "## Unseen kinds of op" in page
    assert "| instructions | 5" in page
    for count in COUNTS:
        own = kept["targets"][count]["models"]
        assert own["features"]["r2"] > 0.3 > own["text"]["r2"] and own["features"]["spearman"] > own["text"]["spearman"]
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("search", "times", "features"))

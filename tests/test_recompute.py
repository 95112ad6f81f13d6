"""What is computed again in place of being kept: the cut, whole programs, and what is told about it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import intarsia
from intarsia.cli import main
from intarsia.driver import Compilation
from intarsia.ir.dtypes import Array
from intarsia.ir.interpreter import evaluate
from intarsia.ir.plan_interpreter import run_plan
from intarsia.options import Options
from intarsia.passes.pipeline import DEFAULT
from intarsia.passes.recompute.cut import Network

PROGRAM = """
fn loss(x: f32[B, I], w: f32[I, H], u: f32[H, H], v: f32[H, O]) -> f32 {
    return mean(softmax(gelu(gelu(x @ w) @ u) @ v) ** 2)
}

fn gradients(x: f32[B, I], w: f32[I, H], u: f32[H, H], v: f32[H, O]) {
    return value_and_grad(loss, wrt=(w, u, v))(x, w, u, v)
}
"""
RESIDUAL = """
fn loss(x: f32[B, D], w: f32[D, D], u: f32[D, D]) -> f32 {
    h = x + relu(x @ w)
    h = h + minimum(1.0, h @ u)
    return sum((h @ w) ** 2)
}

fn gradients(x: f32[B, D], w: f32[D, D], u: f32[D, D]) {
    return grad(loss, wrt=(x, w, u))(x, w, u)
}
"""
DIMS = {"B": 96, "I": 16, "H": 64, "O": 24}


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_is_smaller(seed: int) -> None:
    """Against all cuts of small random graphs."""
    random = np.random.default_rng(seed)
    edges = [
        (a, b, float(random.integers(1, 9))) for a, b in itertools.permutations(range(6), 2) if random.random() < 0.4
    ]
    network: Network[int] = Network()
    for a, b, capacity in edges:
        network.add(a, b, capacity)

    def crossing(side: set[int]) -> float:
        return sum(c for a, b, c in edges if a not in side and b in side)

    sides = [{5, *some} for n in range(5) for some in itertools.combinations(range(1, 5), n)]
    best = min(map(crossing, sides))
    found = network.near_sink(0, 5)
    assert 0 not in found and crossing(found) == best
    assert all(found <= side for side in sides if crossing(side) == best)


def test_what_cannot_be_parted() -> None:
    network: Network[str] = Network()
    network.add("a", "b")
    with pytest.raises(ValueError, match="no finite cut"):
        network.near_sink("a", "b")


def _arguments() -> list[Array]:
    random = np.random.default_rng(0)
    shapes = (("B", "I"), ("I", "H"), ("H", "H"), ("H", "O"))
    return [random.standard_normal([DIMS[d] for d in s]).astype(np.float32) for s in shapes]


@pytest.mark.slow
def test_gradients_take_less_memory() -> None:
    given = _arguments()
    plain = intarsia.compile(PROGRAM).gradients
    expected = plain(*given)
    workspace = int(plain.lower(*given).compilation.plan.workspace_bytes)
    for passes in ("recompute{least=1}", "recompute{budget=20000}"):
        again = intarsia.compile(PROGRAM, Options(passes=DEFAULT.replace("recompute", passes))).gradients
        for one, other in zip(again(*given), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        assert int(again.lower(*given).compilation.plan.workspace_bytes) < workspace


def _computed(compilation: Compilation, stage: str, inputs: list[Array]) -> tuple[Array, ...]:
    match stage:
        case "kernels":
            return evaluate(compilation.scheduled, inputs)
        case "triton":
            return run_plan(compilation.plan, inputs, {}, compilation.interpret_launches)
    return run_plan(compilation.plan, inputs)


DEAR = [("plan", 16), ("kernels", 13), ("kernels", 16), ("triton", 13), ("triton", 16)]


@pytest.mark.parametrize(
    ("stage", "rows"), [("plan", 13), *(pytest.param(*both, marks=pytest.mark.slow) for both in DEAR)]
)
def test_bits_say_what_the_values_said(stage: str, rows: int) -> None:
    """Ties, zeros of both signs, NaN and infinities; rows that fill bytes and rows that do not."""
    if stage == "triton":
        pytest.importorskip("triton")
    random = np.random.default_rng(0)
    x = random.integers(-2, 3, (rows, 5)).astype(np.float32)
    x[2], x[3, 1], x[4, 2], x[5, 3] = -0.0, np.nan, np.inf, -np.inf
    inputs = [x, *(random.integers(-1, 2, (5, 5)).astype(np.float32) for _ in range(2))]
    passes = DEFAULT.replace("recompute", "recompute{least=1}")
    options = Options(passes=passes, target="gpu:sm_90" if stage == "triton" else "cpu:x86-avx2")
    compilation = intarsia.compile(RESIDUAL, options).gradients.lower(*inputs).compilation
    found = _computed(compilation, stage, inputs)
    assert sum("a bit for each element" in r.message for r in compilation.remarks.items) == 2
    expected = evaluate(compilation.source_module, inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(expected[0]).any() and np.isfinite(expected[0]).any()


@pytest.mark.slow
def test_a_budget_and_a_picture_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "net.ita", tmp_path / "memory.svg"
    file.write_text(PROGRAM, "utf-8")
    sizes = [word for name, number in DIMS.items() for word in ("--dim", f"{name}={number}")]
    command = ["explain", f"{file}:gradients", "--about", "memory", *sizes, "--plot", str(picture)]
    assert main([*command, "--memory-budget", "20kB"]) == 0
    told = capsys.readouterr().out
    assert "in place of" in told and "is computed again, not kept" in told and "is kept" in told
    assert "at most at once" in told and "net.ita:3:" in told
    assert picture.read_text("utf-8").count("<path") > 5
    assert main([*command, "--memory-budget", "much"]) == 2

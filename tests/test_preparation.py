"""What depends on constants only is computed once: weights in panels, and whole kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import run_program
from schedule_samples import assert_same_meaning

import intarsia
from intarsia.cli import main
from intarsia.executable import Executable
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.kernel_verifier import problems, verify_kernel
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.preparation import split_preparation

PRODUCT = "fn f(x: f32[M, K], const w: f32[K, N]) -> f32[M, N] { return x @ w }"

PROGRAMS = {
    "product": (PRODUCT, (37, 65), (65, 100)),
    "few rows": (PRODUCT, (3, 1000), (1000, 130)),
    "few rows in parts": (PRODUCT, (17, 601), (601, 299)),
    "few rows, transposed": (
        "fn f(x: f32[M, K], const w: f32[N, K]) -> f32[M, N] { return relu(x @ transpose(w) + 0.5) }",
        (9, 603), (297, 603),
    ),
    "several blocks": (PRODUCT, (130, 700), (700, 1030)),
    "transposed": (
        "fn f(x: f32[M, K], const w: f32[N, K]) -> f32[M, N] { return x @ transpose(w) }", (33, 70), (50, 70)
    ),
    "left": ("fn f(x: f32[K, N], const w: f32[K, M]) -> f32[M, N] { return transpose(w) @ x }", (70, 50), (70, 33)),
    "batches": (
        "fn f(x: f32[B, M, K], const w: f32[B, K, N]) -> f32[B, M, N] { return x @ w }", (3, 17, 40), (3, 40, 33)
    ),
    "epilogue": (
        "fn f(x: f32[M, K], const w: f32[K, N]) -> f32[M, N] { return relu(x @ exp(w) + sum(w, axis=0)) }",
        (37, 65), (65, 100),
    ),
    "convolution": (
        "fn f(x: f32[2, C, H, W], const w: f32[O, C, 3, 3]) -> f32[2, O, H, W] { return conv2d(x, w, padding=1) }",
        (2, 16, 20, 20), (64, 16, 3, 3),
    ),
    "in a loop": (
        "fn f(x: f32[M, K], const w: f32[K, K]) -> f32[M, K] { return loop (h = x) for t < 3 { yield tanh(h @ w) } }",
        (17, 300), (300, 300),
    ),
    "in a loop of loops, and outside": (
        "fn f(x: f32[M, K], const w: f32[K, K]) -> f32[M, K] { return loop (h = x @ w) for t < 2 {\n"
        "g = loop (g = h) for u < 2 { yield tanh(g @ w) }\nyield g + x @ w } }",
        (17, 300), (300, 300),
    ),
    "a stack of layers": (
        "fn f(x: f32[M, K], const w: f32[3, K, K]) -> f32[M, K] {\n"
        "return loop (h = x) for t < 3 { yield tanh(h @ w[2 - t]) } }",
        (17, 130), (3, 130, 130),
    ),
    "a stack of stacks, of rows computed before": (
        "fn f(x: f32[M, K], const w: f32[2, 3, K, K]) -> f32[M, K] { return loop (h = x) for g < 2 {\n"
        "yield loop (h = h) for t < 3 { yield tanh(h @ w[g, t] @ w[0, t]) } } }",
        (9, 70), (2, 3, 70, 70),
    ),
    "an item that is computed": (
        "fn f(x: f32[M, K], const w: f32[3, K, K]) -> f32[M, K] { return loop (h = x) for t < 3 {\n"
        "s = sum(exp(w[t]), axis=0)\nyield tanh(h @ w[t] + h * s / (1.0 + s)) } }",
        (17, 65), (3, 65, 65),
    ),
    "only the constant": ("fn f(x: f32[M], const w: f32[K, N]) -> f32[K, N] { return exp(w) }", (3,), (20, 30)),
}  # fmt: skip


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> list[Executable]:
    """Those that ran, in order."""
    found: list[Executable] = []
    original = Executable.prepared

    def noted(self: Executable, *arguments: Any) -> Any:
        if self.preparation is not None:
            found.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(Executable, "prepared", noted)
    return found


def data(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / 4).astype(np.float32)


def exact(text: str, x: Any, w: Any) -> Any:
    """What the graph gives in f64."""
    return run_program(text.replace("f32", "f64"), x.astype(np.float64), w.astype(np.float64))


LARGE = ("few rows, transposed", "several blocks", "in a loop of loops, and outside", "transposed")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in PROGRAMS])
def test_bound_constants(name: str, preparations: list[Executable]) -> None:
    text, *shapes = PROGRAMS[name]
    x, w = data(*shapes[0]), data(*shapes[1], seed=1)
    function = intarsia.compile(text).f
    bound = function.bind(w=w)
    expected = exact(text, x, w)
    for _ in range(4):  # through Python, prepared, and natively
        np.testing.assert_allclose(bound(x), expected, rtol=1e-4, atol=1e-4)
    assert len(preparations) == 1
    np.testing.assert_allclose(function(x, w), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bound(x, w=w + 1), exact(text, x, w + 1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(bound(x), expected, rtol=1e-4, atol=1e-4)
    other = function.bind(w=w - 1)
    np.testing.assert_allclose(other(x), exact(text, x, w - 1), rtol=1e-4, atol=1e-3)
    assert len(preparations) == 2


STACK = """struct Layer(K) {
    w: f32[K, K]
}
fn stack(x: f32[M, K], const w: f32[L, K, K]) -> f32[M, K] {
    return loop (h = x) for t < L { yield tanh(h @ w[t]) }
}
fn items(x: f32[M, K], const p: Layer(K)[L]) -> f32[M, K] {
    return loop (h = x) for t < L { yield tanh(h @ p[t].w) }
}
fn elements(x: f32[M, K], const p: Layer(K)[L]) -> f32[M, K] {
    return loop (h = x) for t < L { yield tensor[m, n](tanh(sum[k](h[m, k] * p[t].w[k, n]))) }
}"""


def test_a_list_and_a_stack_of_layers_are_prepared_alike(preparations: list[Executable]) -> None:
    """Also where the number of layers is open."""
    program = intarsia.compile(STACK, intarsia.Options(dynamic=("L",)))
    for layers in (3, 1, 0):
        x, w = data(17, 130), data(layers, 130, 130, seed=1)
        expected = x
        for row in w:
            expected = np.tanh(expected @ row)
        layers_of = [{"w": row} for row in w]
        stack, items = program.stack.bind(w=w), program.items.bind(p=layers_of)
        elements = program.elements.bind(p=layers_of)
        for function in (stack, items, elements):
            for _ in range(3):
                np.testing.assert_allclose(function(x), expected, rtol=1e-4, atol=1e-4)
        assert [k.name for k in stack.lower(x).compilation.plan.kernels] == ["stack_matmul_tanh_row"]
    assert len(preparations) == 9


@pytest.mark.parametrize(
    "text, shape",
    [
        ("tanh(h @ w[:, t])", (130, 3, 130)),  # no row
        ("tanh(h @ w[i64(h[0, 0] * 0.0)])", (3, 130, 130)),  # data decides which
        ("tanh(h @ (w[t] * h[0, 0]))", (3, 130, 130)),  # no constant
        ("tanh(h @ where(t > 0, w[maximum(t, 1) - 1], w[0] * 0.0))", (3, 130, 130)),  # not the same row everywhere
    ],
)
def test_what_is_no_row_of_a_constant_is_not_prepared(text: str, shape: tuple[int, ...]) -> None:
    sizes = ", ".join("K" if n == 130 else str(n) for n in shape)
    text = (
        f"fn f(x: f32[M, K], const w: f32[{sizes}]) -> f32[M, K] {{ return loop (h = x) for t < 3 {{ yield {text} }} }}"
    )
    x, w = data(17, 130), data(*shape, seed=1)
    bound = intarsia.compile(text).f.bind(w=w)
    np.testing.assert_allclose(bound(x), exact(text, x, w), rtol=1e-4, atol=1e-4)
    assert bound.lower(x).compilation.plan.preparation is None


@pytest.mark.parametrize("name", PROGRAMS)
def test_plans_mean_the_same_in_the_interpreter(name: str) -> None:
    text, *shapes = PROGRAMS[name]
    shapes = [tuple(min(n, 65) for n in shape) for shape in shapes]
    x, w = data(*shapes[0]), data(*shapes[1], seed=1)
    bound = intarsia.compile(text).f.bind(w=w)
    plan = bound.lower(x).compilation.plan
    assert plan.preparation is not None
    (found,) = run_plan(plan, [x, w])
    np.testing.assert_allclose(found, exact(text, x, w), rtol=1e-4, atol=1e-4)


def test_bf16() -> None:
    text = PRODUCT.replace("f32", "bf16")
    x, w = data(20, 40).astype(ml_dtypes.bfloat16), data(40, 48, seed=1).astype(ml_dtypes.bfloat16)
    found = intarsia.compile(text).f.bind(w=w)(x)
    expected = x.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2**-7, atol=1e-2)


def test_what_is_not_bound_is_not_prepared(preparations: list[Executable]) -> None:
    intarsia.compile(PRODUCT).f(data(37, 65), data(65, 100))
    assert not preparations


def test_one_preparation_serves_all_batch_sizes(preparations: list[Executable]) -> None:
    x, w = data(90, 65), data(65, 100, seed=1)
    bound = intarsia.compile(PRODUCT, intarsia.Options(dynamic=("M",))).f.bind(w=w)
    for rows in (40, 64, 90, 40):
        np.testing.assert_allclose(bound(x[:rows]), x[:rows] @ w, rtol=1e-4, atol=1e-4)
    assert len(preparations) == 1


def test_equal_preparations_are_made_once(preparations: list[Executable]) -> None:
    """Code for two sizes that wants the same of the constants."""
    text = "fn f(x: f32[M], const w: f32[N]) -> (f32[M], f32[N]) { return -x, exp(w) }"
    w = data(100)
    bound = intarsia.compile(text).f.bind(w=w)
    for rows in (3, 4, 5):
        np.testing.assert_allclose(bound(np.ones(rows, np.float32))[1], np.exp(w), rtol=1e-5)
    assert len(preparations) == 1


def test_open_sizes_of_constants() -> None:
    program = intarsia.compile(PRODUCT, intarsia.Options(dynamic=("M", "K", "N")))
    for rows, depth, columns in ((5, 7, 9), (40, 65, 100), (1, 0, 3), (20, 300, 33)):
        x, w = data(rows, depth), data(depth, columns, seed=1)
        for _ in range(3):
            np.testing.assert_allclose(program.f.bind(w=w)(x), x @ w, rtol=1e-4, atol=1e-4)


def test_the_cache_keeps_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path))
    x, w = data(37, 65), data(65, 100, seed=1)
    first = intarsia.compile(PRODUCT).f.bind(w=w)(x)
    program = intarsia.compile(PRODUCT)
    np.testing.assert_array_equal(program.f.bind(w=w)(x), first)
    assert not program.is_parsed


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.ita"
    path.write_text(PRODUCT)
    sizes = [f"--dim={n}" for n in ("M=37", "K=65", "N=100")]
    assert main(["run", str(path), "--random", "--compare", "--profile", *sizes]) == 0
    assert "f_matmul" in capsys.readouterr().err
    assert main(["run", str(path), "--random", "--compare", "--target", "plan", *sizes]) == 0
    assert main(["run", str(path), "--random", "--compare", "--dynamic=M", "--dynamic=K", *sizes]) == 0
    for stage, wanted in (("plan", "plan f_prepare"), ("llvm", "@f_prepare("), ("scheduled", "prepared")):
        capsys.readouterr()
        assert main(["emit", str(path), "--to", stage, *sizes]) == 0
        assert wanted in capsys.readouterr().out
    assert main(["explain", str(path), "--about", "memory", *sizes]) == 0
    assert "prepared from constants once: " in capsys.readouterr().out


# ---------------------------------------------------------------------- kernels

PREPARED = """kernel f(x: f32[6, 5], const w: f32[5, 7], out y: f32[6, 7]) {
  alloc wp: f32[7, 5] prepared
  for j in 0..7 { for k in 0..5 { wp[j, k] = w[k, j] } }
  alloc sums: f32[7] prepared
  for j.1 in 0..7 { sums[j.1] = 0.0 }
  for i in 0..6 { for j.2 in 0..7 { y[i, j.2] = sums[j.2] } }
  for j.3 in 0..7 { for k.1 in 0..5 { sums[j.3] += wp[j.3, k.1] } }
  for i.1 in 0..6 { for j.4 in 0..7 { y[i.1, j.4] = sums[j.4] * x[i.1, 0] * wp[j.4, 2] } }
}"""


def kernel(text: str) -> Kernel:
    return read_kernel(Source("test", text))


def test_splitting_a_kernel() -> None:
    whole = kernel(PREPARED)
    verify_kernel(whole)
    once, rest = split_preparation(whole)
    assert once is not None
    verify_kernel(once)
    verify_kernel(rest)
    assert [b.name for b in once.inputs] == ["w"]
    assert [b.name for b in once.outputs] == ["wp", "sums"]
    assert [b.name for b in rest.inputs] == ["x", "w", "wp", "sums"]
    assert split_preparation(rest) == (None, rest)
    assert_same_meaning(whole, whole, {})


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("const w", "w", "wp would depend on w, which may change"),
        ("wp[j, k] = w[k, j]", "wp[j, k] = w[k, j] y[0, j] = 0.0", "y would be written together with wp"),
        ("sums[j.1] = 0.0", "sums[j.1] = x[0, 0]", "sums would depend on x, which may change"),
        ("sums[j.1] = 0.0", "check 1: w[0, j.1] < 1.0 sums[j.1] = 0.0", "a check would run once for all calls"),
    ],
)  # fmt: skip
def test_the_verifier_knows_preparations(old: str, new: str, problem: str) -> None:
    assert problem in problems(kernel(PREPARED.replace(old, new)))

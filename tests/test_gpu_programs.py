"""Whole programs in Triton's interpreter: examples, PolyBench, random programs, and what once went wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from chains import generate_chain
from compare import GPU_LEVELS, compare
from generate import FuzzProgram, generate

from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.plan_interpreter import run_plan
from intarsia.options import Options

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "polybench"))

from kernels import KERNELS, Kernel, Random

OPTIONS = Options(target="gpu:sm_90")


def require(
    text: str, arguments: dict[str, object], levels: tuple[str, ...] = ("triton",), function: str | None = None
) -> None:
    failure = compare(text, arguments, levels, OPTIONS, function)
    assert failure is None, f"{failure}\n{text}"


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float64)


SMALL = {
    "one number for all lanes, behind a mask": (
        "fn f(x: f64[4, 30], s: f64[4]) -> f64[4, 30] {\n"
        "    return loop (y = x) for t < 4 { yield update y[0, j in 0..30] = s[t] }\n}",
        {"x": normal(4, 30), "s": normal(4)},
    ),
    "rows that begin anywhere": (
        "fn f(x: f32[5, 3]) -> (f32[3], f32[5, 3]) {\n"
        "    return scan (h = zeros(f32[3])) for t < 5 { n = tanh(x[t] + 0.5 * h)\n yield n\n emit n * 2.0 }\n}",
        {"x": normal(5, 3).astype(np.float32)},
    ),
    "a step without points, whose subscripts would fall outside": (
        "fn f(x: f32[6, 6]) -> f32[6, 6] {\n"
        "    return loop (y = x) for s < 6 { yield update y[5 - s, j in 6 - s..6] = y[6 - s, j - 1] * 2.0 }\n}",
        {"x": normal(6, 6).astype(np.float32)},
    ),
    "a sum whose length changes from step to step": (
        "fn f(x: f32[4, 33], p: f32[4, 4]) -> f32[4, 33] {\n"
        "    return loop (s = x) for t < 4 { yield update s[t, j < 33] = sum[k < t](p[t, k] * s[k, j]) }\n}",
        {"x": normal(4, 33).astype(np.float32), "p": normal(4, 4).astype(np.float32)},
    ),
    "nothing to do": (
        "fn f(x: f32[3, 0, 2]) -> f32[3, 0, 2] { return cumsum(x, axis=1) }",
        {"x": normal(3, 0, 2).astype(np.float32)},
    ),
    "long rows": (
        "fn f(x: f32[2, 70000]) -> (f32[2, 70000], f32[2], f32) { return softmax(x), max(x, axis=1), sum(x) }",
        {"x": normal(2, 70000).astype(np.float32)},
    ),
    "columns": (
        "fn f(x: f32[300, 70]) -> (f32[300, 70], f32[70], f32[70]) {\n"
        "    return softmax(x, axis=0), max(x, axis=0), sum(x * x, axis=0)\n}",
        {"x": normal(300, 70).astype(np.float32)},
    ),
    "few queries against many keys": (
        "fn f(q: f32[2, 1, 16], k: f32[2, 600, 16], v: f32[2, 600, 8], n: i64[2]) -> f32[2, 1, 8] {\n"
        "    s[h, i, j] = where(j < n[h], sum[d](q[h, i, d] * k[h, j, d]), -inf)\n"
        "    return softmax(s, axis=2) @ v\n}",
        {
            "q": normal(2, 1, 16).astype(np.float32),
            "k": normal(2, 600, 16).astype(np.float32),
            "v": normal(2, 600, 8).astype(np.float32),
            "n": np.array([600, 200]),
        },
    ),
    "few rows of many classes": (
        "fn f(x: f32[20, 16], w: f32[16, 700]) -> f32[20] { return logsumexp(x @ w, axis=1) }",
        {"x": normal(20, 16).astype(np.float32), "w": normal(16, 700).astype(np.float32)},
    ),
    "a condition on an axis that a summand does not have": (
        "fn f(x: f32[5]) -> f32[5] { y[i] = sum[j in 0..30](x[i])\n return y }",
        {"x": normal(5).astype(np.float32)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("special", [1.0, np.inf, np.nan, -np.inf])
@pytest.mark.parametrize(
    "value", ["softmax(x, axis=1)", "logsumexp(x, axis=1)", "var(x, axis=1)", "layer_norm(x, x[0], x[1])"]
)
def test_few_long_rows_are_shared(value: str, special: float) -> None:
    x = normal(2, 70001).astype(np.float32)
    x[1, 69000] = special
    shape = "f32[2]" if value[0] in "vlo" and "norm" not in value else "f32[2, 70001]"
    text = f"fn f(x: f32[2, 70001]) -> {shape} {{ return {value} }}"
    made = Compilation(load(Source("program.ita", text)).build("f"), {}, OPTIONS)
    assert sum(map(len, made.launches.values())) <= 3, "parts, what merges them, what needs the whole"
    require(text, {"x": x})


@pytest.mark.parametrize("name", SMALL)
def test_small(name: str) -> None:
    text, arguments = SMALL[name]
    require(text, arguments, ("reference", *GPU_LEVELS))


@pytest.mark.parametrize("seed", (*range(2000, 2003), 2019))
def test_a_few_random_programs(seed: int) -> None:
    require_agreement(generate(seed))


def require_agreement(program: FuzzProgram) -> None:
    require(program.text, dict(program.arguments), GPU_LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_programs(first: int) -> None:
    for seed in range(first, first + 20):
        require_agreement(generate(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_chains_of_products(first: int) -> None:
    for seed in range(first, first + 10):
        require_agreement(generate_chain(seed))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [pytest.param(k, id=name) for name, k in KERNELS.items()])
def test_polybench(kernel: Kernel) -> None:
    """With three steps of stencils, and half the rows of nussinov, which wait for each other: all of them are alike."""
    sizes = kernel.at("MINI")
    few = {"T": 3} if "T" in sizes else {"N": 30} if kernel.name == "nussinov" else {}
    given = kernel.make(Random(), **{**sizes, **few})
    text = kernel.source.read_text(encoding="utf-8")
    require(text, dict(given), function=kernel.name)


def test_loops_that_begin_later_and_get_shorter_are_shared() -> None:
    text = """fn f(a: f32[N, N]) -> f32[N, N] {
        return loop (x = a) for t < N {
            yield update x[i in t + 1..N, t] = (x[i, t] - sum[k < t](x[i, k] * x[t, k])) / (abs(x[t, t]) + 1.0)
        }
    }"""
    module = load(Source("program.ita", text)).build("f")
    made = Compilation(module, {"N": 400}, OPTIONS)
    ((launch,),) = [found for name, found in made.launches.items() if "update" in name]
    assert "t" in launch.grid[0].symbols, "rows below the diagonal have programs of their own"
    (small,) = Compilation(module, {"N": 40}, OPTIONS).launches
    assert "loop" in small, "one program keeps up with launches"
    require(text, {"a": normal(40, 40).astype(np.float32)})


@pytest.mark.slow
def test_bits_are_counted_on_chips_too() -> None:
    text = "fn f(x: i64[40], y: u8[40]) -> (i64[40], u8[40]) { return popcount(x), popcount(y) }"
    require(text, {"x": np.arange(-20, 20), "y": np.arange(40, dtype=np.uint8)}, ("triton", "cubin"))


@pytest.mark.slow
@pytest.mark.parametrize("length", [900, 256, 5, 1])
def test_parts_of_open_number_are_merged(length: int) -> None:
    """Of 256 keys each; with infinities, and with keys that a mask leaves out."""
    text = """fn f(q: f32[2, 1, 16], k: f32[2, T, 16], v: f32[2, T, 8], n: i64[2]) -> f32[2, 1, 8] {
        s[h, i, j] = where(j < n[h], sum[d](q[h, i, d] * k[h, j, d]), -inf)
        return softmax(s, axis=2) @ v
    }"""
    module = load(Source("program.ita", text)).build("f")
    made = Compilation(module, {"T": length}, Options(target="gpu:sm_90", dynamic=("T",)))
    assert sum(map(len, made.launches.values())) == 2
    for keys, special in ((length, 1.0), (length // 3, 1.0), (0, 1.0), (length, np.inf), (length, np.nan)):
        q, k, v = (normal(2, n, d).astype(np.float32) for n, d in ((1, 16), (length, 16), (length, 8)))
        v[1, length // 2, 3] = special
        inputs = [q, k, v, np.array([keys, length])]
        (actual,) = run_plan(made.plan, inputs, made.sizes, made.interpret_launches)
        (expected,) = evaluate(Module(made.source_module.graph), inputs, made.sizes)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

"""Loops of which some states are kept and the others made again: the same gradients, less memory, and what is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import intarsia
from intarsia.cli import main
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Loop
from intarsia.ir.target import TARGETS
from intarsia.ir.verifier import verify_module
from intarsia.options import Options
from intarsia.passes.pipeline import DEFAULT, Context, Pipeline

TANH = "tanh(x[t] + h @ u)"
PROGRAMS = {
    "plain": f"loop (h = zeros(f64[D])) for t < T {{ yield {TANH} }}",
    "from what is differentiated": f"loop (h = 0.1 * x[0]) for t < T {{ yield {TANH} }}",
    "several states": """loop (h = zeros(f64[D]), c = ones(f64[D]), k = 0) for t < T {
        m = c * sigmoid(x[t]) + tanh(x[k] + h @ u)
        yield tanh(m) + x[k], m, (k + 2) % T
    }""",
    "a state that is not kept": """loop (h = zeros(f64[D]), c = ones(f64[D])) for t < T {
        yield h * 0.5 + c * u[0] + x[t], floor(c * 1.5 + 0.3 * x[t])
    }""",
    "emits": f"""scan (h = zeros(f64[D])) for t < T {{
        m = {TANH}
        yield m
        emit m * x[t]
    }}""",
    "emits what is kept": f"""scan (h = zeros(f64[D])) for t < T {{
        yield {TANH}
        emit h
    }}""",
    "until": f"loop (h = zeros(f64[D])) for t < T while sum(h) < 0.8 {{ yield {TANH} }}",
    "as many as data says": f"loop (h = zeros(f64[D])) for t < minimum(n, T) {{ yield {TANH} }}",
    "from one": f"loop (h = zeros(f64[D])) for t in 1..T {{ yield {TANH} + h * f64(t) }}",
    "a loop in each step": """loop (h = zeros(f64[D])) for t < T {
        yield loop (g = h + x[t]) for s < 6 { yield tanh(0.5 * (g @ u) + x[t]) }
    }""",
    "a longer loop in each step": """loop (h = zeros(f64[D])) for t < T {
        yield loop (g = h + x[t]) for s < t { yield tanh(0.5 * (g @ u) + x[t - s - 1]) }
    }""",
    "rows of a tensor": """loop (h = zeros(f64[T, D])) for t in 1..T {
        yield update h[t, i] = tanh(sum[j](h[t - 1, j] * u[j, i]) + x[t, i])
    }""",
    "each element by itself": "loop (h = zeros(f64[D])) for t < T { yield h * x[t] + u[0] }",
    "a gradient in a loop": """loop (v = u) for s < 3 {
        yield v - 0.1 * grad(fit, wrt=v)(x, v)
    }""",
}
TEXT = """
fn squares(x: f64[..S]) -> f64 {{ return sum(x * x) }}
fn fit(x: f64[T, D], v: f64[D, D]) -> f64 {{
    h = loop (h = zeros(f64[D])) for t < T {{ yield tanh(x[t] + h @ v) }}
    return sum(h * h)
}}
fn f(x: f64[T, D], u: f64[D, D], n: i64) -> f64 {{
    {results} = {program}
    return {total}
}}
fn first(x: f64[T, D], u: f64[D, D], n: i64) {{ return value_and_grad(f, wrt=(x, u))(x, u, n) }}
fn change(x: f64[T, D], u: f64[D, D], n: i64) -> f64 {{ return sum(grad(f, wrt=u)(x, u, n) ** 2) }}
fn second(x: f64[T, D], u: f64[D, D], n: i64) {{ return grad(change, wrt=(x, u))(x, u, n) }}
fn product(x: f64[T, D], u: f64[D, D], n: i64) {{ return jvp(grad(f, wrt=u), wrt=u)(x, u, n, u) }}
"""
BEFORE = DEFAULT.split(",checkpoint")[0]


def _text(name: str) -> str:
    program = PROGRAMS[name]
    count = {"emits": 2, "several states": 3, "a state that is not kept": 2, "emits what is kept": 2}.get(name, 1)
    results = ["a", "b", "c"][:count]
    total = " + ".join(f"squares({r})" for r in results if r != "c")
    return TEXT.format(program=program, results=", ".join(results), total=total)


def _given(steps: int, number: int) -> list[Array]:
    random = np.random.default_rng(steps)
    return [random.standard_normal((steps, 3)), 0.7 * random.standard_normal((3, 3)), np.array(number)]


CONTEXT = Context(TARGETS["cpu:x86-avx2"])


def _checkpointed(module: Module, options: str) -> Module:
    found = Pipeline.parse(f"checkpoint{{{options}}}").run(module, CONTEXT)
    verify_module(found)
    return found


def _kept(module: Module) -> int:
    """How many rows the first loop of a program keeps."""
    loop = next(n for n in module.graph.body.nodes if isinstance(n, Loop))
    return loop.values[-1].tensor.shape[0].constant or 0


SECOND = ("several states", "emits", "as many as data says", "a loop in each step")
"""Programs of which second derivatives are taken too."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "entry"), [*((n, "first") for n in PROGRAMS), *((n, e) for n in SECOND for e in ("second", "product"))]
)
def test_gradients_are_the_same(name: str, entry: str) -> None:
    """Bit for bit, for lengths of segments that divide the number of steps and others, and none or one step."""
    built = load(Source("f", _text(name))).build(entry)
    for steps in (0, 1, 7, 8):
        if steps == 0 and "x[0]" in PROGRAMS[name]:
            continue
        plain = Pipeline.parse(f"specialize{{T={steps} D=3}},{BEFORE}").run(built, CONTEXT)
        numbers = (-1, 0, 1, 5, 20) if "data" in name else (0,)
        expected = [evaluate(plain, _given(steps, n)) for n in numbers]
        for options in ("every=3", "every=4", "budget=1"):
            module = _checkpointed(plain, options)
            for number, before in zip(numbers, expected):
                for one, other in zip(evaluate(module, _given(steps, number)), before, strict=True):
                    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several states", "until", "as many as data says", "a longer loop in each step"])
def test_compiled_gradients_are_the_same(name: str) -> None:
    for steps, dynamic in ((7, ()), (8, ()), (8, ("T",))):
        plain = intarsia.compile(_text(name)).first(*_given(steps, 5))
        options = Options(passes=DEFAULT.replace("checkpoint", "checkpoint{every=4}"), dynamic=dynamic)
        found = intarsia.compile(_text(name), options).first(*_given(steps, 5))
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_how_many_states_are_kept() -> None:
    """The least that is made again within a budget; about the square root where none is enough; all where that is."""
    text = _text("plain")
    built = load(Source("f", text)).build("first")
    plain = Pipeline.parse(f"specialize{{T=144 D=3}},{BEFORE}").run(built, CONTEXT)
    row = 3 * 8
    assert _kept(plain) == 144
    for budget, kept in ((200 * row, 144), (80 * row, 72), (52 * row, 36), (30 * row, 18), (1, 12)):
        assert _kept(_checkpointed(plain, f"budget={budget}")) == kept, budget
    assert _checkpointed(plain, "") is plain
    prime = Pipeline.parse(f"specialize{{T=149 D=3}},{BEFORE}").run(built, CONTEXT)
    assert _kept(_checkpointed(prime, "budget=1")) == 12


@pytest.mark.slow
def test_less_memory_and_what_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget from Python and on the command line."""
    x, u = np.ones((400, 64)), np.eye(64) * 0.5
    plain = intarsia.compile(_text("plain")).first
    small = intarsia.compile(_text("plain"), Options(memory_budget=64 << 10)).first
    for one, other in zip(small(x, u, 0), plain(x, u, 0), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    most, less = (int(f.lower(x, u, 0).compilation.plan.workspace_bytes) for f in (plain, small))
    assert most > 400 * 64 * 8 and less < 128 << 10
    file = tmp_path / "net.ita"
    file.write_text(_text("plain"), "utf-8")
    command = ["explain", f"{file}:first", "--about", "memory", "--dim", "T=400", "--dim", "D=64"]
    assert main([*command, "--memory-budget", "64kB"]) == 0
    told = capsys.readouterr().out
    assert "of 400 states of the scan are kept" in told and "400 steps are run again" in told

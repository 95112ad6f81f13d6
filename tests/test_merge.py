"""Products that share an operand become one product where that pays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import intarsia
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module, Structured
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel import Kernel
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.sizes import Size
from intarsia.ir.target import TARGETS, Target
from intarsia.ir.text import read_module
from intarsia.passes.fuse.members import is_contraction
from intarsia.passes.pipeline import DEFAULT, Context, Pipeline, default_pipeline
from intarsia.passes.verify import verification

CPU = replace(TARGETS["cpu:x86-avx512"], cores=2)
ALWAYS = DEFAULT.replace("merge", "merge{always=true}")


def products(module: Module) -> int:
    return sum(isinstance(n, Structured) and is_contraction(n.space) for n in module.graph.body.walk())


# ---------------------------------------------------------------------- what can be one


def random_products(seed: int) -> tuple[str, int]:
    """Products with one x, on either side of it, of one width or several, with work on their results that is alike or
    not, and how many there are."""
    draw = random.Random(seed)
    rows, depth, count = draw.choice((1, 3, 5)), draw.choice((1, 4, 7)), draw.randint(2, 4)
    batch, left = draw.choice(("", "2, ")), draw.random() < 0.4
    shape = f"{batch}{depth}, {rows}" if left else f"{batch}{rows}, {depth}"
    widths = [draw.choice((2, 3, 6)) for _ in range(count)]
    dtype = draw.choice(("f32", "f64", "i32", "bf16"))
    parameters, lines, results = [f"%x: {dtype}[{shape}]"], [], []
    for n, width in enumerate(widths):
        const = draw.choice(("", "const "))
        own, made = (f"{width}, {depth}", f"{width}, {rows}") if left else (f"{depth}, {width}", f"{rows}, {width}")
        parameters.append(f"{const}%w{n}: {dtype}[{own}]")
        lines.append(f"%m{n} = matmul {f'%w{n}, %x' if left else f'%x, %w{n}'} : {dtype}[{batch}{made}]")
        result = f"%m{n}"
        if draw.random() < 0.7:
            parameters.append(f"const %b{n}: {dtype}[{made.split(', ')[1] if not left else f'{width}, 1'}]")
            lines.append(f"%s{n} = add {result}, %b{n} : {dtype}[{batch}{made}]")
            result = f"%s{n}"
        if draw.random() < 0.5:
            lines.append(f"%t{n} = mul {result}, {result} : {dtype}[{batch}{made}]")
            result = f"%t{n}"
        results.append(result)
    body = "\n".join(f"  {line}" for line in lines)
    return f"func @f({', '.join(parameters)}) {{\n{body}\n  return {', '.join(results)}\n}}", count


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.slow if n > 9 else ()) for n in range(40)])
def test_random_products(seed: int) -> None:
    text, count = random_products(seed)
    module = read_module(Source("random.ir", text))
    context = Context(TARGETS["cpu:x86-avx512"])
    new = Pipeline.parse("merge{always=true}").run(module, context, verification("exec"))
    matmuls = [sum(n.name == "matmul" for n in m.graph.body.walk()) for m in (module, new)]
    assert matmuls[0] == count and matmuls[1] < count, text
    Pipeline.parse("merge{always=true},fuse,skip-rounding,lower").run(module, context, verification("exec"))


# ---------------------------------------------------------------------- what pays

QKV = """fn f(x: f32[S, D], {0}q: f32[D, D], {0}k: f32[D, D], {0}v: f32[D, D], const b: f32[D]) -> f32[S, D] {{
    return (x @ q + b) @ transpose(x @ k + b) @ (x @ v + b)
}}"""
OWN = QKV.replace("(x @ q + b)", "exp(x @ q + b)")
GATED = "fn f(x: f32[S, D], const g: f32[D, F], const u: f32[D, F]) -> f32[S, F] { return silu(x @ g) * (x @ u) }"
RESULTS = "fn f(x: f32[S, D], const g: f32[D, F], const u: f32[D, F]) -> (f32[S, F], f32[S, F]) { return x @ g, x @ u }"


def before_fusion(text: str, target: Target, predictors: Any = (None, None)) -> tuple[int, list[str]]:
    """How many products are left of a program, and what the pass said."""
    context = Context(target, predict=predictors[0], predict_alone=predictors[1])
    module = load(Source("f.ita", text)).build("f")
    sizes = {n: size for n, size in (("S", 32), ("D", 64), ("F", 128)) if n in module.graph.dimensions}
    new = default_pipeline(sizes).before("fuse").run(module, context)
    return products(new), [r.message for r in context.remarks.items if r.pass_name == "merge"]


@pytest.mark.parametrize(
    ("seconds", "expected", "said"),
    [
        ((1.5, 3.0), 3, "are one: predicted 1.5 us against 3 us, cores are used 2.00 times as well in one"),
        ((1.5, 1.5), 5, "are not one: predicted 3 us against 1.5 us, cores are used 1.00 times as well in one"),
        ((3.0, 9.0), 5, "are not one: predicted 3 us against 3 us, cores are used 3.00 times as well in one"),
    ],
)
def test_a_cpu_asks_how_its_cores_are_used(seconds: tuple[float, float], expected: int, said: str) -> None:
    """Seconds of the wide product on all cores and on one, where each of the narrow ones takes 1 us."""

    def predict(wide: float, kernels: Sequence[Kernel]) -> list[float]:
        is_wide = any(b.shape[-1:] == (Size.of(192),) for b in kernels[0].parameters)
        return [1e-6 * (wide if is_wide else 1.0) for _ in kernels]

    predictors = tuple(partial(predict, wide) for wide in seconds)
    assert before_fusion(QKV.format("const "), CPU, predictors) == (expected, [f"3 products with x {said}"])


def test_a_cpu_leaves_what_nothing_is_known_of() -> None:
    assert before_fusion(QKV.format("const "), CPU) == (5, [])


def test_one_core_has_nothing_to_share() -> None:
    found, (said,) = before_fusion(QKV.format("const "), TARGETS["cpu:x86-avx512"])
    assert found == 5 and said.endswith("are not one: each by itself keeps all cores busy")


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        (QKV.format("const "), 3, "3 products with x are one: 1 launches against 3"),
        (QKV.format(""), 5, "3 products with x are not one: their operands would be put together in each call"),
        (OWN.format("const "), 3, "3 products with x are one: 2 launches against 3"),
        (GATED, 2, "2 products with x are not one: 2 launches against 2"),
        (RESULTS, 2, "2 products with x are not one: 3 launches against 2"),
    ],
)
def test_a_gpu_counts_launches(text: str, expected: int, said: str) -> None:
    assert before_fusion(text, TARGETS["gpu:sm_90"]) == (expected, [said])


# ---------------------------------------------------------------------- whole programs

LAYERS = """struct Layer(D) {
    q: f32[D, D]
    k: f32[D, D]
    b: f32[D]
}
fn list(x: f32[S, D], const p: Layer(D)[L]) -> f32[S, D] {
    return loop (h = x) for i < L { yield tanh(h @ p[i].q + p[i].b) * cos(h @ p[i].k) }
}
fn stack(x: f32[S, D], const q: f32[L, D, D], const k: f32[L, D, D], const b: f32[L, D]) -> f32[S, D] {
    return loop (h = x) for i < L { yield tanh(h @ q[i] + b[i]) * cos(h @ k[i]) }
}
fn once(x: f32[S, D], const q: f32[D, D], const k: f32[D, D]) -> f32[S, D] {
    return tanh(x @ q) * cos(x @ transpose(k))
}"""


def data(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / 4).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 17])
def test_operands_are_put_together_before_the_first_call(rows: int) -> None:
    """Those of all layers, also where they are laid out in panels."""
    x, q, k, b = data(rows, 70), data(3, 70, 70, seed=1), data(3, 70, 70, seed=2), data(3, 70, seed=3)
    program = intarsia.compile(LAYERS, intarsia.Options(passes=f"specialize,{ALWAYS}"))
    expected = x
    for n in range(3):
        expected = np.tanh(expected @ q[n] + b[n]) * np.cos(expected @ k[n])
    layers = [{"q": q[n], "k": k[n], "b": b[n]} for n in range(3)]
    cases = (
        (program.list.bind(p=layers), expected),
        (program.stack.bind(q=q, k=k, b=b), expected),
        (program.once.bind(q=q[0], k=k[0]), np.tanh(x @ q[0]) * np.cos(x @ k[0].T)),
    )
    for function, wanted in cases:
        for _ in range(3):
            np.testing.assert_allclose(function(x), wanted, rtol=1e-4, atol=1e-4)
        plan = function.lower(x).compilation.plan
        assert plan.preparation is not None
        assert not any("concat" in k.name for k in plan.kernels)


TYPES = "%x: f32[5, 32], const %a: list[2] f32[32, 32], const %b: list[2] f32[32, 48], const %c: f32[2, 32, 16]"
LOOP = """func @f(TYPES) {
  %0 = loop i in 0..2 (%h = %x) {
    %1 = list_get %a[i] : f32[32, 32]
    %2 = list_get %b[i] : f32[32, 48]
    %3 = matmul %h, %1 : f32[5, 32]
    %4 = matmul %h, %2 : f32[5, 48]
    %5 = compute [r < 5, j < 32] (tanh(%3[r, j] + %4[r, j + 16])) : f32[5, 32]
    %6 = compute [r < 5, j < 16] sum[k < 32](%5[r, k] * %c[i, k, j]) : f32[5, 16]
    %7 = compute [r < 5, j < 16] sum[k < 32](%5[r, k] * %c[1 - i, k, j]) : f32[5, 16]
    %8 = concat %6, %7 axis=1 : f32[5, 32]
    yield %8
  } : f32[5, 32]
  return %0
}""".replace("TYPES", TYPES)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_90", "cpu"])
def test_a_loop_means_the_same(target: str) -> None:
    """On a GPU in Triton's interpreter. Rows of a stack at two places of it are put together in each step."""
    module = read_module(Source("loop.ir", LOOP))
    compilation = Compilation(module, {}, intarsia.Options(target=target, passes=f"specialize,{ALWAYS}"))
    items = [[data(32, 32, seed=n) for n in (1, 2)], [data(32, 48, seed=n) for n in (3, 4)]]
    inputs = [data(5, 32), *items, data(2, 32, 16, seed=5)]
    expected = evaluate(module, inputs, {})[0]
    run = compilation.interpret_launches if target != "cpu" else None
    found = run_plan(compilation.plan, inputs, {}, *([run] if run else []))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert compilation.plan.preparation is not None

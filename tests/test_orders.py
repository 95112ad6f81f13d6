"""Tensors between kernels lie in memory as suits the kernels: the pass `layout`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

import intarsia
from intarsia.cli import main
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Call, Loop
from intarsia.ir.sizes import Size
from intarsia.ir.target import TARGETS
from intarsia.passes.layout.orders import is_same, last, with_orders
from intarsia.passes.layout.wanted import Demands
from intarsia.passes.pipeline import DEFAULT, Context, Pipeline
from intarsia.passes.verify import verification

TARGET = TARGETS["cpu:x86-avx512"]
ALWAYS = DEFAULT.replace("layout", "layout{choose=always}")
NEVER = DEFAULT.replace("layout", "layout{choose=never}")

PROGRAMS = {
    "products": (
        "fn f(x: f32[20, 33], w: f32[33, 18], y: f32[20, 17]) -> f32[18, 17] { return transpose(relu(x @ w)) @ y }"
    ),
    "convolutions": (
        "fn f(x: f32[1, 3, 9, 9], const v: f32[18, 3, 1, 1], const w: f32[20, 18, 3, 3]) -> f32[1, 20, 9, 9] {"
        " return conv2d(relu(conv2d(x, v)), w, padding=1) }"
    ),
    "a bottleneck": (
        "fn f(x: f32[1, 24, 7, 7], const u: f32[40, 24, 1, 1], const v: f32[40, 1, 3, 3], const w: f32[24, 40, 1, 1],"
        " b: f32[40]) -> f32[1, 24, 7, 7] {"
        " return relu(conv2d(relu(conv2d(relu(conv2d(x, u) + reshape(b, (1, 40, 1, 1))), v, padding=1, groups=40)), w)"
        " + x) }"
    ),
    "pooling": (
        "fn f(x: f32[1, 3, 8, 8], const v: f32[18, 3, 1, 1], const w: f32[20, 18, 1, 1]) -> f32[1, 20, 4, 4] {"
        " return conv2d(max_pool2d(relu(conv2d(x, v)), 2), w) }"
    ),
    "two readers": (
        "fn f(x: f32[1, 3, 8, 8], const v: f32[18, 3, 1, 1], const w: f32[20, 18, 3, 3])"
        " -> (f32[1, 20, 6, 6], f32[8, 8]) { a = relu(conv2d(x, v))\n return conv2d(a, w), max(a, axis=(0, 1)) }"
    ),
}

SOME = [n if n == "products" else pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS]


def kernels_of(text: str, passes: str = ALWAYS, context: Context | None = None, verify: bool = False) -> Module:
    """The kernels of a program before they are scheduled."""
    module = load(Source("f.ita", text)).build("f")
    pipeline = Pipeline.parse(f"specialize,{passes}").before("schedule")
    return pipeline.run(module, context or Context(TARGET), verification("exec") if verify else ())


def between(module: Module) -> list[str]:
    """The types of what calls make, but for results."""
    made = [v for node in module.graph.body.nodes if isinstance(node, Call) for v in node.values]
    return [str(v.type) for v in made if v not in module.graph.body.results]


def integers(module: Module) -> list[Array]:
    """Arguments of whose sums no digit is lost, whatever their order."""
    generator = np.random.default_rng(0)
    shapes = [[int(n) for n in p.value.tensor.shape] for p in module.graph.parameters]
    return [generator.integers(-3, 4, shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("name", SOME)
def test_every_bit_stays(name: str) -> None:
    """As kernels, and as code: what is chosen is not what the program says."""
    module = kernels_of(PROGRAMS[name], verify=True)
    assert between(module) != between(kernels_of(PROGRAMS[name], NEVER))
    arguments = integers(module)
    chosen, written = (
        intarsia.compile(PROGRAMS[name], intarsia.Options(passes=passes))["f"](*arguments) for passes in (ALWAYS, NEVER)
    )
    for got, wanted in zip(*(r if isinstance(r, tuple) else (r,) for r in (chosen, written)), strict=True):
        assert np.array_equal(np.asarray(got), np.asarray(wanted))


def random_chain(random: Random) -> str:
    """Products, each of which sums over one of the three dimensions of the one before, in any order."""
    sizes = dict(zip("abcdefg", random.sample(range(2, 9), 7)))
    names = random.sample("abcdefg", 3)
    parameters, lines = [f"t0: f64[{', '.join(str(sizes[n]) for n in names)}]"], []
    for step in range(1, 4):
        summed, new = random.choice(names), random.choice([n for n in "abcdefg" if n not in names])
        kept = [new if n == summed else n for n in names]
        random.shuffle(kept)
        parameters.append(f"w{step}: f64[{sizes[summed]}, {sizes[new]}]")
        body = f"sum[{summed}](t{step - 1}[{', '.join(names)}] * w{step}[{summed}, {new}])"
        body = random.choice((body, f"maximum({body}, 0.0)"))
        lines.append(f"t{step} = tensor[{', '.join(f'{n} < {sizes[n]}' for n in kept)}]({body})")
        names = kept
    result = f"f64[{', '.join(str(sizes[n]) for n in names)}]"
    return f"fn f({', '.join(parameters)}) -> {result} {{\n{chr(10).join(lines)}\nreturn t3 }}"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_random_chains_keep_every_bit(seed: int) -> None:
    kernels_of(random_chain(Random(seed)), verify=True)


def predicted(text: str, transposed: float) -> tuple[list[str], list[str]]:
    """The types of tensors between kernels, and the remarks, where kernels with a parameter of 33 by 20 elements are
    predicted to take so many milliseconds, and all others 1."""

    def predict(kernels: Sequence[Kernel]) -> list[float]:
        found = [any(str(b).endswith("[18, 20]") for b in k.parameters) for k in kernels]
        return [1e-3 * (transposed if f else 1.0) for f in found]

    context = Context(TARGET, predict=predict)
    module = kernels_of(text, DEFAULT, context)
    return between(module), [r.message for r in context.remarks.items if r.about == "layout"]


def test_the_predictor_decides() -> None:
    text = PROGRAMS["products"]
    types, remarks = predicted(text, 0.9)
    assert types == ["f32[18, 20]"]
    assert remarks[0].endswith("is stored as f32[18, 20]: predicted 1.8e+03 us against 2e+03 us")
    types, remarks = predicted(text, 0.99)
    assert types == ["f32[20, 18]"]
    assert "is not stored as f32[18, 20]" in remarks[0]
    assert between(kernels_of(text, DEFAULT)) == ["f32[20, 18]"]  # without a predictor


def test_what_does_not_fill_a_vector_does_not_come_last() -> None:
    """Of a batch of three, whatever is predicted: the lanes of other kernels would run along it."""
    types, remarks = predicted(PROGRAMS["products"].replace("20", "3"), 0.5)
    assert types == ["f32[3, 18]"] and remarks == []


def test_what_anything_else_can_see_stays() -> None:
    """Results, tensors of open sizes, and all tensors where schedules are pinned."""
    text = PROGRAMS["products"]
    result = text.replace("-> ", "-> (f32[20, 18], ").replace(" {", ") {").replace("return", "return relu(x @ w),")
    pinned = Context(TARGET, pinned_schedule="")
    open_ = Context(TARGET, dynamic=frozenset({"N"}))
    for program, context in ((result, None), (text.replace("20", "N"), open_), (text, pinned)):
        assert between(kernels_of(program, ALWAYS, context)) == between(kernels_of(program, NEVER, context))


def test_tensors_inside_of_loops_lie_as_suits() -> None:
    text = (
        "fn f(x: f32[20, 17], w: f32[17, 18], u: f32[20, 18], y: f32[20, 17]) -> f32[20, 17] {\n"
        "r = loop (a = x) for t < 3 { yield a + u @ (transpose(a @ w) @ y) }\nreturn r }"
    )
    module = kernels_of(text)
    (loop,) = (node for node in module.graph.body.nodes if isinstance(node, Loop))
    made = [str(v.type) for node in loop.body.nodes if isinstance(node, Call) for v in node.values]
    assert "f32[18, 20]" in made and "f32[20, 18]" not in made


def test_orders() -> None:
    (kernel,) = kernels_of("fn f(x: f32[4, 5, 6]) -> f32[4, 5, 6] { return x + 1.0 }", NEVER).kernels
    moved = with_orders(kernel, {"x": (1, 2, 0), "y": (2, 0, 1)})
    assert [str(b) for b in moved.parameters] == ["f32[5, 6, 4]", "f32[6, 4, 5]"]
    text = str(moved.body)
    assert text.index("axis='i2'") < text.index("axis='i0'") < text.index("axis='i1'")
    assert last(1, 4) == (0, 2, 3, 1)
    one, many = Size.of(1), Size.of(7)
    assert is_same((1, 0, 2), (one, many, many)) and not is_same((1, 0, 2), (many, many, one))


def test_a_product_says_what_it_would_like() -> None:
    """What it sums over, and of its result what only the other operand has."""
    (kernel,) = kernels_of("fn f(a: f32[4, 5], b: f32[5, 6]) -> f32[4, 6] { return a @ b }", NEVER).kernels
    demands = Demands.of(kernel)
    names = [b.name for b in kernel.parameters]
    assert demands.wanted == {(names[0], 1), (names[1], 0), (names[0], 0), (names[2], 0)}
    assert ((names[0], 0), (names[2], 0)) in demands.together


def test_explain_tells_where_tensors_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.ita").write_text(PROGRAMS["products"], encoding="utf-8")
    assert main(["explain", str(tmp_path / "f.ita"), "--about", "layout", "--passes", ALWAYS]) == 0
    assert "is stored as f32[18, 20]" in capsys.readouterr().out

"""Several steps of a loop for one exchange of halos: the same bits as on one device, and fewer messages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sharded import check_compiled, run_passes
from test_several_steps import TARGET
from test_sharding import LOCAL, built, bytes_of, collectives

from intarsia.driver import Compilation
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Loop
from intarsia.ir.points import Operand
from intarsia.ir.schedule import Overlap
from intarsia.ir.spmd import simulate
from intarsia.ir.text import print_module
from intarsia.mesh_program import MeshProgram
from intarsia.options import Options
from intarsia.passes.verify.inputs import random_inputs

HEAT = """mesh m(r={rows})
fn f(u: f32[N@r, M], n: i64) -> f32[N@r, M] {{
    return loop (h = u) for t < n {{
        yield tensor[i < N, j < M](where(i > 0 and i < N - 1 and j > 0 and j < M - 1,
            0.25 * (h[i - 1, j] + h[i + 1, j] + h[i, j - 1] + h[i, j + 1]), h[i, j]))
    }}
}}"""

WAVE = """mesh m(r=2, c=2)
fn f(a: f32[N@r, M@c], b: f32[N@r, M@c], speed: f32[N@r, M@c], n: i64) -> (f32[N@r, M@c], f32[N@r, M@c]) {
    return loop (old = a, u = b) for t < n {
        new[i < N, j < M] = where(i > 0 and i < N - 1 and j > 0 and j < M - 1,
            2.0 * u[i, j] - old[i, j] + speed[i, j] * (u[i - 1, j] + u[i + 1, j] + u[i, j - 1] + u[i, j + 1]), u[i, j])
        yield u, new
    }
}"""

PROGRAMS: dict[str, tuple[str, dict[str, int], tuple[int, ...]]] = {
    "heat": (HEAT.format(rows=2), {"N": 12, "M": 5}, (2, 3, 6)),
    "rows that the devices do not divide": (HEAT.format(rows=3), {"N": 13, "M": 4}, (2, 5)),
    "a device with little": (HEAT.format(rows=4), {"N": 9, "M": 4}, (2, 3)),
    "a wave on a grid of devices": (WAVE, {"N": 11, "M": 8}, (2, 4)),
    "wider to one side, and weights of the whole": (
        """mesh m(r=3)
fn f(u: f64[N@r], w: f64[N], n: i64) -> f64[N@r] {
    return loop (h = u) for t < n {
        yield tensor[i < N](where(i > 1 and i < N - 1, h[i - 2] * w[i] + h[i + 1] * f64(t), f64(i)))
    }
}""",
        {"N": 20},
        (2, 3),
    ),
    "windows that are summed, in two stages of a step": (
        """mesh m(r=2)
fn f(u: f32[N@r, M], k: f32[5], n: i64) -> f32[N@r, M] {
    return loop (h = u) for t < n {
        s[i < N, j < M] = sum[q < 5](where(i + q >= 2 and i + q < N + 2, k[q] * h[i + q - 2, j], 0.0))
        yield tensor[i < N, j < M](where(i < N - 1, s[i + 1, j] - s[i, j], 0.5 * h[i, j]))
    }
}""",
        {"N": 22, "M": 3},
        (2, 3),
    ),
    "what each step gives": (
        """mesh m(r=2)
fn f(u: f32[N@r], force: f32[9, N@r]) -> (f32[N@r], f32[9, N@r]) {
    return scan (h = u) for t < 9 {
        new[i < N] = where(i > 0, 0.5 * (h[i - 1] + h[i]), h[i]) + force[t, i]
        yield new
        emit new
    }
}""",
        {"N": 11},
        (2, 3, 4),
    ),
    "two fields, one ahead of the other": (
        """mesh m(r=2)
fn f(e: f32[N@r], b: f32[N@r], n: i64) -> (f32[N@r], f32[N@r]) {
    return loop (e = e, b = b) for t < n {
        next[i < N] = where(i > 0, e[i] - 0.5 * (b[i] - b[i - 1]), 0.0)
        yield next, tensor[i < N](where(i < N - 1, b[i] - 0.7 * (next[i + 1] - next[i]), b[i]))
    }
}""",
        {"N": 14},
        (2, 3, 7),
    ),
}


def inputs_of(module: Module, steps: int) -> list[Operand]:
    """At random, but for the number of steps."""
    inputs = random_inputs(module, {}, 0)
    names = [p.label for p in module.graph.body.parameters]
    return [np.array(steps) if name == "n" else value for name, value in zip(names, inputs)]


QUICK = ("a device with little", "windows that are summed, in two stages of a step", "what each step gives")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in PROGRAMS])
def test_the_same_bits_for_fewer_exchanges(name: str) -> None:
    text, sizes, depths = PROGRAMS[name]
    module = built(text, **sizes)
    shallow, _ = run_passes(module, LOCAL)
    for depth in depths:
        local, _ = run_passes(module, f"{LOCAL},deep-halos{{steps={depth}}}")
        blocks = [n for n in local.graph.body.nodes if isinstance(n, Loop)]
        assert blocks[0].counter == "t.0" and len(blocks) == (1 if "force" in text and 9 % depth == 0 else 2)
        for steps in (0, 1, depth, 2 * depth + 1):
            inputs = inputs_of(module, steps)
            for got, wanted in zip(simulate(local, inputs), evaluate(module, inputs), strict=True):
                np.testing.assert_array_equal(got, wanted)
    assert len(collectives(shallow)) <= len(collectives(local))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_code_gives_them_too(name: str) -> None:
    text, sizes, depths = PROGRAMS[name]
    module = built(text, **sizes)
    check_compiled(module, inputs_of(module, 2 * depths[0] + 1), device_passes=f"deep-halos{{steps={depths[0]}}}")


def test_the_inner_one_of_two_loops() -> None:
    """Its steps, and what they cost, hang on the counter of the outer one."""
    text = """mesh m(r=2)
fn f(u: f32[24@r], w: f32[3, 24@r]) -> f32[24@r] {
    return loop (g = u) for s < 3 {
        yield loop (h = g) for t in s..s + 5 {
            yield tensor[i < 24](where(i > 0, h[i - 1], 1.0) + sum[k < s + 1](w[k, i]))
        }
    }
}"""
    module = built(text)
    local, _ = run_passes(module, f"{LOCAL},deep-halos")
    assert [n.counter for n in local.graph.body.walk() if isinstance(n, Loop)] == ["t.0", "s"]
    inputs = random_inputs(module, {}, 0)
    np.testing.assert_array_equal(simulate(local, inputs)[0], evaluate(module, inputs)[0])


def test_as_many_bytes_in_fewer_messages() -> None:
    module = built(HEAT.format(rows=2).replace("t < n", "t < 12"), N=32, M=5)
    for depth in (2, 3, 12):
        local, _ = run_passes(module, f"{LOCAL},deep-halos{{steps={depth}}}")
        (block,) = (n for n in local.graph.body.nodes if isinstance(n, Loop))
        assert block.upper == block.lower + 12 // depth
        assert [bytes_of(c) for c in collectives(local)] == [depth * 5 * 4] * 2


REFUSED = {
    "a step also does a all_reduce": "t < 9 { yield tensor[i < 16](where(i > 0, h[i - 1], 0.0) + sum(h)) }",
    "a compute reads what neighbours have at 2 * i": "t < 9 { yield tensor[i < 16](where(i > 0, h[i - 1], x[2 * i])) }",
    "after each step it asks a condition": "t < 9 while x[0] > 1.0 { yield tensor[i < 16](where(i > 0, h[i - 1], 0)) }",
    "2 steps need 10 elements of a neighbour, which has 8": "t < 9 { yield tensor[i < 16](where(i > 4, h[i - 5], 0)) }",
    "there are no two of them": "t < 1 { yield tensor[i < 16](where(i > 0, h[i - 1], 0)) }",
    "data say where it begins": "t in m..9 { yield tensor[i < 16](where(i > 0, h[i - 1], 0.0)) }",
}


@pytest.mark.parametrize("problem", REFUSED)
def test_steps_that_need_more_of_others_exchange_one_by_one(problem: str) -> None:
    text = f"""mesh m(r=2)
fn f(u: f32[16@r], x: f32[32@r], m: i64) -> f32[16@r] {{ return loop (h = u) for {REFUSED[problem]} }}"""
    module = built(text)
    shallow, _ = run_passes(module, LOCAL)
    local, context = run_passes(module, f"{LOCAL},deep-halos{{steps=2}}")
    assert print_module(local) == print_module(shallow)
    found = [r.message for r in context.remarks.items if r.pass_name == "deep-halos"]
    assert found == [f"each step exchanges halos: {problem}"]


def test_a_device_with_one_row() -> None:
    """Ops of one element along a dimension read it at 0, and do not tell that it is one of many."""
    text = """mesh m(r=4)
fn f(u: f32[N@r], o: f32[N@r]) -> (f32[N@r], f32[N@r]) {
    return loop (u = u, o = o) for t < 4 {
        new[i < N] = where(i > 0, u[i - 1], 0.5) + where(i < N - 1, u[i + 1], 0.5)
        yield 1.5 * new - o, u
    }
}"""
    module = built(text, N=4)
    local, _ = run_passes(module, f"{LOCAL},deep-halos{{steps=2}}")
    inputs = random_inputs(module, {}, 0)
    for got, wanted in zip(simulate(local, inputs), evaluate(module, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_model_says_how_deep() -> None:
    """Messages cost more than what few rows compute, and less than what the same of many rows do."""
    for columns, depth in ((16, 8), (1 << 12, 4), (1 << 14, 1)):
        local, context = run_passes(built(HEAT.format(rows=2), N=32, M=columns), f"{LOCAL},deep-halos")
        text = "the model says that this takes least" if depth == 1 else f"once for {depth} steps"
        assert text in context.remarks.items[-1].message
        assert bytes_of(collectives(local)[0]) == depth * columns * 4


@pytest.mark.slow
@pytest.mark.parametrize("steps", [7, 19])
def test_blocks_of_a_device_go_through_all_steps(steps: int) -> None:
    """What one exchange is enough for becomes one kernel, whose blocks stay in a cache."""
    text = HEAT.format(rows=2)
    module = built(text, N=150, M=47)
    compilation = Compilation(module, {}, Options(devices="simulate", device_passes="deep-halos{steps=8}"))
    compilation.target = replace(TARGET, caches=(2 << 10, 8 << 10, 400 << 10))
    program = MeshProgram.of(compilation.executable(), compilation.scheduled, compilation.plan)
    assert any(isinstance(s, Overlap) for s in compilation.context.schedules["f_chain"])
    inputs = inputs_of(module, steps)
    for got, wanted in zip(program.simulate(inputs), evaluate(module, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)

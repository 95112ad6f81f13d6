"""Prefix sums and recurrences along a split dimension: equal results, and what is sent."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sharded import check_results, compiled, run_passes
from test_sharding import LOCAL, built, bytes_of, collectives

from intarsia.ir.graph import Module
from intarsia.ir.ops import Loop
from intarsia.ir.spmd import simulate
from intarsia.passes.verify.inputs import random_inputs

LINEAR = """fn f(q: f32[S@d, D], k: f32[S@d, D], v: f32[S@d, E]) -> f32[S@d, E] {
    _, y = scan (s = zeros(f32[D, E])) for t < S {
        h[d, e] = s[d, e] + k[t, d] * v[t, e]
        yield h
        emit q[t] @ h
    }
    return y
}"""

DECAYING = """fn f(q: f32[S@d, D], k: f32[S@d, D], v: f32[S@d, E], g: f32[S@d]) -> (f32[D, E], f32[S@d, E]) {
    return scan (s = ones(f32[D, E])) for t < S {
        h = g[t] * s + reshape(k[t], (D, 1)) * v[t]
        yield h
        emit q[t] @ h
    }
}"""

PROGRAMS: dict[str, tuple[str, dict[str, int], int]] = {
    "linear attention": (LINEAR, {"S": 12, "D": 2, "E": 3}, 1),
    "with a decay": (DECAYING, {"S": 11, "D": 2, "E": 3}, 2),
    "divided by a sum": (
        """fn f(q: f32[S@d, D], k: f32[S@d, D], v: f32[S@d, E]) -> f32[S@d, E] {
    _, _, y = scan (s = zeros(f32[D, E]), z = zeros(f32[D])) for t < S {
        h[d, e] = s[d, e] + exp(k[t, d]) * v[t, e]
        w = z + exp(k[t])
        yield h, w
        emit (exp(q[t]) @ h) / sum(exp(q[t]) * w)
    }
    return y
}""",
        {"S": 12, "D": 2, "E": 3},
        2,
    ),
    "by the step": (
        """fn f(x: f32[T@d, D]) -> f32[T@d, D] {
    _, y = scan (h = zeros(f32[D])) for t < T {
        next = where(t % 4 == 0, 0.25, 0.5) * h + x[t] + f32(t)
        yield next
        emit next - h
    }
    return y
}""",
        {"T": 10, "D": 3},
        2,
    ),
    "from both ends": (
        """fn f(x: f32[T@d, D]) -> f32[T@d, D] {
    _, y = scan (h = zeros(f32[D])) for t < T {
        next = 0.5 * h + x[T - 1 - t]
        yield next
        emit next * x[t]
    }
    return y
}""",
        {"T": 13, "D": 3},
        3,
    ),
    "to where data say": (
        """fn f(x: f32[T@d, D], n: i64[T@d]) -> f32[T@d] {
    _, y = scan (h = zeros(f32[D])) for t < T {
        next = h + x[t]
        yield next
        emit sum[i < clip(n[t], 0, D)](next[i] * x[t, i])
    }
    return y
}""",
        {"T": 11, "D": 3},
        1,
    ),
    "the last state": (
        "fn f(x: f32[T@d, D], h: f32[D]) -> f32[D] { return loop (s = h) for t < T { yield 0.9 * s + x[t] } }",
        {"T": 13, "D": 3},
        2,
    ),
    "prefix sums": ("fn f(x: f32[N, S@d]) -> f32[N, S@d] { return cumsum(x, axis=1) }", {"N": 2, "S": 11}, 1),
    "prefix products": ("fn f(x: f32[S@d, 2]) -> f32[S@d, 2] { return cumprod(x, axis=0) }", {"S": 7}, 1),
    "in half": ("fn f(x: f16[S@d, 2]) -> f16[S@d, 2] { return cumsum(x, axis=0) }", {"S": 13}, 1),
    "whole numbers": ("fn f(x: i64[S@d, 2]) -> i64[S@d, 2] { return cumsum(x, axis=0) }", {"S": 12}, 1),
    "in a loop": (
        "fn f(x: f32[S@d, 2]) -> f32[S@d, 2] { return loop (h = x) for t < 3 { yield cumsum(0.5 * h, axis=0) } }",
        {"S": 12},
        1,
    ),
}


def partitioned(text: str, devices: int, dims: dict[str, int]) -> tuple[Module, Module]:
    module = built(f"mesh m(d={devices})\n{text}", **dims)
    local, _ = run_passes(module, LOCAL)
    return module, local


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize("name", PROGRAMS)
def test_parts_give_what_one_device_gives(name: str, devices: int) -> None:
    text, dims, gathers = PROGRAMS[name]
    module, local = partitioned(text, devices, dims)
    assert Counter(n.name for n in collectives(local)) == {"all_gather": gathers}
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


def test_a_state_that_is_split_may_have_one_rate_for_all_of_it() -> None:
    text = DECAYING.replace("ones(f32[D, E])", "c").replace("S@d, E]", "S@d, E@e]").replace("[D, E]", "[D, E@e]")
    text = text.replace("g: f32", "c: f32[D, E@e], g: f32")
    module = built(f"mesh m(d=2, e=2)\n{text}", S=7, D=2, E=4)
    local, _ = run_passes(module, LOCAL)
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


@pytest.mark.parametrize("name", ["linear attention", "prefix sums"])
def test_what_is_sent_does_not_depend_on_the_length(name: str) -> None:
    text, dims, _ = PROGRAMS[name]
    short, long = (partitioned(text, 4, {**dims, "S": s})[1] for s in (16, 1 << 20))
    assert [bytes_of(n) for n in collectives(short)] == [bytes_of(n) for n in collectives(long)]


def test_a_part_has_its_own_steps() -> None:
    _, local = partitioned(LINEAR, 4, {"S": 64, "D": 2, "E": 3})
    assert sorted(int(n.upper) for n in local.graph.body.nodes if isinstance(n, Loop)) == [4, 16, 16]


def test_states_that_mix_elements_are_gathered() -> None:
    """A product of matrices would be an exchange of whole matrices."""
    text = """fn f(x: f32[T@d, D], w: f32[D, D]) -> f32[T@d, D] {
    _, y = scan (h = zeros(f32[D])) for t < T {
        next = h @ w + x[t]
        yield next
        emit next
    }
    return y
}"""
    module, local = partitioned(text, 4, {"T": 12, "D": 3})
    assert [n.x.tensor.static_shape for n in collectives(local)] == [(3, 3)]
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


def test_a_state_that_a_condition_replaces_may_be_infinite_before() -> None:
    text = """fn f(x: f32[T@d, D]) -> f32[D] {
    return loop (h = zeros(f32[D])) for t < T { yield where(t == 6, x[t], 0.5 * h + x[t]) }
}"""
    module, local = partitioned(text, 4, {"T": 12, "D": 2})
    x = np.ones((12, 2), np.float32)
    x[1, 0] = np.inf
    check_results(module, [x], simulate(local, [x]))


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_what_is_added_may_be_no_number(special: float) -> None:
    for name in ("prefix sums", "linear attention", "with a decay"):
        text, dims, _ = PROGRAMS[name]
        module, local = partitioned(text, 4, dims)
        inputs = random_inputs(module, {}, 0)
        array = np.asarray(inputs[2 if len(inputs) > 2 else 0])
        array[..., -1, 1] = special
        with np.errstate(invalid="ignore"):
            check_results(module, inputs, simulate(local, inputs))


def test_a_state_of_zeros_stays_so_however_often_it_is_multiplied() -> None:
    text = "fn f(x: f32[T@d], a: f32[T@d]) -> f32 { return loop (s = 0.0) for t < T { yield a[t] * s + x[t] } }"
    module, local = partitioned(text, 4, {"T": 32})
    x, a = np.zeros(32, np.float32), np.full(32, 1e6, np.float32)
    with np.errstate(over="ignore"):
        check_results(module, [x, a], simulate(local, [x, a]))


@pytest.mark.parametrize(
    "name", ["prefix sums", *(pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS if n != "prefix sums")]
)
def test_compiled_parts(name: str) -> None:
    """Nothing is read outside of a tensor, not even for steps after the last one."""
    text, dims, _ = PROGRAMS[name]
    module = built(f"mesh m(d=3)\n{text}", **dims)
    program, _ = compiled(module, checks=True)
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, program.simulate(inputs))

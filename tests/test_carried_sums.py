"""Sums that loops carry: parts of them stay parts until the loop is done, and one collective merges them."""

from __future__ import annotations

from collections import Counter

import pytest
from sharded import check_compiled, check_results, run_passes
from test_sharding import LOCAL, built

from intarsia.ir.graph import Module, Region
from intarsia.ir.ops import AllSlice, Collective, Loop
from intarsia.ir.spmd import simulate
from intarsia.passes.verify.inputs import random_inputs


def sent(module: Module) -> Counter[str]:
    """The collectives of a program, each with an apostrophe for each loop around it; those of numbers do not count."""
    found: Counter[str] = Counter()

    def walk(region: Region, depth: int) -> None:
        for node in region.nodes:
            if isinstance(node, Collective) and not isinstance(node, AllSlice) and node.x.tensor.shape:
                found[node.name + "'" * depth] += 1
            for inner in node.regions:
                walk(inner, depth + isinstance(node, Loop))

    walk(module.graph.body, 0)
    return found


RECURRENT = """
mesh m(data=4)
fn loss(x: f32[T, B, D], y: f32[B, D], w: f32[D, D], b: f32[D]) -> f32 {
    h = loop (h = zeros(f32[B, D])) for t < T { yield tanh(h @ w + b + x[t]) }
    e = h - y
    return mean(e * e)
}
fn f(x: f32[T, B@data, D], y: f32[B@data, D], w: f32[D, D], b: f32[D]) -> (f32[D, D], f32[D]) {
    return grad(loss, wrt=(w, b))(x, y, w, b)
}"""

SPLIT = RECURRENT.replace(
    "-> (f32[D, D], f32[D]) {\n    return grad(loss, wrt=(w, b))(x, y, w, b)",
    "-> f32[D@data, D] {\n    g: f32[D@data, D] = grad(loss, wrt=w)(x, y, w, b)\n    return g",
)

LAYERS = """
mesh m(data=4)
fn loss(x: f32[B, D], y: f32[B, D], w: f32[L, D, D]) -> f32 {
    h = loop (h = x) for i < L { yield h + tanh(h @ w[i]) }
    e = h - y
    return mean(e * e)
}
fn f(x: f32[B@data, D], y: f32[B@data, D], w: f32[L, D, D]) -> f32[L, D, D] {
    return grad(loss, wrt=w)(x, y, w)
}"""

SPLIT_LAYERS = LAYERS.replace(
    "-> f32[L, D, D] {\n    return grad", "-> f32[L, D@data, D] {\n    g: f32[L, D@data, D] = grad"
).replace("(x, y, w)\n}", "(x, y, w)\n    return g\n}")

MICRO_BATCHES = """
mesh m(data=2)
fn loss(x: f32[B, D], y: f32[B, D], w: f32[L, D, D], u: f32[D]) -> f32 {
    h = loop (h = x) for i < L { yield h + tanh(h @ w[i]) }
    e = h * u - y
    return mean(e * e)
}
fn f(x: f32[M, B@data, D], y: f32[M, B@data, D], w: f32[L, D, D], u: f32[D]) -> (f32, f32[L, D, D], f32[D]) {
    total, gw, gu = loop (total: f32 = 0.0, gw = zeros(f32[L, D, D]), gu = zeros(f32[D])) for k < M {
        value, dw, du = value_and_grad(loss, wrt=(w, u))(x[k], y[k], w, u)
        yield total + value, gw + dw / f32(M), 0.9 * gu + du
    }
    return total, gw, gu
}"""

ANYTHING_FIRST = """
mesh m(data=3)
fn f(x: f32[T, B@data, D], a: f32[D], c: f32[D]) -> (f32[D], f32[D]) {
    s, m = loop (s = a, m = c) for t < T {
        yield 0.5 * s + sum(x[t], axis=0), maximum(m, max(x[t], axis=0))
    }
    return s, m
}"""

TABLE = """
mesh m(data=3)
fn f(ids: i64[T, N@data], u: f32[T, N@data, D], start: f32[V, D]) -> f32[V, D] {
    return loop (y = start) for t < T { yield update y[ids[t, n], d] += u[t, n, d] }
}"""

READ_ELSEWHERE = """
mesh m(data=4)
fn f(x: f32[T, B@data, D]) -> (f32[D], f32[D]) {
    s, p = loop (s = zeros(f32[D]), p = zeros(f32[D])) for t < T {
        yield s + sum(x[t], axis=0), p + tanh(s)
    }
    return s, p
}"""

ALONE = """
mesh m(data=4)
fn f(x: f32[T, B@data, D]) -> f32[D] {
    return loop (s = zeros(f32[D])) for t < T while sum(s) < 1000.0 { yield s + sum(x[t], axis=0) }
}"""

CASES: dict[str, tuple[str, dict[str, int], dict[str, int]]] = {
    "weights that all steps share": (RECURRENT, {"T": 3, "B": 8, "D": 4}, {"all_reduce": 2}),
    "a batch that the devices do not divide": (RECURRENT, {"T": 3, "B": 6, "D": 5}, {"all_reduce": 2}),
    "one step": (RECURRENT, {"T": 1, "B": 8, "D": 4}, {"all_reduce": 2}),
    "a gradient that is split": (SPLIT, {"T": 3, "B": 8, "D": 4}, {"reduce_scatter": 1}),
    "stacked weights": (LAYERS, {"L": 3, "B": 8, "D": 4}, {"all_reduce": 1}),
    "stacked gradients that are split are so at once": (SPLIT_LAYERS, {"L": 3, "B": 8, "D": 4}, {"reduce_scatter'": 1}),
    "micro-batches": (MICRO_BATCHES, {"M": 2, "L": 3, "B": 4, "D": 4}, {"all_reduce": 2}),
    "any beginning": (ANYTHING_FIRST, {"T": 4, "B": 5, "D": 4}, {"all_reduce": 2}),
    "a table": (TABLE, {"T": 4, "N": 7, "V": 5, "D": 3}, {"all_reduce": 1}),
    "a sum that a step needs": (READ_ELSEWHERE, {"T": 3, "B": 8, "D": 4}, {"all_reduce'": 1}),
    "a sum that ends the loop": (ALONE, {"T": 3, "B": 8, "D": 4}, {"all_reduce'": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_are_merged_where_they_are_needed(case: str) -> None:
    text, dims, wanted = CASES[case]
    module = built(text, **dims)
    local, _ = run_passes(module, LOCAL)
    assert sent(local) == wanted
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled(case: str) -> None:
    text, dims, _ = CASES[case]
    module = built(text, **dims)
    check_compiled(module, random_inputs(module, {}, 0))

"""Values at the edge of what numbers are, on several devices: no NaN, infinity or sign of zero is won or lost; and
what is beyond the end of a dimension, where devices have padding, fails no run-time check."""

from __future__ import annotations

import numpy as np
import pytest
from sharded import SHARD, run_passes

import intarsia
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.spmd import simulate
from intarsia.passes.specialize import specialize

MESH = "mesh m(a=2)\n"
IDS = np.array([0, 60, 1])


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def halves(*values: float) -> Array:
    return np.array(values, np.float16)


SPECIAL: dict[str, tuple[str, tuple[Array, ...], dict[str, int]]] = {
    "a table times infinity": (
        "fn f(t: f32[V@a, 1], i: i64[3], w: f32[3]) -> f32[1] { return tensor[d](sum[n](t[i[n], d] * w[n])) }",
        (np.ones((64, 1), np.float32), IDS, floats(np.inf, np.inf, 2.0)),
        {"V": 64},
    ),
    "two places of a table": (
        "fn f(t: f32[V@a], i: i64[3], w: f32[3]) -> f32[3] { return tensor[n](w[n] * (t[i[n]] + t[i[n] + 33])) }",
        (np.arange(128, dtype=np.float32), IDS, floats(3.0, 1.0, -2.0)),
        {"V": 128},
    ),
    "a table where there are subscripts": (
        "fn f(t: f32[V@a], i: i64[3]) -> f32[5] { return tensor[n < 5](where(n < 3, t[i[n]], 0.0)) }",
        (np.arange(64, dtype=np.float32), IDS),
        {"V": 64},
    ),
    "zeros of a table": (
        "fn f(t: f32[V@a], i: i64[3]) -> f32[3] { return tensor[n](t[i[n]]) }",
        (-np.zeros(64, np.float32), IDS),
        {"V": 64},
    ),
    "a sum whose parts overflow": ("fn f(x: f16[4@a]) -> f16 { return sum(x) }", (halves(4e4, 4e4, -4e4, -4e4),), {}),
    "a product whose parts overflow": (
        "fn f(x: f16[1, 4@a], y: f16[4@a, 1]) -> f16[1, 1] { return x @ y }",
        (halves(4e4, 4e4, -4e4, -4e4)[None], np.ones((4, 1), np.float16)),
        {},
    ),
    "a sum whose parts overflow in another type": (
        "fn f(x: f32[4@a]) -> f16 { return f16(sum(bf16(x))) }",
        (floats(4e4, 4e4, -4e4, -4e4),),
        {},
    ),
    "a product of factors that vanish": (
        "fn f(x: f16[4@a]) -> f16 { return prod(x) }",
        (halves(1e-4, 1e-4, 1e4, 1e4),),
        {},
    ),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name: str) -> None:
    text, inputs, dims = SPECIAL[name]
    module = specialize(load(Source("test.ita", MESH + text)).build(dims=dims), dims)
    local, _ = run_passes(module, SHARD)
    (found,), (wanted,) = simulate(local, inputs), evaluate(module, inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))


CHECKED = {
    "divisor": "fn f(i: i64[N@a]) -> i64[N@a] { return 7 // i }",
    "subscript": "fn f(i: i64[N@a]) -> i64[N@a] { return tensor[n < N](i[i[n] - 1]) }",
    "place": "fn f(i: i64[N@a]) -> i64[N@a] { return tensor[n < N](7 // i[N - 1 - n]) }",
    "largest": "fn f(i: i64[N@a]) -> i64[N] { return update i[i[n] - 1] max= -7 // i[n] }",
    "bounds": "fn f(i: i64[N@a]) -> i64[N@a] { return tensor[n < N](sum[k in 0..i[i[n] - 1]](i[k])) }",
    "target": "fn f(i: i64[N@a]) -> i64[N] { return update i[i[n] - 1] += 5 }",
    "row": "fn f(i: i64[N@a]) -> i64[N@a, N] { z = zeros(i64[N, N]); return update z[n, i[n] - 1] = 5 // i[n] }",
    "scan": "fn f(i: i64[N@a]) -> f32 { return loop (s = 1.0) for t < N { yield 0.5 * s + f32(7 // i[t]) } }",
}


@pytest.mark.parametrize("name", CHECKED)
def test_padding_fails_no_check(name: str) -> None:
    """And what the devices have fails, where there is a 0."""
    alone, together = (
        intarsia.compile(MESH + CHECKED[name], intarsia.Options(checks=True, devices=devices)).f
        for devices in (None, "simulate")
    )
    good, bad = np.array([1, 1, 2]), np.array([1, 1, 0])
    np.testing.assert_array_equal(together(good), alone(good))
    for program in (alone, together):
        with pytest.raises(CompileError, match="E080"):
            program(bad)


def test_a_subscript_that_no_device_has() -> None:
    """Devices that look for what they have of a table notice that nobody has it."""
    text = "fn f(t: f32[V@a], i: i64[3]) -> f32[3] { return tensor[n](t[i[n]]) }"
    program = intarsia.compile(MESH + text, intarsia.Options(checks=True, devices="simulate")).f
    table = np.arange(64, dtype=np.float32)
    np.testing.assert_array_equal(program(table, IDS), table[IDS])
    with pytest.raises(CompileError, match=r"subscript 90 is outside 0\.\.64"):
        program(table, IDS + 30)

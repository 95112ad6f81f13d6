"""Loops whose steps need the whole of a state, as one kernel for GPUs: recurrent networks, powers of small matrices."""

from __future__ import annotations

from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from compare import compare
from test_gpu_compiled import FEW

from intarsia.backends.gpu.toolchain import compile_kernel
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.pipeline import DEFAULT

TARGET = "gpu:sm_90"

RNN = """fn f(x: f32[T, B, I], h0: f32[B, H], w: f32[I, H], u: f32[H, H], b: f32[H]) -> (f32[B, H], f32[T, B, H]) {
    last, states = scan (h = h0) for t < T {
        next = tanh(x[t] @ w + h @ u + b)
        yield next
        emit next
    }
    return last, states
}"""

GRU = """fn f(x: f32[T, B, I], h0: f32[B, H], w: f32[3*H, I], u: f32[3*H, H], b: f32[3*H]) -> f32[T, B, H] {
    _, states = scan (h = h0) for t < T {
        gx = x[t] @ transpose(w) + b
        gh = h @ transpose(u)
        reset = sigmoid(gx[:, :H] + gh[:, :H])
        update_gate = sigmoid(gx[:, H:2*H] + gh[:, H:2*H])
        new = tanh(gx[:, 2*H:] + reset * gh[:, 2*H:])
        next = (1.0 - update_gate) * new + update_gate * h
        yield next
        emit next
    }
    return states
}"""

LSTM = """fn f(x: f32[T, B, I], h0: f32[B, H], w: f32[I, 4*H], u: f32[H, 4*H]) -> (f32[B, H], f32[B, H], f32[T, B, H]) {
    h, c, states = scan (h = h0, c = zeros(f32[B, H])) for t < T {
        g = x[t] @ w + h @ u
        cell = sigmoid(g[:, H:2*H]) * c + sigmoid(g[:, :H]) * tanh(g[:, 2*H:3*H])
        out = sigmoid(g[:, 3*H:]) * tanh(cell)
        yield out, cell
        emit out
    }
    return h, c, states
}"""

ONE_SEQUENCE = """fn f(x: f32[T, H], u: f32[H, H]) -> f32[T, H] {
    _, states = scan (h = zeros(f32[H])) for t < T {
        next = tanh(x[t] + u @ h)
        yield next
        emit next
    }
    return states
}"""

POWER = """fn f(a: f32[N, N], v: f32[N]) -> f32[N] {
    return loop (v = v) for t < 5 {
        w = a @ v
        yield w / sqrt(sum(w * w))
    }
}"""

NEWTON_SCHULZ = """fn f(x: f32[N, N]) -> f32[N, N] {
    return loop (y = x) for t < 4 { yield 1.5 * y - 0.5 * (y @ (transpose(y) @ y)) }
}"""

FIBONACCI = """fn f(a: f32[N], m: f32[N, N]) -> (f32[N], f32[N]) {
    p, q = loop (p = a, q = a * 2.0) for t < 3 { yield q, m @ p }
    return p, q
}"""


def drawn(*shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * scale).astype(np.float32)


def rnn(t: int, b: int, i: int, h: int) -> dict[str, Array]:
    return {
        "x": drawn(t, b, i), "h0": drawn(b, h), "w": drawn(i, h, scale=0.3), "u": drawn(h, h, scale=0.3), "b": drawn(h)
    }  # fmt: skip


def gru(t: int, b: int, i: int, h: int) -> dict[str, Array]:
    shapes = {"w": (3 * h, i), "u": (3 * h, h), "b": (3 * h,)}
    return {"x": drawn(t, b, i), "h0": drawn(b, h), **{k: drawn(*s, scale=0.3) for k, s in shapes.items()}}


def lstm(t: int, b: int, i: int, h: int) -> dict[str, Array]:
    return {"x": drawn(t, b, i), "h0": drawn(b, h), "w": drawn(i, 4 * h, scale=0.3), "u": drawn(h, 4 * h, scale=0.3)}


CASES: dict[str, tuple[str, dict[str, Array]]] = {
    "rnn": (RNN, rnn(4, 3, 5, 16)),
    "rnn of odd sizes": (RNN, rnn(3, 37, 7, 45)),
    "rnn of one row": (RNN, rnn(3, 1, 4, 20)),
    "rnn without steps": (RNN, rnn(0, 3, 5, 16)),
    "rnn of one step": (RNN, rnn(1, 3, 5, 16)),
    "gru": (GRU, gru(3, 5, 6, 32)),
    "gru of odd sizes": (GRU, gru(3, 19, 6, 23)),
    "lstm": (LSTM, lstm(3, 18, 6, 24)),
    "one sequence": (ONE_SEQUENCE, {"x": drawn(4, 33), "u": drawn(33, 33, scale=0.2)}),
    "power iteration": (POWER, {"a": drawn(21, 21), "v": drawn(21)}),
    "newton schulz": (NEWTON_SCHULZ, {"x": drawn(20, 20, scale=0.1)}),
    "two states": (FIBONACCI, {"a": drawn(17), "m": drawn(17, 17, scale=0.3)}),
}
"""Programs with their arguments."""


LARGE = {
    "gru": (GRU, {"T": 128, "B": 64, "I": 256, "H": 256}),
    "lstm": (LSTM, {"T": 100, "B": 32, "I": 128, "H": 128}),
    "rnn": (RNN, {"T": 100, "B": 2000, "I": 45, "H": 64}),
    "newton schulz": (NEWTON_SCHULZ, {"N": 64}),
    "power iteration": (POWER, {"N": 256}),
    "one sequence": (ONE_SEQUENCE, {"T": 1000, "H": 256}),
}
"""Programs with sizes at which a program keeps up with launches, in bf16."""


def compiled(text: str, sizes: dict[str, int], target: str = TARGET) -> Compilation:
    program = load(Source("program.ita", text)).build("f")
    return Compilation(program, sizes, Options(target=target))


def launches(compilation: Compilation) -> dict[str, list[int]]:
    """The programs of each launch of a kernel."""
    return {
        k.partition("_")[2]: [prod(int(n) for n in launch.grid) for launch in made]
        for k, made in compilation.launches.items()
    }


def require(name: str, levels: tuple[str, ...], dims: tuple[str, ...] = ()) -> None:
    text, arguments = CASES[name]
    failure = compare(text, arguments, levels, Options(target=TARGET, dynamic=dims))
    assert failure is None, failure


@pytest.mark.parametrize("name", ["rnn of odd sizes", "gru", "lstm", "newton schulz", "rnn without steps"])
def test_loops(name: str) -> None:
    require(name, ("kernels", "triton"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_loops(name: str) -> None:
    small = CASES[name][1].get("h0", CASES[name][1].get("x", np.zeros(9))).size < 100
    require(name, ("kernels", "plan", "triton") if small else ("kernels", "triton"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CASES if "T" in CASES[n][0]])
def test_loops_of_open_length(name: str) -> None:
    require(name, ("triton",), ("T",))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn", "gru of odd sizes", "lstm", "newton schulz"])
def test_loops_of_halves(name: str) -> None:
    text, arguments = CASES[name]
    narrow = {n: a.astype(ml_dtypes.bfloat16) for n, a in arguments.items()}
    failure = compare(text.replace("f32", "bf16"), narrow, ("triton",), Options(target=TARGET))
    assert failure is None, failure


@pytest.mark.parametrize("name", LARGE)
def test_launches(name: str) -> None:
    text, sizes = LARGE[name]
    made = launches(compiled(text.replace("f32", "bf16"), sizes))
    rows = min(-(-sizes.get("B", 1) // 16), 132)
    assert made["loop_t"] == [rows if name != "rnn" else 125]
    assert set(made) == ({"dot", "loop_t"} if "B" in sizes else {"loop_t"})


def test_a_large_product_in_each_step_stays_a_launch() -> None:
    made = compiled(GRU, {"T": 128, "B": 64, "I": 512, "H": 512})
    assert set(launches(made)) == {"dot", "matmul", "sigmoid_tanh"}
    (remark,) = [r for r in made.remarks.items if "cycles a step" in r.message]
    assert remark.message.startswith("steps of the loop are launches: about ") and not remark.done


def test_steps_that_no_kernel_can_hold() -> None:
    """A loop that asks a condition, or whose number of steps depends on data, has launches."""
    condition = (
        "fn f(u: f32[8, 8], v: f32[8]) -> f32[8] { return loop (h = v) for t < 9 while sum(h) < 9.0 { yield u @ h } }"
    )
    data = "fn f(u: f32[8, 8], v: f32[8], n: i64) -> f32[8] { return loop (h = v) for t < n { yield u @ h } }"
    for text in (condition, data):
        assert "loop_t" not in launches(compiled(text, {}))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90"])
def test_loops_fit_into_registers(target: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    texts = [(t.replace("f32", "bf16"), sizes) for t, sizes in LARGE.values()]
    texts += [(t, {n: min(s, 64) for n, s in sizes.items()}) for t, sizes in LARGE.values()]
    for text, sizes in texts:
        made = compiled(text, sizes, target)
        for launch in made.launches["f_loop_t"]:
            assert compile_kernel(launch, TARGETS[target], tmp_path).usage[1] <= FEW


@pytest.mark.parametrize("name", ["rnn", pytest.param("gru", marks=pytest.mark.slow), "two states"])
def test_the_kernel_of_a_loop_runs_on_a_cpu(name: str) -> None:
    text, arguments = CASES[name]
    passes = DEFAULT.replace(",hoist,", ",hoist{always=true},").replace(",lower,", ",lower{whole-loops=always},")
    failure = compare(text, arguments, ("kernels", "plan", "cpu"), Options(target="cpu", passes=passes))
    assert failure is None, failure

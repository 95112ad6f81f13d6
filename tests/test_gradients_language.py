"""Gradients in the language: what programs may differentiate, loops, and derivatives as entry points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import intarsia
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.text import print_module
from intarsia.ir.verifier import verify_module

LANGUAGE = """
struct Line(K) {
    slope: f64[K]
    offset: f64
}

fn loss(x: f64[N, K], w: f64[K], b: f64, y: f64[N]) -> f64 {
    e = x @ w + b - y
    return mean(e * e)
}

fn line_loss(x: f64[N, K], line: Line(K), y: f64[N]) -> f64 {
    return loss(x, line.slope, line.offset, y)
}

fn step(x: f64[N, K], w: f64[K], b: f64, y: f64[N]) -> (f64, f64[K], f64) {
    value, dw, db = value_and_grad(loss, wrt=(w, b))(x, w, y=y, b=b)
    return value, dw, db
}

fn of_struct(x: f64[N, K], line: Line(K), y: f64[N]) -> (f64[K], f64) {
    d = grad(line_loss, wrt=line)(x, line, y)
    return d.slope, d.offset
}

fn train(x: f64[N, K], y: f64[N], steps: i64) -> (f64[K], f64) {
    return loop (w = zeros(f64[K]), b: f64 = 0.0) for t < steps {
        dw, db = grad(loss, wrt=(w, b))(x, w, b, y)
        yield w - 0.1 * dw, b - 0.1 * db
    }
}

fn cube(x: f64, y: f64) -> f64 {
    return x ** 3 * y
}

fn power(x: f64) -> f64 {
    return loop (y = x) for t < 3 {
        yield y * x
    }
}

fn curvature(x: f64) -> f64 {
    return grad(grad(power, wrt=x), wrt=x)(x)
}

fn second(x: f64) -> (f64, f64) {
    return grad(grad(cube, wrt=x), wrt=x)(x, 2.0), grad(grad(cube, wrt=x), wrt=y)(x, 2.0)
}

fn twice(x: f64) -> f64 {
    return grad(cube, wrt=x)(x, x)
}

fn stopped(x: f64[N]) -> f64 {
    return sum(x * stop_gradient(x * x)) + sum[i](stop_gradient(x[i]))
}

fn along(x: f64[N, K], w: f64[K], b: f64, y: f64[N]) -> (f64, f64) {
    value, change = jvp(loss, wrt=(w, b))(x, w, b, y, w, 2.0)
    return value, change
}

fn curved(x: f64) -> (f64, f64) {
    return jvp(grad(power, wrt=x), wrt=x)(x, 0.5)
}

fn coarse(x: f64[N]) -> f64[N] {
    return round(x)
}

fn straight_through(x: f64[N], g: f64[N]) -> f64[N] {
    return g
}

fn quantised(x: f64[N]) -> f64 {
    return sum(custom_grad(coarse, straight_through)(x) * x)
}

fn times(x: f64, k: i64, y: f64) -> f64 {
    return x * y * f64(k)
}

fn times_backward(x: f64, k: i64, y: f64, g: f64) -> (f64, f64) {
    return 10.0 * g * y, 100.0 * g * x
}

fn repeated(x: f64, y: f64) -> f64 {
    return loop (z = x) for t < 2 {
        yield custom_grad(times, times_backward)(z, 1, y)
    }
}

fn of_custom(x: f64[N], y: f64) -> (f64[N], f64, f64) {
    dx, dy = grad(repeated, wrt=(x, y))(3.0, y)
    return grad(quantised, wrt=x)(x), dx, dy
}

fn through_integers(x: f64[N]) -> f64[N] {
    return f64(i64(x))
}

fn rounded(x: f64[N], y: f64) -> f64 {
    z = loop (z = x) for t < 2 {
        yield loop (u = z) for s < 2 {
            yield custom_grad(through_integers, straight_through)(u * y)
        }
    }
    return sum(z * z)
}

fn of_rounded(x: f64[N], y: f64, dx: f64[N], dy: f64) {
    gx, gy = grad(rounded, wrt=(x, y))(x, y)
    value, change = jvp(rounded, wrt=(x, y))(x, y, dx, dy)
    g, second = jvp(grad(rounded, wrt=x), wrt=x)(x, y, dx)
    return gx, gy, change, second
}

fn scaled(line: Line(K), n: i64) -> f64 {
    return sum(line.slope) * line.offset
}

fn doubled(line: Line(K), n: i64, g: f64) -> Line(K) {
    return Line(slope=2.0 * g * line.slope * f64(n), offset=g)
}

fn of_lines(line: Line(K)) -> f64 {
    return loop (s: f64 = 0.0) for t in 1..3 {
        yield s + custom_grad(scaled, doubled)(line, t)
    }
}

fn of_custom_struct(line: Line(K), d: Line(K)) {
    value, change = jvp(of_lines, wrt=line)(line, d)
    return grad(of_lines, wrt=line)(line), change
}

fn until(x: f64[N], most: i64) -> f64 {
    y, count = loop (y = x * x, count: i64 = 0) for t in 2..minimum(most, 9) while sum(y) < 50.0 {
        yield y * x + f64(t), count + 1
    }
    return sum(y * y)
}

fn of_until(x: f64[N], most: i64, d: f64[N]) {
    value, g = value_and_grad(until, wrt=x)(x, most)
    same, second = jvp(grad(until, wrt=x), wrt=x)(x, most, d)
    return value, g, second, grad(slope_of_until, wrt=x)(x, most, d)
}

fn updated(x: f64[N], y: f64[N]) -> f64 {
    a = update x[i // 2] *= y[i] + x[i]
    b = update a[i // 2] max= y[i] * x[i]
    return sum(b * b)
}

fn of_updates(x: f64[N], y: f64[N]) {
    return grad(updated, wrt=(x, y))(x, y)
}

fn bent(x: f64, y: f64) -> f64 {
    return where(x > y, sqrt(x - y), exp(x) * y)
}

fn moved(x: f64[N], d: f64[N], y: f64) -> f64[N] {
    return tensor[i](moved_one(x[i], d[i], y))
}

fn moved_one(x: f64, d: f64, y: f64) -> f64 {
    value, change = jvp(cube, wrt=(x, y))(x, y, d, 1.0)
    return value + change
}

fn elementwise(x: f64[N], y: f64, k: i64[N]) -> (f64[N], f64[N], f64, f64[N]) {
    slope[i] = grad(cube, wrt=x)(x[i], y)
    both[i] = where(k[i] > 1, grad(grad(cube, wrt=x), wrt=y)(x[i], y * 2.0), 0.0)
    first[i] = x[i] * grad(power, wrt=x)(x[0])
    total = sum[i](grad(bent, wrt=x)(x[i], x[k[i]]) * x[i])
    return slope, both, total, first
}

fn slope_of_until(x: f64[N], most: i64, d: f64[N]) -> f64 {
    return sum(grad(until, wrt=x)(x, most) * d)
}

fn of_stopped(x: f64[N]) -> f64[N] {
    return grad(stopped, wrt=x)(x)
}

fn of_built_in(x: f64[N]) -> f64[N] {
    return grad(logsumexp, wrt=x)(x)
}
"""


def _run(name: str, **inputs: Any) -> list[Any]:
    module = load(Source("language.ita", LANGUAGE)).build(name)
    results = evaluate(module, [np.asarray(inputs[p.label]) for p in module.graph.parameters])
    return [r.tolist() for r in results]


def _data() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    return {"x": x, "y": x @ np.array([1.0, 2.0, 3.0]) + 4.0, "w": rng.normal(size=3), "b": np.array(0.5)}


def test_the_language() -> None:
    data = _data()
    assert load(Source("language.ita", LANGUAGE)).check() == []
    e = data["x"] @ data["w"] + data["b"] - data["y"]
    value, dw, db = _run("step", **data)
    assert np.allclose(value, np.mean(e * e))
    assert np.allclose(dw, 2 * e @ data["x"] / 20)
    assert np.allclose(db, 2 * np.mean(e))
    assert _run("of_struct", x=data["x"], y=data["y"], **{"line.slope": data["w"], "line.offset": data["b"]}) == [
        dw,
        db,
    ]
    assert _run("second", x=3.0) == [36.0, 27.0]
    assert np.allclose(_run("along", **data), [value, np.dot(dw, data["w"]) + 2.0 * db])
    assert _run("curved", x=2.0) == [32.0, 24.0]
    assert _run("curvature", x=2.0) == [48.0]
    assert _run("twice", x=3.0) == [81.0]  # of the first parameter alone
    assert np.allclose(_run("of_custom", x=[1.2, 2.7], y=2.0)[0], [2.2, 5.7])
    assert _run("of_custom", x=[1.2, 2.7], y=2.0)[1:] == [400.0, 6600.0]
    x, dx = np.array([1.2, 2.7]), np.array([0.5, -1.0])
    gx, gy, change, second = map(np.asarray, _run("of_rounded", x=x, y=2.0, dx=dx, dy=0.25))
    last = np.array([16.0, 40.0])  # 1.2, 2, 4, 8, 16 and 2.7, 5, 10, 20, 40, each of which is the one before, times 2
    assert np.allclose(gx, 2 * last * 16)
    steps = np.array([[1.2, 2, 4, 8], [2.7, 5, 10, 20]]) @ np.array([8.0, 4.0, 2.0, 1.0])
    assert np.allclose(gy, 2 * last @ steps) and np.allclose(change, gx @ dx + gy * 0.25)
    assert np.allclose(second, 2 * 16 * 16 * dx)
    given = {"line.slope": [1.0, 2.0], "line.offset": 3.0, "d.slope": [1.0, 0.0], "d.offset": 10.0}
    slope, offset, along = _run("of_custom_struct", **given)
    assert slope == [6.0, 12.0] and offset == 2.0 and along == 26.0
    x, k = np.array([1.0, 3.0, 2.0]), np.array([1, 0, 2])
    slope, both, total, first = _run("elementwise", x=x, y=2.0, k=k)
    assert np.allclose(first, 4.0 * x)  # through a loop, of an element that no index selects
    assert np.allclose(slope, 6 * x**2) and np.allclose(both, [0, 0, 3 * 4])
    assert total == pytest.approx(np.exp(1) * 3 + 3 / (2 * np.sqrt(2)) + 2 * np.exp(2) * 2)
    d = np.array([1.0, 0.0, -1.0])
    assert np.allclose(_run("moved", x=x, d=d, y=2.0)[0], 2 * x**3 + 6 * x**2 * d + x**3)
    assert np.allclose(_run("of_stopped", x=[1.0, 2.0])[0], [1.0, 4.0])
    assert np.allclose(_run("of_built_in", x=[1.0, 1.0])[0], [0.5, 0.5])


@pytest.mark.slow
def test_a_training_loop_compiles() -> None:
    program = intarsia.compile(LANGUAGE)
    data = _data()
    slope, offset = program.train(data["x"], data["y"], np.int64(500))
    assert np.allclose(slope, [1, 2, 3], atol=1e-3) and np.allclose(offset, 4, atol=1e-3)
    again = intarsia.value_and_grad(program.loss, wrt=("w", "b"))
    assert again(data["x"], data["w"], data["b"], data["y"])[2] == pytest.approx(_run("step", **data)[2])
    value, dw, db = program.step(data["x"], data["w"], data["b"], data["y"])
    for found, wanted in zip((value, dw, db), _run("step", **data)):
        assert found == pytest.approx(wanted)
    x, d = np.array([1.1, 1.6, -0.7]), np.array([0.3, -0.5, 1.0])
    for most in (1, 4, 20):
        compiled, interpreted = program.of_until(x, most, d), _run("of_until", x=x, most=most, d=d)
        assert all(np.allclose(a, b) for a, b in zip(compiled, interpreted))
    bases = np.array([0.3, 1.2]), np.array([1.0, 2.0])
    assert np.allclose(program.of_updates(*bases)[1], _run("of_updates", x=bases[0], y=bases[1])[1])


def _until(x: Array, most: int) -> float:
    y, t = x * x, 2
    while t < min(most, 9) and np.sum(y) < 50:
        y, t = y * x + t, t + 1
    return float(np.sum(y * y))


@pytest.mark.parametrize("most", [1, 4, 20])
def test_loops_that_data_ends(most: int) -> None:
    """They go back as many steps as they have gone, once and twice."""
    x, d = np.array([1.1, 1.6, -0.7]), np.array([0.3, -0.5, 1.0])
    value, g, forwards, backwards = _run("of_until", x=x, most=most, d=d)
    assert value == pytest.approx(_until(x, most))
    slopes = [(_until(x + s, most) - _until(x - s, most)) / 2e-6 for s in 1e-6 * np.eye(3)]
    assert np.allclose(g, slopes, rtol=1e-5)
    ahead, behind = (np.array(_run("of_until", x=x + s * d, most=most, d=d)[1]) for s in (1e-6, -1e-6))
    assert np.allclose(forwards, (ahead - behind) / 2e-6, rtol=1e-5)
    assert np.allclose(backwards, forwards)


def test_a_derivative_as_entry_point() -> None:
    """What `intarsia.grad` makes is a function of the program with the same parameters."""
    program = intarsia.compile(LANGUAGE)
    second = intarsia.grad(intarsia.grad(program.cube, "x"), "x")
    assert second.form.function == "grad_cube"
    assert [p.name for p in second.form.parameters] == ["x", "y"]
    library = load(Source("language.ita", LANGUAGE))
    assert evaluate(library.build(second.name), [np.array(3.0), np.array(2.0)])[0] == 36.0
    assert evaluate(library.build("grad(line_loss, wrt=line)"), list(_line(_data())))[1].shape == ()
    forward = library.build("jvp(cube, wrt=(y, x))")
    assert [p.label for p in forward.graph.parameters] == ["x", "y", "d_y", "d_x"]
    assert [float(v) for v in evaluate(forward, [np.array(v) for v in (3.0, 2.0, 1.0, 0.0)])] == [54.0, 27.0]
    with pytest.raises(CompileError, match="no parameter `z`"):
        library.build("grad(cube, wrt=z)")
    with pytest.raises(CompileError, match="no function is named `cub`"):
        library.build("grad(cub, wrt=x)")


def _line(data: dict[str, Array]) -> tuple[Array, ...]:
    return data["x"], data["w"], data["b"], data["y"]


def test_loops_carry_cotangents_back() -> None:
    """The loop that is differentiated stacks its states itself, and rows of what it reads are added in place."""
    text = """
fn rnn(x: f64[T, N], w: f64[N, N], h0: f64[N]) -> f64 {
    return sum(loop (h = h0) for t < T { yield tanh(h @ w + x[t]) })
}

fn f(x: f64[T, N], w: f64[N, N], h0: f64[N]) {
    return value_and_grad(rnn, wrt=(x, w, h0))(x, w, h0)
}
"""
    module = load(Source("rnn.ita", text)).build("f")
    verify_module(module)
    printed = print_module(module)
    assert printed.count(" loop ") + printed.count(" scan ") == 2
    assert "[T - t_1 - 1, j0] += " in printed

"""Gradients: of every op, and of programs whose index expressions need solving, against finite differences in f64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from differences import check_gradients, gradient_module

import intarsia
from intarsia.dsl.library import load
from intarsia.ir.dtypes import F32, F64, Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Graph, Node, Parameter, Region
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Elementwise
from intarsia.ir.samples import samples
from intarsia.ir.text import print_module

PROGRAMS = {
    "conv1": """fn f(x: f64[N], w: f64[R]) -> f64[N-R+1] {
 y[i < N-R+1] = sum[r](x[i + r] * w[r])
 return y }""",
    "conv2d": """fn f(x: f64[B, C, 6, 7], w: f64[O, C, 3, 2]) { return conv2d(x, w, stride=(2, 1), padding=1) }""",
    "pool": """fn f(x: f64[B, C, 6, 8]) { return max_pool2d(x, size=2) }""",
    "avgpool": """fn f(x: f64[B, C, 6, 8]) { return avg_pool2d(x, size=3, stride=2, padding=1) }""",
    "stencil": """fn f(x: f64[N]) -> f64[N] {
 y[i] = where(i > 0, x[i - 1], 0.0) * x[i] + where(i < N - 1, x[i + 1] * x[i + 1], 2.0)
 return y }""",
    "triangular": """fn f(l: f64[N, N], x: f64[N]) -> f64[N] {
 y[i < N] = sum[k < i](l[i, k] * x[k])
 return y }""",
    "sparse": """fn f(start: i64[R1], val: f64[P], col: i64[P], x: f64[C]) {
 y[r < R1 - 1] = sum[p in start[r]..start[r + 1]](val[p] * x[col[p]])
 return y }""",
    "gather": """fn f(table: f64[V, D], ids: i64[T]) {
 y[t, d] = table[ids[t], d] * 2.0
 return y }""",
    "take": """fn f(x: f64[N, M], ids: i64[T]) { return take(x, ids, axis=1) }""",
    "softmax": """fn f(x: f64[N, M]) { return softmax(x) }""",
    "log_softmax": """fn f(x: f64[N, M]) { return log_softmax(x) }""",
    "logsumexp": """fn f(x: f64[N, M]) { return logsumexp(x, axis=1) }""",
    "layer_norm": """fn f(x: f64[N, M], g: f64[M], b: f64[M]) { return layer_norm(x, g, b) }""",
    "rms_norm": """fn f(x: f64[N, M], g: f64[M]) { return rms_norm(x, g) }""",
    "attention": """fn f(q: f64[H, S, D], k: f64[H, T, D], v: f64[H, T, E]) { return attention(q, k, v, causal=true) }""",  # noqa: E501
    "gelu": """fn f(x: f64[N, M]) { return gelu(x) + gelu_tanh(x) + silu(x) + softplus(x) + elu(x) + leaky_relu(x) + relu(x) }""",  # noqa: E501
    "repeat": """fn f(x: f64[N, M]) { return repeat(x, 3, axis=1) }""",
    "strided": """fn f(x: f64[N, 9]) { return x[1:, ::2] }""",
    "quotient": """fn f(x: f64[4, 6]) {
 y[i < 24] = x[i // 6, i % 6] * 3.0
 return y }""",
    "flat": """fn f(x: f64[24]) {
 y[i < 4, j < 6] = x[6 * i + j] * 3.0
 return y }""",
    "diag": """fn f(x: f64[N, N]) { return trace(x) }""",
    "flip": """fn f(x: f64[N, M]) { return flip(x, axis=0) }""",
    "concat": """fn f(x: f64[N, M], y: f64[K, M]) { return concat((x, y, x), axis=0) }""",
    "split": """fn f(x: f64[N, 6]) {
 a, b, c = split(x, 3, axis=1)
 return a * b + c }""",
    "update": """fn f(x: f64[N], y: f64[M]) {
 return update x[i in 1..M+1] = y[i - 1] * x[i] }""",
    "scatter": """fn f(x: f64[N], bin: i64[T], y: f64[T]) {
 return update x[bin[i]] += y[i] * y[i] }""",
    "slices": """fn f(x: f64[N, M], y: f64[M], pos: i64) {
 return update x[pos, :] = y }""",
    "dyn": """fn f(x: f64[N, M], pos: i64) { return x[pos] * x[0] * x[-1] }""",
    "einsum": """fn f(x: f64[B, I, J], y: f64[B, J, K]) { return einsum("bij,bjk->kb", x, y) }""",
    "prods": """fn f(x: f64[N, M]) { return prod(x, axis=1), prod(x) }""",
    "maxs": """fn f(x: f64[N, M]) { return max(x, axis=1), min(x), max(x, axis=0, keepdims=true) * x }""",
    "sort": """fn f(x: f64[N, M]) { return sort(x, axis=0) }""",
    "topk": """fn f(x: f64[N, M]) {
 a, b = top_k(x, 2)
 return a }""",
    "cumsum": """fn f(x: f64[N, M]) { return cumsum(x, axis=0) }""",
    "reshape": """fn f(x: f64[N, M]) { return reshape(x, (M, N)) * 2.0 }""",
    "pad": """fn f(x: f64[N, M]) { return pad(x, ((1, 2), (0, 3)), value=2.0) }""",
    "varz": """fn f(x: f64[N, M]) { return var(x, axis=0), mean(x) }""",
    "pown": """fn f(x: f64[N, M], y: f64[N, M]) { return abs(x) ** y, x ** 2, x ** 3 }""",
    "matmulx": """fn f(x: f64[N, M], w: f64[M, K], b: f64[K]) { return tanh(x @ w + b) }""",
    "batched": """fn f(x: f64[B, 1, N, M], w: f64[C, M, K]) { return x @ w }""",
    "wheres": """fn f(x: f64[N, M]) { return where(x > 0, log(abs(x)), x * x) }""",
    "clip": """fn f(x: f64[N, M]) { return clip(x, -0.5, 0.5) * x }""",
    "masked": """fn f(x: f64[N, M]) {
 y[i, j] = where(j <= i, x[i, j], -inf)
 return softmax(y) }""",
    "revidx": """fn f(x: f64[N], w: f64[4]) {
 y[i < N + 3] = sum[r < 4](where(i - r >= 0 and i - r < N, x[i - r] * w[r], 0.0))
 return y }""",
    "negneg": """fn f(x: f64[N]) {
 y[i] = x[N - 1 - i] * x[i]
 return y }""",
    "conv1t": """fn f(x: f64[B, 4, 8], w: f64[4, 1, 3]) { return conv1d(x, w, padding=1, groups=4, stride=2) }""",
    "stack": """fn f(x: f64[N], y: f64[N]) { return stack((x, y), axis=1) }""",
    "tile": """fn f(x: f64[N, M]) { return tile(x, (2, 3)) }""",
    "multi": """fn f(x: f64[N, M]) {
 y[i] = sum[j, k < 2](x[i, j] * x[(i + k) % N, j])
 return y }""",
    "bounded": """fn f(x: f64[N, M]) {
 y[i] = max[j < i + 1](x[i, minimum(j, M - 1)])
 return y }""",
}
"""Programs by what is hard about them."""

SIZES = {
    "N": 5,
    "M": 4,
    "R": 3,
    "B": 2,
    "C": 4,
    "O": 3,
    "R1": 5,
    "P": 6,
    "V": 7,
    "D": 3,
    "T": 4,
    "H": 2,
    "S": 4,
    "E": 3,
    "K": 3,
    "I": 2,
    "J": 3,
}


def _inputs(graph: Graph, sizes: dict[str, int], low: float = -1.5) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    found: dict[str, Array] = {}
    for p in graph.parameters:
        tensor = p.value.tensor
        shape = [s.evaluate(sizes) for s in tensor.shape]
        if tensor.dtype.is_float:
            found[p.label] = rng.uniform(low, 1.5, shape).astype(tensor.dtype.numpy)
        elif tensor.dtype.is_integer:
            found[p.label] = rng.integers(0, 3, shape).astype(tensor.dtype.numpy)
        else:
            found[p.label] = rng.integers(0, 2, shape).astype(np.bool_)
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_of_programs(name: str) -> None:
    graph = load(Source(name, PROGRAMS[name])).build("f").graph
    sizes = {d: SIZES[d] for d in graph.dimensions}
    given = _inputs(graph, sizes)
    if "start" in given:
        given["start"] = np.array([0, 2, 2, 5, 6])
    check_gradients(graph, given, sizes=sizes)


def _in_f64(node: Node) -> Node:
    """The node on f64 parameters."""
    operands = [v for v in node.operands if isinstance(v.node, Parameter) and v.dtype == F32]
    return node.with_operands({v: Parameter(v.node.label, v.tensor.with_dtype(F64)).value for v in operands})


def _differentiable() -> list[Node]:
    found = [n for n in samples() if n.name not in ("cast", "bitcast") and n.operands]
    found = [n for n in found if not isinstance(n, Elementwise) or n.function != "stop_gradient"]
    found = [_in_f64(n) for n in found if n.results[0].dtype == F32]
    return [n for n in found if n.name != "reduce" or n.operands[0].tensor.elements.constant]


@pytest.mark.parametrize("node", _differentiable(), ids=lambda n: f"{getattr(n, 'function', n.name)}")
def test_gradients_of_ops(node: Node) -> None:
    """Every op and scalar function that gives floats."""
    parameters = [p for p in dict.fromkeys(v.node for v in node.operands) if isinstance(p, Parameter)]
    graph = Graph("f", Region.of(parameters, [node.value]))
    given = _inputs(graph, {}, 0.2)
    given = {label: x * 0.6 if x.dtype == np.float64 else x for label, x in given.items()}  # asin(x) has |x| < 1
    check_gradients(graph, given, [p.label for p in parameters if p.value.dtype == F64])


def _gradient(text: str, *arrays: Array) -> list[Array]:
    """The gradients of the sum of a program's results, which are numbers."""
    graph = load(Source("f", text)).build("f").graph
    module = gradient_module(graph, [p.value for p in graph.parameters])
    return list(evaluate(module, [*arrays, *(np.ones(()) for _ in graph.results)]))


def test_ties() -> None:
    """Equal maxima share; of two equal arguments of maximum and minimum, the second one counts."""
    x = np.array([2.0, 1.0, 2.0])
    assert _gradient("fn f(x: f64[N]) { return max(x) }", x)[0].tolist() == [0.5, 0.0, 0.5]
    found = _gradient("fn f(x: f64, y: f64) { return maximum(x, y) + 2.0 * minimum(x, y) }", *np.ones((2, 1))[:, 0])
    assert [float(g) for g in found] == [0.0, 3.0]
    assert float(_gradient("fn f(x: f64) { return relu(x) + abs(x) }", np.zeros(()))[0]) == 0.0


def test_products_with_zeros() -> None:
    """The derivative of a product is the product of the others, also where one of them is 0."""
    found = _gradient("fn f(x: f64[N]) { return prod(x) }", np.array([0.0, 2.0, 3.0]))
    assert found[0].tolist() == [6.0, 0.0, 0.0]


def test_what_is_not_chosen_has_gradient_zero() -> None:
    """The arm of a where that does not count adds nothing, not a NaN of 0 * inf."""
    found = _gradient("fn f(x: f64[N]) { return sum[i](where(x[i] > 0, log(x[i]), 0.0)) }", np.array([0.0, 2.0, -1.0]))
    assert found[0].tolist() == [0.0, 0.5, 0.0]
    found = _gradient("fn f(x: f64[N]) { return sum[i](where(x[i] > 0, sqrt(x[i]), x[i])) }", np.array([0.0, 4.0]))
    assert found[0].tolist() == [1.0, 0.25]


def test_infinities_stay_where_they_are() -> None:
    found = _gradient("fn f(x: f64[N]) { return sum(sqrt(x)) }", np.array([0.0, 4.0]))
    assert found[0].tolist() == [np.inf, 0.25]


def test_index_maps_are_inverted() -> None:
    """The adjoint of a gather by index expressions is a gather: no scatter, and no sum where one element is read."""
    for name in ("quotient", "flat", "strided", "repeat", "conv2d", "stencil", "concat", "triangular"):
        graph = load(Source(name, PROGRAMS[name])).build("f").graph
        text = print_module(gradient_module(graph, [p.value for p in graph.parameters]))
        assert "update" not in text, name
        assert name not in ("quotient", "flat", "strided") or "sum" not in text.split("weight0", 2)[2], name


def test_sixteen_bits_are_summed_in_f32() -> None:
    graph = (
        load(Source("f", "fn f(x: f16[N, M], w: f16[M, K], ids: i64[K]) { return take(x @ w, ids, axis=0) }"))
        .build("f")
        .graph
    )
    text = print_module(gradient_module(graph, [p.value for p in graph.parameters[:2]]))
    assert "sum[r0 < K](f32(" in text and "f32[N, K]" in text


def test_what_has_no_derivative_says_so_at_its_place() -> None:
    graph = load(Source("f", "fn f(x: f32[N]) {\n    return f32(f8e4m3(x))\n}")).build("f").graph
    with pytest.raises(CompileError) as caught:
        gradient_module(graph, [graph.parameters[0].value])
    assert caught.value.code == "E0325" and caught.value.diagnostics[0].span is not None


# ---------------------------------------------------------------------- in the language

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

fn second(x: f64) -> (f64, f64) {
    return grad(grad(cube, wrt=x), wrt=x)(x, 2.0), grad(grad(cube, wrt=x), wrt=y)(x, 2.0)
}

fn twice(x: f64) -> f64 {
    return grad(cube, wrt=x)(x, x)
}

fn stopped(x: f64[N]) -> f64 {
    return sum(x * stop_gradient(x * x)) + sum[i](stop_gradient(x[i]))
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
    assert _run("twice", x=3.0) == [81.0]  # of the first parameter alone
    assert np.allclose(_run("of_stopped", x=[1.0, 2.0])[0], [1.0, 4.0])
    assert np.allclose(_run("of_built_in", x=[1.0, 1.0])[0], [0.5, 0.5])


def test_a_training_loop_compiles() -> None:
    program = intarsia.compile(LANGUAGE)
    data = _data()
    slope, offset = program.train(data["x"], data["y"], np.int64(500))
    assert np.allclose(slope, [1, 2, 3], atol=1e-3) and np.allclose(offset, 4, atol=1e-3)
    value, dw, db = program.step(data["x"], data["w"], data["b"], data["y"])
    for found, wanted in zip((value, dw, db), _run("step", **data)):
        assert found == pytest.approx(wanted)

"""Structs as values: made, returned, carried by loops, gone through tensor by tensor, and differentiated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Run
from differences import check_gradients

import intarsia
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Graph
from intarsia.ir.interpreter import evaluate
from intarsia.ir.text import print_module
from intarsia.results import in_form, named

PROGRAM = """
struct Linear(N, K) {
    w: f64[N, K]
    b: f64[N]
}

struct Net(D, L) {
    first: Linear(D, D)
    layer: Linear(D, D)[L]
}

fn forward(x: f64[B, D], p: Net(D, L)) -> f64 {
    h = loop (h = x @ p.first.w + p.first.b) for i < L {
        yield tanh(h @ p.layer[i].w + p.layer[i].b)
    }
    return mean(h * h) + sum[i < L, k](p.layer[i].b[k] ** 2)
}

fn both(x: f64[B, D], p: Net(D, L)) -> (f64, Net(D, L)) {
    return value_and_grad(forward, wrt=p)(x, p)
}

fn parts(x: f64[B, D], p: Net(D, L)) {
    return grad(forward, wrt=(p.layer, p.first.b))(x, p)
}

fn made(w: f64[N, K], b: f64[N]) -> Linear(N, K) {
    return Linear(b=b * 2.0, w=w)
}

fn stack(w: f64[L, N, K]) -> Linear(N, K)[L] {
    last, layers = scan (b = zeros(f64[N])) for i < L {
        yield b + 1.0
        emit Linear(w=w[i], b=b)
    }
    return layers
}

fn step[T: float](w: T[..S], g: T[..S], m: T[..S], rate: T) -> (T[..S], T[..S]) {
    m1 = 0.5 * m + g
    return w - rate * m1, m1
}

fn squares[T: float](total: T, g: T[..S]) -> T {
    return total + sum(g * g)
}

fn zero[T: float](x: T[..S]) -> T[..S] {
    return 0.0 * x
}

fn train(x: f64[B, D], p: Net(D, L), steps: i64) -> (Net(D, L), f64) {
    q, m, norm = loop (p = p, m = map(zero)(p), norm: f64 = 0.0) for t < steps {
        g = grad(forward, wrt=p)(x, p)
        q, n = map(step)(p, g, m, rate=0.1)
        yield q, n, fold(squares)(f64(0.0), g)
    }
    return q, norm
}

fn norm(x: f64[B, D], p: Net(D, L)) -> f64 {
    total = fold(squares)(f64(0.0), grad(forward, wrt=p)(x, p))
    return total * sum(p.layer[-1].w)
}

fn along(x: f64[B, D], p: Net(D, L), d: Net(D, L)) {
    return jvp(forward, wrt=p)(x, p, d)
}

fn changed(p: Net(D, L), b: f64[D]) -> Net(D, L) {
    return Net(p, first=Linear(p.first, b=b))
}

fn roots(x: f64[D], p: Net(D, L)) {
    return map(sqrt)(map(maximum)(p, 0.25)), custom_grad(floor, given)(x)
}

fn given(x: f64[..S], g: f64[..S]) -> f64[..S] {
    return g
}

fn slope(x: f64[B, D], p: Net(D, L), d: Net(D, L)) {
    return jvp(grad(forward, wrt=p), wrt=p)(x, p, d)
}
"""
FILES = {"net.ita": PROGRAM}
SIZES = {"B": 3, "D": 2, "L": 3, "N": 2, "K": 4}


def _graph(name: str) -> Graph:
    return load(Source("structs.ita", PROGRAM)).build(name).graph


def _net(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def linear() -> dict[str, Array]:
        return {"w": rng.normal(size=(2, 2)), "b": rng.normal(size=2)}

    return {"first": linear(), "layer": [linear() for _ in range(SIZES["L"])]}


def _flat(net: dict[str, Any]) -> list[Any]:
    """The tensors in the order of the graph's parameters, lists of them as lists."""
    layers = net["layer"]
    return [*net["first"].values(), [one["w"] for one in layers], [one["b"] for one in layers]]


def _run(name: str, *arguments: Any) -> Any:
    module = load(Source("structs.ita", PROGRAM)).build(name)
    return in_form(module.graph.labels, evaluate(module, list(arguments), SIZES))


X = np.random.default_rng(9).normal(size=(3, 2))


def test_the_program_is_right() -> None:
    assert load(Source("structs.ita", PROGRAM)).check() == []


def test_a_struct_with_other_fields() -> None:
    net = _net()
    found = _run("changed", *_flat(net), X[0])
    np.testing.assert_array_equal(found["first"]["b"], X[0])
    np.testing.assert_array_equal(found["first"]["w"], net["first"]["w"])
    np.testing.assert_array_equal(found["layer"][1]["b"], net["layer"][1]["b"])


def test_functions_that_are_built_in_go_through_structs() -> None:
    net = _net()
    found, floor = _run("roots", X[0], *_flat(net))
    np.testing.assert_array_equal(found["first"]["w"], np.sqrt(np.maximum(net["first"]["w"], 0.25)))
    np.testing.assert_array_equal(found["layer"][2]["b"], np.sqrt(np.maximum(net["layer"][2]["b"], 0.25)))
    np.testing.assert_array_equal(floor, np.floor(X[0]))


def test_structs_are_results() -> None:
    w, b = np.ones((2, 4)), np.arange(2.0)
    found = _run("made", w, b)
    assert list(found) == ["w", "b"] and found["b"].tolist() == [0, 2]
    stacked = _run("stack", np.arange(24.0).reshape(3, 2, 4))
    assert isinstance(stacked, list) and len(stacked) == 3
    assert stacked[2]["b"].tolist() == [2, 2] and stacked[1]["w"][0].tolist() == [8, 9, 10, 11]
    text = print_module(load(Source("structs.ita", PROGRAM)).build("train"))
    assert "scan item in 0..L ()" in text and "%p.layer.w_1" in text


def test_names_of_results() -> None:
    array = np.zeros((2, 3))
    assert [n for n, _, _ in named((), [array])] == ["result"]
    assert [n for n, _, _ in named((), [array, array])] == ["result0", "result1"]
    assert [(n, p) for n, _, p in named(("layer.*.w", "b"), [array, array])] == [
        ("layer.0.w", 0),
        ("layer.1.w", 0),
        ("b", 1),
    ]
    assert [n for n, _, _ in named(("0", "1.*.w"), [array, array])] == ["result0", "result1.0.w", "result1.1.w"]
    nested = in_form(("0.a.*.b.c", "1"), [np.arange(2.0), array])
    assert nested[0]["a"][1]["b"]["c"].shape == () and nested[1] is array
    assert _graph("both").result_names == (
        "result0",
        "result1.first.w",
        "result1.first.b",
        "result1.layer.w",
        "result1.layer.b",
    )


def test_gradients_of_structs() -> None:
    """The gradient of a struct, in its form, against differences."""
    net = _net()
    value, found = _run("both", X, *_flat(net))
    layers, bias = _run("parts", X, *_flat(net))
    assert np.allclose(bias, found["first"]["b"]) and np.allclose(layers[1]["w"], found["layer"][1]["w"])
    for path in (("first", "w"), ("layer", 0, "w"), ("layer", 2, "b")):
        around: Any = net
        gradient: Any = found
        for key in path:
            around, last, gradient = (around[key] if key != path[-1] else around), key, gradient[key]
        before = around[last].copy()
        around[last].flat[0] += 1e-6
        ahead, _ = _run("both", X, *_flat(net))
        around[last][...] = before
        assert gradient.flat[0] == pytest.approx((ahead - value) / 1e-6, rel=1e-4)


def test_loops_carry_structs() -> None:
    net = _net()
    found, norm = _run("train", X, *_flat(net), np.array(2))
    _, g = _run("both", X, *_flat(net))
    once = {n: [t - 0.1 * d for t, d in zip(_flat(net)[k], _flat(g)[k])] for k, n in enumerate("abcd")}
    again = _run("both", X, np.array(once["a"]), np.array(once["b"]), once["c"], once["d"])[1]
    assert norm == pytest.approx(sum(np.sum(np.square(t)) for t in _flat(again)))
    wanted = once["c"][2] - 0.1 * (0.5 * g["layer"][2]["w"] + again["layer"][2]["w"])
    assert np.allclose(found["layer"][2]["w"], wanted)


def test_forward_and_second_derivatives() -> None:
    net, direction = _net(), _net(1)
    _, g = _run("both", X, *_flat(net))
    _, change = _run("along", X, *_flat(net), *_flat(direction))
    pairs = zip(_flat(g), _flat(direction))
    assert change == pytest.approx(sum(np.sum(np.asarray(a) * np.asarray(b)) for a, b in pairs))
    first, second = _run("slope", X, *_flat(net), *_flat(direction))
    assert np.allclose(first["layer"][0]["b"], g["layer"][0]["b"])
    moved = [
        [a + 1e-6 * b for a, b in zip(x, y)] if isinstance(x, list) else x + 1e-6 * y
        for x, y in zip(_flat(net), _flat(direction))
    ]
    _, ahead = _run("both", X, *moved)
    assert np.allclose(second["layer"][0]["w"], (ahead["layer"][0]["w"] - g["layer"][0]["w"]) / 1e-6, atol=1e-4)


def test_a_change_of_a_field_is_an_argument() -> None:
    """Of a struct among the fields, and of a list of them: an entry point like that of a whole parameter."""
    net, direction = _net(), _net(1)
    _, g = _run("both", X, *_flat(net))
    for field in ("first", "layer"):
        parameters = load(Source("structs.ita", PROGRAM)).build(f"jvp(forward, wrt=p.{field})").graph.parameters
        assert [p.label for p in parameters][-2:] == [f"d_p_{field}.w", f"d_p_{field}.b"]
        changes = [v for v, name in zip(_flat(direction), ("first", "first", "layer", "layer")) if name == field]
        _, change = _run(f"jvp(forward, wrt=p.{field})", X, *_flat(net), *changes)
        found = [v for v, name in zip(_flat(g), ("first", "first", "layer", "layer")) if name == field]
        expected = sum(np.sum(np.asarray(a) * np.asarray(b)) for a, b in zip(found, changes))
        assert change == pytest.approx(expected)


def test_a_gradient_within_a_function_that_is_differentiated() -> None:
    graph = _graph("norm")
    net = _flat(_net())
    inputs = dict(zip([p.label for p in graph.parameters], [X, *net]))
    check_gradients(graph, inputs, wrt=["x", "p.first.w", "p.first.b"], sizes=SIZES, tolerance=1e-5)


@pytest.mark.slow
def test_structs_in_python() -> None:
    """What a call gives can be given back."""
    program = intarsia.compile(PROGRAM)
    net = _net()
    found, norm = program.train(X, net, 2)
    reference, wanted = _run("train", X, *_flat(net), np.array(2))
    assert norm == pytest.approx(wanted) and np.allclose(found["layer"][1]["w"], reference["layer"][1]["w"])
    again, _ = program.train(X, found, 1)
    assert np.shares_memory(found["layer"][0]["w"], found["layer"][1]["w"].base)
    assert intarsia.grad(program.forward, "p")(X, again).keys() == {"first", "layer"}
    for _ in range(4):
        assert program.made(np.ones((2, 4)), np.ones(2)).keys() == {"w", "b"}


def test_structs_on_the_command_line(ita: Run) -> None:
    """A file with a struct binds to a parameter, one of several by its key."""
    common = ("--random", "--target", "reference", *(f"--dim={n}={SIZES[n]}" for n in "BDL"))
    assert ita("run", "net.ita:train", "--arg", "steps=2", *common, "--out", "one.npz")[0] == 0
    names = list(np.load("one.npz"))
    assert names[:3] == ["result0.first.w", "result0.first.b", "result0.layer.0.w"] and names[-1] == "result1"
    code, out, errors = ita("run", "net.ita:both", "--weights", "p=one.npz:result0", *common)
    assert code == 0 and "result1.layer.2.b: f64[2]" in out, errors
    assert ita("run", "net.ita:made", "--random", "--dim=N=2", "--dim=K=3", "--out", "two.safetensors")[0] == 0
    assert sorted(intarsia.read_weights("two.safetensors")) == ["b", "w"]


@pytest.mark.slow
def test_gradients_as_pytorch_has_them() -> None:
    torch = pytest.importorskip("torch")
    net = _net()
    leaf = {k: torch.tensor(v, requires_grad=True) for k, v in net["first"].items()}
    layers = [{k: torch.tensor(v, requires_grad=True) for k, v in one.items()} for one in net["layer"]]
    h = torch.tensor(X) @ leaf["w"] + leaf["b"]
    for one in layers:
        h = torch.tanh(h @ one["w"] + one["b"])
    loss = (h * h).mean() + sum((one["b"] ** 2).sum() for one in layers)
    loss.backward()
    program = intarsia.compile(PROGRAM)
    value, found = program.both(X, net)
    assert np.allclose(value, loss.detach().numpy(), rtol=1e-12)
    for own, wanted in zip([found["first"], *found["layer"]], [leaf, *layers]):
        assert all(np.allclose(own[name], wanted[name].grad.numpy(), rtol=1e-10) for name in ("w", "b"))
    given = {
        "first": {k: v.detach() for k, v in leaf.items()},
        "layer": [{k: v.detach() for k, v in one.items()} for one in layers],
    }
    back = intarsia.grad(program.forward, "p.layer")(torch.tensor(X), given)
    assert all(torch.allclose(a["w"], b["w"].grad) for a, b in zip(back, layers))


LISTS = """
struct One(K) {
    b: f64[K]
}

fn squares(p: One(K)[L]) -> (f64, f64[K, L]) {
    return sum[i < L, k](p[i].b[k] ** 2), tensor[k, i](p[i].b[k])
}
"""


def test_vectors_read_one_tensor_of_a_list() -> None:
    """Each tensor of a list lies elsewhere, so that what selects one is the same in all lanes."""
    b = np.random.default_rng(0).normal(size=(16, 2))
    total, turned = intarsia.compile(LISTS).squares([{"b": row} for row in b])
    assert np.allclose(total, np.sum(b**2)) and np.array_equal(turned, b.T)

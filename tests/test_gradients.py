"""Gradients: of every op, and of programs whose index expressions need solving, against finite differences in f64."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path

import numpy as np
import op_programs
import pytest
from differences import check_gradients, gradient_module
from gradient_programs import PROGRAMS, SIZES

from intarsia.dsl.library import load
from intarsia.ir.dtypes import F32, F64, Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Elementwise
from intarsia.ir.samples import samples
from intarsia.ir.text import print_module
from intarsia.ir.types import ListType


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


WITHOUT = ("escape f64", "loops")
"""Programs of ops with a loop whose steps have no bound."""


INTEGERS = ("lone_views", "index_values", "arg_reduce_of_sum", "bits_and_casts", "scalar_recurrence", "nested_loops")


def _op_programs() -> list[str]:
    """Programs of ops that can be had in f64."""
    found = [n for n in op_programs.PROGRAMS if not re.search(r"\b(f32|f16|bf16|bool|[iu]\d+)\b", n)]
    others = (*INTEGERS, "tables", "empty_and_single")  # one counter for three loops; a maximum over nothing
    return ["gather i64", *(n for n in found if n not in others)]


@pytest.mark.parametrize("name", _op_programs())
def test_gradients_of_programs_of_ops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In f64, and before anything is fused."""
    monkeypatch.setattr(op_programs, "F32", F64)
    monkeypatch.setattr(op_programs, "fused", lambda *values: values)
    program = op_programs.PROGRAMS[name]()
    parameters = program.graph.parameters
    floats = [p.label for p in parameters if not isinstance(p.type, ListType) and p.type.dtype == F64]
    rng = np.random.default_rng(5)
    given = {p.label: i for p, i in zip(parameters, program.inputs)}
    given |= {label: rng.uniform(-1.5, 1.5, np.shape(given[label])) for label in floats}
    if name in WITHOUT:
        with pytest.raises(CompileError, match="E0325"):
            check_gradients(program.graph, given, floats, program.sizes)
    else:
        check_gradients(program.graph, given, floats, program.sizes)


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
    text = "fn f(x: f64[N], y: f64[N]) { return sum(update x[i // 2] max= y[i]) }"
    found = _gradient(text, np.array([2.0, 1.0, 5.0]), np.array([2.0, 1.0, 3.0]))
    assert [g.tolist() for g in found] == [[0.5, 0.0, 1.0], [0.5, 0.0, 1.0]]
    assert float(_gradient("fn f(x: f64) { return relu(x) + abs(x) }", np.zeros(()))[0]) == 0.0


@pytest.mark.parametrize(
    ("value", "cancels"),
    [
        ("softmax(x)", True),
        ("softmax(x, axis=0)", True),
        ("log_softmax(x)", True),
        ("logsumexp(x, axis=1, keepdims=true)", True),
        ("exp(2.0 * x - 2.0 * m) / sum(exp((x - m) / 0.5), axis=1, keepdims=true)", True),
        ("sqrt(exp2(x - m)) / exp2(0.5 * (x - m))", True),
        ("log2(sum(where(x > 0.0, exp2(x - m), 0.0), axis=1, keepdims=true)) + m", True),
        ("max(x - m, axis=1, keepdims=true) + m", False),  # of the maximum in it
        ("exp(x - m)", False),
        ("exp(x - m) / sum(exp(x - 2.0 * m), axis=1, keepdims=true)", False),
        ("exp(x - m) / sum(exp(x - m), axis=0)", False),  # of another row's
        ("softmax(x) * m", False),
        ("softmax(where(x == m, 0.0, x))", True),
        ("x * x[i64(m[0, 0]), 0]", True),  # where it is read does not change
    ],
)
def test_nothing_flows_through_a_maximum_that_cancels(value: str, cancels: bool) -> None:
    """The derivative of a maximum looks for the elements that are equal to it, and for NaN."""
    lines = ["fn loss(x: f32[4, 5]) -> f32 {", "m = max(x, axis=1, keepdims=true)", f"return sum(({value}) * x)", "}"]
    text = "\n".join([*lines, "fn f(x: f32[4, 5]) {", "return grad(loss, wrt=x)(x)", "}"])
    graph = load(Source("f", text)).build("f").graph
    assert ("isnan" in print_module(Module(graph))) != cancels


def test_products_with_zeros() -> None:
    """The derivative of a product is the product of the others, also where one of them is 0."""
    found = _gradient("fn f(x: f64[N]) { return prod(x) }", np.array([0.0, 2.0, 3.0]))
    assert found[0].tolist() == [6.0, 0.0, 0.0]
    found = _gradient("fn f(x: f64[N]) { return sum[i < N](prod[k < i + 1](x[k])) }", np.array([0.0, 2.0, 3.0]))
    assert found[0].tolist() == [9.0, 0.0, 0.0]
    text = "fn f(x: f64[N], y: f64[2]) { return sum(update y[i // N] *= x[i]) }"
    found = _gradient(text, np.array([0.0, 2.0, 3.0]), np.array([5.0, 1.0]))
    assert [g.tolist() for g in found] == [[30.0, 0.0, 0.0], [0.0, 1.0]]
    found = _gradient(text, np.array([0.0, 2.0, 0.0]), np.array([5.0, 1.0]))
    assert [g.tolist() for g in found] == [[0.0, 0.0, 0.0], [0.0, 1.0]]


def test_what_is_not_chosen_has_gradient_zero() -> None:
    """The arm of a where that does not count adds nothing, not a NaN of 0 * inf."""
    found = _gradient("fn f(x: f64[N]) { return sum[i](where(x[i] > 0, log(x[i]), 0.0)) }", np.array([0.0, 2.0, -1.0]))
    assert found[0].tolist() == [0.0, 0.5, 0.0]
    found = _gradient("fn f(x: f64[N]) { return sum[i](where(x[i] > 0, sqrt(x[i]), x[i])) }", np.array([0.0, 4.0]))
    assert found[0].tolist() == [1.0, 0.25]


def test_infinities_stay_where_they_are() -> None:
    found = _gradient("fn f(x: f64[N]) { return sum(sqrt(x)) }", np.array([0.0, 4.0]))
    assert found[0].tolist() == [np.inf, 0.25]


EDGES = {
    "floor(x) + ceil(x) + round(x) + sign(x) + x // 2.0": ([1.5, -2.0, 0.0], [0.0, 0.0, 0.0]),
    "f64(i64(x)) + x": ([1.5, -2.0], [1.0, 1.0]),
    "stop_gradient(x) * x": ([3.0, nan], [3.0, nan]),
    "f64(f16(x)) + f64(bf16(x)) + f64(f32(x))": ([1.1, inf], [3.0, 3.0]),
    "x ** 2.0": ([0.0, -3.0, inf], [0.0, -6.0, inf]),
    "x ** 1.0": ([0.0, nan], [1.0, 1.0]),
    "x ** 0.0": ([0.0, nan], [0.0, 0.0]),
    "x ** 0.5": ([0.0, 4.0, -1.0], [inf, 0.25, nan]),
    "0.0 ** (x + 1.0)": ([0.0, 1.0], [0.0, 0.0]),
    "sqrt(x)": ([0.0, -1.0, inf], [inf, nan, 0.0]),
    "log(x)": ([0.0, inf, nan], [inf, 0.0, nan]),
    "1.0 / x": ([0.0, inf, nan], [-inf, -0.0, nan]),
    "sin(x)": ([inf, nan], [nan, nan]),
    "tanh(x)": ([inf, -inf, nan], [0.0, 0.0, nan]),
    "where(x > 0.0, sqrt(x), 0.0)": ([0.0, 4.0], [nan, 0.25]),
    "maximum(x, 1.0)": ([1.0, 2.0, 0.0, nan], [0.0, 1.0, 0.0, 0.0]),
    "minimum(1.0, x)": ([1.0, 2.0, 0.0], [1.0, 0.0, 1.0]),
    "x * 0.0": ([inf, nan], [0.0, 0.0]),
    "cumsum(x, axis=0)": ([nan, inf], [2.0, 1.0]),
    "expand_dims(max(x), 0)": ([1.0, nan, nan, 7.0], [0.0, 0.5, 0.5, 0.0]),
    "expand_dims(min(x), 0)": ([inf, 2.0, 2.0], [0.0, 0.5, 0.5]),
    "expand_dims(max(x), 0) + x": ([-inf, -inf], [2.0, 2.0]),
    "expand_dims(prod(x), 0)": ([0.0, inf], [inf, 0.0]),
    "sort(x)": ([2.0, 2.0, nan], [1.0, 1.0, 1.0]),
    "softmax(x)": ([0.0, -inf], [0.0, 0.0]),
}
"""Functions of x at their edges, and the gradient of the sum of what they give."""


@pytest.mark.parametrize("text", EDGES)
def test_edges(text: str) -> None:
    x, wanted = EDGES[text]
    with np.errstate(all="ignore"):
        found = _gradient(f"fn f(x: f64[N]) {{ return sum({text}) }}", np.array(x))[0]
    assert np.array_equal(found, wanted, equal_nan=True), found


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


# ---------------------------------------------------------------------- whole programs

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "examples").glob("*.ita"), *(ROOT / "tests" / "programs").glob("*.ita")])
FILES.remove(ROOT / "examples" / "minilm.ita")  # twelve heads, and every size here is 4


def _functions(path: Path) -> Iterator[Graph]:
    """The functions of a file in f64, that give floats and take neither lists nor what only a caller can say."""
    text = re.sub(r"\b(f32|f16|bf16)\b", "f64", path.read_text("utf-8"))
    library = load(Source(str(path), text))
    for name in library.root.functions:
        if any(p.is_static and p.default is None for p in library.signature(name).parameters):
            continue
        try:
            graph = library.build(name).graph
        except CompileError:
            continue  # it wants sizes, or another dtype
        if any(r.dtype.is_float for r in graph.results) and not any(
            isinstance(p.type, ListType) for p in graph.parameters
        ):
            yield graph


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_gradients_of_whole_programs(path: Path) -> None:
    """What has a derivative has the right one; what has none says so."""
    for graph in _functions(path):
        sizes = dict.fromkeys(graph.dimensions, 4)
        given = _inputs(graph, sizes, 0.1)
        values = evaluate(Module(graph), [given[p.label] for p in graph.parameters], sizes)
        if not all(np.isfinite(v).all() for v in values):
            continue  # such as a mean over nothing: 4 is no size for it
        try:
            check_gradients(graph, given, sizes=sizes, tolerance=1e-5)
        except CompileError as error:
            assert error.code == "E0325"

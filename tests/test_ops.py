"""What every op of the Graph must satisfy: its space means what its reference says, its text reads back."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.ir.conversion import convert
from intarsia.ir.digest import same
from intarsia.ir.dtypes import F32, F64, Array
from intarsia.ir.errors import Source
from intarsia.ir.factors import Dimension, Factors, factors
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import OPS, Graph, Module, Node, Parameter, Region, Structured
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Collective, DeviceIndex, Done, Matmul
from intarsia.ir.random_graphs import random_array, random_module, random_sizes
from intarsia.ir.samples import samples
from intarsia.ir.text import print_module, read_module
from intarsia.ir.text_printer import node_text
from intarsia.ir.tolerance import expected
from intarsia.ir.types import TensorType
from intarsia.ir.verifier import verify_module
from intarsia.ir.work import Work, region_work, work

COLLECTIVES = {op.name for op in OPS.values() if issubclass(op, (Collective, DeviceIndex, Done))}
"""What these give depends on other devices; tests/test_sharding.py tries them."""

WITHOUT_REFERENCE = {"after", "compute", "update", "loop", "list_get", "fused", "call", "parameter"} | COLLECTIVES
"""Ops whose meaning is their own definition; tests/test_graph_interpreter.py tries them."""


def module_of(node: Node) -> Module:
    parameters = [v.node for v in dict.fromkeys(node.operands) if isinstance(v.node, Parameter)]
    return Module(Graph("f", Region.of(parameters, node.values)))


def arrays_for(node: Node, seed: int = 0) -> list[Array]:
    """Ordinary values, with a NaN and both zeros among the floats."""
    generator = np.random.default_rng(seed)
    found: list[Array] = []
    for value in dict.fromkeys(node.operands):
        assert isinstance(value.type, TensorType)
        array = np.array(random_array(generator, value.type, {}))
        if value.dtype.is_float and array.size > 3:
            array.flat[:3] = convert(np.array([np.nan, 0.0, -0.0], np.float32), F32, value.dtype)
        found.append(array)
    return found


@pytest.mark.parametrize("node", samples(), ids=node_text)
def test_the_space_means_what_the_reference_says(node: Node) -> None:
    inputs = arrays_for(node)
    module = module_of(node)
    verify_module(module)
    by_value = dict(zip(dict.fromkeys(node.operands), inputs))
    with np.errstate(all="ignore"):
        wanted = node.reference(*(by_value[v] for v in node.operands))
    for actual, one, bound in zip(evaluate(module, inputs), wanted, expected(module, inputs)):
        assert actual.dtype == one.dtype and actual.shape == one.shape
        if bound.dtype.is_float and isinstance(node, Structured) and node.space.combiner in ("sum", "prod"):
            assert bound.mismatch(actual) is None and bound.mismatch(one) is None
        elif bound.dtype.is_float:
            assert np.array_equal(convert(actual, bound.dtype, F64), convert(one, bound.dtype, F64), equal_nan=True)
        else:
            assert (actual == one).all()


@pytest.mark.parametrize("node", samples(), ids=node_text)
def test_the_text_reads_back(node: Node) -> None:
    module = module_of(node)
    text = print_module(module)
    again = read_module(Source("test.ir", text))
    assert print_module(again) == text and same(again, module)


def test_every_op_has_a_sample() -> None:
    assert {n.name for n in samples()} == OPS.keys() - WITHOUT_REFERENCE


# ---------------------------------------------------------------------- what is derived


def digits(factor: str, dimension: Dimension, rule: Factors) -> Array | None:
    """The value of a factor at each index of a dimension, or None if it is not in it."""
    if dimension is None or factor not in dimension:
        return None
    extents = [int(f.extent) for name in dimension for f in rule.factors if f.name == name]
    numbers = np.unravel_index(np.arange(int(np.prod(extents))), extents)
    return np.asarray(numbers[dimension.index(factor)])


def outside(factor: str, value: int, dimensions: tuple[Dimension, ...], shape: tuple[int, ...], rule: Factors) -> Array:
    """Where a tensor is not on the device that has this value of the factor."""
    mask = np.zeros(shape, np.bool_)
    for d, dimension in enumerate(dimensions):
        found = digits(factor, dimension, rule)
        if found is not None:
            mask |= (found != value).reshape([-1 if k == d else 1 for k in range(len(shape))])
    return mask


def with_rule() -> list[Node]:
    return [n for n in samples() if n.operands and len(set(n.operands)) == len(n.operands)]


@pytest.mark.parametrize("node", with_rule(), ids=node_text)
def test_factors_pass_through(node: Node) -> None:
    """A part of the result depends on the same part of each operand alone."""
    rule = factors(node)
    assert rule is not None
    module, inputs, others = module_of(node), arrays_for(node), arrays_for(node, seed=1)
    (whole,) = evaluate(module, inputs)
    for factor in rule.factors:
        if factor.reduced:
            continue
        value = int(factor.extent) - 1
        changed = [
            np.where(outside(factor.name, value, dimensions, x.shape, rule), y, x).astype(x.dtype)
            for dimensions, x, y in zip(rule.operands, inputs, others)
        ]
        inside = ~outside(factor.name, value, rule.result, whole.shape, rule)
        assert inside.any() or not whole.size
        (part,) = evaluate(module, changed)
        kind = whole.dtype.kind
        assert np.array_equal(part[inside].astype(float), whole[inside].astype(float), equal_nan=kind not in "iub")


@pytest.mark.parametrize("node", [n for n in samples() if isinstance(n, Matmul)], ids=node_text)
def test_partial_results_of_reduced_factors_add_up(node: Matmul) -> None:
    rule = factors(node)
    assert rule is not None and [f.reduced for f in rule.factors][-1] == "sum"
    generator = np.random.default_rng(0)
    inputs = [generator.integers(0, 4, v.tensor.static_shape).astype(v.dtype.numpy) for v in node.operands]
    (whole,) = evaluate(module_of(node), inputs)
    total = np.zeros_like(whole)
    for value in range(int(rule.factors[-1].extent)):
        parts = [
            np.where(outside("k", value, dimensions, x.shape, rule), 0, x).astype(x.dtype)
            for dimensions, x in zip(rule.operands, inputs)
        ]
        total = total + evaluate(module_of(node), parts)[0]
    assert np.array_equal(total.astype(float), whole.astype(float))


def nodes_of(text: str) -> dict[str, Node]:
    """The nodes of a function by the kind of their first word, in order."""
    body = read_module(Source("test.ir", text)).graph.body
    return {f"%{k}": n for k, n in enumerate(body.nodes)}


MANY = """func @f[R, P, C, S, N, M](%start: i64[R + 1], %val: f32[P], %col: i64[P], %x: f32[C], %q: f32[S, 64],
                            %k: f32[S, 64], %h: i32[4], %z: f32[N, 768], %y: f32[N * M, 4], %g: i4[64, 64]) {
  %0 = compute [r < R] sum[p in %start[r]..%start[r + 1]](%val[p] * %x[%col[p]]) : f32[R]
  %1 = compute [i < S, j < S] sum[d < 64](where(index(j) <= index(i), %q[i, d] * %k[j, d], -inf)) : f32[S, S]
  %2 = compute [i < S, j < 64] sum[t < i + 1](%q[i, j] * %k[t, j]) : f32[S, 64]
  %3 = update %h[%col[i]] += [i < P] (i32:1) : i32[4]
  %4 = update %q[i, j] += [i < S, j in 1..64] (%q[i, j - 1] * %k[i, j]) : f32[S, 64]
  %5 = reshape %z : f32[N, 12, 64]
  %6 = reshape %5 : f32[N, 768]
  %7 = reshape %y : f32[N, 4 * M]
  %8 = compute [i < P, j < 64] (%k[%col[i], j]) : f32[P, 64]
  %9 = cast %g : f32[64, 64]
  %10 = loop t in 0..10 (%s = %z) { %11 = exp %s : f32[N, 768] yield %11 } : f32[N, 768]
  %12 = fused { %13 = exp %z : f32[N, 768] %14 = reduce %13 combiner=sum axes=(1,) : f32[N] yield %14 } : f32[N]
  return
}"""


def test_rules_of_spaces() -> None:
    found = {name: str(factors(node)) for name, node in nodes_of(MANY).items()}
    assert found == {
        "%0": "[*], [*], [*], [*] -> [r]",
        "%1": "[i, d], [j, d] -> [i, j] sum(d)",
        "%2": "[i, j], [*, j] -> [i, j]",
        "%3": "[*], [i] -> [*] sum(i)",
        "%4": "[i, *], [i, *] -> [i, *]",
        "%5": "[i0, (i1 i2)] -> [i0, i1, i2]",
        "%6": "[i0, i1.0, i1.1] -> [i0, (i1.0 i1.1)]",
        "%7": "[(i0 i1.0), i1.1] -> [i0, (i1.0 i1.1)]",
        "%8": "[*, j], [i] -> [i, j]",
        "%9": "[i0, i1] -> [i0, i1]",
        "%10": "None",
        "%11": "None",
    }


def test_work_is_counted() -> None:
    sizes = {"R": 100, "P": 700, "C": 50, "S": 1000, "N": 10, "M": 4}
    nodes = nodes_of(MANY)
    found = {name: work(node, sizes) for name, node in nodes.items()}
    assert found["%0"] == Work(2 * 700, 808 + 700 * (4 + 8) + 200, 400)
    assert found["%2"].operations == 2 * 64 * 1000 * 1001 // 2
    assert found["%3"] == Work(700, 700 * 8 + 16, 700 * 4)
    assert found["%5"] == Work(0, 10 * 768 * 4, 10 * 768 * 4)
    assert found["%9"] == Work(0, 64 * 64 // 2, 64 * 64 * 4)
    assert found["%10"] == Work(10 * 768 * FUNCTIONS["exp"].operations, 10 * 768 * 4, 10 * 768 * 4) * 10
    assert found["%11"] == Work(10 * 768 * (FUNCTIONS["exp"].operations + 1), 10 * 768 * 4, 40)
    x, y = (Parameter(n, TensorType.of(F32, 128, 128)).value for n in "xy")
    product = work(Matmul(x, y), {})
    assert product.operations == 2 * 128**3 and product.bytes == 3 * 128 * 128 * 4
    assert product.intensity == pytest.approx(2 * 128 / 12)


@pytest.mark.parametrize("seed", range(20))
def test_work_and_rules_of_random_graphs_are_defined(seed: int) -> None:
    body = random_module(seed).graph.body
    assert region_work(body, random_sizes(seed)).bytes >= 0
    for node in body.walk():
        rule = factors(node)
        if rule is not None:
            assert len(rule.operands) == len(node.operands) and len(rule.result) == node.value.tensor.rank

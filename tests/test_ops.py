"""What every op of the Graph must satisfy: its space means what its reference says, its text reads back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.ir.conversion import convert
from intarsia.ir.digest import same
from intarsia.ir.dtypes import F32, F64, Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import OPS, Graph, Module, Node, Parameter, Region, Structured
from intarsia.ir.interpreter import evaluate
from intarsia.ir.random_graphs import random_array
from intarsia.ir.samples import samples
from intarsia.ir.text import print_module, read_module
from intarsia.ir.text_printer import node_text
from intarsia.ir.tolerance import expected
from intarsia.ir.types import TensorType
from intarsia.ir.verifier import verify_module

WITHOUT_REFERENCE = {"compute", "update", "loop", "list_get", "fused", "call", "parameter"}
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

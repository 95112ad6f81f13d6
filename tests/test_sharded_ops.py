"""For every op, every factor and every mesh: the program of several devices gives what that of one gives."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sharded import MESHES, annotated, check_sharded, on_mesh, sharded_like, with_parameters
from test_ops import module_of

from intarsia.ir.factors import factors
from intarsia.ir.graph import Node, Parameter
from intarsia.ir.random_graphs import random_array, random_inputs, random_module, random_sizes
from intarsia.ir.samples import samples
from intarsia.ir.sharding import Axes, Mesh, MeshAxis
from intarsia.ir.text_printer import node_text
from intarsia.passes.specialize import specialize


def _inputs(node: Node) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [np.array(random_array(generator, v.tensor, {})) for v in dict.fromkeys(node.operands)]


def _cases() -> list[object]:
    """Every sample on every mesh; the first sample of each op on one of them is quick."""
    nodes = [n for n in samples() if n.operands]
    first = {n.name: n for n in reversed(nodes)}.values()
    return [
        pytest.param(n, m, id=f"{node_text(n)}-{m}", marks=() if n in first and m == MESHES[1] else pytest.mark.slow)
        for n in nodes
        for m in MESHES
    ]


@pytest.mark.parametrize("node, mesh", _cases())
def test_each_factor_can_be_split(node: Node, mesh: Mesh) -> None:
    rule = factors(node)
    assert rule is not None
    every: Axes = tuple(MeshAxis(n) for n, _ in mesh.axes)
    inputs = _inputs(node)
    for factor in rule.factors:
        module = on_mesh(module_of(node), mesh)
        labels = {p.value: n for n, p in enumerate(module.graph.parameters)}
        shardings = {}
        for value, dims in zip(node.operands, rule.operands):
            axes = tuple(every if d == (factor.name,) else () for d in dims)
            if any(axes) and isinstance(value.node, Parameter):
                shardings[labels[value]] = sharded_like(value, axes)
        check_sharded(with_parameters(module, shardings), list(inputs))


FOUND = (306, 533, 1116, 1144)
"""Seeds that found mistakes: layouts between which no steps led, the state that a condition reads, x @ x."""


@pytest.mark.parametrize("seed", [*FOUND, *(pytest.param(n, marks=pytest.mark.slow) for n in range(300))])
def test_random_programs(seed: int) -> None:
    sizes = random_sizes(seed)
    module = specialize(random_module(seed), sizes)
    mesh = random.Random(seed).choice(MESHES)
    check_sharded(annotated(module, mesh, seed), random_inputs(module, seed, sizes), module)

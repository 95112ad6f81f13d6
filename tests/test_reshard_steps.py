"""Every way to lay out a tensor becomes every other one, by collectives that move each element to where it belongs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sharded import random_sharding, run_passes

from intarsia.ir.dtypes import F32
from intarsia.ir.graph import Graph, Module, Parameter, Region
from intarsia.ir.ops import Shard
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import simulate
from intarsia.ir.types import TensorType, placed

MESHES = tuple(map(Mesh.parse, ("a=2,b=2", "a=4,b=2", "a=2,b=3", "a=2,b=2,c=2")))
SHAPES = ((8, 8), (7, 5), (12, 3, 4), (1, 6), (16,))


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(n, marks=pytest.mark.slow) for n in range(20, 400))])
def test_any_layout_becomes_any_other(seed: int) -> None:
    choose = random.Random(seed)
    mesh, shape = choose.choice(MESHES), choose.choice(SHAPES)
    type_ = TensorType.of(F32, *shape)
    source, target = (random_sharding(Parameter("x", type_).value, mesh, choose).settled() for _ in range(2))
    parameter = Parameter("x", placed(type_, source))
    result = Shard(parameter.value, shardings=(target,)).value
    module = Module(Graph("f", Region.of((parameter,), (result,))), header=(str(mesh),))
    local, _ = run_passes(module, "partition")
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (found,) = simulate(local, [array])
    np.testing.assert_array_equal(found, array)

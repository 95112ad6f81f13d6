"""Every way to lay out a tensor becomes every other one, by collectives that move each element to where it belongs."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from sharded import random_sharding, run_passes

from intarsia.ir.dtypes import F32
from intarsia.ir.graph import Graph, Module, Parameter, Region
from intarsia.ir.ops import Shard
from intarsia.ir.sharding import Mesh, MeshAxis, Sharding
from intarsia.ir.spmd import simulate
from intarsia.ir.types import TensorType, placed
from intarsia.passes.shard.steps import reshard_steps

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


@pytest.mark.parametrize("text", ["a=4,b=2", "a=6", "a=8", "a=12", "a=6,b=2"])
@pytest.mark.parametrize("shape", [(24, 24), (7, 5)])
def test_parts_of_axes_find_their_places_in_few_steps(text: str, shape: tuple[int, int]) -> None:
    """Layouts of a matrix over parts of axes become each other: of six devices 2 x 3 and 3 x 2 too."""
    mesh = Mesh.parse(text)
    parts = [
        mesh.part(name, left, number)
        for name, size in mesh.axes
        for left in range(1, size)
        for number in range(2, size + 1)
        if size % (left * number) == 0
    ]
    layouts = dict.fromkeys(
        Sharding.of((mesh.joined(order[:first]), mesh.joined(order[first:])))
        for count in range(4)
        for order in itertools.permutations(parts, count)
        if not any(mesh.overlap(x, y) for x, y in itertools.combinations(order, 2))
        for first in range(count + 1)
    )
    pairs = list(itertools.product(layouts, repeat=2))
    for source, target in random.Random(0).sample(pairs, min(len(pairs), 4000)):
        steps = reshard_steps(mesh, shape, source, target)
        assert len(steps) <= 5, f"{source.axes} to {target.axes}: {[s.kind for s in steps]}"
        assert bool(steps) is (source != target)


def test_the_part_before_what_is_taken_is_a_part_of_the_axis() -> None:
    """Of six devices in which the last digit of 3 x 2 is taken, the first of 2 x 3 is no part of the other one."""
    mesh = Mesh.parse("a=6")
    assert mesh.free_prefix((MeshAxis("a"),), [MeshAxis("a", 3, 2)]) == (MeshAxis("a", 1, 3),)
    assert mesh.free_prefix((MeshAxis("a", 1, 3),), [MeshAxis("a", 2, 3)]) == ()

"""Stencils that are written in place, on several devices: each takes from its neighbours what it lacks."""

from __future__ import annotations

import numpy as np
import pytest
from sharded import check_compiled, run_passes
from test_several_steps import FIELDS, STENCIL, WAVE
from test_sharding import built, collectives

from intarsia.ir.interpreter import evaluate
from intarsia.ir.spmd import simulate
from intarsia.passes.verify.inputs import random_inputs

LAID = "canonicalize,cse,dce,whole-updates,propagate-sharding,split-scans,reshard,partition"

PROGRAMS = {
    "stencil": STENCIL.format(n=13, m=5, r=1, end=8).replace("f64[13, 5]", "f64[13@r, 5]"),
    "wave": WAVE.format(end=5).replace("f64[61, 47]", "f64[61@r, 47]"),
    "fields": FIELDS.format(end=5).replace("f64[53, 40]", "f64[53@r, 40]"),
}


@pytest.mark.parametrize("name", ["stencil", pytest.param("fields", marks=pytest.mark.slow)])
@pytest.mark.parametrize("more", ["", ",deep-halos{steps=2}"])
def test_stencils_in_place_take_rows_of_neighbours(name: str, more: str) -> None:
    module = built(f"mesh m(r=3)\n{PROGRAMS[name]}")
    local, _ = run_passes(module, LAID + more)
    assert {c.name for c in collectives(local)} == {"collective_permute"}
    inputs = random_inputs(module, {}, 0)
    for got, wanted in zip(simulate(local, inputs), evaluate(module, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_code_gives_the_same(name: str) -> None:
    module = built(f"mesh m(r=2)\n{PROGRAMS[name]}")
    check_compiled(module, random_inputs(module, {}, 0))

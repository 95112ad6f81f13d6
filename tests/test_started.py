"""Collectives that are started, and done later: what may stand between, in the Graph, in memory and in code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sharded import check_compiled, check_plan, compiled
from test_mesh import sharded

from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module
from intarsia.ir.ops import Done
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.plan_text import print_plan
from intarsia.ir.random_graphs import random_inputs
from intarsia.ir.spmd import Devices, simulate
from intarsia.ir.text import print_module, read_module
from intarsia.ir.verifier import require_well_formed

HEADER = """intarsia.ir 1
mesh pod(data=2)
parameter f32[8@data, 4]
parameter f32[4, 4]
result f32[8@data, 4]
"""
PROGRAM = f"""{HEADER}
func @f(%x: f32[4, 4], %w: f32[4, 4]) {{
  %0 = exp %x : f32[4, 4]
  %1 = all_reduce %0 axes=(data,) devices=2 started=true : f32[4, 4]
  %2 = matmul %x, %w : f32[4, 4]
  %3 = tanh %2 : f32[4, 4]
  %4 = matmul %3, %w : f32[4, 4]
  %5 = done %1 : f32[4, 4]
  %6 = add %4, %5 : f32[4, 4]
  return %6
}}
"""


PASSES = ("overlap", "gather-ahead,combine-collectives,overlap", "scatter-rows{cluster=FREE},overlap")

FREE = """{
  "name": "free",
  "levels": [{"devices": 1048576, "alpha": 0.0, "bytes_per_second": 1e18}],
  "operations_per_second": 1e9, "memory_bytes_per_second": 1e3, "memory_bytes": 1e12
}"""
"""A cluster on which sending takes no time."""


def read(text: str) -> Module:
    return read_module(Source("started.ir", text))


def test_the_plan_waits_where_the_program_says() -> None:
    """Between the two the plan interpreter has nonsense in the result, and looks that nobody writes what is sent."""
    module = read(PROGRAM)
    assert print_module(module) == PROGRAM
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
    wanted = np.tanh(x @ w) @ w + np.tile(np.exp(x[:4]) + np.exp(x[4:]), (2, 1))
    np.testing.assert_allclose(simulate(module, [x, w])[0], wanted, rtol=1e-5)
    program, plan = compiled(module)
    text = print_plan(plan)
    start, middle, done = (text.index(word) for word in ("started=true", "run f_matmul_tanh", "exchange done"))
    assert start < middle < done
    np.testing.assert_allclose(program.simulate([x, w])[0], wanted, rtol=1e-4)
    found = Devices(program.placement.mesh).run(
        lambda device, meet: run_plan(plan, program.parts((x, w), device), exchange=meet)
    )
    np.testing.assert_allclose(program.whole(found)[0], wanted, rtol=1e-4)


STARTED = "%0 = all_reduce %x axes=(data,) devices=2 started=true : f32[4, 4]"


@pytest.mark.parametrize(
    "body, code",
    [
        (f"{STARTED}\n return %0", "E1509"),
        (f"{STARTED}\n %1 = exp %0 : f32[4, 4]\n return %1", "E1509"),
        (f"{STARTED}\n return %x", "E1509"),
        ("%0 = done %x : f32[4, 4]\n return %0", "E1508"),
    ],
)
def test_each_start_has_one_done(body: str, code: str) -> None:
    with pytest.raises(CompileError, match=code):
        require_well_formed(read(f"{HEADER}func @f(%x: f32[4, 4], %w: f32[4, 4]) {{\n {body}\n}}\n"))


def test_random_programs_with_overlap() -> None:
    """In memory nothing is read before it is done, nor written while it is sent."""
    module, plain, _ = sharded(6)
    plan = check_plan(module, random_inputs(plain, 6, {}), plain, "overlap")
    assert any(isinstance(e.node, Done) for e in plan.exchanges)


@pytest.mark.slow
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("seed", range(20))
def test_many_random_programs(seed: int, passes: str, tmp_path: Path) -> None:
    (free := tmp_path / "free.json").write_text(FREE)
    passes = passes.replace("FREE", str(free))
    module, plain, _ = sharded(seed)
    inputs = random_inputs(plain, seed, {})
    check_plan(module, inputs, plain, passes)
    check_compiled(module, inputs, plain, passes)

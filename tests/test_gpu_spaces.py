"""The schedules for a GPU that there are to choose from: all compute the same, and fit a chip as far as is said."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from intarsia.backends.gpu.emit import emit_kernel
from intarsia.backends.gpu.toolchain import compile_kernels
from intarsia.driver import Compilation, writable
from intarsia.dsl.library import load
from intarsia.gpu_launches import interpret, launches_of_plan
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import ScheduleError, Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_launch import launches_of
from intarsia.ir.kernel_verifier import verify_kernel
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.schedule.candidates import Candidate, Space
from intarsia.passes.schedule.programs import build_programs
from intarsia.tuning.isolation import plan_alone, random_inputs
from intarsia.tuning.measuring import is_close
from intarsia.workers import map_in_workers

pytest.importorskip("triton")

TARGET = TARGETS["gpu:sm_90"]

PROGRAMS = {
    "matmul": "fn f(a: bf16[70, 40], b: bf16[40, 90]) -> bf16[70, 90] { return a @ b }",
    "large matmul": "fn f(a: bf16[2048, 512], b: bf16[512, 1024]) -> bf16[2048, 1024] { return a @ b }",
    "matmul of few rows": "fn f(a: f32[20, 512], b: f32[512, 40]) -> f32[20, 40] { return a @ b }",
    "softmax": "fn f(x: f32[9, 100]) -> f32[9, 100] { return softmax(x) }",
    "attention": "fn f(q: f32[2, 40, 16], k: f32[2, 520, 16], v: f32[2, 520, 24]) -> f32[2, 40, 24] {\n"
    "    return softmax(q @ transpose(k, axes=(0, 2, 1)), axis=2) @ v\n}",
    "transpose": "fn f(x: f32[70, 90]) -> f32[90, 70] { return transpose(x) }",
    "sum of rows": "fn f(x: f32[10, 3000]) -> f32[10] { return sum(x, axis=1) }",
    "sum of everything": "fn f(x: f32[40, 1300]) -> f32 { return sum(x) }",
    "sum of columns": "fn f(x: f32[100, 70]) -> f32[70] { return sum(x, axis=0) }",
    "few long rows": "fn f(x: f32[2, 70000]) -> f32[2, 70000] { return softmax(x) }",
    "convolution": "fn f(x: f32[2, 20, 6, 6], w: f32[20, 20, 3, 3]) -> f32[2, 20, 6, 6] {\n"
    "    return conv2d(x, w, padding=1)\n}",
    "prefix sums": "fn f(x: f32[3, 20000]) -> f32[3, 20000] { return cumsum(x, axis=1) }",
    "recurrence": "fn f(x: f32[20, 16], w: f32[16, 16]) -> f32[20, 16] {\n"
    "    return loop (h = x) for t < 3 { yield tanh(h @ w) }\n}",
}


def kernel_of(name: str) -> Kernel:
    compilation = Compilation(load(Source("p", PROGRAMS[name])).build("f"), {}, Options(target=TARGET.name))
    return compilation.kernels.kernels[0]


def space_of(name: str) -> Space:
    return Space(kernel_of(name), TARGET, writable=writable)


def results(kernel: Kernel) -> tuple[Array, ...]:
    """What a scheduled kernel computes in Triton's interpreter."""
    plan = plan_alone(kernel, TARGET)
    launches = launches_of_plan(plan)
    inputs = random_inputs(kernel)
    return run_plan(plan, inputs, {}, lambda k, arrays, sizes: interpret(launches[k.name], arrays, sizes))


def require_same(candidates: list[Candidate]) -> None:
    """All compute what the first one does."""
    wanted = results(candidates[0].kernel)
    for candidate in candidates[1:]:
        verify_kernel(candidate.kernel)
        assert Schedule.parse(str(candidate.schedule)) == candidate.schedule
        for got, expected in zip(results(candidate.kernel), wanted, strict=True):
            assert is_close(got, expected), f"{candidate}\n{candidate.schedule}"


def some(space: Space, count: int) -> list[Candidate]:
    return space.sample(count, Random(1))


@pytest.mark.parametrize("name", ["softmax", "transpose"])
def test_a_few_candidates_compute_the_same(name: str) -> None:
    require_same(some(space_of(name), 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "large matmul"])
def test_candidates_compute_the_same(name: str) -> None:
    space = space_of(name)
    neighbours = list(space.neighbours())
    found = some(space, 4)
    assert len({str(c.schedule) for c in found}) == 4
    require_same([space.default, *Random(2).sample(neighbours, 4), *found[1:]])


def test_the_first_option_is_the_default() -> None:
    """Of every decision, so that a schedule without choices is what it was."""
    kernel = kernel_of("large matmul")
    space = Space(kernel, TARGET, writable=writable)
    assert space.default.choices == {} and len(space.default.decisions) > 5
    assert space.default.schedule == build_programs(kernel, TARGET, writable).schedule
    assert space.size > 1000
    texts = {str(c.schedule) for c in space.neighbours()}
    assert len(texts) > len(space.default.decisions) and str(space.default.schedule) not in texts


def test_what_does_not_fit_is_refused_before_it_is_compiled() -> None:
    space = space_of("large matmul")
    decisions = space.default.decisions
    row, depth = (next(n for n in decisions if n.startswith(f"block along {a}")) for a in ("i0", "k"))
    large = {row: decisions[row].index("256"), "steps under way": decisions["steps under way"].index("5")}
    large |= {depth: decisions[depth].index("128")}
    with pytest.raises(ScheduleError, match="KiB of shared memory, and a core has 227"):
        space.candidate(large)
    with pytest.raises(ScheduleError, match="registers, and has 255 at most"):
        space.candidate({row: decisions[row].index("256"), "warps": decisions["warps"].index("1")})
    found = space._legal(large, Random(0))
    assert found.choices.keys() < large.keys(), "some of the choices are given up"


def test_launches_are_told_from_the_kernel() -> None:
    (launch,) = launches_of(space_of("large matmul").default.kernel)
    (product,) = launch.products
    rows, columns, depth = product.shape
    assert product.on_matrix_units and product.is_in_steps and product.bits == 16
    assert launch.shared == launch.staged + 3 * (rows + columns) * depth * 2
    assert (launch.warps, launch.stages) == (8 if rows * columns > 4096 else 4, 3)
    np.testing.assert_equal(launch.largest, rows * columns)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_defaults_spill_nothing_and_others_compile(name: str, tmp_path: Path) -> None:
    space = space_of(name)
    for candidate in some(space, 2):
        found = compile_kernels(emit_kernel(candidate.kernel), TARGET, tmp_path, each=map_in_workers)
        assert candidate.choices or all(code.usage[1] == 0 for code in found)

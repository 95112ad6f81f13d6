"""Run-time checks on a GPU: the same errors as on a CPU, whatever runs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from op_programs import PROGRAMS

from intarsia.backends.gpu.toolchain import compile_kernel
from intarsia.driver import Compilation, Options, checks_of
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel import Check, walk
from intarsia.ir.kernel_interpreter import CheckFailed
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.target import TARGETS

pytest.importorskip("triton")

CPU, GPU = "cpu:x86-avx2", "gpu:sm_90"
GATHER = "fn f(x: f32[N], i: i64[N]) -> f32[N] { return tensor[a](x[i[a]]) }"
PAIRS = "fn f(x: f32[N, N], i: i64[N, N]) -> f32[N, N] { return tensor[a, b](x[a, i[a, b]]) }"
ONCE = "fn f(x: f32[N], i: i64[N]) -> f32[N] { r = update x[i[a]] = x[a]; return r }"
STEPS = """fn f(x: f32[N], i: i64[N]) -> f32[N] {
    return loop (y = x) for t < N { yield y + x[i[t]] }
}"""
BOTH = """fn f(x: i64[N], i: i64[N]) -> i64[N] {
    return tensor[a](where(x[a] > 1, 7 // i[a], 0) + x[i[a] + 1])
}"""


def numbers(count: int, **changes: int) -> Array:
    """0, 1, …, but for some elements, which are named like `_3`."""
    found = np.arange(count)
    for place, value in changes.items():
        found[int(place[1:])] = value
    return found


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


CASES: dict[str, tuple[str, Any, Any]] = {
    "the first of two axes": (PAIRS, ones(5, 5), np.array([[0] * 5] * 3 + [[1, 2, 9, 0, -1], [7] * 5])),
    "many programs": (GATHER, ones(5000), np.where(np.arange(5000) < 4000, 3, 5000)),
    "the first element that is written twice": (ONCE, ones(9), numbers(9, _0=8, _3=5, _8=4)),
    "a target outside": (ONCE, ones(9), numbers(9, _7=9)),
    "a step of a loop": (STEPS, ones(6), numbers(6, _3=-1, _5=-2)),
    "a divisor": (BOTH, np.arange(6), numbers(6, _1=0, _4=0, _5=3)),
    "no failure": (BOTH, np.arange(6), numbers(6, _1=0, _5=3)),
}


def outcome(module: Module, target: str, inputs: list[Any], sizes: dict[str, int], *, dynamic: bool) -> Any:
    """The results, or what the error says."""
    options = Options(target=target, checks=True, dynamic=tuple(sizes) if dynamic else ())
    made = Compilation(module, sizes, options)
    run = (made.interpret_launches,) if target == GPU else ()
    try:
        return run_plan(made.plan, inputs, sizes, *run)
    except CheckFailed as failure:
        error = checks_of(made.plan)[failure.number].error(failure.values)
        return error.code, str(error)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fixed", "open"])
@pytest.mark.parametrize("name", CASES)
def test_errors_are_those_of_a_cpu(name: str, dynamic: bool) -> None:
    text, *inputs = CASES[name]
    module, sizes = load(Source("program.ita", text)).build("f"), {"N": len(inputs[0])}
    here, there = (outcome(module, target, inputs, sizes, dynamic=dynamic) for target in (CPU, GPU))
    if name == "no failure":
        np.testing.assert_array_equal(here[0], there[0])
    else:
        assert here == there and here[0].startswith("E08")


@pytest.mark.parametrize("name", ["gather i32", "gather_from_nothing", "updates_in_group", "layers"])
def test_errors_of_ops_are_those_of_the_reference(name: str) -> None:
    case = PROGRAMS[name]()
    with pytest.raises(CompileError) as expected:
        evaluate(Module(case.graph), case.inputs, case.sizes, checks=True)
    there = outcome(Module(case.graph), GPU, list(case.inputs), dict(case.sizes), dynamic=False)
    assert there[0] == expected.value.code


CHECKED = (
    *(f"sort {dtype}" for dtype in ("f32", "f16", "i64", "u8", "bool")),
    *(f"gather {dtype}" for dtype in ("i64", "i32", "i8", "u64")),
    "sparse_rows", "gather_from_nothing", "sort_in_group", "updates", "updates_in_group", "bits_and_casts", "layers",
)  # fmt: skip
"""Programs of which something is checked. The others are what they are without checks (test_gpu_emit.py)."""


@pytest.mark.slow
def test_which_ops_have_checks() -> None:
    found = []
    for name, make in PROGRAMS.items():
        case = make()
        kernels = Compilation(Module(case.graph), case.sizes, Options(target=GPU, checks=True)).kernels.kernels
        if any(isinstance(s, Check) for kernel in kernels for s, _ in walk(kernel.body)):
            found.append(name)
    assert sorted(found) == sorted(CHECKED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_every_op_with_checks_is_as_on_a_cpu(name: str) -> None:
    case = PROGRAMS[name]()
    here, there = (
        outcome(Module(case.graph), target, list(case.inputs), dict(case.sizes), dynamic=False) for target in (CPU, GPU)
    )
    if isinstance(here[0], str):
        assert here == there
        return
    for a, b in zip(here, there, strict=True):
        tolerance = 2e-2 if a.dtype.itemsize == 2 and a.dtype.kind not in "iu" else 1e-4
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dynamic", [(), ("N",)], ids=["fixed", "open"])
def test_what_is_checked_is_left_to_many_programs(dynamic: tuple[str, ...]) -> None:
    """Looking at all subscripts first takes no program from what comes after."""
    module = load(Source("program.ita", GATHER)).build("f")
    plain, checked = (
        [k for ks in Compilation(module, {"N": 1 << 14}, options).launches.values() for k in ks]
        for options in (Options(target=GPU, dynamic=dynamic), Options(target=GPU, dynamic=dynamic, checks=True))
    )
    assert checked[-1].grid == plain[-1].grid and len(checked) > len(plain)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_with_checks_compile(name: str, dynamic: bool, tmp_path: Path) -> None:
    text, *inputs = CASES[name]
    sizes = {"N": len(inputs[0])}
    options = Options(target=GPU, checks=True, dynamic=tuple(sizes) if dynamic else ())
    made = Compilation(load(Source("program.ita", text)).build("f"), sizes, options)
    for launch in (k for group in made.launches.values() for k in group):
        _, spilled = compile_kernel(launch, TARGETS[GPU], tmp_path).usage
        assert not spilled

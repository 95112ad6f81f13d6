"""Products on GPUs that are not kept, but made again by each kernel that needs them: gradients of attention."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_both_ways import program

from intarsia.backends.gpu.toolchain import CompiledKernel, compile_kernels
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.target import TARGETS
from intarsia.ir.tolerance import expected
from intarsia.ir.types import TensorType
from intarsia.options import Options
from intarsia.workers import map_in_workers

pytest.importorskip("triton")


def compilation(text: str, target: str = "gpu:sm_90", **sizes: int) -> Compilation:
    module = load(Source("f", text)).build("f")
    known = {name: size for name, size in sizes.items() if name in module.graph.dimensions}
    return Compilation(module, known, Options(target=target))


def launches(made: Compilation) -> int:
    return sum(map(len, made.launches.values()))


def largest(made: Compilation) -> int:
    """Elements of the largest tensor in memory."""
    return max(math.prod(map(int, b.shape)) for k in made.plan.kernels for b in k.parameters)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of some thousand elements do not fit the last cache of a GPU."""
    for name in ("gpu:sm_80", "gpu:sm_90"):
        monkeypatch.setitem(TARGETS, name, replace(TARGETS[name], caches=(256, 1 << 12)))


def require_same(made: Compilation) -> None:
    """What a program computes in Triton's interpreter is what it should be. Weights that are rounded to 16 bits make
    differences that are small beside the largest result."""
    rng = np.random.default_rng(0)
    types = [p.type for p in made.source_module.graph.parameters]
    inputs: list[Array | list[Array]] = []
    for kind in types:
        assert isinstance(kind, TensorType)
        shape = [int(extent.evaluate(made.sizes)) for extent in kind.shape]
        inputs.append(rng.standard_normal(shape).astype(kind.dtype.numpy))
    found = run_plan(made.plan, inputs, made.sizes, made.interpret_launches)
    for actual, wanted in zip(found, expected(made.source_module, inputs, made.sizes), strict=True):
        if actual.dtype == np.float32:
            assert wanted.mismatch(actual) is None
        else:
            difference = np.abs(actual.astype(np.float64) - wanted.value)
            assert difference.max() < 2.0**-7 * np.abs(wanted.value).max()


def test_a_gradient_is_two_launches_after_that_of_the_value(tiny: None) -> None:
    made = compilation(program("library"), H=2, S=37, T=70, D=32)
    assert launches(made) == 3 and largest(made) < 2 * 37 * 70
    require_same(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, dtype, sizes",
    [
        ("library", "f32", {"H": 1, "S": 64, "T": 70, "D": 32}),
        ("library", "bf16", {"H": 2, "S": 150, "T": 150, "D": 64}),
        ("library", "f16", {"H": 1, "S": 131, "T": 257, "D": 128}),
        ("causal", "f32", {"H": 2, "S": 150, "D": 64}),
        ("causal", "bf16", {"H": 1, "S": 300, "D": 128}),
        ("causal", "bf16", {"H": 2, "S": 97, "D": 32}),
        ("biased", "f32", {"H": 2, "S": 70, "T": 90, "D": 32}),
        ("softmax", "bf16", {"H": 2, "S": 70, "T": 130, "D": 32}),
        ("sigmoid", "bf16", {"H": 2, "S": 70, "T": 90, "D": 32}),
    ],
)
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90"])
def test_gradients_store_no_product(name: str, dtype: str, sizes: dict[str, int], target: str, tiny: None) -> None:
    made = compilation(program(name, dtype=dtype), target, **sizes)
    assert len(made.plan.kernels) <= 4
    assert largest(made) < sizes["H"] * sizes["S"] * sizes.get("T", sizes["S"])
    require_same(made)


@pytest.mark.slow
@pytest.mark.parametrize("special", [None, ("q", np.inf), ("k", np.nan), ("v", -np.inf), ("g", np.nan)])
def test_blocks_that_masks_leave_out_are_skipped_unless_they_would_be_seen(
    special: tuple[str, float] | None, tiny: None
) -> None:
    made = compilation(program("causal"), H=2, S=150, D=16)
    *_, last = made.launches.values()
    assert len(last) == 2 and re.search(r"for \w+ in range\(max\(min\(end_0, max\(pid_j", last[1].text)
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((2, 150, 16), np.float32) for name in "qkvg"}
    if special is not None:
        inputs[special[0]][1, 100, 3] = special[1]
    given: list[Array | list[Array]] = list(inputs.values())
    wanted = evaluate(made.source_module, given, made.sizes)
    for actual, e in zip(run_plan(made.plan, given, made.sizes, made.interpret_launches), wanted, strict=True):
        np.testing.assert_allclose(actual, e, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("wrt", ["q", "k", "v", "k, v", "q, v"])
def test_sums_may_go_one_way(wrt: str, tiny: None) -> None:
    made = compilation(program("library", wrt, forward=False), H=2, S=37, T=70, D=32)
    assert launches(made) <= 3 and largest(made) < 2 * 37 * 70
    require_same(made)


def text_of(made: Compilation) -> str:
    return "\n".join(launch.text for found in made.launches.values() for launch in found)


def test_what_passes_between_kernels_is_rounded_if_all_that_is_made_of_it_is(tiny: None) -> None:
    made = compilation(program("library", dtype="bf16"), H=1, S=64, T=128, D=32)
    assert "out y: f32[1, 64, 1] rounded bf16" in made.text("scheduled") and "ieee" not in text_of(made)


@pytest.mark.parametrize("results, rounded", [("bf16(o)", True), ("bf16(o), o", False)])
def test_weights_are_rounded_unless_a_result_is_not(results: str, rounded: bool) -> None:
    made = compilation(f"""fn f(q: bf16[64, 32], k: bf16[128, 32], v: bf16[128, 32]) {{
        o = softmax(f32(q) @ transpose(f32(k))) @ f32(v)
        return {results}
    }}""")
    assert launches(made) == 1 and ("ieee" not in text_of(made)) == rounded


def test_attention_over_one_block_of_keys_is_one_launch() -> None:
    kind = "f32[2, 37, 32]"
    text = f"fn f(q: {kind}, k: {kind}, v: {kind}) -> {kind} {{ return attention(q, k, v) }}"
    made = compilation(text)
    assert launches(made) == 1
    require_same(made)


def compiled(made: Compilation, directory: Path) -> list[CompiledKernel]:
    kernels = [launch for found in made.launches.values() for launch in found]
    return compile_kernels(kernels, made.target, directory, each=map_in_workers)


@pytest.mark.slow
@pytest.mark.parametrize("target, unit", [("gpu:sm_80", "hmma"), ("gpu:sm_90", "hgmma"), ("gpu:sm_100", "tcgen05")])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_gradients_on_matrix_units_spill_nothing(target: str, unit: str, width: int, tmp_path: Path) -> None:
    made = compilation(program("library", dtype="bf16"), target, H=16, S=4096, T=4096, D=width)
    assert int(made.plan.workspace_bytes) <= 16 * 4096 * (width + 4) * 4
    codes = [code.resources for code in compiled(made, tmp_path)]
    assert len(codes) == 3
    for code in codes:
        assert code.spilled == 0 and code.count(unit) > 0 and code.count("ffma") == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90"])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_gradients_in_f32_spill_nothing(target: str, width: int, tmp_path: Path) -> None:
    made = compilation(program("library"), target, H=16, S=4096, T=4096, D=width)
    codes = [code.resources for code in compiled(made, tmp_path)]
    assert len(codes) == 3 and not any(code.spilled for code in codes)

"""Kernels for GPUs: what is written in Triton, that it computes the same, and that it fits a chip."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import EXPECTED, Golden
from graph_shorthands import Program
from op_programs import PROGRAMS

from intarsia.backends.gpu.emit import emit_kernel
from intarsia.backends.gpu.traffic import bytes_moved
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import ScheduleError, Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel import Call, Kernel
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.schedule import Describe, Programs
from intarsia.ir.sizes import Size
from intarsia.ir.types import TensorType
from intarsia.options import Options
from intarsia.passes.schedule.apply import apply_step

FOLDER = Path(__file__).parent / "golden" / "triton"
TARGET = "gpu:sm_90"

QUICK = [name for n, name in enumerate(PROGRAMS) if n % 7 == 0]


def assert_same(compilation: Compilation, inputs: list[Array | list[Array]], expected: tuple[Array, ...]) -> None:
    actual = run_plan(compilation.plan, inputs, compilation.sizes, compilation.interpret_launches)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype and a.shape == e.shape
        halves = e.dtype.itemsize == 2 and e.dtype.kind not in "iu"
        tolerance = 2e-2 if halves else 1e-5
        np.testing.assert_allclose(a.astype(np.float64), e.astype(np.float64), rtol=tolerance, atol=tolerance)


def compilation_of(case: Program, dynamic: bool = False, target: str = TARGET) -> Compilation:
    """Of a program of PROGRAMS, with its sizes or without."""
    return Compilation(
        Module(case.graph), case.sizes, Options(target=target, dynamic=tuple(case.sizes) if dynamic else ())
    )


def forced(kernel: Kernel) -> Kernel:
    """A scheduled kernel with descriptors for all that can have them, and two programs at most."""
    for step in (*(Describe((name,)) for name in kernel.buffers()), Programs(2)):
        with suppress(ScheduleError):
            kernel = apply_step(kernel, step)
    return kernel


def force(made: Compilation) -> None:
    """Let its kernels be as `forced`."""
    made.__dict__["scheduled"] = replace(made.scheduled, kernels=tuple(map(forced, made.scheduled.kernels)))
    for derived in ("plan", "launches"):
        made.__dict__.pop(derived, None)


@pytest.mark.parametrize("name", QUICK)
def test_triton_gives_what_the_graph_gives(name: str) -> None:
    case = PROGRAMS[name]()
    assert_same(compilation_of(case), list(case.inputs), tuple(evaluate(Module(case.graph), case.inputs, case.sizes)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open"])
def test_every_op_in_triton(name: str, dynamic: bool) -> None:
    """As it is scheduled, then with descriptors and in walks."""
    case = PROGRAMS[name]()
    made, inputs = compilation_of(case, dynamic), list(case.inputs)
    wanted = tuple(evaluate(Module(case.graph), case.inputs, case.sizes))
    assert_same(made, inputs, wanted)
    force(made)
    assert_same(made, inputs, wanted)


# ---------------------------------------------------------------------- programs in full


def compilation(text: str, target: str = TARGET) -> Compilation:
    """Of a program; lines of it that begin with `# schedule:` pin a schedule."""
    library = load(Source("program.ita", text))
    schedule = "\n".join(re.findall(r"^# schedule: (.*)$", text, re.MULTILINE)) or None
    return Compilation(library.build("f"), {}, Options(target=target, schedule=schedule))


def draw(module: Module) -> list[Array | list[Array]]:
    """Random arguments; integers are subscripts below 7."""
    random = np.random.default_rng(0)
    found: list[Array | list[Array]] = []
    for parameter in module.graph.parameters:
        assert isinstance(parameter.type, TensorType)
        shape, dtype = [int(n) for n in parameter.type.shape], parameter.type.dtype.numpy
        drawn = random.standard_normal(shape) if parameter.type.dtype.is_float else random.integers(0, 7, shape)
        found.append(drawn.astype(dtype))
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ita")), ids=lambda p: p.stem)
def test_golden(path: Path, golden: Golden) -> None:
    """The text of a program's kernels."""
    golden.check(path, compilation(golden.input(path)).text("triton"))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ita")), ids=lambda p: p.stem)
def test_golden_programs_compute_what_the_reference_does(path: Path, golden: Golden) -> None:
    made = compilation(golden.input(path))
    inputs = draw(made.source_module)
    assert_same(made, inputs, tuple(evaluate(made.source_module, inputs, {})))


def test_the_text_is_clean(tmp_path: Path) -> None:
    """Ruff finds nothing in what is written."""
    for path in FOLDER.glob("*.ita"):
        code = path.read_text().partition(EXPECTED)[2]
        (tmp_path / f"{path.stem}.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


def one_launch(text: str) -> TritonKernel:
    ((launch,),) = compilation(text).launches.values()
    return launch


def test_products_of_halves_are_made_by_matrix_units() -> None:
    text = one_launch("fn f(a: bf16[64, 128], b: bf16[128, 64]) -> bf16[64, 64] { return a @ b }").text
    assert "t_matmul = tl.dot(a, b, t_matmul)" in text
    single = one_launch("fn f(a: f32[64, 64], b: f32[64, 64]) -> f32[64, 64] { return a @ b }").text
    assert 'input_precision="ieee"' in single
    double = one_launch("fn f(a: f64[64, 64], b: f64[64, 64]) -> f64[64, 64] { return a @ b }").text
    assert "out_dtype=tl.float64" in double


def test_attention_is_one_sweep_that_skips_masked_blocks() -> None:
    kind = "f32[2, 256, 64]"
    made = compilation(f"fn f(q: {kind}, k: {kind}, v: {kind}) -> {kind} {{ return attention(q, k, v, causal=true) }}")
    (launches,) = made.launches.values()
    assert len(launches) == 2, "what is skipped is looked through for NaN, then there is one sweep"
    assert re.search(r"for \w+ in range\(min\(.*pid_i", launches[1].text), "a program sweeps to the diagonal"


def test_bytes_that_programs_move() -> None:
    softmax = one_launch("fn f(x: bf16[512, 4096]) -> bf16[512, 4096] { return softmax(x, axis=1) }")
    assert bytes_moved(softmax, {}) == {("x", False): 512 * 4096 * 2, ("y", True): 512 * 4096 * 2}
    text = "fn f(a: f32[1024, 512], b: f32[512, 2048]) -> f32[1024, 2048] { return a @ b }"
    product = one_launch(text)
    rows, columns = 1024 // dict(product.constants)["BLOCK_I0"], 2048 // dict(product.constants)["BLOCK_I1"]
    moved = bytes_moved(product, {})
    assert moved["a", False] == columns * 1024 * 512 * 4 and moved["b", False] == rows * 512 * 2048 * 4
    kind = "bf16[2, 512, 64]"
    made = compilation(f"fn f(q: {kind}, k: {kind}, v: {kind}) -> {kind} {{ return attention(q, k, v, causal=true) }}")
    ((_, sweep),) = made.launches.values()
    below_diagonal = sum(2 * (n + 1) for n in range(4)) * 64  # keys that blocks of 128 rows read
    assert bytes_moved(sweep, {})["k", False] == 2 * below_diagonal * 64 * 2


CHIPS = {
    "matmul": "fn f(a: bf16[512, 512], b: bf16[512, 512], c: bf16[512]) -> bf16[512, 512] { return gelu(a @ b + c) }",
    "single": "fn f(a: f32[512, 512], b: f32[512, 512]) -> f32[512, 512] { return a @ b }",
    "attention": """fn f(q: bf16[4, 512, 64], k: bf16[4, 512, 64], v: bf16[4, 512, 64]) -> bf16[4, 512, 64] {
        return attention(q, k, v, causal=true)
    }""",
    "softmax": "fn f(x: bf16[512, 4096]) -> bf16[512, 4096] { return softmax(x, axis=1) }",
    "norm": """fn f(x: bf16[512, 4096], g: bf16[4096], b: bf16[4096]) -> bf16[512, 4096] {
        return layer_norm(x, g, b)
    }""",
    "points": "fn f(x: f32[1048576]) -> f32[1048576] { return gelu(x * 2.0 + 1.0) }",
}
"""Programs whose kernels have to be good ones."""

MATRIX_UNIT = {"gpu:sm_80": "hmma", "gpu:sm_90": "hgmma"}


@pytest.mark.slow
@pytest.mark.parametrize("target", MATRIX_UNIT)
@pytest.mark.parametrize("name", CHIPS)
def test_code_of_chips(name: str, target: str) -> None:
    """No spills, whole accesses of 16 bytes, matrix units for halves."""
    library = load(Source("program.ita", CHIPS[name]))
    made = Compilation(library.build("f"), {}, Options(target=target))
    every = [code.resources for codes in made.counted_code.values() for code in codes]
    for found in every:
        assert not found.spilled, found
        loads = found.count("load_global") + found.count("copy_async")
        wide = found.count("load_global_16") + found.count("copy_async_16")
        assert loads - wide <= 1, f"only a number that all lanes share is loaded by itself: {found}"
        assert found.count("store_global_16") >= found.count("store_global") - 1, found
    if name in ("matmul", "attention"):
        assert any(found.count(MATRIX_UNIT[target]) for found in every), every


UNLIKE = {
    "f32 by bf16": "fn f(x: f32[1024, 1024], w: bf16[1024, 1024]) -> f32[1024, 1024] { return x @ f32(w) }",
    "bf16 by f32": "fn f(x: bf16[1024, 1024], w: f32[1024, 1024]) -> f32[1024, 1024] { return f32(x) @ w }",
    "f32 by i8": "fn f(x: f32[1024, 1024], w: i8[1024, 1024]) -> f32[1024, 1024] { return x @ f32(w) }",
    "bf16 by i8": "fn f(x: bf16[1024, 1024], w: i8[1024, 1024]) -> bf16[1024, 1024] { return x @ bf16(w) }",
}
"""Products of factors of unlike types."""


def test_factors_that_are_widened_before_they_are_multiplied_have_smaller_blocks() -> None:
    for name in UNLIKE:
        blocks = dict(one_launch(UNLIKE[name]).constants)
        assert blocks["BLOCK_K"] == (16 if "f32" in name else 64), name


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90", "gpu:sm_100"])
@pytest.mark.parametrize("name", UNLIKE)
def test_products_of_unlike_types_fit(name: str, target: str) -> None:
    ((code,),) = compilation(UNLIKE[name], target).chip_code.values()
    assert not code.resources.spilled


def test_running_values_in_memory_are_no_scan() -> None:
    text = """kernel f(x: f32[2, 8], out run: f32[2], out y: f32[2, 8]) {
      grid i in 0..2 { run[i] = 0.0
                       scan k in 0..8 { run[i] += x[i, k]
                                        y[i, k] = run[i] } }
    }"""
    with pytest.raises(ScheduleError, match="the running value run lies in memory"):
        emit_kernel(read_kernel(Source("f.ir", text)))


def test_what_cannot_be_written_is_said() -> None:
    kernel = Kernel("f", (), (Call("sort", (), (), Size.of(4)),))
    with pytest.raises(ScheduleError, match="there is no sort in Triton"):
        emit_kernel(kernel)

"""Products of narrow numbers on the matrix units of GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from test_gpu_emit import assert_same, compilation

from intarsia import quantize
from intarsia.backends.gpu.emit import emit_kernel
from intarsia.backends.gpu.interpreter import run as run_launch
from intarsia.backends.gpu.toolchain import CompiledKernel, compile_kernel
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.ir.dots import dots_of, matrix_dot
from intarsia.ir.dtypes import F32, I8, I32, U32, Array, dtype
from intarsia.ir.errors import Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import TARGETS
from intarsia.passes.schedule.apply import apply

pytest.importorskip("triton")


def program(a: str, b: str, c: str, m: int, n: int, k: int) -> str:
    """A product of rows of two matrices, of types a and b, in type c."""
    total = f"sum[k]({c}(x[i, k]) * {c}(w[j, k]))"
    return f"fn f(x: {a}[{m}, {k}], w: {b}[{n}, {k}]) -> {c}[{m}, {n}] {{ return tensor[i, j]({total}) }}"


def launches(made: Compilation) -> list[TritonKernel]:
    return [launch for kernels in made.launches.values() for launch in kernels]


def compiled(text: str, target: str, directory: Path) -> list[CompiledKernel]:
    return [compile_kernel(k, TARGETS[target], directory) for k in launches(compilation(text, target))]


def same(text: str, inputs: list[Array | list[Array]], target: str = "gpu:sm_90") -> list[TritonKernel]:
    """The launches of a program, which computes what the graph does."""
    made = compilation(text, target)
    assert_same(made, inputs, tuple(evaluate(made.source_module, inputs, {})))
    return launches(made)


def test_what_saturates_takes_few_terms() -> None:
    unit = matrix_dot(I8, I8, I32)
    assert unit is not None and unit.saturates and unit.most_terms == 131071
    assert unit.most_terms * 128 * 128 < 1 << 31 <= (unit.most_terms + 1) * 128 * 128
    assert matrix_dot(I8, I8, U32) == unit and matrix_dot(I8, I8, F32) is None
    assert unit in dots_of(TARGETS["gpu:sm_80"]) and unit not in dots_of(TARGETS["cpu:x86-avx512"])


@pytest.mark.parametrize("c", ["i32", "u32"])
def test_bytes_are_multiplied_as_they_are(c: str) -> None:
    random = np.random.default_rng(0)
    x, w = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((40, 80), (24, 80)))
    (launch,) = same(program("i8", "i8", c, 40, 24, 80), [x, w])
    assert "tl.dot(x, w" in launch.text and "out_dtype=tl.int32" in launch.text


def sums_of(terms: int, depth: int, c: str = "i32") -> TritonKernel:
    """A kernel that sums up so many products of bytes, in steps of some depth."""
    text = f"""kernel f(x: i8[16, {terms}], w: i8[16, {terms}], out y: {c}[16, 16]) {{
      for i in 0..16 {{ for j in 0..16 {{ y[i, j] = {c}:0 for k in 0..{terms} {{
        y[i, j] += {c}(x[i, k]) * {c}(w[j, k])
      }} }} }}
    }}"""
    steps = f"accumulate y at k -> t register set; split k {depth}; vectorize k.1; vectorize j; vectorize i"
    kernel = apply(read_kernel(Source("test.ir", text)), Schedule.parse(steps))
    (launch,) = emit_kernel(kernel)
    return launch


def test_sums_that_may_wrap_are_added_up_outside_of_matrix_units() -> None:
    assert "t = tl.dot(x, w, t, out_dtype=tl.int32)" in sums_of(131040, 32).text
    assert "t = t - (-tl.dot(x, w, out_dtype=tl.int32))" in sums_of(131072, 32).text
    assert "t = t - (-tl.dot(x, w, out_dtype=tl.int32).to(tl.uint32, bitcast=True))" in sums_of(64, 32, "u32").text


@pytest.mark.slow
@pytest.mark.parametrize("c", ["i32", "u32"])
def test_long_sums_of_integers_wrap(c: str) -> None:
    """Some matrix units stay at the ends of the range."""
    terms = 131072
    launch = sums_of(terms, 8192, c)
    x, y = np.full((16, terms), -128, np.int8), np.zeros((16, 16), np.dtype(c.replace("i", "int").replace("u", "uint")))
    run_launch(launch, {"x": x, "w": x, "y": y}, {})
    assert (y == np.array(1 << 31, np.int64).astype(y.dtype)).all()


def test_blocks_that_are_too_shallow_are_summed_without_matrix_units() -> None:
    assert "tl.dot" in sums_of(96, 32).text and "tl.dot" not in sums_of(96, 16).text


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, instruction", [("gpu:sm_80", "imma"), ("gpu:sm_90", "igmma"), ("gpu:sm_100", "tcgen05")]
)
def test_bytes_are_on_matrix_units(target: str, instruction: str, tmp_path: Path) -> None:
    (code,) = compiled(program("i8", "i8", "i32", 4096, 4096, 4096), target, tmp_path)
    assert code.resources.count(instruction) > 0 and code.resources.spilled == 0
    (code,) = compiled(program("i8", "i8", "i32", 4096, 4096, 262144), target, tmp_path)
    assert code.resources.count(instruction) > 0 and code.resources.spilled == 0
    assert re.search(r"arith\.subi .*tensor<\d+x\d+xi32", code.ttgir), "what wraps is added outside of the dot"


PAIRS = [("f8e4m3", "f8e4m3"), ("f8e4m3", "f8e5m2"), ("f8e5m2", "f8e5m2")]


@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90"])
@pytest.mark.parametrize("a, b", PAIRS[:2])
def test_floats_of_8_bits_are_multiplied_as_they_are_or_as_halves(a: str, b: str, target: str) -> None:
    """Both hold all of their values."""
    random = np.random.default_rng(0)
    types = [found.numpy for found in map(dtype, (a, b)) if found is not None]
    x, w = (random.standard_normal(shape).astype(t) for shape, t in zip(((40, 80), (24, 80)), types))
    x[3, 5], w[7, 9] = np.nan, 2.0**-9  # the latter is subnormal in f8e4m3
    *_, launch = same(program(a, b, "f32", 40, 24, 80), [x, w], target)
    native = "tl.dot(x.to(tl.float8e4nv, bitcast=True), w.to(tl.float8e" in launch.text
    assert native == (target == "gpu:sm_90") and "ieee" not in launch.text


@pytest.mark.parametrize(
    "a, b, c, k", [("i4", "i8", "i32", 64), ("u3", "i4", "i32", 64), ("f4e2m1", "f6e3m2", "f32", 48)]
)
def test_codes_are_multiplied_in_the_least_type_that_holds_them(a: str, b: str, c: str, k: int) -> None:
    random = np.random.default_rng(0)
    types = [found.numpy for found in map(dtype, (a, b)) if found is not None]
    limits = (0, 4) if a == "u3" else (-4, 4)
    x, w = (random.integers(*limits, shape).astype(t) for shape, t in zip(((32, k), (16, k)), types))
    *_, launch = same(program(a, b, c, 32, 16, k), [x, w])
    assert "tl.dot(" in launch.text and "ieee" not in launch.text


W8A8 = """format a8 = quant(i8, scale=f32, axis=1)
format w8 = quant(i8, scale=f32, axis=1)
fn f(x: f32[{m}, {k}], w: w8[{n}, {k}]) -> f32[{m}, {n}] {{
    return dequantize(quantize(x, a8)) @ transpose(dequantize(w))
}}
"""


def test_scales_of_rows_and_columns_are_multiplied_after_a_sum_of_integers() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 96)).astype(np.float32)
    w = quantize(random.standard_normal((24, 96)).astype(np.float32), "quant(i8, scale=f32, axis=1)")
    made = compilation(W8A8.format(m=40, n=24, k=96))
    assert_same(made, [x, *w.values()], tuple(evaluate(made.source_module, [x, *w.values()], {})))
    (launch,) = (x for x in launches(made) if "tl.dot" in x.text)
    assert "out_dtype=tl.int32)" in launch.text and "t_dot.to(tl.float32) *" in launch.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, instruction", [("gpu:sm_80", "imma"), ("gpu:sm_90", "igmma"), ("gpu:sm_100", "tcgen05")]
)
def test_integers_with_scales_are_on_matrix_units(target: str, instruction: str, tmp_path: Path) -> None:
    _, code = compiled(W8A8.format(m=4096, n=4096, k=4096), target, tmp_path)
    assert code.resources.count(instruction) > 0 == code.resources.spilled


def of_formats(a: str, b: str, m: int, n: int, k: int) -> str:
    """A product in f32 of rows in a format and columns in another one."""
    text = f"format rows = {a}(axis=1)\nformat columns = {b}(axis=1)\n"
    text += f"fn f(x: rows[{m}, {k}], w: columns[{n}, {k}]) -> f32[{m}, {n}] "
    return text + "{ return dequantize(x) @ transpose(dequantize(w)) }"


def parts_of(name: str, shape: tuple[int, int], random: np.random.Generator) -> list[Array]:
    """Codes of a format, all of them, and scales from the smallest on."""
    values = random.standard_normal(shape).astype(np.float32)
    parts = list(quantize(values, f"{name}(axis=1)").values())
    parts[0][:2] = np.resize(np.arange(256), (2, shape[1])).astype(np.uint8).view(parts[0].dtype)
    parts[1][2:5, 0] = np.array([0, 1, 60], np.uint8).view(parts[1].dtype)
    return parts


@pytest.mark.parametrize("a, b", [("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp8", "mxfp4"), ("nvfp4", "nvfp4")])
def test_codes_and_scales_are_multiplied_by_matrix_units(a: str, b: str) -> None:
    random = np.random.default_rng(0)
    x, w = parts_of(a, (100, 192), random), parts_of(b, (40, 192), random)
    (launch,) = same(of_formats(a, b, 100, 40, 192), [*x, *w], "gpu:sm_100")
    assert "tl.dot_scaled(" in launch.text


def test_few_rows_and_ragged_sums_are_multiplied_in_bf16() -> None:
    """Those matrix units take 128 rows, and whole blocks of a sum."""
    for m, k in ((16, 128), (128, 96)):
        (launch,) = launches(compilation(of_formats("mxfp4", "mxfp4", m, 64, k), "gpu:sm_100"))
        assert "tl.dot(" in launch.text and "bfloat16" in launch.text


@pytest.mark.slow
def test_constant_codes_lie_two_to_a_byte_along_the_sum() -> None:
    random = np.random.default_rng(0)
    x, w = parts_of("mxfp4", (128, 512), random), parts_of("mxfp4", (1024, 512), random)
    text = of_formats("mxfp4", "mxfp4", 128, 1024, 512).replace("w: columns", "const w: columns")
    prepare, launch, *_ = same(text, [*x, *w], "gpu:sm_100")
    assert prepare.name.endswith("prepare") and "pack_pairs(codes)" in launch.text and "tl.trans(codes_1" in launch.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "a, b, kind",
    [
        ("mxfp4", "mxfp4", "mxf4"),
        ("mxfp8", "mxfp8", "mxf8f6f4"),
        ("mxfp8", "mxfp4", "mxf8f6f4"),
        ("nvfp4", "nvfp4", "mxf4nvf4"),
    ],
)
def test_scales_are_those_of_instructions(a: str, b: str, kind: str, tmp_path: Path) -> None:
    for text in (of_formats(a, b, 4096, 4096, 4096), of_formats(a, b, 128, 4096, 4096).replace("w: c", "const w: c")):
        code = max(compiled(text, "gpu:sm_100", tmp_path), key=lambda c: c.resources.count("tcgen05"))
        assert f"kind::{kind}.block_scale" in code.ptx and code.resources.spilled == 0
        assert code.resources.count("tcgen05") > 0


@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90"])
@pytest.mark.parametrize("a, b", [("mxfp4", "mxfp4"), ("mxfp8", "mxfp6"), ("nvfp4", "nvfp4")])
def test_codes_times_powers_of_two_are_multiplied_in_bf16(a: str, b: str, target: str) -> None:
    random = np.random.default_rng(0)
    x, w = parts_of(a, (40, 96), random), parts_of(b, (24, 96), random)
    (launch,) = same(of_formats(a, b, 40, 24, 96), [*x, *w], target)
    assert "tl.dot(" in launch.text and "ieee" not in launch.text and "float32)" not in launch.text.split("for ")[1]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90"])
@pytest.mark.parametrize("a, b", [("mxfp4", "mxfp4"), ("mxfp8", "mxfp4"), ("mxfp8", "mxfp8")])
def test_products_of_scaled_codes_spill_nothing(a: str, b: str, target: str, tmp_path: Path) -> None:
    (code,) = compiled(of_formats(a, b, 4096, 4096, 4096), target, tmp_path)
    instruction = "hgmma" if target == "gpu:sm_90" else "hmma"
    assert code.resources.count(instruction) > 0 == code.resources.spilled and not code.resources.count("ffma")


@pytest.mark.parametrize(
    "name, target",
    [("f8e4m3", "gpu:sm_90"), ("f8e5m2", "gpu:sm_90"), ("f4e2m1", "gpu:sm_100"), ("f8e8m0", "gpu:sm_100")],
)
def test_floats_of_few_bits_become_any_other_type(name: str, target: str) -> None:
    """Those too that the target has in instructions."""
    found = dtype(name)
    assert found is not None
    n = 1 << found.bits
    x = np.arange(n, dtype=np.uint8).view(found.numpy)
    targets = ("i32", "u8", "f64", "f16", "bf16", "bool")
    types = ", ".join(f"{t}[{n}]" for t in targets)
    with np.errstate(all="ignore"):
        same(f"fn f(x: {name}[{n}]) -> ({types}) {{ return {', '.join(f'{t}(x)' for t in targets)} }}", [x], target)


def test_types_of_products_are_remarks() -> None:
    made = compilation(program("f8e4m3", "f8e5m2", "f32", 64, 64, 64))
    assert launches(made)
    said = [remark.message for remark in made.remarks.items]
    assert said == ["f_dot: f8e4m3 by f8e5m2 is multiplied by matrix units, and summed in f32"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, instruction", [("gpu:sm_80", "hmma"), ("gpu:sm_90", "qgmma"), ("gpu:sm_100", "tcgen05")]
)
def test_floats_of_8_bits_are_on_matrix_units(target: str, instruction: str, tmp_path: Path) -> None:
    for a, b in PAIRS:
        (code,) = compiled(program(a, b, "f32", 4096, 4096, 4096), target, tmp_path)
        assert code.resources.count(instruction) > 0 and code.resources.spilled == 0
        assert not code.resources.count("ffma")


@pytest.mark.slow
@pytest.mark.parametrize("a, b, c, instruction", [("i4", "i8", "i32", "igmma"), ("f4e2m1", "f4e2m1", "f32", "hgmma")])
def test_codes_are_on_matrix_units(a: str, b: str, c: str, instruction: str, tmp_path: Path) -> None:
    (code,) = compiled(program(a, b, c, 4096, 4096, 4096), "gpu:sm_90", tmp_path)
    assert code.resources.count(instruction) > 0 and code.resources.spilled == 0


def test_a_code_as_a_signed_byte_is_two_bitcasts() -> None:
    """There is no single one."""
    x = np.arange(8, dtype=np.uint8)
    same("fn f(x: u3[8]) -> i8[8] { return bitcast(bitcast(x, u8), i8) }", [x])

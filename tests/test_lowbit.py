"""Weights of few bits from the program to the machine: how codes lie there, what decodes them, what users are told."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Run

import intarsia
from intarsia.driver import Compilation
from intarsia.ir.formats import BUILT_IN
from intarsia.ir.schedule import Fetch, Pack, Schedule, Squeeze
from intarsia.ir.target import TARGETS
from intarsia.options import Options, require_host
from intarsia.program import Program

FILES = {
    "p.ita": """format w4 = quant(i4, scale=f16, group=128, axis=0)
fn linear(x: f32[1, 1024], const w: w4[1024, 1024]) -> f32[1, 1024] { return x @ dequantize(w) }
fn products(x: bf16[64, 256], const w: bf16[256, 64]) -> f32[64, 64] { return f32(x) @ f32(w) }
fn halves(x: f16[8, 64]) -> f16[8] { return sum(exp(x), axis=1) }
fn scaled(x: mxfp4[128, 256], w: mxfp4[64, 256]) -> f32[128, 64] { return dequantize(x) @ transpose(dequantize(w)) }
fn stored(x: f32[64]) -> f8e4m3[64] { return f8e4m3(x) }
"""
}
FORMATS = {
    **{f"{kind}{bits}": f"quant({kind}{bits}, scale=f16, group=24, axis=0)" for kind in "iu" for bits in range(2, 9)},
    "u1": "quant(u1, scale=f16, zero=f16, group=24, axis=0)",
    "zeros": "quant(u4, scale=f16, zero=u4, group=24, axis=0)",
    "ternary": "quant(ternary, scale=f32, axis=none)",
    "f8e5m2": "quant(f8e5m2, scale=f32, axis=0)",
    "two_levels": "quant(i4, scale=quant(u8, scale=f32, group=4, axis=0), group=24, axis=0)",
    **{name: f"{name}(axis=0)" for name in BUILT_IN},
}


def program(name: str, rows: int, columns: int, target: str | None = None) -> Program:
    text = f"""format q = {FORMATS[name]}
        fn f(x: f32[1, {rows}], const w: q[{rows}, {columns}]) -> f32[1, {columns}] {{ return x @ dequantize(w) }}"""
    return intarsia.compile(text, Options(target=target))


@pytest.mark.slow
@pytest.mark.parametrize("target, name, rows, columns", [
    *[("cpu", name, 1000, 1024) for name in ("u3", "i4", "i7", "two_levels", "mxfp6", "nf4")],
    *[("cpu:x86-avx2", name, 1000, 1024) for name in ("i2", "u5", "zeros", "mxfp4", "nf4")],
    ("cpu", "i4", 517, 521), ("cpu:x86-avx2", "u6", 517, 521),
])  # fmt: skip
def test_every_code_is_read_back(target: str, name: str, rows: int, columns: int) -> None:
    """Codes lie in another order and share words: a row with a single 1 reads one row of the weights, exactly."""
    if target != "cpu":
        require_host(TARGETS[target])
    made = program(name, rows, columns, target)
    w = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    parts = intarsia.quantize(w, "q", made)
    values = intarsia.dequantize(parts, "q", made)
    product = made.f.bind(w=parts)
    for row in range(rows):
        x = np.zeros((1, rows), np.float32)
        x[0, row] = 1
        assert np.array_equal(product(x)[0], values[row]), f"row {row}"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu:x86-avx512", "cpu:x86-avx2", "cpu:neon"])
@pytest.mark.parametrize("name", ["i3", "u8", "zeros", "ternary", "f8e5m2", "two_levels", *BUILT_IN])
def test_every_format_is_compiled_for_every_target(name: str, target: str) -> None:
    """Codes are decoded in vectors; what lays them out is a schedule that is printed and read back."""
    compilation = Compilation(program(name, 517, 1024).library.build("f"), {}, Options(target=target))
    (text,) = compilation.schedules.values()
    steps = Schedule.parse(text)
    assert str(steps) == text
    if any(isinstance(step, Pack) and step.memory == "prepared" for step in steps):
        assert "plan f_prepare" in compilation.text("plan")
    assembly = compilation.text("asm")
    assert {"cpu:x86-avx512": "zmm", "cpu:x86-avx2": "ymm", "cpu:neon": "fmla\tv"}[target] in assembly
    if (target, name) in (("cpu:x86-avx2", "nf4"), ("cpu:x86-avx2", "mxfp4"), ("cpu:x86-avx512", "nf4")):
        assert "\tvperm" in assembly and "cmpgt" not in assembly
    assert len(compilation.code.object_code) > 1000


@pytest.mark.parametrize("columns", [1536, 4864, 1001])
def test_codes_are_laid_out_for_any_columns(columns: int) -> None:
    """Columns that blocks of 1024 do not divide: a rest would be read by loops of its own, and nothing laid out. Those
    that fill no panel are filled up."""
    compilation = Compilation(program("i4", 512, columns).library.build("f"), {}, Options(target="cpu:x86-avx512"))
    (text,) = compilation.schedules.values()
    assert any(isinstance(step, Squeeze) for step in Schedule.parse(text))


@pytest.mark.parametrize("name, ahead", [("i4", 6), ("nf4", 2)])
def test_codes_and_scales_stream_from_memory(name: str, ahead: int) -> None:
    """Both are read in order; codes are fetched 8 KiB ahead, how many groups that is depends on their size."""
    compilation = Compilation(program(name, 1536, 4096).library.build("f"), {}, Options(target="cpu:x86-avx512"))
    (kernel,), (text,) = compilation.scheduled.kernels, compilation.schedules.values()
    assert {n.split(".")[0] for n, b in kernel.buffers().items() if b.memory == "prepared"} == {"codes", "scale"}
    assert {step.distance for step in Schedule.parse(text) if isinstance(step, Fetch)} == {ahead}


@pytest.mark.parametrize("target, decoded", [
    ("cpu:x86-avx512", "by a look-up in a table of 16 numbers"), ("cpu:neon", "by arithmetic on its bits"),
])  # fmt: skip
def test_explain_codes(ita: Run, target: str, decoded: str) -> None:
    status, out, _ = ita("explain", "p.ita:linear", "--about", "lowbit", "--target", target)
    assert status == 0
    assert "p.ita:2:82: i4 is read as the code in its byte, from which f32 is computed" in out
    assert "codes is i4, without gaps, 8 to a word of 32 bits, in the order in which they are read, copied once" in out
    assert f"i4 is decoded {decoded}" in out


@pytest.mark.parametrize("target, told", [
    ("gpu:sm_90", "factors are put together in bf16, which holds them, and multiplied by matrix units"),
    ("gpu:sm_100", "f4e2m1 by f4e2m1 with scales of groups is multiplied by matrix units, and summed in f32"),
])  # fmt: skip
def test_explain_codes_with_scales(ita: Run, target: str, told: str) -> None:
    status, out, _ = ita("explain", "p.ita:scaled", "--about", "lowbit", "--target", target)
    assert status == 0 and told in out


def test_explain_short_floats(ita: Run) -> None:
    def told(function: str, target: str) -> str:
        status, out, _ = ita("explain", f"p.ita:{function}", "--about", "lowbit", "--target", target)
        assert status == 0
        return out

    assert "bf16 by bf16 is widened to f32: no dot instruction fits the target" in told("products", "cpu:x86-avx2")
    halves = told("halves", "cpu:x86-avx2")
    assert "exp of f16 is computed in f32, and rounded to it" in halves
    assert "the sum of f16 is formed in f32, and rounded once" in halves
    assert "the code of f8e4m3 is computed from f32" in told("stored", "cpu:x86-avx2")


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_codes_of_odd_widths_are_transposed(bits: int) -> None:
    """In registers, where each is a byte."""
    codes = np.random.default_rng(0).integers(0, 1 << bits, (64, 64)).astype(np.uint8)
    text = f"fn f(w: u{bits}[64, 64]) -> u{bits}[64, 64] {{ return transpose(w) }}"
    np.testing.assert_array_equal(np.asarray(intarsia.compile(text).f(codes)), codes.T)

"""Products with weights in groups: scales are multiplied once for each group, whatever its size."""

from __future__ import annotations

import numpy as np
import pytest

import intarsia
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.target import TARGETS
from intarsia.options import host_target
from intarsia.passes.schedule.default import schedule_kernel

SHAPES = [(2, (5, 96, 40)), (16, (16, 130, 33)), (64, (3, 70, 65)), (100, (9, 250, 32))]
"""Elements of a group; rows, summands, columns."""


def product(rows: int, length: int, columns: int, group: int) -> Kernel:
    groups = -(-length // group)
    text = f"""kernel f(x: f32[{rows}, {length}], const c: i4[{length}, {columns}], const s: f16[{groups}, {columns}],
      out y: f32[{rows}, {columns}]) {{
      for i in 0..{rows} {{ for j in 0..{columns} {{ y[i, j] = 0.0 }} }}
      for i.1 in 0..{rows} {{ for j.1 in 0..{columns} {{ for k in 0..{length} {{
        y[i.1, j.1] += x[i.1, k] * (f32(bitcast(bit_xor(bitcast(c[k, j.1], u8), u8:8) - u8:8, i8))
          * f32(s[k // {group}, j.1])) }} }} }}
    }}"""
    return read_kernel(Source("f", text))


def test_scales_are_multiplied_once_for_each_group() -> None:
    schedule, kernel = schedule_kernel(product(16, 512, 512, 64), TARGETS["cpu:x86-avx512"])
    assert str(schedule).startswith("group y at k 64 -> ")
    lines = [line for line in print_kernel(kernel).splitlines() if "s[" in line]
    assert lines and all("+= y.0[" in line for line in lines), "where sums are added up"
    assert "f32[8, 16, " not in print_kernel(kernel), "the sums of all groups"


def check(declaration: str, rows: int, length: int, columns: int) -> None:
    """Is a product with weights of a format within the tolerance of the language?"""
    random = np.random.default_rng(length)
    x, w = (random.standard_normal(shape, np.float32) for shape in ((rows, length), (length, columns)))
    parts = intarsia.quantize(w, declaration)
    text = f"format w = {declaration}\nfn f(x: f32[M, K], const w: w[K, N]) -> f32[M, N] {{ return x @ dequantize(w) }}"
    function = intarsia.compile(text).f
    values = intarsia.dequantize(parts, declaration).astype(np.float64)
    bound = 8 * 2.0**-23 * (abs(x) @ abs(values))
    for result in (function.bind(w=parts)(x), function(x, parts)):
        assert (abs(result - x @ values) <= bound).all()


@pytest.mark.slow
def test_a_shorter_last_group() -> None:
    check("quant(i4, scale=f16, group=7, axis=0)", 5, 61, 40)


@pytest.mark.slow
@pytest.mark.parametrize("group, shape", SHAPES)
@pytest.mark.parametrize("kind", ["i4, scale=f16", "u4, scale=f16, zero=u4"])
def test_any_group_and_shape(kind: str, group: int, shape: tuple[int, int, int]) -> None:
    check(f"quant({kind}, group={group}, axis=0)", *shape)


def check_rounded(stored: str, rows: int) -> str:
    """Does a product of rounded numbers with weights of a format, transposed, give each of these exactly where one
    number of a row is 1? Returns the scheduled kernels."""
    text = f"""format w = {stored}
    fn f(x: f32[M, K], const w: w[N, K]) -> f32[M, N] {{ return f32(bf16(x)) @ transpose(dequantize(w)) }}"""
    w, x = np.random.default_rng(rows).standard_normal((96, 128), np.float32), np.eye(rows, 128, dtype=np.float32)
    program = intarsia.compile(text)
    parts = intarsia.quantize(w, "w", program)
    function = program.f.bind(w=parts)
    assert np.array_equal(function(x), intarsia.dequantize(parts, "w", program).T[:rows])
    return str(function.lower(x).asm["scheduled"])


@pytest.mark.parametrize("stored", ["quant(i4, scale=f16, group=64)", "quant(u4, scale=f16, zero=u4, group=32)"])
def test_codes_are_factors_of_dot_instructions(stored: str) -> None:
    """Less their zero points: bf16 holds them. What lanes read lies side by side, and codes share bytes."""
    shown = check_rounded(stored, 16)
    if "avx512bf16" in host_target().features:
        assert "dot k" in shown and "alloc codes.0.0: u8[" in shown and "alloc scale.0: f16[" in shown


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 6, 128])
@pytest.mark.parametrize("stored", [
    "quant(i2, scale=f32, group=16)", "quant(u3, scale=f16, zero=u3, group=32)", "quant(i5, scale=f16, group=32)",
    "quant(u5, scale=f16, zero=u5, group=32)", "quant(u7, scale=f32, zero=u7, group=64)", "quant(i8, scale=f32)",
    "quant(u8, scale=f32, zero=u8, group=32)", "quant(u4, scale=f16, zero=f16, group=32)",
    "mxint8(axis=-1)", "nf4(axis=-1)",
])  # fmt: skip
def test_factors_of_any_format(stored: str, rows: int) -> None:
    check_rounded(stored, rows)


ROWS = ["quant(i8, scale=f32, axis=1)", "quant(u8, scale=f32, zero=u8, axis=1)"]


def check_integers(stored: str, rows: int, length: int, columns: int, row: str = ROWS[0]) -> str:
    """Is a product of rows that are quantized with such weights within the tolerance? Returns the scheduled kernels."""
    random = np.random.default_rng(length)
    x, w = (random.standard_normal(shape, np.float32) for shape in ((rows, length), (length, columns)))
    parts = intarsia.quantize(w, stored)
    text = f"""format w = {stored}
    format a = {row}
    fn f(x: f32[M, K], const w: w[K, N]) -> f32[M, N] {{ return dequantize(quantize(x, a)) @ dequantize(w) }}"""
    function = intarsia.compile(text).f.bind(w=parts)
    left = intarsia.dequantize(intarsia.quantize(x, row), row).astype(np.float64)
    right = intarsia.dequantize(parts, stored).astype(np.float64)
    assert (abs(function(x) - left @ right) <= 8 * 2.0**-23 * (abs(left) @ abs(right))).all()
    return str(function.lower(x).asm["scheduled"])


@pytest.mark.parametrize("row", ROWS)
def test_integers_are_summed_as_integers(row: str) -> None:
    shown = check_integers("quant(i4, scale=f16, group=16, axis=0)", 1, 64, 32, row)
    assert "i32[32] register" in shown and ("dot k" in shown or "avx512vnni" not in host_target().features)


STORED = [
    "quant(i8, scale=f32, axis=0)",
    "quant(i4, scale=f16, group=32, axis=0)",
    "quant(u4, scale=f16, zero=u4, group=32, axis=0)",
    "quant(u8, scale=f32, zero=u8, axis=0)",
    'quant(u4, scale=f32, zero=f16, zero_means="value", group=32, axis=0)',
]


@pytest.mark.slow
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("row", ROWS)
def test_integers_of_every_kind(stored: str, row: str) -> None:
    for rows, length in ((1, 100), (9, 128)):
        check_integers(stored, rows, length, 40, row)

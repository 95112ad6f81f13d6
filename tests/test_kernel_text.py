"""Kernels as text: what is printed reads back to the same kernel; mistakes are shown where they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from schedule_samples import SAMPLES, sample

from intarsia.ir.errors import CompileError, Source
from intarsia.ir.kernel_text import print_kernel, print_statement, read_kernel

EVERYTHING = """kernel every.thing(a: f32[M, 64], w: list[3] i32[64, 64], out c: f32[M, 64], inout s: f64)[sizes M, t] {
  parallel i in 0..M step 16 {
    alloc acc: f32[16, 64] register
    alloc h: bf16 cache
    alloc g: i64[M]
    unroll i.0 in 0..16 {
      lane j in 0..16 {
        acc[i.0, j] += (a[i + i.0, 3] if i + i.0 < M else 7.0) * 2.5 where i + i.0 < M and j < 12
        c[i, j] = -(acc[i, j] - 1.0) / 2.0 !nt !atomic
        c[w[2, i, j], j] max= where(a[i, 0] < 1.0 or not(a[i, 1] == inf), nan, -inf) where 0 < w[1, i, j] !nt !numbers
        prefetch a[i + 16, 0] L1
        prefetch c[min(M - 1, i + 16), 0] L2 write
        s[] *= f64:2.0 + f64(acc[i // 3, j % 2]) - f64(bitcast(w[t, 0, 0], f32))
        h[] = bf16:-0.5
      }
    }
    if i + 15 < M {
      g[i] min= g[max(i - 1, 0)]
    } else {
      check 3: a[i, 0] < 1.0 (index(i), i64(w[i, 2, 3]))
      check 4: true
    }
    call sort(a[i]) -> c[i] length 64
  }
  grid p in 0..4 {
    dot q in 0..2 {
      c[p, q] = 0.0
    }
  }
}"""


def read(text: str) -> str:
    return print_kernel(read_kernel(Source("k.ir", text)))


def test_every_kind_of_line_reads_back() -> None:
    text = EVERYTHING.replace("-(acc[i, j] - 1.0)", "neg(acc[i, j] - 1.0)")
    kernel = read_kernel(Source("k.ir", text))
    assert sorted(print_kernel(kernel)) == sorted(text)  # only the order of the arguments of a minimum is not kept
    assert read_kernel(Source("again.ir", print_kernel(kernel))) == kernel


def test_what_is_said_of_parameters_reads_back() -> None:
    text = "kernel f(x: bf16[8] described, out y: f32[8] rounded bf16) {\n  y[0] = f32(x[0])\n}"
    assert read(text) == text


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_samples_read_back(name: str) -> None:
    kernel, _ = sample(name)
    assert read_kernel(Source("again.ir", print_kernel(kernel))) == kernel


def test_golden_kernels_read_back() -> None:
    texts = [
        text
        for path in (Path(__file__).parent / "golden").glob("schedule-*/*.ir")
        for text in re.split(r"^# .*$", path.read_text("utf-8"), flags=re.MULTILINE)
        if text.strip().startswith("kernel")
    ]
    assert len(texts) > 50
    for text in texts:
        assert read(read(text)) == read(text)


def test_one_statement_prints_alone() -> None:
    kernel, _ = sample("histogram")
    (loop,) = kernel.body
    assert print_statement(loop).splitlines()[1] == "  h[bin[i]] += w[i] where 0 < bin[i] + 1 and bin[i] < 6"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("kernel f(x: f32[3]) { y[0] = x[0] }", "E1503", "nothing is named 'y' here"),
        ("kernel f(out x: f32[3]) { x[0] = 1 }", "E1504", "x is f32, the value 1 is i64"),
        ("kernel f(out x: f32[3]) { x[0] + 1.0 }", "E1502", "an accumulating operator"),
        ("kernel f(out x: f32[3]) { while }", "E1502", "expected a statement"),
        ("kernel f(out x: f33[3]) { }", "E1503", "no element type"),
        ("kernel f(out x: f32[3]) { check 1: x[0] }", "E1504", "not bool"),
        ("kernel f(out x: f32[3]) { prefetch x[0] L9 }", "E1502", "no cache level"),
        ("kernel f(out x: f32[3]) { x[0] = 1.0 } }", "E1502", "the end of the text"),
        ("kernel f(out x: f32[3]) { for i in 0..3 step 1.5 { } }", "E1502", "not an integer"),
    ],
)
def test_mistakes_are_shown(text: str, code: str, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        read(text)
    assert caught.value.code == code

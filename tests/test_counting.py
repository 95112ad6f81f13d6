"""Numbers about generated code, on LLVM IR and assembly written by hand and on kernels."""

from __future__ import annotations

import pytest

from intarsia.backends.cpu.compile import compile_kernel
from intarsia.backends.cpu.counting import count, peak_live, vector_spills
from intarsia.backends.cpu.machine import parse
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.schedule.apply import apply

TARGET = TARGETS["cpu:x86-avx512"]

CHAIN = """
define <16 x float> @f(<16 x float> %a, <16 x float> %b, i64 %n, <16 x i1> %mask, <2 x float> %short) {
  %c = fadd <16 x float> %a, %b
  %d = fmul <16 x float> %c, %b
  ret <16 x float> %d
}
"""
"""Two are live, an argument and the value at hand; masks and short vectors lie in other registers."""

WAITING = """
define <16 x float> @f(ptr %p) {
  %a = load <16 x float>, ptr %p
  %b = load <16 x float>, ptr %p
  %c = load <16 x float>, ptr %p
  %unused = load <16 x float>, ptr %p
  %d = fadd <16 x float> %b, %c
  %e = fadd <16 x float> %a, %d
  ret <16 x float> %e
}
"""
"""Three values wait when a fourth one is loaded, which nobody uses."""

LOOP = """
define void @f(ptr %p, i64 %n) {
entry:
  %scale = load <16 x float>, ptr %p
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %sum = phi <16 x float> [ zeroinitializer, %entry ], [ %more, %loop ]
  %other = phi <16 x float> [ zeroinitializer, %entry ], [ %sum, %loop ]
  %at = getelementptr float, ptr %p, i64 %i
  %x = load <16 x float>, ptr %at
  %more = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %scale, <16 x float> %sum)
  %next = add i64 %i, 16
  %again = icmp slt i64 %next, %n
  br i1 %again, label %loop, label %end
end:
  store <16 x float> %other, ptr %p
  ret void
}
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""
"""In the loop: what is outside and used in each turn, both carried values, and one that is loaded or made."""

BRANCH = """
define void @f(ptr %p, i1 %c, <8 x ptr> %q) {
entry:
  %a = load <16 x double>, ptr %p
  br i1 %c, label %one, label %other
one:
  %b = load <16 x float>, ptr %p
  br label %end
other:
  br label %end
end:
  %r = phi <16 x float> [ %b, %one ], [ zeroinitializer, %other ]
  store <16 x float> %r, ptr %p
  store <16 x double> %a, ptr %p
  ret void
}
"""
"""A value of two registers lives through both ways; what one of them makes is live only there. `%q` is not used."""


@pytest.mark.parametrize(("text", "most"), [(CHAIN, 2), (WAITING, 4), (LOOP, 4), (BRANCH, 3)])
def test_live_vectors(text: str, most: int) -> None:
    assert peak_live(parse(text).get_function("f"), 512) == most


def test_shorter_registers_hold_less() -> None:
    assert peak_live(parse(CHAIN).get_function("f"), 256) == 4
    pointers = "define <8 x ptr> @f(<8 x ptr> %q) {\n  ret <8 x ptr> %q\n}"
    assert [peak_live(parse(pointers).get_function("f"), bits) for bits in (128, 512)] == [4, 1]


def test_spills_of_vectors() -> None:
    assembly = """
    vmovups %zmm0, 64(%rsp)                 # 64-byte Spill
    movq    %rcx, 48(%rsp)                  # 8-byte Spill
    vfmadd231ps 64(%rsp), %zmm1, %zmm2      # 64-byte Folded Reload
    str     q0, [sp, #16]                   // 16-byte Folded Spill
    kmovw   %k1, 12(%rsp)                   # 2-byte Spill
    """
    assert vector_spills(assembly) == 3


TILE = """
split i0.1 {rows}; split i1.1 {columns}; split i1.1.1 16; split i1.1.0 1;
reorder i1.1.0.0 i0.1.0 i1.1.0.1 k i0.1.1 i1.1.1.0 i1.1.1.1;
split i0 {rows}; split i1 {columns}; split i1.1 16; split i1.0 1; reorder i1.0.0 i0.0 i1.0.1 i0.1 i1.1.0 i1.1.1;
unroll i0.1.1 i1.1.1.0; vectorize i1.1.1.1; accumulate y at k -> y.0 register set
"""
"""A product whose accumulators lie in registers."""


def test_a_tile_fills_registers_and_spills_beyond_them() -> None:
    text = "fn f(a: f32[64, 64], b: f32[64, 256]) -> f32[64, 256] { return a @ b }"
    (kernel,) = Compilation(load(Source("p", text)).build("f"), {}, Options(target=TARGET.name)).kernels.kernels
    found = []
    for rows, vectors in ((2, 2), (8, 2), (16, 4)):
        steps = Schedule.parse(TILE.format(rows=rows, columns=16 * vectors).replace("\n", " "))
        found.append(count(compile_kernel(apply(kernel, steps), TARGET)))
    small, medium, large = found
    assert 4 <= small.live < 16 <= medium.live < 32 and large.live >= 64
    assert small.spills == medium.spills == 0 < large.spills
    assert small.instructions < medium.instructions < large.instructions


def test_masked_tiles_stay_in_registers() -> None:
    """Rows beyond the last one are masked in the outermost tiles, by conditions that the loops around these decide."""
    text = "fn f(a: f32[121, 121], b: f32[121, 121]) -> f32[121, 121] { return a @ b }"
    (kernel,) = Compilation(load(Source("p", text)).build("f"), {}, Options(target=TARGET.name)).scheduled.kernels
    assert count(compile_kernel(kernel, TARGET)).spills == 0

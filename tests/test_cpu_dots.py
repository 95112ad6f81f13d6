"""Dot instructions: loops of the kind `dot`, products of narrow numbers in their default schedules, on every target."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from test_cpu_kernels import check, kernel_of

import intarsia
from intarsia.backends.cpu.compile import compile_kernel, host_target
from intarsia.ir.dtypes import BF16, F32, Array, dtype
from intarsia.ir.errors import Source
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.kernel_verifier import problems
from intarsia.ir.target import TARGETS, Target
from intarsia.ir.tolerance import MeasuredArithmetic
from intarsia.passes.schedule.default import schedule_kernel

PAIRS = [("bf16", "bf16", "f32"), ("i8", "i8", "i32"), ("u8", "u8", "u32"), ("u8", "i8", "i32"), ("i8", "u8", "i32")]
PAIRS += [("i16", "i16", "i32")]

DOTS = ("avx512bf16", "avx512vnni", "avxvnni", "avxvnniint8")


def targets() -> Iterator[Target]:
    """This machine with all its instructions, with the narrow vectors that some have, and without any."""
    host = host_target()
    yield host
    plain = tuple(f for f in host.features if not f.startswith(DOTS))
    if "avx512f" in host.features:
        yield replace(host, name="without dots", cpu="skylake-avx512", features=plain)
    if "avx2" in host.features:
        narrow = tuple(f for f in plain if "avx512" not in f and not f.startswith(("avx10", "amx")))
        if "avxvnni" in host.features:
            cpu = replace(host, name="avxvnni", cpu="alderlake", vector_bits=256, registers=16)
            yield replace(cpu, features=(*narrow, "avxvnni"))
        yield replace(host, name="avx2", cpu="haswell", features=narrow, vector_bits=256, registers=16)


@pytest.fixture(params=list(targets()), ids=lambda t: t.name)
def target(request: pytest.FixtureRequest) -> Target:
    assert isinstance(request.param, Target)
    return request.param


def numbers(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """Whole numbers, so that sums are exact, with both ends of the range of an integer type."""
    d, random = dtype(name), np.random.default_rng(seed)
    assert d is not None
    if d.is_float:
        return np.asarray(random.integers(-8, 9, shape).astype(d.numpy))
    ends = random.choice([d.least, d.greatest], shape)
    return np.asarray(np.where(random.random(shape) < 0.3, ends, random.integers(-9 if d.is_signed else 0, 10, shape)))


def check_pair(text: str, left: str, right: str, target: Target) -> None:
    """A kernel of `a` and `b` of these types writes what the interpreter writes."""
    shapes = {b.name: tuple(s.evaluate({}) for s in b.shape) for b in kernel_of(text).parameters}
    check(text, {}, target, a=numbers(left, shapes["a"], 1), b=numbers(right, shapes["b"], 2))


def zero(total: str) -> str:
    return "0.0" if total == "f32" else f"{total}:0"


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [16, 5])
@pytest.mark.parametrize("left, right, total", PAIRS)
def test_a_dot_loop_means_its_products(left: str, right: str, total: str, lanes: int, target: Target) -> None:
    """Words from memory, one for all lanes, with steps between lanes, put together of parts, at the end of a row."""
    width = 2 if "16" in left else 4
    text = f"""kernel f(a: {left}[3, {5 * width - 1}], b: {right}[5, {lanes}, {width}], out y: {total}[3, {lanes}]) {{
      for i in 0..3 {{
        alloc s: {total}[{lanes}] register
        lane j.0 in 0..{lanes} {{ s[j.0] = {zero(total)} }}
        for k in 0..5 {{ lane j in 0..{lanes} {{ dot n in 0..{width} {{
          s[j] += {total}((a[i, {width} * k + n] if {width} * k + n < {5 * width - 1})) * {total}(b[k, j, n])
            where {width} * k + n < {5 * width - 1} }} }} }}
        lane j.1 in 0..{lanes} {{ y[i, j.1] = s[j.1] }} }}
    }}"""
    check_pair(text.replace("\n            where", " where"), left, right, target)
    across = f"""kernel f(a: {left}[{4 * width}, 3], b: {right}[{lanes}, {4 * width}], out y: {total}[3, {lanes}]) {{
      for i in 0..3 {{ lane j in 0..{lanes} {{ y[i, j] = {zero(total)} }} }}
      for i.0 in 0..3 {{ for k in 0..4 {{ lane j.0 in 0..{lanes} {{ dot n in 0..{width} {{
        y[i.0, j.0] += {total}(a[{width} * k + n, i.0]) * {total}(b[j.0, {width} * k + n]) }} }} }} }}
    }}"""
    check_pair(across, left, right, target)


def test_a_dot_loop_copies_words(target: Target) -> None:
    """Interleaved from rows, transposed from registers, under a mask for each lane and for all of them."""
    text = """kernel f(a: i8[8, 16], b: i8[16, 64], out y: i8[2, 16, 4], out z: i8[16, 16, 4], inout w: i8[19, 4]) {
      for k in 0..2 { lane j in 0..16 { dot n in 0..4 { y[k, j, n] = a[4 * k + n, j] } } }
      alloc r: i8[16, 64] register
      unroll i in 0..16 { lane k.0 in 0..64 { r[i, k.0] = b[i, k.0] } }
      unroll m in 0..16 { lane j.0 in 0..16 { dot n.0 in 0..4 { z[m, j.0, n.0] = r[j.0, 4 * m + n.0] } } }
      for k.1 in 0..3 { lane j.1 in 0..8 { dot n.1 in 0..4 {
        w[8 * k.1 + j.1, n.1] = a[n.1, j.1] where 8 * k.1 + j.1 < 19 } } }
    }"""
    check_pair(text, "i8", "i8", target)


@pytest.mark.slow
def test_factors_of_a_dot_loop_are_computed(target: Target) -> None:
    """What is done to the parts of words before they are multiplied."""
    text = """kernel f(a: i8[3, 8], b: u8[2, 16, 4], out y: i32[3, 16]) {
      for i in 0..3 { lane j in 0..16 { y[i, j] = i32:0 } }
      for i.0 in 0..3 { for k in 0..2 { lane j.0 in 0..16 { dot n in 0..4 {
        y[i.0, j.0] += i32(bit_xor(bitcast(a[i.0, 4 * k + n], u8), u8:128))
                       * i32(bitcast(bit_and(b[k, j.0, n], u8:15), i8))
      } } } }
    }"""
    check_pair(text, "i8", "u8", target)


PRODUCT = """kernel product(a: {left}[M, K], b: {right}[K, N], out y: {total}[M, N]) {
  for i0 in 0..M { for j0 in 0..N { y[i0, j0] = {zero} } }
  for i in 0..M { for j in 0..N { for k in 0..K { y[i, j] += {total}(a[i, k]) * {total}(b[k, j]) } } }
}"""

ACROSS = """kernel across(a: {left}[K, M], const b: {right}[N, K], bias: f32[N], out y: f32[M, N]) {
  alloc t: {total}[M, N]
  for i0 in 0..M { for j0 in 0..N { t[i0, j0] = {zero} } }
  for i in 0..M { for j in 0..N { for k in 0..K { t[i, j] += {total}(a[k, i]) * {total}(b[j, k]) } } }
  for p in 0..M { for q in 0..N { y[p, q] = f32(t[p, q]) * 0.5 + bias[q] } }
}"""

BATCHED = """kernel batched(a: {left}[2, M, K], b: {right}[2, K, N], out y: {total}[2, M, N]) {
  for n in 0..2 { for i0 in 0..M { for j0 in 0..N { y[n, i0, j0] = {zero} } } }
  for m in 0..2 { for i in 0..M { for j in 0..N { for k in 0..K {
    y[m, i, j] += {total}(a[m, i, k]) * {total}(b[m, k, j]) } } } }
}"""


def product_of(text: str, pair: tuple[str, str, str], sizes: tuple[int, int, int]) -> str:
    """A kernel for factors and sums of these types, and sizes M, K and N."""
    for name, value in zip(("{left}", "{right}", "{total}", "{zero}"), (*pair, zero(pair[2]))):
        text = text.replace(name, value)
    for name, size in zip("MKN", sizes):
        text = re.sub(rf"\b{name}\b", str(size), text)
    return text


def scheduled(text: str, target: Target) -> str:
    """The kernel after its default schedule, which reads back."""
    _, kernel = schedule_kernel(kernel_of(text), target)
    assert not problems(kernel)
    shown = print_kernel(kernel)
    assert read_kernel(Source("test", shown)) == kernel
    return shown


@pytest.mark.parametrize("text, pair", [(PRODUCT, PAIRS[1]), (ACROSS, PAIRS[0])], ids=["bytes", "bf16"])
def test_products_of_narrow_numbers(text: str, pair: tuple[str, str, str]) -> None:
    shown = scheduled(product_of(text, pair, (9, 18, 20)), host_target())
    if {"avx512bf16", "avx512vnni"} <= {*host_target().features}:
        assert "dot k" in shown
    check_pair(shown, *pair[:2], host_target())


SIZES = [(33, 67, 41), (5, 30, 48), (1, 9, 16), (8, 4, 64), (40, 5, 33), (130, 520, 70), (16, 1000, 600), (9, 3000, 17)]


def some(forms: list[str]) -> Iterator[tuple[tuple[str, str, str], str, tuple[int, int, int]]]:
    """Every pair of types in every form, and with every size, but not every form with every size."""
    for number, (pair, text) in enumerate(itertools.product(PAIRS, forms)):
        for sizes in SIZES[number % 4 :: 4]:
            yield pair, text, sizes


@pytest.mark.slow
@pytest.mark.parametrize("pair, text, sizes", list(some([PRODUCT, ACROSS, BATCHED])))
def test_products_of_many_sizes(
    pair: tuple[str, str, str], text: str, sizes: tuple[int, int, int], target: Target
) -> None:
    """As NumPy multiplies them."""
    shown, total = scheduled(product_of(text, pair, sizes), target), dtype(pair[2])
    shapes = {b.name: tuple(map(int, b.shape)) for b in kernel_of(shown).parameters}
    given = {name: numbers(d, shapes[name], seed) for seed, (name, d) in enumerate(zip("ab", pair), 1)}
    assert total is not None
    a, b = (array.astype(total.numpy) for array in given.values())
    if text is ACROSS:
        given["bias"] = numbers("f32", shapes["bias"], 3)
        wanted = (a.T @ b.T).astype(np.float32) * np.float32(0.5) + given["bias"]
    else:
        wanted = a @ b
    check(shown, {}, target, {"y": wanted}, **given)


LINEAR = """kernel linear(a: i8[M, K], const b: i8[N, K], bias: f32[N], out y: f32[M, N]) {
  alloc t: i32[M, N]
  for i0 in 0..M { for j0 in 0..N { t[i0, j0] = i32:0 } }
  for i in 0..M { for j in 0..N { for k in 0..K { t[i, j] += i32(a[i, k]) * i32(b[j, k]) } } }
  for p in 0..M { for q in 0..N { y[p, q] = f32(t[p, q]) * 0.5 + bias[q] } }
}"""


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(16, 384, 384), (16, 1536, 384), (5, 1540, 300), (512, 384, 640)])
def test_sums_in_parts_have_dots(sizes: tuple[int, int, int]) -> None:
    """Whatever the blocks of a product of constant weights are."""
    shown = scheduled(product_of(LINEAR, PAIRS[1], sizes), host_target())
    if "avx512vnni" in host_target().features:
        assert "dot k" in shown
    check_pair(shown, "i8", "i8", host_target())


INSTRUCTIONS = [
    ("cpu:x86-avx512", "znver4", ("avx512vnni", "avx512bf16"), ("bf16", "bf16", "f32"), "vdpbf16ps"),
    ("cpu:x86-avx512", "znver4", ("avx512vnni", "avx512bf16"), ("i8", "i8", "i32"), "vpdpbusd"),
    ("cpu:x86-avx2", "alderlake", ("avxvnni",), ("u8", "u8", "u32"), "vpdpbusd"),
    ("cpu:x86-avx2", "sierraforest", ("avxvnni", "avxvnniint8"), ("i8", "i8", "i32"), "vpdpbssd"),
    ("cpu:x86-avx2", "sierraforest", ("avxvnni", "avxvnniint8"), ("u8", "u8", "u32"), "vpdpbuud"),
    ("cpu:x86-avx2", "haswell", (), ("i8", "u8", "i32"), "vpmaddwd"),
    ("cpu:neon", "generic", ("dotprod",), ("i8", "i8", "i32"), "sdot"),
    ("cpu:neon", "generic", ("dotprod",), ("u8", "u8", "u32"), "udot"),
    ("cpu:neon", "generic", ("dotprod", "i8mm"), ("i8", "u8", "i32"), "usdot"),
    ("cpu:neon", "generic", ("bf16",), ("bf16", "bf16", "f32"), "bfdot"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, cpu, features, pair, instruction", INSTRUCTIONS)
def test_every_target_has_its_instruction(
    name: str, cpu: str, features: tuple[str, ...], pair: tuple[str, str, str], instruction: str
) -> None:
    base = TARGETS[name]
    target = replace(base, cpu=cpu, features=(*base.features, *features))
    kernel = kernel_of(scheduled(product_of(PRODUCT, pair, (32, 64, 64)), target))
    assert f"\t{instruction}\t" in compile_kernel(kernel, target).assembly


def test_infinities_and_nan() -> None:
    """They are what the products one by one make of them."""
    text = scheduled(product_of(PRODUCT, PAIRS[0], (8, 16, 32)), host_target())
    a, b = numbers("bf16", (8, 16), 1), numbers("bf16", (16, 32), 2)
    a[0, 3], a[1, 4], a[2, 5], b[3, 1], b[4, 2], b[5, 3] = np.inf, -np.inf, np.nan, 0.0, np.inf, 1.0
    a[3, 6:8], b[6:8, 4] = np.inf, (1.0, -1.0)
    check(text, {}, host_target(), a=a, b=b)


def test_subnormal_numbers_may_count_as_zero() -> None:
    """In sums of products of bf16: factors, products and sums; of other numbers nothing is lost."""
    a, b = (numbers("bf16", shape, 3) for shape in ((8, 16), (16, 32)))
    a[:, 3], b[3] = 2.0**-130, 2.0**20
    a[4:, :], b[:, 7] = a[4:, :] * 2.0**-70, b[:, 7] * 2.0**-60
    given, arithmetic = (a.astype(BF16.numpy), b.astype(BF16.numpy)), MeasuredArithmetic()
    wanted = arithmetic.matmul(*(arithmetic.lift(x, BF16) for x in given), F32)
    text = "fn f(a: bf16[M, K], b: bf16[K, N]) -> f32[M, N] { return f32(a) @ f32(b) }"
    found = np.asarray(intarsia.compile(text)["f"](*given))
    assert (np.abs(found - wanted.real) <= wanted.imag).all()
    third = tuple(np.asarray(x, np.float64) / 3 for x in given)
    exact = arithmetic.matmul(*(x.astype(np.complex128) for x in third), F32)
    assert exact.imag[0, 0] < 2.0**-100 + 16 * F32.epsilon * (np.abs(third[0]) @ np.abs(third[1]))[0, 0]
    assert exact.imag[5, 7] < 2.0**-126

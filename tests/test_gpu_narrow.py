"""Narrow types on GPUs: every code means there what it means anywhere, and weights in codes cost what they should."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_codes import all_codes, around, narrow, same, same_codes
from test_formats import DECLARED, data, dequantized

import intarsia
from intarsia.backends.gpu.interpreter_asm import assembled
from intarsia.backends.gpu.packed_bits import moved_bits
from intarsia.backends.gpu.packed_tables import look_up_function
from intarsia.backends.gpu.toolchain import compile_kernels
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.conversion import codes, convert
from intarsia.ir.dtypes import BF16, F16, F32, F64, I8, I32, I64, U8, U16, Array, DType
from intarsia.ir.errors import Source
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.scalar import Bitcast, Cast, Const, Load, apply, constant
from intarsia.ir.sizes import Size
from intarsia.ir.target import TARGETS
from intarsia.options import Options

pytest.importorskip("triton")

TARGET = "gpu:sm_90"


def compilation(text: str, function: str = "f", target: str = TARGET, **sizes: int) -> Compilation:
    return Compilation(load(Source("program.ita", text)).build(function), sizes, Options(target=target))


def launches(made: Compilation) -> list[TritonKernel]:
    return [launch for found in made.launches.values() for launch in found]


def interpreted(text: str, inputs: list[Array], **sizes: int) -> list[Array]:
    made = compilation(text, **sizes)
    return list(run_plan(made.plan, list(inputs), sizes, made.interpret_launches))


def cast(values: Array, sources: list[DType], targets: list[DType]) -> list[Array]:
    """Values as each of some types, or of several types as one, in a single launch."""
    parameters = ", ".join(f"x{n}: {t}[N]" for n, t in enumerate(sources))
    several = [f"{t}(x{n})" for n in range(len(sources)) for t in targets]
    types = ", ".join(f"{t}[N]" for _ in sources for t in targets)
    text = f"fn f({parameters}) -> ({types}) {{ return {', '.join(several)} }}"
    with np.errstate(all="ignore"):
        inputs = [values if len(sources) == 1 else values.astype(t.numpy) for t in sources]
    return interpreted(text, inputs, N=values.size)


def check_type(t: DType) -> None:
    """Every code as other types, and numbers of other types as codes."""
    every = np.tile(all_codes(t), 3)
    targets = [F32, F64, BF16, F16, I32, U8]
    for target, found in zip(targets, cast(every, [t], targets)):
        assert same(found, convert(every, t, target)), f"{t} as {target}"
    x = around(t if t.is_float else narrow("f6e3m2"))
    floats = [F32, F64, F16]
    for source, found in zip(floats, cast(x, floats, [t])):
        with np.errstate(all="ignore"):
            assert same_codes(found, convert(x.astype(source.numpy), source, t), t), f"{source} as {t}"
    whole = np.arange(-300, 300)
    integers = [I64, I8]
    for source, found in zip(integers, cast(whole, integers, [t])):
        assert same_codes(found, convert(whole.astype(source.numpy), source, t), t), f"{source} as {t}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f8e4m3", "f8e5m2", "f8e8m0", "f6e3m2", "f4e2m1", "f7e6m0", "i5", "i4", "u1"])
def test_every_code_of_a_type_means_what_it_says(name: str) -> None:
    check_type(narrow(name))


def test_bytes_of_users_are_read_for_their_low_bits() -> None:
    """PyTorch has no `i4`: its codes come in bytes, whose other bits are the sign, and go back like that."""
    t = narrow("i4")
    given = np.arange(-8, 8, dtype=np.int8)
    text = "fn f(x: i4[N]) -> (f32[N], i4[N], i4[N]) { return f32(x), i4(x), tensor[i < N](x[N - 1 - i]) }"
    values, again, turned = interpreted(text, [given.view(t.numpy)], N=16)
    assert (
        (values == given).all() and (again.view(np.int8) == given).all() and (turned.view(np.int8) == given[::-1]).all()
    )


@pytest.mark.slow
def test_subnormal_numbers_are_not_lost(tmp_path: Path) -> None:
    """Codes become numbers by way of subnormal ones, which no instruction may take for 0."""
    text = "fn f(x: f4e2m1[N], s: f8e8m0[N], y: f32[N]) -> (f32[N], f8e4m3[N]) { return f32(x) * f32(s), f8e4m3(y) }"
    made = compile_kernels(launches(compilation(text, N=4096)), TARGETS[TARGET], tmp_path)
    assert all("mul.rn.f32" in m.ptx and ".ftz" not in m.ptx and m.usage[1] == 0 for m in made)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asymmetric", "rows", "two_levels", "mxfp8", "mxfp4", "mxint8", "nvfp4", "nf4"])
def test_formats_have_the_same_values(name: str) -> None:
    """Codes, scales and values of a quantized tensor, as NumPy has them."""
    x = data()
    declaration = DECLARED.get(name, name)
    parts = intarsia.quantize(x, declaration)
    declared = f"format stored = {declaration}\n" if name in DECLARED else ""
    stored = "stored" if name in DECLARED else name
    text = f"{declared}fn f(w: {stored}[K, N]) -> f32[K, N] {{ return dequantize(w) }}"
    (values,) = interpreted(text, list(parts.values()), K=x.shape[0], N=x.shape[1])
    assert (values == dequantized(parts, declaration)).all()
    text = f"{declared}fn f(x: f32[K, N]) -> {stored}[K, N] {{ return quantize(x, {stored}) }}"
    made = compilation(text, K=x.shape[0], N=x.shape[1])
    results = run_plan(made.plan, [x], made.sizes, made.interpret_launches)
    for result, array, value in zip(results, parts.values(), made.source_module.graph.results):
        assert (codes(result, value.dtype) == codes(array, value.dtype)).all()


def product(declaration: str, x: str = "bf16") -> str:
    """A product of rows with weights in a format."""
    return (
        f"format stored = {declaration}\n"
        f"fn f(x: {x}[M, K], const w: stored[K, N]) -> {x}[M, N] {{ return x @ {x}(dequantize(w)) }}"
    )


W4 = "quant(i4, scale=bf16, group=128, axis=0)"


FORMATS = {
    W4: (BF16, F16),
    "quant(u4, scale=f16, zero=u4, group=32, axis=0)": (BF16, F16),
    "quant(i3, scale=f16, group=64, axis=0)": (BF16,),
    "quant(f8e4m3, scale=f32, axis=0)": (BF16,),
    "quant(f8e5m2, scale=bf16, axis=0)": (BF16,),
    "quant(i8, scale=bf16, axis=0)": (BF16,),
    "mxfp4(axis=0)": (BF16,),
    "nf4(axis=0)": (BF16,),
}


@pytest.mark.slow
@pytest.mark.parametrize(("declaration", "x"), [(format_, x) for format_, kinds in FORMATS.items() for x in kinds])
def test_products_decode_what_they_multiply(declaration: str, x: DType) -> None:
    """One launch, in which blocks of codes become blocks of numbers; the weights are nowhere as numbers."""
    rng = np.random.default_rng(3)
    parts = intarsia.quantize(rng.standard_normal((256, 64)).astype(np.float32), declaration)
    values = convert(intarsia.dequantize(parts, declaration), F32, x).astype(np.float64)
    rows = rng.standard_normal((32, 256)).astype(x.numpy)
    made = compilation(product(declaration, x.name), M=32, K=256, N=64)
    (launch,) = launches(made)
    assert "tl.dot" in launch.text
    (found,) = run_plan(made.plan, [rows, *parts.values()], made.sizes, made.interpret_launches)
    exact = rows.astype(np.float64) @ values
    bound = np.abs(rows.astype(np.float64)) @ np.abs(values) * 256 * 2.0**-23 + np.abs(exact) * x.epsilon
    assert (np.abs(found.astype(np.float64) - exact) <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "declaration, bits",
    [
        (W4, 4),
        ("quant(u2, scale=bf16, zero=u2, group=64, axis=0)", 2),
        ("quant(i3, scale=bf16, group=128, axis=0)", 3),
        ("quant(u5, scale=bf16, zero=u5, group=32, axis=0)", 5),
        ("mxfp6(axis=0)", 6),
        ("quant(i7, scale=bf16, axis=0)", 8),
    ],
)
def test_codes_that_share_bytes_are_the_same(declaration: str, bits: int) -> None:
    """Weights that are large enough to be laid out in the order of the blocks; of 7 bits they stay in bytes."""
    rng = np.random.default_rng(4)
    parts = intarsia.quantize(rng.standard_normal((1024, 256)).astype(np.float32), declaration)
    values = convert(intarsia.dequantize(parts, declaration), F32, BF16).astype(np.float64)
    rows = rng.standard_normal((16, 1024)).astype(BF16.numpy)
    made = compilation(product(declaration), M=16, K=1024, N=256)
    assert (made.plan.preparation is not None) == (bits < 8)
    if made.plan.preparation is not None:
        (laid_out,) = (b for k in made.plan.preparation.plan.kernels for b in k.outputs)
        assert math.prod(map(int, laid_out.shape)) * laid_out.dtype.bits == bits * 1024 * 256
    (found,) = run_plan(made.plan, [rows, *parts.values()], made.sizes, made.interpret_launches)
    exact = rows.astype(np.float64) @ values
    bound = np.abs(rows.astype(np.float64)) @ np.abs(values) * 1024 * 2.0**-23 + np.abs(exact) * BF16.epsilon
    assert (np.abs(found.astype(np.float64) - exact) <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90", "gpu:sm_100"])
def test_nothing_is_spilled(target: str, tmp_path: Path) -> None:
    scaled = ("quant(f8e4m3, scale=bf16, axis=0)", "quant(i8, scale=bf16, axis=0)", "quant(i3, scale=bf16, axis=0)")
    for declaration in ("nf4(axis=0)", "mxfp4(axis=0)", "quant(u4, scale=f16, zero=u4, group=128, axis=0)", *scaled):
        made = launches(compilation(product(declaration), target=target, M=4096, K=4096, N=4096))
        assert all(c.usage[1] == 0 for c in compile_kernels(made, TARGETS[target], tmp_path)), declaration


def loop_of(sass: str) -> Counter[str]:
    """The instructions of the longest loop of a function, by their names."""
    lines = sass.splitlines()
    labels = {found[1]: n for n, line in enumerate(lines) if (found := re.match(r"(\.L_x_\d+):", line))}
    jumps = [(n, found[1]) for n, line in enumerate(lines) if (found := re.search(r"BRA.*`\((\.L_x_\d+)\)", line))]
    begin, end = max(((labels[x], n) for n, x in jumps if labels[x] < n), key=lambda loop: loop[1] - loop[0])
    return Counter(re.findall(r"/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)\b", "\n".join(lines[begin:end])))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90", "gpu:sm_100"])
def test_unpacking_codes_is_a_handful_of_instructions(target: str, tmp_path: Path) -> None:
    """Four codes share a word of 16 bits, two words a register: eight codes are four masks and three shifts, then four
    differences and four products with the scale. Nothing changes places."""
    made = compilation(product(W4), target=target, M=4096, K=4096, N=4096)
    (copy,) = made.plan.preparation.plan.kernels  # once for all calls
    (launch,) = (x for k in made.plan.kernels for x in made.launches[k.name] if k is not copy)
    (found,) = compile_kernels([launch], TARGETS[target], tmp_path)
    assert found.usage[1] == 0 < found.resources.count("copy_async_16")
    count, block = loop_of(found.sass), dict(launch.constants)
    eights = 4 * block["BLOCK_K"] * block["BLOCK_I1"] // (32 * found.resources.warps) // 8
    assert count["I2F"] + count["PRMT"] <= 2
    assert 4 * eights <= count["LOP3"] and count["LOP3"] + count["SHF"] + count["PRMT"] <= 9 * eights  # and addresses
    assert sum(count[name] for name in ("HADD2", "HMUL2", "HFMA2")) <= 8 * eights + 1


@pytest.mark.parametrize("pack", [2, 4])
def test_bits_are_moved_several_numbers_at_a_time(pack: int) -> None:
    """Of codes in bytes and in words, what assembly gives is what the expression says."""
    stored, word = (narrow("f6e3m2"), U8) if pack == 4 else (narrow("i4"), U16)
    source = Load("w", (), stored if pack == 4 else word)
    third = Bitcast(stored, Cast(U8, apply("shift_right", Load("w", (), U16), constant(8, U16))))
    low = apply("bit_and", Cast(U16, Bitcast(U8, source if pack == 4 else third)), constant(7, U16))
    e = apply("bit_xor", apply("shift_left", low, constant(6, U16)), constant(0x4300, U16))
    bits = moved_bits(e, lambda x: int(x.value) if isinstance(x, Const) else None)
    assert bits is not None and bits.sources == (source,)
    text = bits.function(BF16, "tl.bfloat16")
    words = np.random.default_rng(0).integers(0, 1 << 8 * word.bytes, 37).astype(word.numpy)
    (found,) = assembled(text.split('"""')[3], [words], [np.dtype(np.uint16)], pack)
    expected = ((words.astype(np.uint16) >> (0 if pack == 4 else 8) & 7) << 6) ^ 0x4300
    assert (found == expected).all() and f"pack={pack}" in text


@pytest.mark.parametrize("word", [U8, U16])
def test_bits_are_moved_out_of_two_words(word: DType) -> None:
    """Of a code that begins in one and ends in the next."""
    first, second = (Load("w", (Size.of(n),), word) for n in range(2))
    low = apply("shift_right", first, constant(word.bits - 2, word))
    high = apply("shift_left", apply("shift_left", second, constant(1, word)), constant(1, word))
    code = Bitcast(narrow("i5"), Cast(U8, apply("bit_or", low, high)))
    e = apply("bit_xor", Cast(U16, Bitcast(U8, code)), constant(0x4310, U16))
    bits = moved_bits(e, lambda x: int(x.value) if isinstance(x, Const) else None)
    assert bits is not None and bits.sources == (first, second) and len(bits.moves) == 2
    words = np.random.default_rng(0).integers(0, 1 << word.bits, (2, 37)).astype(word.numpy)
    text = bits.function(BF16, "tl.bfloat16").split('"""')[3]
    (found,) = assembled(text, [*words], [np.dtype(np.uint16)], 4 if word == U8 else 2)
    wide = words.astype(np.uint16)
    assert (found == (wide[0] >> (word.bits - 2) | (wide[1] & 7) << 2) ^ 0x4310).all()


@pytest.mark.parametrize("place, word", [(0, np.uint8), (4, np.uint8), (0, np.uint16), (12, np.uint16)])
def test_tables_are_looked_up_for_four_codes_at_a_time(place: int, word: type[np.unsignedinteger[Any]]) -> None:
    """Every code at every place gives its number, bit for bit."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, 1 << 32, 16).astype(np.uint32).view(np.float32)
    words = random.integers(0, 1 << 8 * word().itemsize, 203).astype(word)
    text = look_up_function("f", numbers, place, word is np.uint8)
    (found,) = assembled(text.split('"""')[3], [words], [np.dtype(np.uint32)], 4)
    assert (found == numbers.view(np.uint32)[words >> place & 15]).all()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90", "gpu:sm_100"])
def test_entries_of_tables_are_not_chosen_one_by_one(target: str, tmp_path: Path) -> None:
    made = compilation(product("nf4(axis=0)"), target=target, M=4096, K=4096, N=4096)
    (launch,) = (x for x in launches(made) if "tl.dot" in x.text)
    (found,) = compile_kernels([launch], TARGETS[target], tmp_path)
    count, block = loop_of(found.sass), dict(launch.constants)
    codes = 4 * block["BLOCK_K"] * block["BLOCK_I1"] // (32 * found.resources.warps)
    assert count["FSEL"] + count["SEL"] <= 4 and count["PRMT"] <= 5 * codes and found.usage[1] == 0


def test_what_bits_are_not_only_moved_is_left_alone() -> None:
    w = Load("w", (), U16)
    for e in (apply("add", w, w), apply("bit_or", w, w), apply("bit_and", w, w), apply("shift_left", w, w)):
        assert moved_bits(e, lambda x: int(x.value) if isinstance(x, Const) else None) is None
    with pytest.raises(NotImplementedError):
        assembled("add.u32 $0, $1, $1;", [np.zeros(4, np.uint16)], [np.dtype(np.uint16)], 2)


def test_a_loop_multiplies_by_codes_of_four_bits() -> None:
    """Its blocks depend on the bits of what is stored, of which there may be fewer than 8."""
    text = """format w4 = mxfp4(axis=2)
        fn f(x: f32[1, 5], w: w4[3, 5, 5]) { return loop (h = x) for l < 3 { yield h @ dequantize(w[l]) } }"""
    assert compilation(text).scheduled.kernels

"""Block formats: what is stored is what the definition of the format says, and its values are read back exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import pytest

import intarsia
from intarsia import CompileError
from intarsia.ir.conversion import codes, from_codes
from intarsia.ir.dtypes import Array, DType, dtype
from intarsia.ir.formats import BUILT_IN, NF4
from intarsia.ir.interpreter import evaluate
from intarsia.quantization import conversions

DECLARED = {
    "symmetric": "quant(i4, scale=f16, group=32, axis=0)",
    "asymmetric": "quant(u4, scale=f16, zero=u4, group=32, axis=0)",
    "value": 'quant(u4, scale=f16, zero=f16, zero_means="value", group=32, axis=0)',
    "quantized": 'quant(u3, scale=f32, zero=u3, zero_means="quantized", group=16, axis=0)',
    "fraction": "quant(u8, scale=f32, zero=f16, group=32, axis=0)",
    "channel": "quant(i8, scale=f32, axis=0)",
    "rows": "quant(i5, scale=bf16, group=none, axis=1)",
    "tensor": "quant(i8, scale=f32, axis=none)",
    "ternary": "quant(ternary, scale=f32, axis=none)",
    "floats": "quant(f8e4m3, scale=f32, group=64, axis=1)",
    "two_levels": "quant(i4, scale=quant(u8, scale=f32, group=4, axis=0), group=8, axis=0)",
}
W4 = "quant(i4, scale=f16, group=128, axis=0)"
W3 = "quant(i3, scale=f16, group=128, axis=0)"
W7 = "quant(i7, scale=f16, group=128, axis=0)"
W8 = "quant(f8e4m3, scale=f32, axis=0)"
NAMES = [*DECLARED, *BUILT_IN]


def data(shape: tuple[int, int] = (72, 40)) -> Array:
    """Numbers of many sizes, with a group of zeros."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * np.exp(rng.uniform(-4, 4, shape))).astype(np.float32)
    x[:32, 0] = 0.0
    x[3, :] = 0.0
    x[0, 1:4] = [1e-30, -3e3, 0.5]
    return x


def interpreted(function: str, declaration: str, parts: Mapping[str, Array]) -> dict[str, Array]:
    """One of the two conversions as the graph says it, evaluated with NumPy; results by the names of the parts."""
    first = next(iter(parts.values()))
    program = conversions(declaration, first.ndim, None, None)
    sizes = {f"D{d}_": size for d, size in enumerate(first.shape)}
    with np.errstate(all="ignore"):
        results = evaluate(program.library.build(function), list(parts.values()), sizes)
    return dict(zip([leaf.name for leaf in program.dequantized_.form.parameters[0].leaves], results))


def quantized(x: Array, declaration: str) -> dict[str, Array]:
    return interpreted("quantized_", declaration, {"x": x})


def dequantized(parts: Mapping[str, Array], declaration: str) -> Array:
    return interpreted("dequantized_", declaration, parts)["codes"]


def named(name: str) -> DType:
    found = dtype(name)
    assert found is not None
    return found


def grouped(x: Array, group: int | None, axis: int, reduce: Callable[[Array], Array]) -> Array:
    """A function of each group along an axis, repeated for each element: the last group may be shorter."""
    x = np.moveaxis(x, axis, 0)
    size = len(x) if group is None else group
    rows = [np.broadcast_to(reduce(x[i : i + size]), x[i : i + size].shape) for i in range(0, len(x), size)]
    return np.moveaxis(np.concatenate(rows), 0, axis)


def absmax(x: Array) -> Array:
    return np.asarray(np.abs(x).max(0))


def rounded(number: Array, low: int, high: int) -> Array:
    return np.clip(np.rint(number), low, high)


def divided(x: Array, scale: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.where(scale == 0, np.float32(0), x / scale)


LOSS = {
    "symmetric": 1 / 14, "asymmetric": 1 / 7, "value": 1 / 15, "quantized": 1 / 3.5, "fraction": 1 / 255,
    "channel": 1 / 254, "rows": 1 / 30, "tensor": 1 / 254, "ternary": 1 / 2, "floats": 1 / 16, "two_levels": 1 / 7,
    "mxfp8": 1 / 8, "mxfp6": 1 / 8, "mxfp4": 1 / 4, "mxint8": 1 / 64, "nvfp4": 1 / 4, "nf4": 1 / 6,
}  # fmt: skip
"""How far off a value may be, as a part of the largest magnitude of its group."""


@pytest.mark.parametrize("name", NAMES)
def test_values_are_near(name: str) -> None:
    x = data()
    declaration = DECLARED.get(name, name)
    back = dequantized(quantized(x, declaration), declaration)
    assert back.dtype == np.float32 and back.shape == x.shape and np.isfinite(back).all()
    axis = 1 if name in ("rows", "floats") or name in BUILT_IN else 0
    group = None if name in ("channel", "rows", "tensor", "ternary") else 64
    most = np.abs(x).max() if name in ("tensor", "ternary") else grouped(x, group, axis, absmax)
    assert (np.abs(back - x) <= 1.02 * LOSS[name] * most + 1e-30).all()
    if name not in ("value", "fraction"):
        assert (back[:32, 0] == 0).all()


def test_symmetric_codes() -> None:
    x = data()
    parts = quantized(x, DECLARED["symmetric"])
    assert parts["codes"].dtype == ml_dtypes.int4 and parts["scale"].shape == (3, 40)
    scale = grouped(x, 32, 0, lambda g: (absmax(g) * np.float32(1 / 7)).astype(np.float16)).astype(np.float32)
    assert (parts["codes"].astype(int) == rounded(divided(x, scale), -8, 7)).all()
    back = dequantized(parts, DECLARED["symmetric"])
    assert (back == parts["codes"].astype(np.float32) * scale).all()


@pytest.mark.parametrize("name", ["asymmetric", "value"])
def test_zero_points(name: str) -> None:
    x = data()
    parts = quantized(x, DECLARED[name])
    if name == "asymmetric":
        low = grouped(x, 32, 0, lambda g: np.minimum(g.min(0), 0))
        high = grouped(x, 32, 0, lambda g: np.maximum(g.max(0), 0))
    else:
        low, high = grouped(x, 32, 0, lambda g: g.min(0)), grouped(x, 32, 0, lambda g: g.max(0))
    scale = ((high - low) / np.float32(15)).astype(np.float16).astype(np.float32)
    if name == "asymmetric":
        zero = rounded(-divided(low, scale), 0, 15)
        wanted = rounded(divided(x, scale) + zero, 0, 15)
        values = (wanted - zero) * scale
    else:
        zero = (-low).astype(np.float16).astype(np.float32)
        wanted = rounded(divided(x + zero, scale), 0, 15)
        values = (wanted * scale - zero).astype(np.float32)
    assert (parts["codes"].astype(int) == wanted).all()
    assert (dequantized(parts, DECLARED[name]) == values.astype(np.float32)).all()


@pytest.mark.parametrize("name", ["mxfp8", "mxfp6", "mxfp4", "mxint8"])
def test_microscaling(name: str) -> None:
    """OCP MX 1.0: the scale is 2^(floor(log2 absmax) - emax), elements are rounded to nearest even and saturate."""
    x = data()
    element, exponent = {
        "mxfp8": (named("f8e4m3"), 8),
        "mxfp6": (named("f6e3m2"), 4),
        "mxfp4": (named("f4e2m1"), 2),
        "mxint8": (named("i8"), 0),
    }[name]
    parts = quantized(x, name)
    with np.errstate(divide="ignore"):
        power = grouped(
            x, 32, 1, lambda g: np.clip(np.floor(np.log2(absmax(g).astype(np.float64))) - exponent, -127, 127)
        )
    scale = np.exp2(power)
    assert parts["scale"].shape == (72, 2) and parts["scale"].dtype == ml_dtypes.float8_e8m0fnu
    assert (parts["scale"].astype(np.float64) == scale[:, [0, 32]]).all()
    if name == "mxint8":
        wanted = rounded(x / scale * 64, -128, 127)
        assert (parts["codes"] == wanted).all()
        values = wanted * scale / 64
    else:
        most = float(ml_dtypes.finfo(element.numpy).max)
        clipped = np.clip(x / scale, -most, most).astype(np.float32).astype(element.numpy)
        assert (codes(parts["codes"], element) == codes(clipped, element)).all()
        values = clipped.astype(np.float64) * scale
    assert (dequantized(parts, name) == values).all()


def test_a_block_with_a_nan_is_nan() -> None:
    x = data()
    x[2, 5], x[4, 35] = np.nan, np.inf
    parts = quantized(x, "mxfp4")
    back = dequantized(parts, "mxfp4")
    assert np.isnan(back[2, :32]).all() and np.isnan(back[4, 32:]).all() and np.isfinite(back[4, :32]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_is_never_lost(name: str) -> None:
    x = data()
    x[40, 5] = np.nan
    declaration = DECLARED.get(name, name)
    assert np.isnan(dequantized(quantized(x, declaration), declaration)[40, 5])


def test_scales_saturate() -> None:
    x = np.array([3e38, 7, 1e-12, 0], np.float32)
    back = dequantized(quantized(x, "quant(i4, scale=f16, group=1)"), "quant(i4, scale=f16, group=1)")
    assert back.tolist() == [7 * 65504, 7, 0, 0]


def test_two_scales_of_nvfp4() -> None:
    x = data()
    parts = quantized(x, "nvfp4")
    tensor = np.float32(np.abs(x).max() / np.float32(448 * 6))
    assert parts["tensor_scale"] == tensor
    scale = grouped(x, 16, 1, lambda g: (absmax(g) / np.float32(6) / tensor).astype(ml_dtypes.float8_e4m3fn))
    factor = scale.astype(np.float32) * tensor
    clipped = np.clip(divided(x, factor), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    assert (parts["codes"].astype(np.float32) == clipped.astype(np.float32)).all()
    assert (dequantized(parts, "nvfp4") == clipped.astype(np.float32) * factor).all()


def test_quantiles_of_nf4() -> None:
    x = data()
    parts = quantized(x, "nf4")
    scale = grouped(x, 64, 1, absmax)
    table = np.array(NF4, np.float32)
    distance = np.abs(divided(x, scale)[..., None].astype(np.float64) - table)
    assert (parts["codes"].astype(int) == distance.argmin(-1)).all()
    assert (dequantized(parts, "nf4") == table[parts["codes"].astype(int)] * scale).all()


def test_scales_are_stored_in_two_levels() -> None:
    x = data()
    parts = quantized(x, DECLARED["two_levels"])
    assert list(parts) == ["codes", "scale.codes", "scale.scale"]
    assert [parts[n].shape for n in parts] == [(72, 40), (9, 40), (3, 40)]
    outer = np.repeat(parts["scale.scale"], 4, 0)[:9]
    scale = np.repeat(parts["scale.codes"].astype(np.float32) * outer, 8, 0)
    back = dequantized(parts, DECLARED["two_levels"])
    assert (back == parts["codes"].astype(np.float32) * scale).all()


def test_every_code_with_every_scale() -> None:
    """All 16 x 256 products of mxfp4, NaN among the scales."""
    every = np.tile(np.repeat(np.arange(16, dtype=np.uint8), 2), (256, 1))
    scale = from_codes(np.arange(256, dtype=np.uint8)[:, None], named("f8e8m0"))
    parts = {"codes": from_codes(every, named("f4e2m1")), "scale": scale}
    back = dequantized(parts, "mxfp4")
    power = np.exp2(np.arange(255.0)[:, None] - 127)
    with np.errstate(over="ignore"):
        wanted = (parts["codes"][:255].astype(np.float64) * power).astype(np.float32)
    assert (back[:255] == wanted).all() and np.isnan(back[255]).all()


def test_a_program_takes_what_quantize_gives() -> None:
    text = """
    format w4 = quant(i4, scale=f16, group=32, axis=0)
    struct Linear(K, N) { weight: w4[K, N]; bias: f32[N] }
    fn linear(x: f32[M, K], p: Linear(K, N)) -> f32[M, N] { return x @ dequantize(p.weight) + p.bias }
    """
    program = intarsia.compile(text)
    w, x, bias = data(), np.ones((2, 72), np.float32), np.arange(40, dtype=np.float32)
    weight = intarsia.quantize(w, "w4", program)
    values = dequantized(weight, DECLARED["symmetric"])
    result = program.linear(x, {"weight": weight, "bias": bias})
    assert np.allclose(result, x @ values + bias, rtol=1e-5, atol=1e-3)


def test_a_program_reads_what_stores_a_tensor() -> None:
    text = """
    format w8 = quant(i8, scale=f32)
    format two = quant(u4, scale=quant(u8, scale=f32, axis=0), zero=u4)
    fn linear(x: f32[M, K], w: w8[N, K]) -> f32[M, N] {
        q = quantize(x, w8)
        sums[i, j] = sum[k](i32(q.codes[i, k]) * i32(w.codes[j, k]))
        return f32(sums) * q.scale * w.scale[:, 0]
    }
    fn zeros_of(w: two[N, K]) -> i32[N, 1] { return i32(w.zero) }
    """
    program = intarsia.compile(text)
    x, w = data(), data()[::-1]
    left, right = quantized(x, "quant(i8, scale=f32)"), quantized(w, "quant(i8, scale=f32)")
    exact = left["codes"].astype(np.int32) @ right["codes"].T.astype(np.int32)
    wanted = exact * left["scale"] * right["scale"].T
    arguments, sizes = [x, right["codes"], right["scale"]], {"M": len(x), "N": len(w), "K": x.shape[1]}
    (found,) = evaluate(program.library.build("linear"), arguments, sizes)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    for field in ("scale", "values"):
        with pytest.raises(CompileError) as caught:
            intarsia.compile(text + f"fn f(w: two[N, K]) -> f32[N, 1] {{ return w.{field} }}").library.build("f")
        assert caught.value.code == "E0313" and "codes, zero" in str(caught.value)


def test_errors_name_the_declaration() -> None:
    with pytest.raises(CompileError) as caught:
        quantized(np.ones(8, np.float32), "quant(i4, scale=f16, axis=1)")
    assert caught.value.code == "E0303" and "another one" in str(caught.value)
    with pytest.raises(CompileError) as caught:
        quantized(np.ones(8, np.float32), "quant(i12, scale=f16)")
    assert caught.value.code == "E0303"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_code_does_the_same(name: str) -> None:
    """Codes, scales and values to the last bit; and a product with the values."""
    x = data()
    declaration = DECLARED.get(name, name)
    parts, wanted = quantized(x, declaration), intarsia.quantize(x, declaration)
    for part, array in wanted.items():
        assert parts[part].tobytes() == array.tobytes(), part
    values = dequantized(parts, declaration)
    assert (intarsia.dequantize(parts, declaration) == values).all()
    stored = "stored" if name in DECLARED else name
    text = f"fn f(x: f32[M, K], const w: {stored}[K, N]) -> f32[M, N] {{ return x @ dequantize(w) }}"
    program = intarsia.compile(f"format stored = {declaration}\n{text}" if name in DECLARED else text)
    for rows in (1, 7, 40):
        left = np.random.default_rng(1).standard_normal((rows, 72)).astype(np.float32)
        exact = left.astype(np.float64) @ values
        bound = np.abs(left.astype(np.float64)) @ np.abs(values) * 72 * 2.0**-23
        assert (np.abs(program.f.bind(w=parts)(left) - exact) <= bound + 1e-30).all()


@pytest.mark.slow
@pytest.mark.parametrize("declaration", [W4, W3, W7, "nf4", "quant(u2, scale=f32, zero=u2, group=64, axis=0)"])
def test_codes_share_bytes_in_products(declaration: str) -> None:
    """Weights that are large enough to be laid out in the order of the loops; and the values are never all there."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal((768, 1024)).astype(np.float32)
    parts = intarsia.quantize(w, declaration)
    values = intarsia.dequantize(parts, declaration)
    name = "stored" if "(" in declaration else declaration
    declared = f"format stored = {declaration}\n" if "(" in declaration else ""
    text = f"fn f(x: f32[M, K], const w: {name}[K, N]) -> f32[M, N] {{ return x @ dequantize(w) }}"
    program = intarsia.compile(declared + text)
    function = program.f.bind(w=parts)
    for rows in (1, 2, 7, 16, 33):
        x = rng.standard_normal((rows, 768)).astype(np.float32)
        scheduled = function.lower(x).asm["scheduled"]
        assert "prepared" in scheduled and "f32[768, 1024]" not in scheduled
        if name == "stored":
            assert re.search(r"alloc codes\S*: u\d+\[.*\] prepared", scheduled)
        bound = np.abs(x.astype(np.float64)) @ np.abs(values) * 768 * 2.0**-23
        assert (np.abs(function(x) - x.astype(np.float64) @ values) <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize(("declaration", "words"), [("mxfp4(axis=0)", "u32"), ("nf4(axis=0)", "u32"), (W8, "f8e4m3")])
def test_large_codes_lie_as_they_are_read(declaration: str, words: str) -> None:
    """One row by a matrix: codes are copied once into whole words, and scales of groups are not copied."""
    text = f"format s = {declaration}\nfn f(x: f32[1, K], const w: s[K, N]) -> f32[1, N] {{ return x @ dequantize(w) }}"
    parts = intarsia.quantize(np.ones((1024, 1024), np.float32), declaration)
    scheduled = intarsia.compile(text).f.bind(w=parts).lower(np.ones((1, 1024), np.float32)).asm["scheduled"]
    copies = re.findall(r"alloc (\w+)\S*: (\w+)\[.*\] prepared", scheduled)
    assert copies == [("codes", words)]


@pytest.mark.slow
@pytest.mark.parametrize("declaration", ["mxfp4(axis=0)", "quant(f6e2m3, scale=f32, axis=0)", "nf4(axis=0)"])
def test_small_numbers_are_multiplied_exactly(declaration: str) -> None:
    """Codes of floats are decoded with powers of two as far from 1 as the range of f32 allows: multiplied after
    a sum, they would leave subnormal numbers in it."""
    rng = np.random.default_rng(3)
    parts = intarsia.quantize(rng.standard_normal((512, 512)).astype(np.float32), declaration)
    values = intarsia.dequantize(parts, declaration)
    text = f"format s = {declaration}\nfn f(x: f32[M, K], const w: s[K, N]) -> f32[M, N] {{ return x @ dequantize(w) }}"
    product = intarsia.compile(text).f.bind(w=parts)
    for rows in (1, 4, 20):
        x = (rng.standard_normal((rows, 512)) * 1e-20).astype(np.float32)
        bound = np.abs(x.astype(np.float64)) @ np.abs(values) * 512 * 2.0**-23
        assert (np.abs(product(x) - x.astype(np.float64) @ values) <= bound).all()

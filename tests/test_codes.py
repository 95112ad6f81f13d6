"""Narrow types: what their codes mean, by the definition of the type, NumPy's conversion and compiled code alike."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import intarsia
from intarsia.ir.conversion import codes, convert, from_codes
from intarsia.ir.dtypes import BF16, F16, F32, F64, I8, I32, I64, U8, U64, Array, DType, dtype
from intarsia.ir.errors import Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.target import TARGETS
from intarsia.ir.text import read_module
from intarsia.passes.legalize_dtype import LegalizeDtype
from intarsia.passes.pipeline import Context

NAMED = ("f8e4m3", "f8e5m2", "f8e8m0", "f6e2m3", "f6e3m2", "f4e2m1", "i1", "u1", "i2", "u2", "i4", "u4")
SPLITS = tuple(f"f{1 + e + m}e{e}m{m}" for e in range(1, 8) for m in range(8 - e))
EVERY = sorted({*NAMED, *SPLITS, *(f"{kind}{bits}" for kind in "iu" for bits in range(1, 8))})


def narrow(name: str) -> DType:
    found = dtype(name)
    assert found is not None
    return found


def all_codes(t: DType) -> Array:
    return from_codes(np.arange(1 << t.bits, dtype=np.uint8), t)


def meaning(code: int, t: DType) -> Fraction | str:
    """The value of a code, from the definition of the type."""
    if t.is_integer:
        negative = t.is_signed and code >> (t.bits - 1)
        return Fraction(code - (1 << t.bits) if negative else code)
    if t.specials == "scale":
        return "nan" if code == 255 else Fraction(2) ** (code - 127)
    exponent, fraction = (code >> t.mantissa) & ((1 << t.exponent) - 1), code & ((1 << t.mantissa) - 1)
    if t.specials == "nan-only" and code & 0x7F == 0x7F:
        return "nan"
    if t.specials == "ieee" and exponent == (1 << t.exponent) - 1:
        return "nan" if fraction else "inf"
    bias = (1 << (t.exponent - 1)) - 1
    whole = Fraction(fraction, 1 << t.mantissa) + (1 if exponent else 0)
    return whole * Fraction(2) ** (max(exponent, 1) - bias) * (-1 if code >> (t.bits - 1) else 1)


def legalized(source: DType, target: DType, values: Array) -> Array:
    """A cast in the arithmetic that the pass makes of it, evaluated with NumPy."""
    text = f"func @f[N](%x: {source}[N]) {{\n  %0 = cast %x : {target}[N]\n  return %0\n}}"
    module = read_module(Source("cast.ir", text))
    legal = LegalizeDtype().run(module, Context(TARGETS["cpu:x86-avx2"]))
    assert not any(f"{t}(" in str(legal) for t in (source, target) if t.is_narrow)
    with np.errstate(all="ignore"):
        (result,) = evaluate(legal, [values], {"N": values.size})
    return result


def compiled(source: DType, target: DType, values: Array) -> Array:
    text = f"fn f(x: {source}[N]) -> {target}[N] {{ return {target}(x) }}"
    result = intarsia.compile(text).f(values)
    assert isinstance(result, np.ndarray)
    return result


def around(t: DType) -> Array:
    """Every value of a narrow float in f32, the midpoints between neighbours, and the f32 beside each, both signs."""
    values = convert(all_codes(t), t, F32).astype(np.float64)
    finite = np.unique(np.abs(values[np.isfinite(values)]))
    beyond = finite[-1] + (finite[-1] - finite[-2])
    ladder = np.append(finite, [beyond, 2 * beyond])
    with np.errstate(all="ignore"):
        points = np.concatenate([ladder, (ladder[:-1] + ladder[1:]) / 2, ladder / 3]).astype(np.float32)
    x = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])
    x = np.concatenate([x, np.array([np.inf, np.nan, 1e-45, 1e-38, 3e38], np.float32)])
    return np.concatenate([x, -x])


def same_codes(found: Array, wanted: Array, t: DType) -> bool:
    return bool((codes(found, t) == codes(wanted, t)).all())


def same(found: Array, wanted: Array) -> bool:
    with np.errstate(invalid="ignore"):
        a, b = found.astype(np.float64), wanted.astype(np.float64)
    return bool((((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize("name", EVERY)
def test_every_code_means_what_its_type_says(name: str) -> None:
    t = narrow(name)
    values = all_codes(t)
    wanted = [float(m) if isinstance(m := meaning(code, t), Fraction) else m for code in range(1 << t.bits)]
    for target in (F32, F64, *([I32] if t.is_integer else [])):
        found = legalized(t, target, values).astype(np.float64)
        assert same(found, convert(values, t, target))
        for code, (value, expected) in enumerate(zip(found.tolist(), wanted)):
            kind = "nan" if value != value else "inf" if abs(value) == float("inf") else value
            assert kind == expected, f"code {code} of {name}"


@pytest.mark.parametrize("name", [n for n in EVERY if narrow(n).is_float])
def test_every_midpoint_rounds_to_the_even_neighbour(name: str) -> None:
    t = narrow(name)
    x = around(t)
    wanted = convert(x, F32, t)
    if name in NAMED:
        # ml_dtypes rounds numbers between 2^-127 and 2^-126, which are subnormal in f32, up instead of to the nearest.
        fair = (t.specials != "scale") | (np.abs(x) <= 2.0**-127) | (np.abs(x) >= 2.0**-126)
        with np.errstate(all="ignore"):
            assert same_codes(wanted[fair], x.astype(t.numpy)[fair], t)
    assert same_codes(legalized(F32, t, x), wanted, t)
    fine = np.concatenate([x.astype(np.float64), np.nextafter(x.astype(np.float64), 0)])
    assert same_codes(legalized(F64, t, fine), convert(fine, F64, t), t)
    for source in (F16, BF16):
        with np.errstate(all="ignore"):
            coarse = x.astype(source.numpy)
        assert same_codes(legalized(source, t, coarse), convert(coarse, source, t), t)


@pytest.mark.parametrize("name", EVERY)
def test_integers_become_narrow_as_numpy_says(name: str) -> None:
    t = narrow(name)
    powers = np.array([s * ((1 << b) + d) for b in range(62) for d in (-1, 0, 1) for s in (1, -1)], np.int64)
    x = np.concatenate([powers, powers + (powers >> 1), np.array([0, 2**63 - 1, -(2**63)])])
    for source, values in ((I64, x), (I32, x.astype(np.int32)), (U64, x.astype(np.uint64)), (I8, x.astype(np.int8))):
        assert same_codes(legalized(source, t, values), convert(values, source, t), t)


@pytest.mark.parametrize("name", [n for n in EVERY if narrow(n).is_integer])
def test_floats_truncate_and_saturate(name: str) -> None:
    t = narrow(name)
    x = np.array([0.0, -0.9, 0.9, 1.0, 3.99, -3.99, 7.5, -8.5, 63.9, 1e10, -1e10, np.inf, -np.inf, np.nan], np.float32)
    assert same_codes(legalized(F32, t, x), convert(x, F32, t), t)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMED, *EVERY[::3]}))
def test_compiled_code_does_the_same(name: str) -> None:
    t = narrow(name)
    every = np.tile(all_codes(t), 3)  # whole vectors and a rest
    for target in (F32, BF16, I32, U8):
        assert same(compiled(t, target, every), convert(every, t, target))
    x = np.tile(around(t if t.is_float else narrow("f6e3m2")), 3)
    for source in (F32, F64, F16):
        with np.errstate(all="ignore"):
            values = x.astype(source.numpy)
        result = compiled(source, t, values)
        assert same_codes(result, convert(values, source, t), t)
        if t.numpy in (np.dtype(np.int8), np.dtype(np.uint8)):  # what the caller sees is the code, sign extended
            assert (result == convert(values, source, t)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["i4", "u3", "f4e2m1", "f8e4m3"])
def test_narrow_elements_move_as_they_are(name: str) -> None:
    t = narrow(name)
    text = f"fn f(x: {t}[N, M], rows: i64[K]) -> {t}[M, K] {{\n  y[m, k] = x[rows[k], m]\n  return y\n}}"
    rng = np.random.default_rng(0)
    x = from_codes(rng.integers(0, 1 << t.bits, (7, 33)).astype(np.uint8), t)
    rows = rng.integers(0, 7, 5)
    result = intarsia.compile(text).f(x, rows)
    assert isinstance(result, np.ndarray) and same_codes(result, x[rows].T, t)

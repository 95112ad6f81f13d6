"""Sorting rows in machine code, against NumPy, for every type of key."""

from __future__ import annotations

import functools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import intarsia
from intarsia.ir.dtypes import Array

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 1e-40, -1e-40, 3.5, -3.5, 65504.0]
FLOATS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
LENGTHS = (1, 2, 13, 300)


@functools.cache
def both(dtype: str) -> Callable[[Array], tuple[Array, Array]]:
    """`sort` and `argsort` for rows of any length."""
    text = f"fn f(x: {dtype}[R, N]) -> ({dtype}[R, N], i64[R, N]) {{ return sort(x), argsort(x) }}"
    return intarsia.jit(text, intarsia.Options(dynamic=("R", "N")))


def check(dtype: str, rows: Array) -> None:
    ordered, order = both(dtype)(rows)
    wide = rows.astype(np.float64) if dtype in FLOATS else rows
    expected = np.argsort(wide, axis=1, kind="stable")  # NaN last, in their order
    np.testing.assert_array_equal(order, expected)
    bits = np.dtype(f"u{rows.dtype.itemsize}")
    np.testing.assert_array_equal(ordered.view(bits), np.take_along_axis(rows, expected, 1).view(bits))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("length", LENGTHS)
def test_floats(dtype: str, length: int) -> None:
    generator = np.random.default_rng(length)
    rows = generator.standard_normal((5, length)) * 10.0 ** generator.integers(-3, 4, (5, length))
    rows[1] = generator.choice(SPECIAL, length)
    rows[2] = np.sort(rows[2])
    rows[3] = rows[3, 0]
    check(dtype, rows.astype(FLOATS[dtype]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers(dtype: str) -> None:
    kind = np.dtype(dtype.replace("i", "int").replace("u", "uint"))
    limits, generator = np.iinfo(kind), np.random.default_rng(0)
    for length in LENGTHS:
        rows = generator.integers(limits.min, limits.max, (4, length), dtype=kind, endpoint=True)
        rows[0] = generator.choice(np.array([limits.min, limits.max, 0, 1], kind), length)
        check(dtype, rows)


def test_booleans() -> None:
    check("bool", np.random.default_rng(0).integers(0, 2, (3, 40)).astype(bool))


def test_rows_are_shared_among_threads() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    function = intarsia.jit("fn f(x: f32[R, N]) -> f32[R, N] { return sort(x) }")
    np.testing.assert_array_equal(function(rows), np.sort(rows, axis=1))
    assert "parallel" in function.lower(rows).asm["scheduled"]

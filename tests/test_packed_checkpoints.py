"""GPTQ and AWQ checkpoints: packed here word by word as their tools do, read back code for code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import intarsia
from intarsia import CompileError
from intarsia.cli import main
from intarsia.files import read_weights, write_results
from intarsia.packed_checkpoints import Packing

Tensor = np.ndarray[Any, Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words_of(codes: Sequence[int], bits: int) -> list[int]:
    """Codes in words of 32 bits, the first in the lowest bits of the first word, as signed numbers."""
    number = 0
    for position, code in enumerate(codes):
        number |= int(code) << (bits * position)
    words = [number >> shift & 0xFFFFFFFF for shift in range(0, bits * len(codes), 32)]
    return [w - (1 << 32) if w >> 31 else w for w in words]


def packed_columns(codes: Tensor, bits: int) -> Tensor:
    """A matrix of words, packed down each column."""
    return np.array([words_of(column, bits) for column in codes.T.tolist()], np.int32).T


def packed_rows(codes: Tensor, bits: int) -> Tensor:
    return np.array([words_of(row, bits) for row in codes.tolist()], np.int32)


def packed_awq(codes: Tensor) -> Tensor:
    """Eight columns to a word, the i-th nibble of which is column AWQ_ORDER[i]."""
    rows = []
    for row in codes.tolist():
        words = [row[start : start + 8] for start in range(0, len(row), 8)]
        rows.append([word for eight in words for word in words_of([eight[i] for i in AWQ_ORDER], 4)])
    return np.array(rows, np.int32)


def layer(inputs: int, outputs: int, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points in which every code and every zero point is at every place of a word."""
    place = np.arange(inputs)[:, None] * 5 + np.arange(outputs) * 3
    codes = (place + place // (1 << bits)) % (1 << bits)
    groups = -(-inputs // group)
    scales = (np.arange(groups * outputs).reshape(groups, outputs) % 7 + 1).astype(np.float16) / 16
    zeros = (np.arange(groups)[:, None] + np.arange(outputs) * 7) % (1 << bits)
    return codes, scales, zeros


def gptq(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, less: int = 1) -> dict[str, Tensor]:
    stored = (zeros - less) % (1 << bits)
    return {"qweight": packed_columns(codes, bits), "qzeros": packed_rows(stored, bits), "scales": scales}


def values_of(codes: Tensor, scales: Tensor, zeros: Tensor, of_input: Tensor) -> Tensor:
    return ((codes - zeros[of_input]) * scales[of_input].astype(np.float64)).astype(np.float32)


def written(path: Path, tensors: dict[str, Tensor], name: str = "a") -> Path:
    write_results(path, {f"{name}.{part}" if name else part: array for part, array in tensors.items()})
    return path


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("packing", ["gptq", "gptq-v2"])
def test_gptq_code_for_code(tmp_path: Path, bits: int, packing: Packing) -> None:
    """Every code at every place of a word, every zero point too; 3 bits go across words."""
    inputs = 32 * (1 << bits) if bits < 8 else 1024
    codes, scales, zeros = layer(inputs, 32, bits, 32)
    if bits < 8:
        assert all(len(set(codes[place::32].ravel())) == 1 << bits for place in range(32))
    tensors = gptq(codes, scales, zeros, bits, 1 if packing == "gptq" else 0)
    path = written(tmp_path / "m.safetensors", {**tensors, "bias": np.arange(32.0)})
    found = intarsia.read_gptq(path, zeros_less_one=packing == "gptq")
    assert sorted(found) == ["a.bias", "a.weight.codes", "a.weight.scale", "a.weight.zero"]
    assert (found["a.weight.codes"].astype(int) == codes).all() and (found["a.weight.zero"].astype(int) == zeros).all()
    assert found["a.weight.scale"].tobytes() == scales.tobytes()


def test_awq_code_for_code(tmp_path: Path) -> None:
    codes, scales, zeros = layer(128, 64, 4, 64)
    assert all(len(set(codes[:, place::8].ravel())) == 16 for place in range(8))
    tensors = {"qweight": packed_awq(codes), "qzeros": packed_awq(zeros), "scales": scales}
    found = intarsia.read_awq(written(tmp_path / "m.safetensors", tensors))
    assert found["a.weight.codes"].dtype == ml_dtypes.uint4
    assert (found["a.weight.codes"].astype(int) == codes).all() and (found["a.weight.zero"].astype(int) == zeros).all()


def test_one_word_of_each_by_hand(tmp_path: Path) -> None:
    """0x76543210 holds 0 to 7 in order in GPTQ; in AWQ its nibbles are the columns 0 2 4 6 1 3 5 7."""
    word = np.array([[0x76543210]], np.int32)
    ones = np.ones((1, 8), np.float16)
    written(tmp_path / "g.npz", {"qweight": np.tile(word, 8), "qzeros": word, "scales": ones}, "")
    found = intarsia.read_gptq(tmp_path / "g.npz")
    assert found["weight.codes"].astype(int)[:, 0].tolist() == list(range(8))
    assert found["weight.zero"].astype(int).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    written(tmp_path / "a.npz", {"qweight": word, "qzeros": word, "scales": ones}, "")
    found = intarsia.read_awq(tmp_path / "a.npz")
    assert found["weight.codes"].astype(int).tolist() == found["weight.zero"].astype(int).tolist()
    assert found["weight.codes"].astype(int).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


def test_inputs_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `order`, a program computes what the shuffled layer means; the command says what it found."""
    monkeypatch.chdir(tmp_path)
    codes, scales, zeros = layer(72, 32, 4, 32)
    of_input = np.random.default_rng(0).permutation(np.arange(72) // 32).astype(np.int32)
    tensors = {f"a.{n}": t for n, t in gptq(codes, scales, zeros, 4).items()} | {"a.g_idx": of_input}
    plain = layer(64, 32, 4, 64)
    tensors |= {f"b.{n}": t for n, t in gptq(*plain, 4).items()} | {"b.g_idx": np.zeros(64, np.int32)}
    write_results("m.safetensors", {**tensors, "norm": np.ones(3)})
    assert main(["quantize", "m.safetensors", "--from", "gptq", "-o", "q.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert "wrote q.safetensors" in err
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "a.weight 72x32 quant(u4, scale=f16, zero=u4, group=32, axis=0), its inputs in another order",
        "b.weight 64x32 quant(u4, scale=f16, zero=u4, group=none, axis=0)",
    ]
    found = read_weights("q.safetensors")
    assert list(found["b.order"]) == list(range(64)) and found["norm"].tolist() == [1, 1, 1]
    assert sorted(found["a.order"]) == list(range(72)) and (np.diff(of_input[found["a.order"]]) >= 0).all()
    text = """format w4 = quant(u4, scale=f16, zero=u4, group=32, axis=0)
struct Linear(K, N) { weight: w4[K, N]; order: i32[K] }
fn main(x: f32[M, K], a: Linear(K, N)) -> f32[M, N] {
    return tensor[m, k](x[m, a.order[k]]) @ dequantize(a.weight)
}
"""
    Path("p.ita").write_text(text)
    x = np.random.default_rng(1).standard_normal((3, 72)).astype(np.float32)
    np.save("x.npy", x)
    words = ["run", "p.ita", "--arg", "x=x.npy", "--weights", "a=q.safetensors", "--target", "reference"]
    assert main([*words, "--out", "y.npy"]) == 0
    np.testing.assert_allclose(np.load("y.npy"), x @ values_of(codes, scales, zeros, of_input), rtol=1e-4, atol=1e-4)


def damaged(**changes: Tensor | None) -> dict[str, Tensor]:
    codes, scales, zeros = layer(64, 32, 4, 32)
    tensors = {**gptq(codes, scales, zeros, 4), "g_idx": (np.arange(64) // 32).astype(np.int32), **changes}
    return {name: array for name, array in tensors.items() if array is not None}


DAMAGED: dict[str, dict[str, Tensor | None]] = {
    "no a.scales": {"scales": None},
    "no a.qzeros": {"qzeros": None},
    "no matrix of finite floats": {"scales": np.full((2, 32), np.nan, np.float16)},
    "no matrix of finite": {"scales": np.ones(32, np.float16)},
    "qzeros is no matrix of words": {"qzeros": np.zeros((2, 4), np.int64)},
    "qzeros do not hold": {"qzeros": np.zeros((2, 5), np.int32)},
    "qzeros do not hold a code": {"qzeros": np.zeros((3, 4), np.int32)},
    "qweight has no codes of 4 bits for 32 outputs": {"qweight": np.zeros((8, 31), np.int32)},
    "qweight is no matrix of words": {"qweight": np.zeros((8, 32), np.float32)},
    "g_idx is no group below 2 for each of 64": {"g_idx": np.zeros(63, np.int32)},
    "g_idx is no group below 2": {"g_idx": np.full(64, 2, np.int32)},
    "g_idx is no group": {"g_idx": np.full(64, -1, np.int32)},
    "g_idx has groups of several sizes": {"g_idx": (np.arange(64) // 31).clip(0, 1).astype(np.int32)},
    "g_idx has groups of": {"g_idx": np.zeros(64, np.int32)},
    "64 inputs are no 3 groups": {
        "g_idx": None,
        "scales": np.ones((3, 32), np.float16),
        "qzeros": np.zeros((3, 4), np.int32),
    },
}


@pytest.mark.parametrize("said", DAMAGED)
def test_damaged_layers(tmp_path: Path, said: str) -> None:
    path = written(tmp_path / "m.safetensors", damaged(**DAMAGED[said]))
    with pytest.raises(CompileError) as caught:
        intarsia.read_gptq(path)
    assert caught.value.code == "E0711" and said in str(caught.value)


def test_layers_of_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        intarsia.read_awq(written(tmp_path / "m.safetensors", damaged()))
    assert caught.value.code == "E0711" and "packed as awq?" in str(caught.value)
    with pytest.raises(CompileError) as caught:
        intarsia.read_gptq(written(tmp_path / "w.safetensors", {"weight": np.ones(3)}))
    assert caught.value.code == "E0711" and "qweight" in str(caught.value)


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "m.npz", "-o", "q.npz"]) == 2
    assert main(["quantize", "m.npz", "-o", "q.npz", "--format", "mxfp4", "--from", "awq"]) == 2
    assert main(["quantize", "m.npz", "-o", "q.npz", "--from", "awq", "--tensor", "*"]) == 2

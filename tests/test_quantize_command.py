"""`intarsia quantize`: what it writes is what a program takes, what it prints is right, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import Run

import intarsia
from intarsia.files import open_arrays, read_array, read_weights, write_results
from intarsia.ir.formats import BUILT_IN, BlockFormat, block_format
from intarsia.quantization_error import QuantizationError, channel_axis, error_histogram, measured_error

W4 = "quant(i4, scale=f16, group=32, axis=0)"
LINEAR = f"""format w4 = {W4}
fn linear(x: f32[M, K], w: w4[K, N]) -> f32[M, N] {{ return x @ dequantize(w) }}
"""
FILES = {"linear.ita": LINEAR}


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("suffix", [pytest.param(".npz", marks=pytest.mark.slow), ".safetensors"])
def test_a_program_takes_the_file(ita: Run, suffix: str) -> None:
    w, bias = weights(64, 8), weights(8)
    write_results("model.safetensors", {"a.weight": w, "a.bias": bias, "ids": np.arange(3)})
    status, out, err = ita(
        "quantize", "model.safetensors", "--format", "w4", "--program", "linear.ita", "-o", f"q{suffix}"
    )
    assert status == 0 and f"wrote q{suffix}" in err
    back = read_weights(f"q{suffix}")
    assert sorted(back) == ["a.bias", "a.weight.codes", "a.weight.scale", "ids"]
    np.testing.assert_array_equal(back["a.bias"], bias)
    parts = intarsia.quantize(w, W4)
    assert back["a.weight.codes"].tobytes() == parts["codes"].tobytes()
    if suffix == ".safetensors":
        assert back["a.weight.codes"].dtype == ml_dtypes.int4
        header = Path("q.safetensors").stat().st_size - 64 * 8 // 2 - 2 * 8 * 2 - 8 * 4 - 3 * 8
        assert 0 < header < 600  # the codes have no gaps
    values = intarsia.dequantize(parts, W4)
    write_results("x.npy", {"x": weights(3, 64)})
    wanted = weights(3, 64) @ values
    for argument in (f"w=q{suffix}:a.weight", f"w.codes=q{suffix}:a.weight.codes"):
        more = [] if argument.startswith("w=") else ["--arg", f"w.scale=q{suffix}:a.weight.scale"]
        words = ("run", "linear.ita", "--arg", "x=x.npy", "--arg", argument, *more, "--out", "y.npy", "--target")
        assert ita(*words, "reference")[0] == 0
        np.testing.assert_allclose(read_array("y.npy"), wanted, rtol=1e-4, atol=1e-4)
    program = intarsia.compile(LINEAR)
    w_of_file = {n: back[f"a.weight.{n}"] for n in ("codes", "scale")}
    np.testing.assert_allclose(program.linear(weights(3, 64), w_of_file), wanted, rtol=1e-4, atol=1e-4)
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert lines[1][:5] == ["a.weight", "64x8", "4.50", "2 KiB", "288 B"]
    error = np.abs(values - w).astype(np.float64)
    noise = 10 * np.log10(np.square(w.astype(np.float64)).sum(0) / np.square(error).sum(0))
    whole = 10 * np.log10(np.square(w.astype(np.float64)).sum() / np.square(error).sum())
    rms = np.sqrt(np.square(error).mean())
    assert lines[1][5:] == [f"{error.max():.3g}", f"{rms:.3g}", f"{whole:.1f} dB", f"{noise.min():.1f} dB"]


def test_one_array_and_its_channels(ita: Run) -> None:
    np.save("w.npy", weights(4, 64).astype(np.float16))
    status, out, _ = ita("quantize", "w.npy", "--format", "mxint8", "-o", "q.npz", "--per-channel")
    assert status == 0 and list(read_weights("q.npz")) == ["codes", "scale"]
    assert len(re.findall(r"^ +\d  \d\d\.\d dB$", out, re.MULTILINE)) == 4 and "axis 0" in out
    text = "fn f(w: mxint8[N, K]) -> f32[N, K] { return dequantize(w) }"
    assert ita("run", "-e", text, "--arg", "w=q.npz", "--target", "reference")[0] == 0


def test_patterns_choose(ita: Run) -> None:
    np.savez("m.npz", **{"a.w": weights(32), "b.w": weights(32), "a.v": np.arange(32.0)})
    words = ("quantize", "m.npz", "--format", "mxfp8", "-o", "q.npz")
    assert ita(*words, "--tensor", "a.*")[0] == 0
    assert list(read_weights("q.npz")) == ["a.w.codes", "a.w.scale", "b.w", "a.v.codes", "a.v.scale"]
    status, _, err = ita(*words, "--tensor", "c.*")
    assert status == 1 and "E0704" in err and "c.*" in err
    status, _, err = ita(*words)
    assert status == 1 and "E0710" in err and "--tensor" in err


def test_what_is_refused(ita: Run) -> None:
    bad = weights(4, 8)
    bad[1, 2], bad[3, 0], bad[3, 1] = np.nan, np.inf, -np.inf
    np.savez("m.npz", w=bad, i=np.arange(3))
    words = ("quantize", "m.npz", "-o", "q.npz", "--format")
    status, _, err = ita(*words, "mxfp4")
    assert status == 1 and "E0710" in err and "NaN at 1 and infinite at 2 of 32" in err and "[1, 2]" in err
    assert not Path("q.npz").exists()
    assert "help: w4, mxfp8" in ita(*words, "w9", "--program", "linear.ita")[2]
    for format_, said in (("w9", "no format is named"), ("quant(i12, scale=f16)", "codes"), ("quant(i4", "E0105")):
        status, _, err = ita(*words, format_)
        assert status == 1 and said in err
    np.savez("m.npz", w=weights(4, 8))
    status, _, err = ita(*words, "quant(i4, scale=f16, axis=2)")
    assert status == 1 and "E0303" in err and "'w' has 2 dimensions" in err
    assert ita("quantize", "m.npz", "-o", "q.npy", "--format", "mxfp4")[2].startswith("error[E0709]")


def test_arguments_of_several_tensors(ita: Run) -> None:
    words = ("run", "linear.ita", "--arg", "x=randn", "--dim", "M=2", "--arg")
    assert "'w' is 2 tensors: w.codes, w.scale" in ita(*words, "w=randn")[2]
    np.savez("w.npz", codes=np.zeros((32, 8), np.int8))
    status, _, err = ita(*words, "w=w.npz")
    assert status == 1 and "E0609" in err and "no tensors for 'w': scale" in err
    np.save("w.npy", weights(32, 8))
    status, _, err = ita(*words, "w=w.npy")
    assert status == 1 and "E0609" in err and "'w' is 2 tensors, w.codes, w.scale" in err and "intarsia quantize" in err
    assert ita("quantize", "w.npy", "--format", W4, "-o", "q.npz")[0] == 0
    status, _, err = ita(*words, "w=q.npz:layer")
    assert status == 1 and "E0704" in err and "codes, scale" in err
    np.savez("m.npz", w=weights(32, 8), b=weights(8))
    for argument in ("w=m.npz", "w=m.npz:w"):
        status, _, err = ita(*words, argument)
        assert status == 1 and "E0609" in err and "'w' is 2 tensors" in err
    assert (
        ita("quantize", "w.npy", "--format", "quant(i4, scale=f16, zero=f16, group=32, axis=0)", "-o", "z.npz")[0] == 0
    )
    status, _, err = ita(*words, "w=z.npz")
    assert status == 1 and "E0601" in err and "given with zero, which its format lacks" in err


def test_what_is_in_a_format_stays(ita: Run) -> None:
    """Its scales are floats of two dimensions too."""
    np.savez("m.npz", a=weights(64, 8), b=weights(64, 8))
    words = ("--format", W4, "-o", "q.npz")
    assert ita("quantize", "m.npz", *words, "--tensor", "a")[0] == 0
    assert ita("quantize", "q.npz", *words)[0] == 0
    assert list(read_weights("q.npz")) == ["a.codes", "a.scale", "b.codes", "b.scale"]
    status, _, err = ita("quantize", "q.npz", *words)
    assert status == 1 and "E0710" in err


@pytest.mark.slow
def test_a_picture(ita: Run) -> None:
    pytest.importorskip("matplotlib")
    np.save("w.npy", weights(4, 64))
    assert ita("quantize", "w.npy", "--format", "nf4", "-o", "q.npz", "--plot", "e.png")[0] == 0
    assert Path("e.png").read_bytes().startswith(b"\x89PNG")


def test_errors_are_measured_by_channel() -> None:
    x = np.array([[1, 2, 3], [0, 0, 0], [0, 0, 4]], np.float32)
    stored = np.array([[1, 2, 3.5], [0, 0, 0], [0, 1, 4]], np.float32)
    found = measured_error(x, stored, 0)
    assert found.most == 1 and found.signal.tolist() == [14, 0, 16] and found.noise.tolist() == [0.25, 0, 1]
    assert found.by_channel == [10 * np.log10(56), np.inf, 10 * np.log10(16)]
    assert measured_error(x, stored, None).signal.tolist() == [30]
    assert QuantizationError(1, 3, np.zeros(1), np.ones(1)).decibels == -np.inf
    shares, middles = error_histogram(x, stored)
    assert shares.sum() == pytest.approx(1) and abs(middles[50]) < 1e-9 and shares[50] == pytest.approx(7 / 9)


def test_channels() -> None:
    def along(axis: int | None) -> BlockFormat:
        return block_format("i4", BUILT_IN["nf4"].scale, None, axis)

    assert [channel_axis(along(a), 2) for a in (0, 1, -1, None)] == [1, 0, 0, 1]
    assert (
        channel_axis(along(-1), 3) == 1 and channel_axis(along(0), 1) is None and channel_axis(along(None), 0) is None
    )


def test_formats_are_listed(ita: Run) -> None:
    _, out, _ = ita("list", "formats")
    assert [line.split()[0] for line in out.splitlines()][1:] == list(BUILT_IN)
    assert "f4e2m1 codes, one f8e8m0 scale for 32 elements; 4.25 bits each" in out


def test_a_tensor_in_the_way(ita: Run) -> None:
    np.savez("m.npz", **{"w": weights(4, 8), "w.codes": np.zeros(3)})
    status, _, err = ita("quantize", "m.npz", "--format", "mxfp4", "-o", "q.npz")
    assert status == 1 and "E0710" in err and open_arrays("m.npz").names == ("w", "w.codes")

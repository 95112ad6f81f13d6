"""Arrays in files: every type comes back as it was written, and bad files give a coded error."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from intarsia.files import StoredType, open_arrays, read_array, read_weights, typed, write_results
from intarsia.ir.dtypes import F32, I64, U8, DType, dtype
from intarsia.ir.errors import CompileError

WIDE = ["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool", "f8e4m3", "f8e5m2"]
NARROW = ["f8e8m0", "f6e2m3", "f6e3m2", "f4e2m1", "i4", "u4", "i2"]


def sample(name: str, shape: tuple[int, ...] = (3, 8)) -> np.ndarray[Any, Any]:
    element = dtype(name)
    assert element is not None
    codes = np.arange(np.prod(shape, dtype=int)) % (1 << min(element.bits, 6))
    if element.is_narrow and element.is_float:
        return codes.astype(np.uint8).view(element.numpy).reshape(shape)
    if element.bits < 8 and element.is_signed:
        codes = codes - (1 << (element.bits - 1))
    return codes.astype(element.numpy).reshape(shape)


def code_of(action: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(CompileError) as error:
        action(*arguments)
    return error.value.code, str(error.value)


@pytest.mark.parametrize("name", WIDE + NARROW)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_every_type_comes_back(tmp_path: Path, name: str, suffix: str) -> None:
    path, array = tmp_path / f"x{suffix}", sample(name)
    write_results(path, {"w": array})
    back = read_array(path)
    if suffix != ".safetensors" and back.dtype.kind == "V":
        assert open_arrays(path).type_of("" if suffix == ".npy" else "w") == StoredType(None, (3, 8))
        back = back.view(array.dtype)
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["i3", "u5", "f5e2m2", "f8e3m4", "f4e2m1", "i4"])
@pytest.mark.parametrize("shape", [(5,), (3, 8), (), (0, 2)])
def test_safetensors_holds_what_it_has_no_name_for(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    element, array = dtype(name), sample(name, shape)
    assert element is not None
    others = {"before": np.arange(3.0), "after": np.ones(1, np.int8)}
    write_results(tmp_path / "x.safetensors", {"w": array, **others}, {"w": element})
    file = open_arrays(tmp_path / "x.safetensors")
    assert file.type_of("w") == StoredType(element, shape)
    back = file.read("w")
    assert back.dtype == array.dtype and back.shape == shape and back.tobytes() == array.tobytes()
    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors") if (array.size * element.bits) % 8 else {}
    assert theirs == {} or theirs["w"].size == -(-array.size * element.bits // 8)
    assert (file.read("before") == others["before"]).all() and (file.read("after") == 1).all()


@pytest.mark.parametrize(
    "said", ['{"w":["i4",[99]]}', '{"w":["i12",[6]]}', '{"v":["i4",[6]]}', '{"w":["i4",[-6]]}', '["w"]', "{", "7"]
)
def test_damaged_types_in_metadata(tmp_path: Path, said: str) -> None:
    entries = {
        "__metadata__": {"intarsia.types": said},
        "w": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    header = json.dumps(entries).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    assert code_of(open_arrays, tmp_path / "x.safetensors")[0] == "E0703"


def test_raw_bytes_take_the_type_that_is_asked_for() -> None:
    raw = np.array([0, 15, 7], np.uint8).view("V1")
    assert typed(raw, DType("i4", "int", 4)).astype(int).tolist() == [0, -1, 7]
    assert typed(raw, F32) is raw and typed(raw, U8) is raw
    code, text = code_of(typed, np.array([16], np.uint8).view("V1"), DType("u4", "uint", 4), "w")
    assert code == "E0606" and "u4" in text


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_scalars_and_empty_arrays_come_back(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / f"x{suffix}"
    write_results(path, {"w": np.full(shape, 2.5, np.float32)})
    back = read_array(path)
    assert back.shape == shape and back.dtype == np.float32 and (back == 2.5).all()
    assert open_arrays(path).type_of(open_arrays(path).names[0]) == StoredType(F32, shape)


def test_the_libraries_own_readers_and_writers_agree(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.arange(3, dtype=np.int8), "c": sample("bf16")}
    write_results(tmp_path / "x.safetensors", arrays)
    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert {n: a.tobytes() for n, a in theirs.items()} == {n: a.tobytes() for n, a in arrays.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "y.safetensors")
    ours = read_weights(tmp_path / "y.safetensors")
    assert sorted(ours) == ["a", "b", "c"] and len(ours) == 3 and "a" in ours and "d" not in ours
    np.testing.assert_array_equal(ours["b"], arrays["b"])
    assert ours["c"].dtype == ml_dtypes.bfloat16 and ours["c"].flags.aligned
    write_results(tmp_path / "x.npz", {n: arrays[n] for n in "ab"})
    with np.load(tmp_path / "x.npz") as theirs:
        np.testing.assert_array_equal(theirs["b"], arrays["b"])
    np.savez_compressed(tmp_path / "z.npz", **arrays)
    np.testing.assert_array_equal(read_array(tmp_path / "z.npz", "b"), arrays["b"])


def test_byte_order_and_layout_are_normalised(tmp_path: Path) -> None:
    expected = np.arange(12).reshape(3, 4)
    for array in (expected.astype(">i8"), np.asfortranarray(expected), expected.astype(">i8").T.copy().T):
        np.save(tmp_path / "x.npy", array)
        back = read_array(tmp_path / "x.npy")
        np.testing.assert_array_equal(back, expected)
        assert back.dtype.isnative and back.flags.c_contiguous
        assert open_arrays(tmp_path / "x.npy").type_of("") == StoredType(I64, (3, 4))
    write_results(tmp_path / "x.safetensors", {"x": expected.astype(">i8").T})
    np.testing.assert_array_equal(read_array(tmp_path / "x.safetensors"), expected.T)


def test_weights_are_read_when_asked_for(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("broken.npy", b"\x93NUMPY\x01\x00\x05\x00abc")
        with archive.open("whole.npy", "w") as member:
            np.save(member, np.ones(3))
        archive.writestr("readme.txt", "not an array")
    weights = read_weights(tmp_path / "w.npz")
    assert list(weights) == ["broken", "whole"]
    assert weights["whole"].sum() == 3
    assert code_of(lambda: weights["broken"])[0] == "E0703"
    assert weights.get("other") is None


def test_missing_files_and_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "weights.npy", np.ones(3))
    code, text = code_of(read_array, tmp_path / "wieghts.npy")
    assert code == "E0701" and "did you mean" in text and "weights.npy" in text
    (tmp_path / "folder.npz").mkdir()
    assert code_of(read_array, tmp_path / "folder.npz")[0] == "E0701"
    assert code_of(read_array, tmp_path / "no" / "such.safetensors")[0] == "E0701"
    if os.geteuid() != 0:
        (tmp_path / "weights.npy").chmod(0)
        assert code_of(read_array, tmp_path / "weights.npy")[0] == "E0701"


@pytest.mark.parametrize(
    ("name", "begin", "said"),
    [
        ("x.npy", b"PK\x03\x04" + bytes(40), "ZIP archive"),
        ("x.npz", b"\x93NUMPY" + bytes(40), "NumPy array"),
        ("x.safetensors", b"\x80\x02}q\x00" + bytes(40), "pickle"),
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("x.npy", b"<!DOCTYPE html><html>", "web page"),
        ("x.npy", b"1.0, 2.0, 3.0", "not a NumPy array"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, begin: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(begin)
    code, text = code_of(read_array, tmp_path / name)
    assert code == "E0702" and said in text


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors"])
def test_every_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    write_results(tmp_path / name, {"w": np.arange(20.0)})
    whole = (tmp_path / name).read_bytes()
    for length in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:length])
        assert code_of(read_array, tmp_path / name)[0] in ("E0702", "E0703"), length


def test_damage_within_a_file(tmp_path: Path) -> None:
    write_results(tmp_path / "x.npz", {"w": np.arange(20.0)})
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[150] ^= 1
    (tmp_path / "x.npz").write_bytes(whole)
    assert code_of(read_array, tmp_path / "x.npz")[0] == "E0703"
    for entries in (
        {"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 12]}},  # another size than the shape says
        {"w": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}},  # a gap
        {"w": {"dtype": "F32", "shape": [-3], "data_offsets": [0, -12]}},
        {"w": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6.0]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},  # 4 bytes that belong to nothing
        {n: {"dtype": "F32", "shape": [2], "data_offsets": o} for n, o in {"a": [0, 8], "b": [4, 12]}.items()},
        {"w": {"dtype": "F32", "shape": [3]}},
        {"w": [1, 2]},
    ):
        header = json.dumps(entries).encode()
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
        assert code_of(read_array, tmp_path / "x.safetensors")[0] == "E0703", entries
    (tmp_path / "huge.npy").write_bytes(
        b"\x93NUMPY\x01\x00"
        + (118).to_bytes(2, "little")
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
        + b"\n"
    )
    code, text = code_of(read_array, tmp_path / "huge.npy")
    assert code == "E0703" and "missing" in text


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    assert code_of(read_array, tmp_path / "x.npy")[0] == "E0705"
    np.savez(tmp_path / "x.npz", a=np.ones(3), b=np.array([None], object))
    assert code_of(read_array, tmp_path / "x.npz", "b")[0] == "E0705"
    assert read_array(tmp_path / "x.npz", "a").sum() == 3


@pytest.mark.parametrize("element", ["c8", "U3", "M8[s]", [("a", "f4")], "S5"])
def test_types_that_the_language_lacks(tmp_path: Path, element: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3, element))
    assert code_of(read_array, tmp_path / "x.npy")[0] == "E0707"
    header = json.dumps({"w": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert code_of(read_array, tmp_path / "x.safetensors")[0] == "E0707"


def test_keys(tmp_path: Path) -> None:
    write_results(tmp_path / "x.npz", {f"layer.{i}.weight": np.ones(1) for i in range(12)})
    code, text = code_of(read_array, tmp_path / "x.npz", "layer.3.wieght")
    assert code == "E0704" and "did you mean 'layer.3.weight'?" in text and "and 4 more" in text
    code, text = code_of(read_array, tmp_path / "x.npz")
    assert code == "E0708" and "x.npz:layer.0.weight" in text
    np.save(tmp_path / "x.npy", np.ones(1))
    assert code_of(read_array, tmp_path / "x.npy", "w")[0] == "E0708"
    assert code_of(read_weights, tmp_path / "x.npy")[0] == "E0708"
    np.savez(tmp_path / "empty.npz")
    assert code_of(read_array, tmp_path / "empty.npz")[0] == "E0708"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    two = {"a": np.ones(1), "b": np.ones(1)}
    assert code_of(write_results, tmp_path / "x.npy", two)[0] == "E0709"
    assert code_of(write_results, tmp_path / "x.txt", two)[0] == "E0706"
    assert code_of(read_array, tmp_path / "x.csv")[0] == "E0706"
    code, text = code_of(write_results, tmp_path / "x.safetensors", {"w": np.ones(3, np.complex64)})
    assert code == "E0709" and "complex64" in text
    assert code_of(write_results, tmp_path / "no" / "x.npz", two)[0] == "E0709"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    write_results(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("intarsia.files.npy_format.write_array", full)
    code, text = code_of(write_results, path, {"a": np.zeros(3)})
    assert code == "E0709" and "No space left" in text
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_may_be_replaced_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_results(path, {"a": np.arange(5.0)})
    read = read_array(path)
    write_results(path, {"a": read + 1})
    np.testing.assert_array_equal(read, np.arange(5.0))
    np.testing.assert_array_equal(read_array(path), np.arange(1.0, 6.0))


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6.0), "a": np.arange(3, dtype=np.int8)}
    for suffix in (".npz", ".safetensors"):
        for name in ("one", "two"):
            write_results(tmp_path / f"{name}{suffix}", arrays)
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()

"""Arrays in files: .npy, .npz and .safetensors, read one array at a time and written whole or not at all.

Pickled objects are refused. What is read is C-contiguous and in native byte order. NumPy's own format has no name for
bfloat16 and the narrow types; their elements are stored as raw bytes, which `StoredType.dtype` gives as None and which
take the type of the parameter that they are read for. The arrays of a .safetensors file (format: README.md of
huggingface/safetensors) are read through a map of the file, without a copy, in every type that the language has; the
format's own library gives NumPy no floats of 8 bits and fewer. Types that the format has no name for, such as `i4`, are
stored as dense bytes (`U8`), and its metadata say under `intarsia.types` what they are.
"""

from __future__ import annotations

import difflib
import json
import operator
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy_format

from intarsia.ir.dtypes import Array, DType, dtype, of_numpy
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.packing import pack_elements, packed_bytes, unpack_elements

SUFFIXES = (".npy", ".npz", ".safetensors")

_SAFETENSORS_NAMES = {
    "BOOL": "bool",
    **{f"{letter}{bits}": f"{letter.lower()}{bits}" for letter in "IU" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"f{bits}" for bits in (16, 32, 64)},
    "BF16": "bf16",
    "F8_E4M3": "f8e4m3",
    "F8_E5M2": "f8e5m2",
    "F8_E8M0": "f8e8m0",
    "F6_E2M3": "f6e2m3",
    "F6_E3M2": "f6e3m2",
    "F4": "f4e2m1",
}
_TYPES_KEY = "intarsia.types"
_WELL_KNOWN = (
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"PK\x03\x04", "a ZIP archive, as .npz files and torch's .pt files are"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x80", "a Python pickle"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<", "a web page"),
)


@dataclass(frozen=True)
class StoredType:
    """Element type and shape of an array in a file; `dtype` is None where the file has only the width of an element."""

    dtype: DType | None
    shape: tuple[int, ...]


class ArrayFile(ABC):
    """The arrays of one file, by name. A file with a single unnamed array has the name ""."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """In the order of the file."""

    @abstractmethod
    def type_of(self, name: str) -> StoredType:
        """What is stored, without reading the elements. Raises CompileError E0702 to E0707."""

    @abstractmethod
    def read(self, name: str) -> Array:
        """One array. Raises CompileError E0702 to E0707."""

    def resolve(self, key: str | None) -> str:
        """The name that `key` means; without a key the file must have one array. Raises CompileError E0704, E0708."""
        if key is None:
            if len(self.names) == 1:
                return self.names[0]
            raise CompileError(
                "E0708",
                f"{self.path} holds {len(self.names)} arrays: say which one",
                hint=f"as in {self.path}:{self.names[0]}; it has {_some(self.names)}" if self.names else "",
            )
        if self.names == ("",):
            raise CompileError("E0708", f"{self.path} holds one array without a name", hint=f"leave out ':{key}'")
        if key in self.names:
            return key
        near = difflib.get_close_matches(key, self.names, 1)
        raise CompileError(
            "E0704",
            f"{self.path} has no array named '{key}'",
            hint=(f"did you mean '{near[0]}'? " if near else "") + f"it has {_some(self.names)}",
        )


def open_arrays(path: str | Path) -> ArrayFile:
    """The arrays of a file, chosen by its suffix. Raises CompileError E0701 to E0703 and E0706."""
    path = Path(path)
    kinds: dict[str, type[ArrayFile]] = {".npy": _NpyFile, ".npz": _NpzFile, ".safetensors": _SafetensorsFile}
    if path.suffix.lower() not in kinds:
        raise _unknown_suffix(path)
    try:
        return kinds[path.suffix.lower()](path)
    except OSError as error:
        raise unreadable(path, error) from None


def read_array(path: str | Path, key: str | None = None) -> Array:
    """One array of a file. Raises CompileError E0701 to E0708."""
    file = open_arrays(path)
    return file.read(file.resolve(key))


class Weights(Mapping[str, Array]):
    """The arrays of a file as a mapping that reads each one when it is asked for; with a `prefix` those whose names
    begin with it, without it."""

    def __init__(self, file: ArrayFile, prefix: str = "") -> None:
        self.file = file
        self.prefix = prefix
        self._names = {name.removeprefix(prefix): None for name in file.names if name.startswith(prefix)}

    def below(self, key: str) -> Weights:
        """Those whose names begin with a dotted name."""
        return Weights(self.file, f"{self.prefix}{key}.") if key else self

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self.file.read(self.prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def read_weights(path: str | Path) -> Weights:
    """The named arrays of an .npz or .safetensors file. Raises CompileError E0701 to E0703, E0706, E0708 (.npy)."""
    file = open_arrays(path)
    if file.names == ("",):
        raise CompileError("E0708", f"{path} holds one array without a name, weights are bound by name")
    return Weights(file)


def typed(array: Array, element: DType, name: str = "") -> Array:
    """An array as a file gave it for a parameter: raw bytes have the parameter's type, if NumPy's format has no name
    for it. Raises CompileError E0606 for bytes that are no codes of this type."""
    is_raw = array.dtype.kind == "V" and of_numpy(array.dtype) is None and not array.dtype.fields
    if not is_raw or array.dtype.itemsize != element.bytes or element.numpy.isbuiltin != 2:
        return array
    if element.bits < 8 and array.size and int(array.view(np.uint8).max()) >> element.bits:
        raise CompileError("E0606", f"{name}: the file holds bytes that are no codes of {element}")
    return array.view(element.numpy)


def require_writable(path: str | Path) -> Path:
    """The path. Raises CompileError E0706 for an unknown suffix, E0709 where there is no such folder."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise _unknown_suffix(path)
    if not path.parent.is_dir():
        raise CompileError("E0709", f"cannot write {path}: there is no folder {path.parent}")
    return path


def write_results(path: str | Path, results: Mapping[str, Array], types: Mapping[str, DType] | None = None) -> None:
    """Write arrays to the kind of file that the suffix names; .npy takes one. The file is never half-written.

    types: the types of arrays of codes, one to a byte, whose type NumPy does not have.

    Raises CompileError E0706 for an unknown suffix, E0709 where the file cannot be written or cannot hold the arrays.
    """
    suffix = (path := require_writable(path)).suffix.lower()
    if suffix == ".npy" and len(results) != 1:
        raise CompileError(
            "E0709", f"{path} can hold one array, and there are {len(results)}", hint="write an .npz or .safetensors"
        )
    found = {n: of_numpy(a.dtype) for n, a in results.items()} | dict(types or {})
    header, order = _safetensors_header(path, results, found) if suffix == ".safetensors" else (b"", list(results))
    try:
        with _replacing(path) as file:
            if suffix == ".npy":
                npy_format.write_array(file, _storable(results[order[0]]), allow_pickle=False)
            elif suffix == ".npz":
                with zipfile.ZipFile(file, "w") as archive:
                    for name in order:
                        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                            npy_format.write_array(member, _storable(results[name]), allow_pickle=False)
            else:
                file.write(header)
                for name in order:
                    file.write(_dense(results[name], found[name]).tobytes())
    except OSError as error:
        raise CompileError("E0709", f"cannot write {path}: {error.strerror or error}") from None


def read_source(path: str | Path) -> Source:
    """The text of a program or of IR. Raises CompileError E0701 where the file cannot be read, E0102 where it is no
    UTF-8 text."""
    try:
        return Source.decoded(str(path), Path(path).read_bytes())
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: str | Path, error: OSError) -> CompileError:
    """E0701, with a name in the same folder that is much like the one that was not found."""
    path = Path(path)
    hint = ""
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        near = difflib.get_close_matches(path.name, sorted(p.name for p in path.parent.iterdir()), 1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else ""
    return CompileError("E0701", f"cannot read {path}: {error.strerror or error}", hint=hint)


class _NpyFile(ArrayFile):
    """One array in NumPy's format (numpy.lib.format)."""

    names = ("",)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            _expect(path, file.read(6), b"\x93NUMPY", "a NumPy array (.npy)")

    def type_of(self, name: str) -> StoredType:
        with self.path.open("rb") as file:
            return _read_npy_header(file, self.path.stat().st_size, str(self.path)).type

    def read(self, name: str) -> Array:
        """Through a map of the file: of an array that is split over processes, each reads its part only."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            header = _read_npy_header(file, size, str(self.path))
            if not prod(header.type.shape):
                return np.empty(header.type.shape, header.numpy.newbyteorder("="))
            order: Literal["C", "F"] = "F" if header.fortran else "C"
            stored = np.memmap(file, header.numpy, "r", file.tell(), header.type.shape, order)
        return stored.view(np.ndarray).astype(header.numpy.newbyteorder("="), order="C", copy=False)


class _NpzFile(ArrayFile):
    """A ZIP archive of .npy files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            begin = file.read(4)
        if begin != b"PK\x05\x06":  # an archive of nothing
            _expect(path, begin, b"PK\x03\x04", "an archive of NumPy arrays (.npz)")
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {i.filename[:-4]: i for i in archive.infolist() if i.filename.endswith(".npy")}
        except zipfile.BadZipFile as error:
            raise _damaged(str(path), str(error)) from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def type_of(self, name: str) -> StoredType:
        with self._open(name) as (file, size):
            return _read_npy_header(file, size, f"{self.path}:{name}").type

    def read(self, name: str) -> Array:
        with self._open(name) as (file, size):
            return _read_npy(file, size, f"{self.path}:{name}")

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        member = self._members[name]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
                yield file, member.file_size
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise _damaged(f"{self.path}:{name}", str(error)) from None


class _SafetensorsFile(ArrayFile):
    """A header in JSON with type, shape and place of each array, and then their bytes without gaps."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            begin = file.read(9)
            length = int.from_bytes(begin[:8], "little")
            if begin[8:] != b"{" or length > 100 << 20:
                _expect(path, begin, b"no beginning is right", "a .safetensors file")
            file.seek(8)
            header = file.read(length)
        self._start = 8 + length
        try:
            self._entries: dict[str, dict[str, Any]] = json.loads(header)
            metadata = self._entries.pop("__metadata__", {})
            self._packed: dict[str, StoredType] = {
                name: _packed_type(self._entries[name], element, shape)
                for name, (element, shape) in json.loads(metadata.get(_TYPES_KEY, "{}")).items()
            }
            self._check_places(path.stat().st_size - self._start)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or not of the form that is due
            raise _damaged(str(path), f"its header cannot be read: {error}") from None

    def _check_places(self, size: int) -> None:
        """Every array begins where another ends and is as long as its type says, and all fill the file."""
        position = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            first, last = map(operator.index, entry["data_offsets"])
            shape = [operator.index(extent) for extent in entry["shape"]]
            element = dtype(_SAFETENSORS_NAMES.get(entry["dtype"], ""))
            bits = prod(shape) * element.bits if element else 8 * (last - first)
            if first != position or bits != 8 * (last - first) or min(shape, default=0) < 0:
                raise _damaged(f"{self.path}:{name}", f"bytes {first} to {last} do not fit its type and shape")
            position = last
        if position != size:
            raise _damaged(str(self.path), f"its arrays have {position} bytes, and the file {size} for them")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @cached_property
    def _bytes(self) -> Array:
        return np.memmap(self.path, np.uint8, "r").view(np.ndarray)

    def type_of(self, name: str) -> StoredType:
        if name in self._packed:
            return self._packed[name]
        entry = self._entries[name]
        found = dtype(_SAFETENSORS_NAMES.get(entry["dtype"], ""))
        if found is None:
            raise _no_such_type(f"{self.path}:{name}", entry["dtype"])
        return StoredType(found, tuple(entry["shape"]))

    def read(self, name: str) -> Array:
        stored = self.type_of(name)
        assert stored.dtype is not None
        first, last = (self._start + offset for offset in self._entries[name]["data_offsets"])
        if first == last:
            return np.empty(stored.shape, stored.dtype.numpy)
        content = self._bytes[first:last]
        if stored.dtype.bits < 8 or name in self._packed:
            return unpack_elements(content, stored.dtype, stored.shape)
        return content.view(stored.dtype.numpy).reshape(stored.shape)


@dataclass(frozen=True)
class _NpyHeader:
    type: StoredType
    numpy: np.dtype[Any]
    fortran: bool


def _read_npy_header(file: IO[bytes], size: int, name: str) -> _NpyHeader:
    """The header of an array in NumPy's format of `size` bytes in all; leaves the file at the first element."""
    try:
        version = npy_format.read_magic(file)
        read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}.get(version)
        if read is None:  # version 3 is for records with names beyond Latin-1
            raise _no_such_type(name, f"format {version[0]}.{version[1]}")
        shape, fortran, element = read(file)
    except ValueError as error:
        raise _damaged(name, str(error).splitlines()[0]) from None
    if element.hasobject:
        raise CompileError(
            "E0705",
            f"{name} holds pickled Python objects, which are not read: unpickling runs code from the file",
            hint="save it as an array of numbers",
        )
    found = of_numpy(element.newbyteorder("="))
    if found is None and (element.kind != "V" or element.fields or element.itemsize > 2):
        raise _no_such_type(name, str(element))
    if (missing := file.tell() + prod(shape) * element.itemsize - size) > 0:
        raise _damaged(name, f"{missing} bytes are missing at its end")
    return _NpyHeader(StoredType(found, tuple(shape)), element, fortran)


def _read_npy(file: IO[bytes], size: int, name: str) -> Array:
    header = _read_npy_header(file, size, name)
    data = file.read(prod(header.type.shape) * header.numpy.itemsize)
    stored = np.frombuffer(data, header.numpy).reshape(header.type.shape, order="F" if header.fortran else "C")
    return stored.astype(header.numpy.newbyteorder("="), order="C", copy=False)


def _storable(array: Array) -> Array:
    """The array with elements that NumPy's format has a name for: raw bytes in place of the types of ml_dtypes."""
    registered = array.dtype.isbuiltin == 2
    return array.view(f"V{array.dtype.itemsize}") if registered else array


def _packed_type(entry: Mapping[str, Any], element: str, shape: Sequence[int]) -> StoredType:
    """What the metadata of a file say about an array of bytes. Raises ValueError where that cannot be."""
    found, (count,) = dtype(element), entry["shape"]
    sizes = tuple(map(operator.index, shape))
    if found is None or found.bits > 8 or entry["dtype"] != "U8" or min(sizes, default=0) < 0:
        raise ValueError(f"no {element} is packed in {entry['dtype']}")
    if packed_bytes(prod(sizes), found.bits) != count:
        raise ValueError(f"{count} bytes are not {element}{list(sizes)}")
    return StoredType(found, sizes)


def _safetensors_header(
    path: Path, results: Mapping[str, Array], types: Mapping[str, DType | None]
) -> tuple[bytes, list[str]]:
    """The header, and the order of the arrays: widest elements first, so that each lies on a multiple of its width."""
    names = {of: name for name, of in _SAFETENSORS_NAMES.items()}
    entries: dict[str, object] = {}
    packed: dict[str, tuple[str, list[int]]] = {}
    offset = 0
    order = sorted(results, key=lambda name: -results[name].dtype.itemsize)
    for name in order:
        array, element = results[name], types[name]
        if element is None:
            message = f"{path}: the format .safetensors has no place for '{name}', {array.dtype} of {array.size}"
            raise CompileError("E0709", message, hint="write an .npz, or cast the result")
        stored, shape, size = names.get(str(element), ""), list(array.shape), packed_bytes(array.size, element.bits)
        if not stored or array.size * element.bits % 8:
            packed[name] = str(element), shape
            stored, shape = "U8", [size]
        entries[name] = {"dtype": stored, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    if packed:
        entries = {"__metadata__": {_TYPES_KEY: json.dumps(packed, separators=(",", ":"))}, **entries}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def _dense(array: Array, element: DType | None) -> Array:
    """The elements as a file holds them: little-endian, narrow ones packed."""
    assert element is not None
    if element.bits < 8:
        return pack_elements(array, element)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well, and leaves nothing behind otherwise."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a device or a pipe
        with target.open("wb") as file:
            yield file
        return
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _expect(path: Path, begin: bytes, wanted: bytes, kind: str) -> None:
    if begin == wanted:
        return
    if not begin:
        raise _damaged(str(path), "it is empty")
    with path.open("rb") as file:
        begin = file.read(32)
    known = next((description for magic, description in _WELL_KNOWN if begin.startswith(magic)), "")
    raise CompileError(
        "E0702", f"{path} is not {kind}, as its name says", hint=f"it begins like {known}" if known else ""
    )


def _damaged(name: str, reason: str) -> CompileError:
    return CompileError("E0703", f"{name} is truncated or damaged: {reason}", hint="write or download it again")


def _no_such_type(name: str, element: str) -> CompileError:
    return CompileError("E0707", f"{name} has elements of type {element}, which the language does not have")


def _unknown_suffix(path: Path) -> CompileError:
    return CompileError("E0706", f"{path}: arrays are read and written as {', '.join(SUFFIXES)}", hint="name it so")


def _some(names: Sequence[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest

"""Functions of this package in C's form, made by LLVM when they are first wanted: `memory.ll` and `calls.ll`.

A call through ctypes and the creation of an array in Python take a microsecond each; a function object of CPython that
reads the fields of its arguments and calls NumPy's C interface takes a tenth of that for the whole call. As it rests on
where CPython and NumPy keep these fields, it is only made where arrays at hand show that they are there. Elsewhere
(PyPy, an interpreter without a global lock, a NumPy to come) everything works without it, more slowly.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from intarsia.backends.cpu.machine import assemble, load
from intarsia.ir.dtypes import Array

_PARTS = ("memory.ll", "calls.ll")

HEAD_BYTES = 64
"""Of a block, before its memory."""

_PYTHON_FUNCTIONS = (
    "Py_IncRef",
    "Py_DecRef",
    "PyCapsule_New",
    "PyCapsule_GetPointer",
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "PyLong_FromSsize_t",
    "PyLong_AsSsize_t",
    "PyLong_AsLongLongAndOverflow",
    "PyFloat_AsDouble",
    "PyObject_CallFunctionObjArgs",
    "PyTuple_GetItem",
    "PyTuple_New",
    "PyTuple_SetItem",
)

_NUMPY_FUNCTIONS = {"PyArray_NewFromDescr": 94, "PyArray_SetBaseObject": 282}
"""Places in the table of NumPy's C interface. They never change, which is what makes that interface a binary one."""

_NUMPY_VERSIONS = (1, 2)
"""Of the binary interface, as the function at place 0 of the table tells them."""

_METHODS = ("dispatch", "allocate", "release")
"""The entries of the table @methods, and the bytes of one."""
_METHOD_BYTES = 32

_SIZES = 512
"""The number of lists of free blocks."""


@dataclass(frozen=True)
class Extension:
    """The functions of the extension, over one pool of memory.

    allocate: bytes -> an array of `uint8`, at least as long, in a block of the pool. release: drop all free blocks.
    """

    allocate: Callable[[int], Array]
    release: Callable[[], None]
    _methods: int
    _pool: Array

    @property
    def free_bytes(self) -> int:
        """Bytes that are held without being used."""
        return int(self._pool[1])

    def dispatcher(self, calls: Sequence[int], owners: Sequence[object]) -> Callable[..., Any]:
        """The function @dispatch over calls, given by the addresses of their descriptions. `owners` keep alive all
        that these refer to, for as long as the function is kept."""
        table = np.array([*calls, 0], np.int64)
        return _function_object(self._methods, "dispatch", (table, *owners))


def make_extension(new_block: Callable[[int], Array], limit: int) -> Extension | None:
    """Compile and link the extension; None where this interpreter or this NumPy is not as it takes them to be.

    `new_block`: bytes -> an array that begins with the head of a block and is that much longer. The pool keeps at most
    `limit` bytes free. What is made stays for the life of the process, as arrays refer to its code.
    """
    functions = _interface_functions() if _is_supported() else None
    if functions is None:
        return None
    pool = np.zeros(2 + _SIZES, np.int64)
    pool[0] = limit
    objects: dict[str, object] = {
        "array_type": np.ndarray,
        "float_type": float,
        "int_type": int,
        "uint8": np.dtype(np.uint8),
        "none": None,
        "not_implemented": NotImplemented,
        "new_block": new_block,
    }
    symbols = functions | {name: id(item) for name, item in objects.items()}
    symbols["pool"] = pool.__array_interface__["data"][0]
    text = "\n".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in _PARTS)
    loaded = load(assemble(text), "methods", symbols)
    for item in (loaded, pool, *objects.values()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))
    allocate, release = (_function_object(loaded.address, name) for name in ("allocate", "release"))
    return Extension(allocate, release, loaded.address, pool)


def _function_object(methods: int, name: str, state: tuple[object, ...] = ()) -> Callable[..., Any]:
    create = ctypes.pythonapi.PyCFunction_NewEx
    create.argtypes, create.restype = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p], ctypes.py_object
    function: Callable[..., Any] = create(methods + _METHODS.index(name) * _METHOD_BYTES, state, None)
    return function


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


# ---------------------------------------------------------------------- what the extension takes for granted

_ARRAY_FIELDS = struct.Struct("@nPPi4xPPPPi")
"""The head of an object, and the fields of an array: references, type; data, dimensions, shape, strides, base, element
type, flags."""


def _is_supported() -> bool:
    """Is this CPython with a global lock, and do arrays look as `memory.ll` says?"""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    if struct.calcsize("P") != 8 or object.__basicsize__ != 16:
        return False
    whole = np.zeros((4, 5), np.int8)
    samples: list[Array] = [np.zeros(3), whole, whole[1:, 2:], whole.T, np.zeros(()), np.zeros((2, 0), np.float16)]
    return all(map(_is_laid_out, samples))


def _is_laid_out(array: Array) -> bool:
    found = _ARRAY_FIELDS.unpack(ctypes.string_at(id(array), _ARRAY_FIELDS.size))
    _, kind, data, dimensions, shape, strides, base, element, flags = found
    expected = (
        id(type(array)),
        array.__array_interface__["data"][0],
        array.ndim,
        0 if array.base is None else id(array.base),
        id(array.dtype),
        array.flags.num,
    )
    if (kind, data, dimensions, base, element, flags) != expected:
        return False
    lengths = struct.Struct(f"{array.ndim}q")
    return not array.ndim or (
        lengths.unpack(ctypes.string_at(shape, lengths.size)) == array.shape
        and lengths.unpack(ctypes.string_at(strides, lengths.size)) == array.strides
    )


def _interface_functions() -> dict[str, int] | None:
    """Addresses of functions of the C interfaces of Python and NumPy, or None where these are not as they are known."""
    module = next((m for m in map(sys.modules.get, _NUMPY_MODULES) if m is not None), None)
    table = _interface_table(module) if module is not None else None
    own = {name: getattr(ctypes.pythonapi, name, None) for name in _PYTHON_FUNCTIONS}
    if table is None or None in own.values():
        return None
    version = ctypes.PYFUNCTYPE(ctypes.c_uint)(table[0] or 0)()
    if version >> 24 not in _NUMPY_VERSIONS:
        return None
    numpy_functions = {name: table[place] or 0 for name, place in _NUMPY_FUNCTIONS.items()}
    return {name: _address(function) for name, function in own.items()} | numpy_functions


_NUMPY_MODULES = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")


def _interface_table(module: ModuleType) -> ctypes.Array[ctypes.c_void_p] | None:
    capsule = getattr(module, "_ARRAY_API", None)
    if type(capsule).__name__ != "PyCapsule":
        return None
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.argtypes, read.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    return (ctypes.c_void_p * (1 + max(_NUMPY_FUNCTIONS.values()))).from_address(read(capsule, None))

"""Arguments and results at the Python boundary: arrays of NumPy, tensors of other libraries, plain numbers.

`adapt` makes a NumPy array of an argument, without a copy where the argument's memory is C-contiguous, aligned and in
native byte order, else with one. Other libraries are read through DLPack (dlpack.h, dmlc), or the array protocols of
NumPy. `to_library` is the way back, so that a program called with torch tensors gives torch tensors. DLPack as NumPy
speaks it has no bfloat16 and no 8-bit floats; these cross as integers of the same width, whose meaning both sides know
by name (`bfloat16`, `float8_e4m3fn`, …: torch, jax and ml_dtypes agree).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import F64, Array, DType, of_numpy
from intarsia.ir.errors import CompileError

_HOST_DEVICES = frozenset((1, 3, 11, 13))  # kDLCPU, and memory of CUDA and ROCm that the host can read
_DEVICE_NAMES = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 14: "oneapi"}


@dataclass(frozen=True)
class Parameter:
    """What an argument must be. A dimension is a number, or a name that stands for any size."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...] = ()

    @property
    def type(self) -> str:
        """The type as the language writes it: `f32[B, 768]`."""
        return _type_text(str(self.dtype), self.shape)


def adapt(value: object, parameter: Parameter) -> Array:
    """A C-contiguous, aligned array of exactly the parameter's element type and shape.

    Nothing is converted: an `f64` array is no argument for `f32`. Python numbers, and lists of them, are literals: an
    integer fits every number type that can hold it, a float every float type.

    Raises CompileError: E0601 another element type, E0602 another shape, E0603 no array at all, E0604 memory of a
    device, E0605 a tensor that its library does not export, E0606 a value out of range.
    """
    wanted = parameter.dtype.numpy
    array = as_array(value, parameter)
    if array.dtype != wanted and array.dtype.newbyteorder("=") != wanted:
        raise _wrong_dtype(array, parameter)
    if array.ndim != len(parameter.shape) or any(
        isinstance(want, int) and want != size for want, size in zip(parameter.shape, array.shape)
    ):
        raise _wrong_shape(array, parameter)
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and array.dtype.isnative):
        array = array.astype(wanted, order="C")
    if parameter.dtype.is_narrow and wanted in (np.int8, np.uint8):
        _check_codes(array, parameter)
    return array


def as_array(value: object, parameter: Parameter) -> Array:
    """The memory of an argument as an array of whatever type, shape and layout it has; a literal takes the type of the
    parameter. Raises CompileError E0603 to E0606."""
    if type(value) is np.ndarray:  # the common case, kept short
        return value
    if isinstance(value, bool | int | float | list | tuple) and not isinstance(value, np.generic):
        return _literal(value, parameter)
    return _foreign(value, parameter)


def library_of(values: Iterable[object]) -> ModuleType | None:
    """The library of the first value that is another library's tensor; None when all are NumPy's or plain numbers."""
    for value in values:
        if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray | np.generic):
            return _namespace(value)
    return None


def to_library(array: Array, library: ModuleType | None) -> Any:
    """The array as a tensor of `library` that shares its memory, or the array itself for None.

    A type of fewer than 8 bits comes as one integer code in 8 bits for each element.
    """
    if library is None:
        return array
    if array.dtype.kind != "V":
        return library.from_dlpack(array)
    element = of_numpy(array.dtype)
    assert element is not None
    if element.bits < 8:
        codes = array.view(np.uint8) if element.is_float else array.astype(np.int8 if element.is_signed else np.uint8)
        return library.from_dlpack(codes)
    carrier = np.int16 if array.dtype.itemsize == 2 else np.uint8
    return library.from_dlpack(array.view(carrier)).view(getattr(library, array.dtype.name))


def device_of(value: object) -> tuple[int, int]:
    """The DLPack device of an argument, (type, number); (1, 0), the host, for whatever does not say."""
    if not hasattr(value, "__dlpack_device__"):
        return 1, 0
    try:
        kind, number = value.__dlpack_device__()
    except (BufferError, ValueError, RuntimeError):  # a device that DLPack cannot name, such as torch's meta
        return 0, 0
    return int(kind), int(number)


def _foreign(value: object, parameter: Parameter) -> Array:
    """The memory of an object that is not made of Python numbers, as an array of whatever type and layout it has."""
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    kind, number = device_of(value)
    if kind not in _HOST_DEVICES or (hasattr(value, "__cuda_array_interface__") and not hasattr(value, "__dlpack__")):
        device = getattr(value, "device", f"{_DEVICE_NAMES.get(kind, 'device')}:{number}")
        raise CompileError(
            "E0604",
            f"argument '{parameter.name}' is in the memory of {device}, and this program runs on the CPU",
            hint=f"copy it first, as in {parameter.name}.cpu(), or compile for the gpu",
        )
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        return _import(value, parameter)
    if not any(hasattr(value, name) for name in ("__array_interface__", "__array__", "__array_struct__")):
        try:
            return np.asarray(memoryview(value))  # type: ignore[arg-type]
        except TypeError:
            raise _not_an_array(value, parameter) from None
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise _not_an_array(value, parameter)
    return array


def _import(value: Any, parameter: Parameter) -> Array:
    """Read a tensor through DLPack, as integers where NumPy's DLPack lacks the type."""
    name = str(getattr(value, "dtype", "")).rpartition(".")[2]
    try:
        if hasattr(ml_dtypes, name) and (library := _namespace(value)) is not None:
            element = np.dtype(getattr(ml_dtypes, name))
            carrier = library.int16 if element.itemsize == 2 else library.uint8
            return np.from_dlpack(value.view(carrier)).view(element)
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise CompileError(
            "E0605",
            f"argument '{parameter.name}' of type {type(value).__module__}.{type(value).__qualname__}"
            f"{f' ({name})' if name else ''} cannot be read: {str(error).splitlines()[0]}",
            hint=f"pass {parameter.name}.detach()" if getattr(value, "requires_grad", False) else "",
        ) from error


def _namespace(value: object) -> ModuleType | None:
    """The module of an array library that has `from_dlpack`: by the array API standard, else the type's own package."""
    if hasattr(value, "__array_namespace__"):
        namespace: ModuleType = value.__array_namespace__()
    else:
        namespace = sys.modules[type(value).__module__.partition(".")[0]]
    return namespace if hasattr(namespace, "from_dlpack") and namespace is not np else None


def _literal(value: bool | int | float | list[Any] | tuple[Any, ...], parameter: Parameter) -> Array:
    """Python numbers take the parameter's type where they fit."""
    try:
        array = np.array(value)
    except ValueError:  # lists of different lengths
        raise _not_an_array(value, parameter) from None
    dtype = parameter.dtype
    if array.size == 0:
        return array.astype(dtype.numpy)
    if array.dtype.kind == "O" and all(isinstance(item, int) for item in array.flat):
        raise _out_of_range(next(i for i in array.flat if not -(2**63) <= i < 2**64), parameter)
    if array.dtype.kind not in "biuf":
        raise _not_an_array(value, parameter)
    fits = {"b": dtype.kind == "bool", "f": dtype.is_float}.get(array.dtype.kind, dtype.kind != "bool")
    given = of_numpy(array.dtype)
    if not fits or given is None:
        raise _wrong_dtype(array, parameter)
    if dtype.is_integer:
        for extreme in (int(array.min()), int(array.max())):
            if not dtype.least <= extreme <= dtype.greatest:
                raise _out_of_range(extreme, parameter)
    with np.errstate(over="ignore"):
        converted = convert(array, given, dtype)
    if dtype.is_float:
        exact, back = array.astype(np.float64), convert(converted, dtype, F64)
        saturated = (np.abs(exact) >= 1) & (np.abs(back) * (1 + dtype.epsilon / 2) < np.abs(exact))
        lost = np.isfinite(exact) & (~np.isfinite(back) | saturated)
        if lost.any():
            raise _out_of_range(array[lost].flat[0], parameter)
    return converted


def _check_codes(array: Array, parameter: Parameter) -> None:
    """Types that ml_dtypes lacks come as one code per byte, which must be one of the type's codes."""
    dtype = parameter.dtype
    least, greatest = (dtype.least, dtype.greatest) if dtype.is_integer else (0, (1 << dtype.bits) - 1)
    for extreme in (int(array.min(initial=0)), int(array.max(initial=0))):
        if not least <= extreme <= greatest:
            raise _out_of_range(extreme, parameter)


def _wrong_dtype(array: Array, parameter: Parameter) -> CompileError:
    wanted = parameter.dtype
    given = of_numpy(array.dtype.newbyteorder("="))
    if wanted.is_narrow and wanted.numpy in (np.int8, np.uint8):
        hint = f"pass the codes of {wanted}, one for each element, as an array of {wanted.numpy}"
    elif given is None:
        hint = f"{array.dtype} is no type of the language"
    elif given.kind == "bool" or wanted.kind == "bool":
        hint = f"compare, as in {parameter.name} != 0, or cast it: nothing is converted unasked"
    else:
        hint = f"nothing is converted unasked: cast it first, or declare '{parameter.name}' as {given}"
    return CompileError(
        "E0601",
        f"argument '{parameter.name}' wants {parameter.type}, and was given "
        f"{_type_text(str(given or array.dtype), array.shape)}",
        hint=hint,
    )


def _wrong_shape(array: Array, parameter: Parameter) -> CompileError:
    if array.ndim != len(parameter.shape):
        counts = (f"{n} dimension{'' if n == 1 else 's'}" for n in (len(parameter.shape), array.ndim))
        hint = "it wants {}, and was given {}".format(*counts)
    else:
        pairs = enumerate(zip(parameter.shape, array.shape))
        index, (want, size) = next((i, p) for i, p in pairs if isinstance(p[0], int) and p[0] != p[1])
        hint = f"dimension {index} is {size}, and must be {want}"
    return CompileError(
        "E0602",
        f"argument '{parameter.name}' wants {parameter.type}, and was given "
        f"{_type_text(str(parameter.dtype), array.shape)}",
        hint=hint,
    )


def _not_an_array(value: object, parameter: Parameter) -> CompileError:
    return CompileError(
        "E0603",
        f"argument '{parameter.name}' wants {parameter.type}, and was given a value of type {type(value).__qualname__}",
        hint="pass a NumPy array, a tensor of a library with DLPack, a number, or a rectangular list of numbers",
    )


def _out_of_range(value: object, parameter: Parameter) -> CompileError:
    dtype = parameter.dtype
    hint = f"{dtype} holds {dtype.least} to {dtype.greatest}" if dtype.is_integer else ""
    return CompileError("E0606", f"argument '{parameter.name}': {value} does not fit {dtype}", hint=hint)


def _type_text(dtype: str, shape: Iterable[object]) -> str:
    dims = ", ".join(str(size) for size in shape)
    return f"{dtype}[{dims}]" if dims else dtype

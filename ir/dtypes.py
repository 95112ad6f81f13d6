"""Element types. A dtype is data: kind, bits, and for floats the split of the bits and what the special codes mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kind = Literal["float", "int", "uint", "bool"]
Specials = Literal["ieee", "nan-only", "finite", "scale"]


@dataclass(frozen=True)
class DType:
    """An element type.

    `specials` says what the codes with all exponent bits set mean: `ieee` infinities and NaNs, `nan-only` NaN at the
    last code of each sign (f8e4m3), `finite` ordinary numbers, `scale` an unsigned power of two with NaN at 255.
    """

    name: str
    kind: Kind
    bits: int
    exponent: int = 0
    mantissa: int = 0
    specials: Specials = "ieee"

    def __str__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_signed(self) -> bool:
        return self.kind in ("float", "int")

    @property
    def is_narrow(self) -> bool:
        """Floats of 8 bits or fewer and integers of 7 or fewer: storage only, no arithmetic."""
        return self.bits <= 8 if self.is_float else self.is_integer and self.bits < 8

    @property
    def bytes(self) -> int:
        """Bytes of one element in memory; a narrow type takes one at the Python boundary."""
        return max(1, self.bits // 8)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of an array of this type; one code per byte where neither NumPy nor ml_dtypes has it."""
        return _numpy_dtype(self)

    @property
    def numpy_codes(self) -> np.dtype[Any]:
        """The NumPy dtype of an array of codes of a narrow type, one per byte."""
        return np.dtype(np.int8 if self.kind == "int" else np.uint8)

    @property
    def least(self) -> int | float | bool:
        """The neutral element of `max`."""
        if self.kind == "bool":
            return False
        if self.is_float:
            return -float("inf")
        return -(1 << (self.bits - 1)) if self.kind == "int" else 0

    @property
    def greatest(self) -> int | float | bool:
        """The neutral element of `min`."""
        if self.kind == "bool":
            return True
        if self.is_float:
            return float("inf")
        return (1 << (self.bits - 1)) - 1 if self.kind == "int" else (1 << self.bits) - 1

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger number; 0 for integers."""
        return 2.0**-self.mantissa if self.is_float else 0.0

    @property
    def accumulator(self) -> DType:
        """The type in which sums and products of this type are formed (language.md, Accumulation)."""
        if self.name in ("f16", "bf16"):
            return F32
        if self.kind == "int" and self.bits in (8, 16):
            return I32
        if self.kind == "uint" and self.bits in (8, 16):
            return U32
        return self


F64 = DType("f64", "float", 64, 11, 52)
F32 = DType("f32", "float", 32, 8, 23)
F16 = DType("f16", "float", 16, 5, 10)
BF16 = DType("bf16", "float", 16, 8, 7)
I64, I32, I16, I8 = (DType(f"i{n}", "int", n) for n in (64, 32, 16, 8))
U64, U32, U16, U8 = (DType(f"u{n}", "uint", n) for n in (64, 32, 16, 8))
BOOL = DType("bool", "bool", 8)
F8E4M3 = DType("f8e4m3", "float", 8, 4, 3, "nan-only")
F8E5M2 = DType("f8e5m2", "float", 8, 5, 2)
F8E8M0 = DType("f8e8m0", "float", 8, 8, 0, "scale")
F4E2M1 = DType("f4e2m1", "float", 4, 2, 1, "finite")


def have_same_bits(a: DType, b: DType) -> bool:
    """Can the bits of one be read as the other? They are as many; or one is `u8` and holds the code of the other."""
    return a.bits == b.bits or (a.is_narrow and b == U8) or (b.is_narrow and a == U8)


_SPECIALS: dict[str, Specials] = {"f8e4m3": "nan-only", "f8e5m2": "ieee", "f8e8m0": "scale"}
_NUMPY = {
    "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn,
    "f8e5m2": ml_dtypes.float8_e5m2,
    "f8e8m0": ml_dtypes.float8_e8m0fnu,
    "f6e2m3": ml_dtypes.float6_e2m3fn,
    "f6e3m2": ml_dtypes.float6_e3m2fn,
    "f4e2m1": ml_dtypes.float4_e2m1fn,
    "i4": ml_dtypes.int4,
    "u4": ml_dtypes.uint4,
    "i2": ml_dtypes.int2,
    "u2": ml_dtypes.uint2,
    "i1": getattr(ml_dtypes, "int1", np.int8),
    "u1": getattr(ml_dtypes, "uint1", np.uint8),
}
_BY_NAME = {t.name: t for t in (F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)}


@cache
def dtype(name: str) -> DType | None:
    """The dtype of a name as the language spells it, or None."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if found := re.fullmatch(r"([iu])([1-7])", name):
        return DType(name, "int" if found[1] == "i" else "uint", int(found[2]))
    if found := re.fullmatch(r"f(\d)e(\d)m(\d)", name):
        bits, exponent, mantissa = (int(g) for g in found.groups())
        unsigned = name == "f8e8m0"
        if bits <= 8 and exponent >= 1 and bits == exponent + mantissa + (0 if unsigned else 1):
            return DType(name, "float", bits, exponent, mantissa, _SPECIALS.get(name, "finite"))
    return None


def of_numpy(array_dtype: npt.DTypeLike) -> DType | None:
    """The dtype that a NumPy dtype carries, or None where the language has no such type."""
    found = np.dtype(array_dtype)
    for name, numpy_type in _NUMPY.items():
        if found == np.dtype(numpy_type) and numpy_type not in (np.int8, np.uint8):
            return dtype(name)
    if found.kind == "b":
        return BOOL
    if found.kind in "iuf" and found.itemsize <= 8:
        return dtype(f"{found.kind}{found.itemsize * 8}")
    return None


@cache
def _numpy_dtype(t: DType) -> np.dtype[Any]:
    if t.name in _NUMPY:
        found: np.dtype[Any] = np.dtype(_NUMPY[t.name])
        return found
    if t.kind == "bool":
        return np.dtype(np.bool_)
    if t.is_narrow:
        return t.numpy_codes
    return np.dtype(f"{'i' if t.kind == 'int' else 'u' if t.kind == 'uint' else 'f'}{t.bits // 8}")


ALL_NAMES: tuple[str, ...] = (
    *_BY_NAME,
    *(f"{k}{n}" for k in "iu" for n in range(1, 8)),
    "f8e4m3",
    "f8e5m2",
    "f8e8m0",
    "f6e2m3",
    "f6e3m2",
    "f4e2m1",
)

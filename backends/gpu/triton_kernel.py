"""What the GPU back end makes of a kernel: functions for Triton, each with what is needed to compile and launch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from intarsia.ir.kernel import Buffer
from intarsia.ir.kernel_launch import STAGES
from intarsia.ir.sizes import Size

_TRITON_TYPES: dict[DType, str] = {
    F16: "fp16", BF16: "bf16", F32: "fp32", F64: "fp64",
    I8: "i8", I16: "i16", I32: "i32", I64: "i64",
    U8: "u8", U16: "u16", U32: "u32", U64: "u64", BOOL: "u8",
}  # fmt: skip


def triton_type(dtype: DType) -> str:
    """An element type in the notation of Triton's signatures. A bool lies in a byte, 0 or 1, and so does the code of an
    element of a narrow type."""
    return _TRITON_TYPES[U8 if dtype.is_narrow else dtype]


@dataclass(frozen=True)
class Pointer:
    """A parameter that points to the elements of a buffer of the kernel; to `element` of a list. `aligned`: it is at a
    multiple of 16 bytes."""

    name: str
    buffer: str
    dtype: DType
    element: Size | None = None
    aligned: bool = True


@dataclass(frozen=True)
class Scalar:
    """A parameter that is an integer: the value of a size, `i32`, or `i64` where it may not fit. With `divisible`, a
    multiple of 16."""

    name: str
    value: Size
    type: str = "i32"
    divisible: bool = False


Parameter: TypeAlias = "Pointer | Scalar"

RECORD = Buffer("check.record", I64, (Size.of(16),))
"""What a pointer of a launch with run-time checks points to, beside the kernel's own buffers. It is zeros before a
call. The first check of the call that fails writes its number, how many values go with it, and these."""


@dataclass(frozen=True)
class Transfer:
    """A load or store of memory in a function: so many elements at once, in each step of the loops around it, which run
    from a lower bound to an upper one in steps."""

    buffer: str
    dtype: DType
    writes: bool
    elements: int
    loops: tuple[tuple[str, Size, Size, int], ...] = ()


@dataclass(frozen=True)
class TritonKernel:
    """One `@triton.jit` function and how it is launched.

    text: the function, from `@triton.jit` on. constants: its `tl.constexpr` parameters, which follow the others, and
    their values. helpers: texts of functions that it calls, each to be written once before it. grid: the number of
    programs along up to three axes, over sizes.
    """

    name: str
    text: str
    parameters: tuple[Parameter, ...]
    grid: tuple[Size, ...]
    warps: int = 4
    stages: int = STAGES
    constants: tuple[tuple[str, int], ...] = ()
    helpers: tuple[str, ...] = ()
    programs: tuple[tuple[str, Size], ...] = ()
    transfers: tuple[Transfer, ...] = ()

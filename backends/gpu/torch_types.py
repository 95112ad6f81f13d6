"""The types of PyTorch."""

from __future__ import annotations

from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType

TORCH_TYPES: dict[DType, str] = {
    BOOL: "torch.bool", F16: "torch.float16", BF16: "torch.bfloat16", F32: "torch.float32", F64: "torch.float64",
    I8: "torch.int8", I16: "torch.int16", I32: "torch.int32", I64: "torch.int64",
    U8: "torch.uint8", U16: "torch.uint16", U32: "torch.uint32", U64: "torch.uint64",
}  # fmt: skip
_FLOATS_OF_8_BITS = {"f8e4m3": "torch.float8_e4m3fn", "f8e5m2": "torch.float8_e5m2", "f8e8m0": "torch.float8_e8m0fnu"}


def has_type(dtype: DType) -> bool:
    """Has PyTorch this type, so that it can say what its elements are worth? A byte with the code of an integer is as
    good as one."""
    return dtype in TORCH_TYPES or dtype.is_integer or dtype.name in _FLOATS_OF_8_BITS


def torch_type(dtype: DType) -> str:
    """The type of a tensor; one code a byte where PyTorch has no such type."""
    codes = "torch.int8" if dtype.kind == "int" else "torch.uint8"
    return TORCH_TYPES.get(dtype) or _FLOATS_OF_8_BITS.get(dtype.name, codes)

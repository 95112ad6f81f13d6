"""Arithmetic as the chip does it, for Triton's interpreter, which is wrong or too kind in places.

Triton's interpreter handles bf16 and f8 as integers of their bits. Here they are widened for every operation and
rounded after it. What is undefined on the chip is nonsense here as well: a quotient by zero, a lane that a load left
out. Conversions from floats to integers saturate as the instruction does. Only importable where Triton is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as stock

from intarsia.backends.gpu.guard import DeviceMemory, Update
from intarsia.backends.gpu.interpreter_asm import assembled
from intarsia.ir.dtypes import Array

Handle: TypeAlias = Any
"""A `TensorHandle` of the interpreter: a NumPy array, `data`, and Triton's element type, `dtype`."""

_CODES: dict[Any, Any] = {
    tl.bfloat16: ml_dtypes.bfloat16,
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e5: ml_dtypes.float8_e5m2,
}
"""Element types that lie in integers of as many bits."""

_GREATEST = {ml_dtypes.float8_e4m3fn: 448.0, ml_dtypes.float8_e5m2: 57344.0}

_NUMPY_DTYPES = {
    name: np.dtype(kind)
    for kind, names in {
        "bool": ("int1",), "f2": ("fp16",), "f4": ("fp32",), "f8": ("fp64",),
        "i1": ("int8",), "i2": ("int16",), "i4": ("int32",), "i8": ("int64",),
        "u1": ("uint8", "fp8e5", "fp8e4nv"), "u2": ("uint16", "bf16"), "u4": ("uint32",), "u8": ("uint64",),
    }.items()
    for name in names
}  # fmt: skip

_ADDRESS = np.dtype("u8")
_TF32_BITS = np.uint32(0xFFFFE000)
_RANGE_OF_DOTS = (-(1 << 31), (1 << 31) - 1)


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """The NumPy type of the elements of a tensor, or of one."""
    scalar = dtype.scalar
    return _ADDRESS if scalar.is_ptr() else _NUMPY_DTYPES[scalar.name]


def is_coded(dtype: Any) -> bool:
    """Are elements of this type kept as integers of their bits?"""
    return dtype in _CODES


def widen(handle: Handle) -> Array:
    """The numbers that a tensor holds, as NumPy can compute with them."""
    code = _CODES.get(handle.dtype.scalar)
    if code is None:
        return np.asarray(handle.data)
    if code is ml_dtypes.bfloat16:
        return np.asarray((handle.data.astype(np.uint32) << np.uint32(16)).view(np.float32))
    return np.asarray(np.ascontiguousarray(handle.data).view(code).astype(np.float32))


def narrow(values: Array, dtype: Any) -> Handle:
    """A tensor of numbers rounded to a type. Beyond the range of f8 its greatest number remains (cvt.satfinite)."""
    code = _CODES.get(dtype)
    if code is None:
        return stock.TensorHandle(np.asarray(values).astype(numpy_dtype(dtype), copy=False), dtype)
    if dtype.primitive_bitwidth == 8:
        values = np.clip(values, -_GREATEST[code], _GREATEST[code])
    return stock.TensorHandle(np.asarray(values).astype(code).view(numpy_dtype(dtype)), dtype)


def fused_multiply_add(x: Array, y: Array, z: Array) -> Array:
    """x * y + z, rounded once for f16 and f32; f64 is rounded to the extended precision of the machine before."""
    if z.dtype == np.float64:
        wide = np.longdouble
        return np.asarray((x.astype(wide) * y.astype(wide) + z.astype(wide)).astype(np.float64))
    product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)  # the product is exact
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    # Round to odd: a sum that is not exact must not look like a tie to the second rounding.
    even = np.asarray(total).view(np.int64) & 1 == 0
    nudged = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    inexact = np.isfinite(total) & (lost != 0) & even
    return np.asarray(np.where(inexact, nudged, total).astype(z.dtype))


def to_integer(values: Array, target: np.dtype[Any]) -> Array:
    """Floats to integers by `cvt.rzi`: towards zero, into the range; 8 bits are the low ones of 16.

    NaN becomes 0, or the sign bit alone if either type has 64 bits (PTX ISA, cvt).
    """
    wide = np.dtype(f"{target.kind}{max(2, target.itemsize)}")
    limits = np.iinfo(wide)
    low, high = float(limits.min), float(limits.max) + 1.0  # powers of two, so that the bounds are exact
    whole = np.trunc(values.astype(np.float64))
    inside = (whole >= low) & (whole < high)
    found = np.where(inside, whole, 0.0).astype(wide)
    found[whole >= high] = limits.max
    found[whole < low] = limits.min
    if values.dtype == np.float64 or wide.itemsize == 8:
        found[np.isnan(values)] = np.array(1 << (8 * wide.itemsize - 1), np.uint64).astype(wide)
    return found.astype(target)


@dataclass(frozen=True)
class _Results:
    """The results of an operation that may have several."""

    handles: list[Handle]

    def get_result(self, index: int) -> Handle:
        return self.handles[index]


class Builder(stock.InterpreterBuilder):  # type: ignore[misc]
    """What Triton's front end calls for every operation of a kernel; here it is carried out at once."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = DeviceMemory("", 1)
        self.fills_with_nonsense = False
        precisions = ("tf32", "tf32x3", "ieee", "bf16x3", "bf16x6")
        # Checks of overflow would be made for every addition of integers, and thrown away.
        self.options: Any = stock.InterpreterOptions(sanitize_overflow=False, allowed_dot_input_precisions=precisions)

    # ------------------------------------------------------------------ memory

    def create_load(self, ptr: Handle, *_: Any, **__: Any) -> Handle:
        dtype = ptr.get_element_ty()
        found = self.memory.load(ptr.data, None, np.zeros(1), numpy_dtype(dtype))
        return stock.TensorHandle(found, dtype)

    def create_masked_load(self, ptrs: Handle, mask: Handle, other: Handle | None, *_: Any, **__: Any) -> Handle:
        dtype = ptrs.get_element_ty()
        elements = numpy_dtype(dtype)
        if other is not None:
            fill = other.data
        else:
            fill = np.full(elements.itemsize, 0xFF if self.fills_with_nonsense else 0, np.uint8).view(elements)
        return stock.TensorHandle(self.memory.load(ptrs.data, mask.data, fill, elements), dtype)

    def create_store(self, ptr: Handle, val: Handle, *_: Any, **__: Any) -> None:
        self.memory.store(ptr.data, None, self._stored(ptr, val))

    def create_masked_store(self, ptrs: Handle, value: Handle, mask: Handle, *_: Any, **__: Any) -> None:
        self.memory.store(ptrs.data, mask.data, self._stored(ptrs, value))

    def create_descriptor_load(self, desc: Any, indices: list[Handle], *_: Any) -> Handle:
        pointers, inside = self._inside(desc, indices)
        return self.create_masked_load(pointers, inside, stock.TensorHandle(np.zeros(1), pointers.dtype))

    def create_descriptor_store(self, desc: Any, value: Handle, indices: list[Handle]) -> None:
        pointers, inside = self._inside(desc, indices)
        self.create_masked_store(pointers, value, inside)

    def _inside(self, desc: Any, indices: list[Handle]) -> tuple[Handle, Handle]:
        """The addresses of a block, and which of its elements are inside of what a descriptor describes."""
        pointers, inside = desc.materialize_pointers(indices)
        return pointers, inside if isinstance(inside, stock.TensorHandle) else stock.TensorHandle(inside, tl.int1)

    def _stored(self, pointers: Handle, value: Handle) -> Array:
        return np.asarray(value.data).astype(numpy_dtype(pointers.get_element_ty()), copy=False)

    def create_atomic_rmw(self, rmwOp: Any, ptr: Handle, val: Handle, mask: Handle, *_: Any) -> Handle:
        dtype = val.dtype.scalar
        function = _coded(_UPDATES[rmwOp.name], dtype) if is_coded(dtype) else _UPDATES[rmwOp.name]
        return stock.TensorHandle(self.memory.update(ptr.data, mask.data, val.data, function, val.data.dtype), dtype)

    def create_atomic_cas(self, ptr: Handle, cmp: Handle, val: Handle, *_: Any) -> Handle:
        bits = np.dtype(f"u{val.data.itemsize}")
        pairs = np.empty(ptr.data.shape, [("expected", bits), ("wanted", bits)])
        pairs["expected"], pairs["wanted"] = cmp.data.view(bits), val.data.view(bits)
        found = self.memory.update(ptr.data, None, pairs, _swap, bits)
        return stock.TensorHandle(found.view(val.data.dtype), cmp.dtype.scalar)

    def create_barrier(self, *_: Any) -> None:
        self.memory.barrier()

    # ------------------------------------------------------------------ conversion

    def cast_impl(self, src: Handle, dst_type: Any) -> Handle:
        values, target = widen(src), dst_type.scalar
        elements = numpy_dtype(target)
        if not is_coded(target) and elements.kind in "iu" and values.dtype.kind == "f":
            return stock.TensorHandle(to_integer(values, elements), target)
        return narrow(values, target)

    def create_fp_to_fp(self, src: Handle, dst_type: Any, rounding_mode: Any) -> Handle:
        if rounding_mode is not None and rounding_mode != ir.ROUNDING_MODE.RTNE:
            raise NotImplementedError("rounding other than to the nearest")
        return self.cast_impl(src, dst_type)

    def get_bf16(self, value: float) -> Handle:
        return narrow(np.array([value], np.float32), tl.bfloat16)

    def create_bitcast(self, src: Handle, dst_type: Any) -> Handle:
        data = np.ascontiguousarray(src.data).view(numpy_dtype(dst_type))
        return stock.TensorHandle(data, dst_type.scalar)

    # ------------------------------------------------------------------ arithmetic

    def unary_op(self, arg: Handle, op: Any) -> Handle:
        return narrow(op(widen(arg)), arg.dtype.scalar)

    def binary_op(self, lhs: Handle, rhs: Handle, op: Any) -> Handle:
        if lhs.data.dtype == np.bool_:  # integers of one bit
            return super().binary_op(lhs, rhs, op)
        found = op(widen(lhs), widen(rhs))
        return narrow(found, tl.int1 if found.dtype == np.bool_ else lhs.dtype.scalar)

    def create_maxnumf(self, lhs: Handle, rhs: Handle) -> Handle:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_minnumf(self, lhs: Handle, rhs: Handle) -> Handle:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_clampf(self, arg: Handle, lo: Handle, hi: Handle, propagate_nans: Any) -> Handle:
        if propagate_nans == ir.PROPAGATE_NAN.NONE:
            return self.create_minnumf(self.create_maxnumf(arg, lo), hi)
        return self.create_minimumf(self.create_maximumf(arg, lo), hi)

    def create_idiv(self, lhs: Handle, rhs: Handle) -> Handle:
        x, y = lhs.data, rhs.data
        quotient = (x - np.fmod(x, y)) // y
        return stock.TensorHandle(np.where(y == 0, np.array(-1).astype(x.dtype), quotient), lhs.dtype.scalar)

    def _remainder(self, lhs: Handle, rhs: Handle) -> Handle:
        x, y = lhs.data, rhs.data
        return stock.TensorHandle(np.where(y == 0, x, np.fmod(x, y)), lhs.dtype.scalar)

    create_srem = _remainder
    create_urem = _remainder

    def create_rsqrt(self, arg: Handle) -> Handle:
        return self.unary_op(arg, lambda x: 1 / np.sqrt(x))

    def create_fma(self, x: Handle, y: Handle, z: Handle) -> Handle:
        return narrow(fused_multiply_add(widen(x), widen(y), widen(z)), z.dtype.scalar)

    def create_inline_asm(
        self, text: str, constraints: str, values: list[Handle], types: list[Any], is_pure: bool, pack: int
    ) -> _Results:
        found = assembled(text, [v.data for v in values], [numpy_dtype(t) for t in types], pack)
        return _Results([stock.TensorHandle(data, t.scalar) for data, t in zip(found, types)])

    def create_dot(self, a: Handle, b: Handle, d: Handle, input_precision: Any, max_num_imprecise_acc: Any) -> Handle:
        left, right, total = widen(a), widen(b), widen(d)
        if left.dtype.kind in "iu":  # products and sums of 8 bits are exact in f64; some matrix units saturate
            product = np.matmul(left.astype(np.float64), right.astype(np.float64)).astype(np.int64)
            return narrow(np.clip(product + total, *_RANGE_OF_DOTS), d.dtype.scalar)
        if left.dtype == np.float64:
            product = np.matmul(left, right)
        else:
            left, right = left.astype(np.float32), right.astype(np.float32)
            if a.dtype.scalar == tl.float32 and str(input_precision).endswith("TF32"):
                left, right = _tf32(left), _tf32(right)
            product = np.matmul(left, right)
        return narrow(product + total, d.dtype.scalar)


def _transposed(handle: Handle) -> Handle:
    return stock.TensorHandle(handle.data.T, handle.dtype)


def _scaled(codes: Handle, scales: Handle, kind: Any) -> Array:
    """The numbers of rows of codes, of which groups have a scale each: a power of two as its exponent, or a float."""
    if getattr(kind, "value", kind) == "e2m1":  # two to a byte, the first in the low bits
        pairs = np.stack([codes.data & 15, codes.data >> 4], axis=-1)
        numbers = pairs.reshape(len(pairs), -1).astype(np.uint8).view(ml_dtypes.float4_e2m1fn)
    else:
        numbers = widen(codes)
    if is_coded(scales.dtype.scalar):
        factors = widen(scales).astype(np.float64)
    else:
        factors = np.where(scales.data == 255, np.nan, np.exp2(scales.data.astype(np.float64) - 127))
    return np.asarray(numbers.astype(np.float64) * np.repeat(factors, numbers.shape[1] // factors.shape[1], axis=1))


def _tf32(values: Array) -> Array:
    """What the tensor core reads of an f32: 19 of its bits."""
    return (np.ascontiguousarray(values).view(np.uint32) & _TF32_BITS).view(np.float32)


def _coded(function: Update, dtype: Any) -> Update:
    """An update of numbers as one of their codes."""

    def update(old: Array, operand: Array) -> Array:
        handles = (stock.TensorHandle(codes, dtype) for codes in (old, operand))
        return np.asarray(narrow(function(*map(widen, handles)), dtype).data)

    return update


def _swap(old: Array, pair: Array) -> Array:
    return np.where(old == pair["expected"], pair["wanted"], old)


def _exchange(old: Array, operand: Array) -> Array:
    return operand


_UPDATES: dict[str, Update] = {
    "ADD": np.add,
    "FADD": np.add,
    "MAX": np.maximum,
    "UMAX": np.maximum,
    "MIN": np.minimum,
    "UMIN": np.minimum,
    "AND": np.bitwise_and,
    "OR": np.bitwise_or,
    "XOR": np.bitwise_xor,
    "XCHG": _exchange,
}


class Semantic(TritonSemantic):  # type: ignore[misc]
    """Triton's rules of types and broadcasting over `Builder`."""

    def load(self, ptr: Any, mask: Any, other: Any, *rest: Any) -> Any:
        self.builder.fills_with_nonsense = other is None
        return super().load(ptr, mask, other, *rest)

    def dot_scaled(
        self, lhs: Any, lhs_scale: Any, lhs_format: Any, rhs: Any, rhs_scale: Any, rhs_format: Any, acc: Any, *_: Any
    ) -> Any:
        """The sum of products of codes times scales of groups. As scales are multiplied after the sum of a group, no
        factor leaves the range of f32."""
        left = _scaled(lhs.handle, lhs_scale.handle, lhs_format)
        right = _scaled(_transposed(rhs.handle), rhs_scale.handle, rhs_format)
        total = np.matmul(left, right.T)
        total = total if acc is None else total + acc.handle.data
        return self.tensor(narrow(total, tl.float32), tl.block_type(tl.float32, list(total.shape)))

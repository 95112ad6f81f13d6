"""Typed values in LLVM IR text: how each dtype is held in registers and in memory, constants, widening to vectors.

f16 is `half`; bf16 is held as its 16 bits (`i16`), since LLVM's native conversions flush subnormals on some machines;
bool is `i1` in registers and one byte in memory. An element of a narrow type is a byte that holds its code, as NumPy
has it; the bits above those of a code that is loaded may be anything.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from intarsia.backends.cpu.llvm import Function
from intarsia.ir.conversion import code_of
from intarsia.ir.dtypes import BOOL, F16, F32, F64, I64, U8, DType

Number: TypeAlias = "int | float | bool"

_FLOATS = {"f64": "double", "f32": "float", "f16": "half"}
_SUFFIXES = {"double": "f64", "float": "f32", "half": "f16"}


def element_type(dtype: DType) -> str:
    """The LLVM type of a value in a register."""
    return _FLOATS.get(dtype.name) or ("i1" if dtype == BOOL else f"i{max(dtype.bits, 8)}")


def storage_type(dtype: DType) -> str:
    """The LLVM type of an element in memory."""
    return "i8" if dtype == BOOL else element_type(dtype)


def vector_type(element: str, lanes: int) -> str:
    """The type of `lanes` elements; of one: the element."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def suffix(element: str, lanes: int) -> str:
    """How an intrinsic's name spells a type: f32, v16f32, i64, …"""
    name = _SUFFIXES.get(element, element)
    return name if lanes == 1 else f"v{lanes}{name}"


@dataclass(frozen=True)
class Value:
    """A scalar (`lanes` is 1) or a vector in a register. `text` is a name or a constant."""

    text: str
    dtype: DType
    lanes: int = 1

    @property
    def element(self) -> str:
        return element_type(self.dtype)

    @property
    def type(self) -> str:
        return vector_type(self.element, self.lanes)

    @property
    def suffix(self) -> str:
        return suffix(self.element, self.lanes)

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


def constant_text(value: Number, dtype: DType) -> str:
    """A scalar constant, rounded to the dtype."""
    if dtype == BOOL:
        return "true" if value else "false"
    if dtype.is_narrow and dtype.is_float:
        return constant_text(code_of(value, dtype), U8)
    if dtype.is_integer:
        number = int(value) & ((1 << dtype.bits) - 1)
        return str(number - (1 << dtype.bits) if number >> (dtype.bits - 1) else number)
    with np.errstate(over="ignore"):
        rounded = np.asarray(float(value), np.float64).astype(dtype.numpy)
    if dtype == F16:
        return f"0xH{int(rounded.view(np.uint16)):04X}"
    if dtype in (F32, F64):  # LLVM writes both as the bits of a double
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(rounded)))[0]:016X}"
    return constant_text(int(rounded.view(np.int16)), I64)


def constant(value: Number, dtype: DType, lanes: int = 1) -> Value:
    """A constant, the same in every lane."""
    text = constant_text(value, dtype)
    return Value(text if lanes == 1 else f"splat ({element_type(dtype)} {text})", dtype, lanes)


def vector_constant(values: Sequence[Number], dtype: DType) -> Value:
    """A vector of constants."""
    element = element_type(dtype)
    parts = ", ".join(f"{element} {constant_text(v, dtype)}" for v in values)
    return Value(f"<{parts}>", dtype, len(values))


def zero(dtype: DType, lanes: int = 1) -> Value:
    if dtype.specials == "scale":  # whose code 0 is 2^-127
        return constant(0, dtype, lanes)
    return Value("zeroinitializer" if lanes > 1 else constant_text(0, dtype), dtype, lanes)


def splat(function: Function, text: str, element: str, lanes: int) -> str:
    """A scalar in every lane of a vector."""
    if not text.startswith("%"):
        return f"splat ({element} {text})"
    vector = vector_type(element, lanes)
    first = function.op(f"insertelement {vector} poison, {element} {text}, i64 0")
    return function.op(f"shufflevector {vector} {first}, {vector} poison, <{lanes} x i32> zeroinitializer")


def widen(function: Function, value: Value, lanes: int) -> Value:
    """The value with `lanes` lanes; a scalar is repeated."""
    if value.lanes == lanes:
        return value
    assert value.lanes == 1, f"{value.type} as {lanes} lanes"
    return Value(splat(function, value.text, value.element, lanes), value.dtype, lanes)


def extract(function: Function, value: Value, lane: int) -> Value:
    """One lane of a vector as a scalar."""
    if value.lanes == 1:
        return value
    return Value(function.op(f"extractelement {value}, i64 {lane}"), value.dtype)


def insert(function: Function, value: Value, lane: int, element: Value) -> Value:
    """The vector with one lane replaced."""
    return Value(function.op(f"insertelement {value}, {element}, i64 {lane}"), value.dtype, value.lanes)


def shuffle(function: Function, a: Value, b: Value, lanes: Sequence[int]) -> Value:
    """The lanes of `a` and then `b` that are named by number."""
    mask = ", ".join(f"i32 {i}" for i in lanes)
    return Value(function.op(f"shufflevector {a}, {b}, <{len(lanes)} x i32> <{mask}>"), a.dtype, len(lanes))


def padded(function: Function, value: Value) -> Value:
    """The value with lanes behind it that hold nothing, up to a power of two.

    LLVM takes a vector of another number of lanes apart, lane by lane, where it passes from one block to another.
    """
    return resized(function, value, 1 << (value.lanes - 1).bit_length())


def resized(function: Function, value: Value, lanes: int) -> Value:
    """The first lanes of a value, or all of them with lanes behind them that hold nothing."""
    if lanes == value.lanes:
        return value
    if lanes == 1:
        return extract(function, value, 0)
    if value.lanes == 1:
        vector = vector_type(value.element, lanes)
        text = function.op(f"insertelement {vector} poison, {value}, i64 0")
        return Value(text, value.dtype, lanes)
    mask = ", ".join(f"i32 {i}" if i < value.lanes else "i32 poison" for i in range(lanes))
    text = function.op(f"shufflevector {value}, {value.type} poison, <{lanes} x i32> <{mask}>")
    return Value(text, value.dtype, lanes)


def select(function: Function, condition: Value, then: Value, otherwise: Value) -> Value:
    """`then` where the condition (bool) holds, else `otherwise`; scalars are widened as needed."""
    lanes = max(condition.lanes, then.lanes, otherwise.lanes)
    if condition.text in ("true", "false"):
        return widen(function, then if condition.text == "true" else otherwise, lanes)
    a, b = widen(function, then, lanes), widen(function, otherwise, lanes)
    condition = condition if condition.lanes == 1 else widen(function, condition, lanes)
    if a.text == b.text:
        return a
    return Value(function.op(f"select {condition}, {a}, {b}"), a.dtype, lanes)


def instruction(function: Function, opcode: str, a: Value, b: Value) -> Value:
    """A binary instruction on values of one dtype, such as `add` or `fmul`."""
    lanes = max(a.lanes, b.lanes)
    a, b = widen(function, a, lanes), widen(function, b, lanes)
    return Value(function.op(f"{opcode} {a}, {b.text}"), a.dtype, lanes)


def comparison(function: Function, opcode: str, a: Value, b: Value) -> Value:
    """A comparison such as `icmp slt` or `fcmp oeq`; gives bool."""
    lanes = max(a.lanes, b.lanes)
    a, b = widen(function, a, lanes), widen(function, b, lanes)
    return Value(function.op(f"{opcode} {a}, {b.text}"), BOOL, lanes)


def intrinsic(function: Function, name: str, *arguments: Value) -> Value:
    """An elementwise intrinsic `llvm.name` overloaded on the type of its arguments, which is that of its result."""
    lanes = max(a.lanes for a in arguments)
    wide = [widen(function, a, lanes) for a in arguments]
    first = wide[0]
    text = function.call(first.type, f"llvm.{name}.{first.suffix}", [(a.type, a.text) for a in wide])
    return Value(text, first.dtype, lanes)


def absolute(function: Function, value: Value) -> Value:
    """The magnitude of a signed integer, wrapping at the least one."""
    text = function.call(value.type, f"llvm.abs.{value.suffix}", [(value.type, value.text), ("i1", "false")])
    return Value(text, value.dtype, value.lanes)


def recast(function: Function, opcode: str, value: Value, dtype: DType) -> Value:
    """A conversion instruction such as `zext`, `fptosi` or `bitcast`; nothing where the types are the same."""
    if opcode == "bitcast" and value.element == element_type(dtype):
        return Value(value.text, dtype, value.lanes)
    target = vector_type(element_type(dtype), value.lanes)
    return Value(function.op(f"{opcode} {value} to {target}"), dtype, value.lanes)

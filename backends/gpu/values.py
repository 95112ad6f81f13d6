"""Texts of Triton expressions, with the dimensions that they have and how tightly they bind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from intarsia.ir.conversion import code_of
from intarsia.ir.dtypes import BF16, BOOL, F8E4M3, F8E5M2, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType

ATOM = 10
UNARY = 8
PRODUCT = 7
SUM = 6
SHIFT = 5
AND = 4
XOR = 3
OR = 2
COMPARISON = 1
"""How tightly Python's operators bind."""

_TYPE_NAMES: dict[DType, str] = {
    BOOL: "tl.int1", F16: "tl.float16", BF16: "tl.bfloat16", F32: "tl.float32", F64: "tl.float64",
    I8: "tl.int8", I16: "tl.int16", I32: "tl.int32", I64: "tl.int64",
    U8: "tl.uint8", U16: "tl.uint16", U32: "tl.uint32", U64: "tl.uint64",
}  # fmt: skip


def type_name(dtype: DType) -> str:
    """Triton's name of an element type. An element of a narrow type is a byte with its code in the low bits."""
    return _TYPE_NAMES[U8 if dtype.is_narrow else dtype]


FLOATS_OF_8_BITS = {F8E4M3: "tl.float8e4nv", F8E5M2: "tl.float8e5"}
"""Narrow types that Triton has too: what their codes are read as where chips multiply or convert them."""


@dataclass(frozen=True)
class Value:
    """An expression. axes: the lane axes that its dimensions run along, in order; none for a scalar. literal: is it a
    number in Python, whose type is that of what it meets? depends: buffers that it reads."""

    text: str
    dtype: DType
    axes: tuple[str, ...] = ()
    level: int = ATOM
    literal: bool = False
    depends: frozenset[str] = frozenset()

    def at(self, level: int) -> str:
        """The text as an operand of an operator of a level."""
        return self.text if self.level >= level else f"({self.text})"

    def spread(self, axes: tuple[str, ...], level: int = 0) -> str:
        """The text with a dimension for each of some axes, in which its own are contained in order."""
        if not self.axes or self.axes == axes:
            return self.at(level)
        return f"{self.at(ATOM)}[{', '.join(':' if a in self.axes else 'None' for a in axes)}]"

    def typed(self) -> Value:
        """The same with a type of its own, if it is a literal that would be taken for another."""
        if not self.literal or self.dtype in (F32, I32, BOOL):
            return self
        return replace(self, text=f"tl.full((), {self.text}, {type_name(self.dtype)})", level=ATOM, literal=False)


def union(order: tuple[str, ...], *values: Value) -> tuple[str, ...]:
    """The axes of several values, in the given order."""
    return tuple(a for a in order if any(a in v.axes for v in values))


def joined(*values: Value) -> frozenset[str]:
    """The buffers that several values read."""
    return frozenset().union(*(v.depends for v in values))


def literal(number: int | float | bool, dtype: DType) -> Value:
    """A number as it is written in Python."""
    if dtype.is_narrow:
        return Value(repr(code_of(number, dtype)), dtype, literal=True)
    if not dtype.is_float:
        return Value(repr(number), dtype, level=UNARY if number < 0 else ATOM, literal=True)
    if number != number:
        return Value('float("nan")', dtype, literal=True)
    if number in (float("inf"), float("-inf")):
        return Value(f'float("{"-" if number < 0 else ""}inf")', dtype, literal=True)
    text = repr(float(number))
    return Value(text, dtype, level=UNARY if text.startswith("-") else ATOM, literal=True)

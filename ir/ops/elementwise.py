"""Elementwise ops: the scalar functions over whole tensors with NumPy's broadcasting, and conversions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intarsia.ir.conversion import convert, literal, reinterpret
from intarsia.ir.dtypes import Array, DType, have_same_bits
from intarsia.ir.errors import CompileError
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Structured, Value
from intarsia.ir.scalar import Apply, Bitcast, Const, Load
from intarsia.ir.scalar import Cast as CastExpr
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.types import TensorType, Type


def broadcast(shapes: tuple[tuple[Size, ...], ...]) -> tuple[Size, ...] | None:
    """The common shape by NumPy's rule (an extent that is the number 1 stretches), or None if there is none."""
    rank = max((len(s) for s in shapes), default=0)
    result = [ONE] * rank
    for shape in shapes:
        for position, extent in enumerate(shape, rank - len(shape)):
            if result[position] == ONE:
                result[position] = extent
            elif extent not in (ONE, result[position]):
                return None
    return tuple(result)


def broadcast_load(position: int, value: Value, axes: tuple[Axis, ...]) -> Load:
    """The element of an operand that belongs to a point of `axes`: trailing axes align, extents of 1 read index 0."""
    shape = value.tensor.shape
    own = axes[len(axes) - len(shape) :]
    indices = tuple(ZERO if s == ONE else Size.of(a.name) for s, a in zip(shape, own))
    return Load(operand(position), indices, value.dtype)


def axes_for(shape: tuple[Size, ...], prefix: str = "i") -> tuple[Axis, ...]:
    """Fresh axes i0, i1, … over a shape."""
    return tuple(Axis.of(f"{prefix}{d}", extent) for d, extent in enumerate(shape))


@dataclass(frozen=True, eq=False)
class Elementwise(Structured):
    """A scalar function applied to whole tensors, which broadcast. Text: `%2 = add %0, %1 : f32[4, 8]`."""

    function: str
    arguments: tuple[Value, ...]

    def infer(self) -> tuple[Type, ...]:
        try:
            dtype = FUNCTIONS[self.function].result(tuple(a.dtype for a in self.arguments))
        except TypeError as error:
            raise CompileError("E0202", str(error), self.span) from None
        shape = broadcast(tuple(a.tensor.shape for a in self.arguments))
        if shape is None:
            types = " and ".join(str(a.type) for a in self.arguments)
            raise CompileError("E0204", f"{self.function} of {types}: the shapes do not broadcast", self.span)
        return (TensorType(dtype, shape),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.value.tensor.shape)
        loads = tuple(broadcast_load(p, a, axes) for p, a in enumerate(self.arguments))
        return Space(axes, Apply(self.function, loads), self.value.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        dtype = self.arguments[-1].dtype
        if dtype.is_float and dtype.bits == 16 and self.function != "where":  # in f32, and rounded once
            result = np.asarray(FUNCTIONS[self.function].reference(*(a.astype(np.float32) for a in arrays)))
            return (result.astype(self.value.dtype.numpy),)
        return (np.asarray(FUNCTIONS[self.function].reference(*arrays)),)


@dataclass(frozen=True, eq=False)
class Cast(Structured):
    """Every element converted to `dtype`.

    An `optional` rounding stands for arithmetic in a type that the target lacks: an op that goes on in the wider type
    may take x itself. A conversion that the program asks for is never optional.
    """

    x: Value
    dtype: DType
    optional: bool = False

    def infer(self) -> tuple[Type, ...]:
        return (self.x.tensor.with_dtype(self.dtype),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.x.tensor.shape)
        return Space(axes, CastExpr(self.dtype, broadcast_load(0, self.x, axes)), self.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (convert(arrays[0], self.x.dtype, self.dtype),)


@dataclass(frozen=True, eq=False)
class BitcastOp(Structured):
    """The bits of every element read as another type of the same width."""

    x: Value
    dtype: DType
    name = "bitcast"

    def infer(self) -> tuple[Type, ...]:
        if not have_same_bits(self.x.dtype, self.dtype):
            raise CompileError("E0202", f"bitcast of {self.x.dtype} to {self.dtype}: the widths differ", self.span)
        return (self.x.tensor.with_dtype(self.dtype),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.x.tensor.shape)
        return Space(axes, Bitcast(self.dtype, broadcast_load(0, self.x, axes)), self.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (reinterpret(arrays[0], self.x.dtype, self.dtype),)


@dataclass(frozen=True, eq=False)
class Constant(Structured):
    """A scalar literal. Text: `%0 = constant 1.5 : f32`."""

    literal: int | float | bool
    dtype: DType

    def __post_init__(self) -> None:
        object.__setattr__(self, "literal", Const(self.literal, self.dtype).value)
        super().__post_init__()

    def infer(self) -> tuple[Type, ...]:
        return (TensorType(self.dtype),)

    @property
    def space(self) -> Space:
        return Space((), Const(self.literal, self.dtype), self.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (literal(self.literal, self.dtype),)

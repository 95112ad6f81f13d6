"""Reductions and contractions over whole tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intarsia.ir.dtypes import BF16, I64, Array, DType
from intarsia.ir.errors import CompileError
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.elementwise import axes_for, broadcast
from intarsia.ir.scalar import Apply, Expr, Load, cast
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.types import TensorType, Type


def accumulated(combiner: str, body: Expr) -> tuple[Expr, DType]:
    """The body in the dtype in which a reduction over it accumulates, and the dtype of the result.

    f16 and bf16 accumulate in f32 and give their own type; narrow integers accumulate in and give i32 or u32; a sum of
    bools counts in i64. A cast moves into a product, whose factors are exact in the wider type.
    """
    dtype = body.dtype
    if combiner not in ("sum", "prod"):
        return body, dtype
    if dtype.kind == "bool":
        return cast(I64, body), I64
    wide = dtype.accumulator
    result = dtype if dtype.is_float else wide
    match body:
        case Apply("mul", (left, right)) if wide != dtype:
            return Apply("mul", (cast(wide, left), cast(wide, right))), result
    return cast(wide, body), result


@dataclass(frozen=True, eq=False)
class Reduce(Structured):
    """`sum`, `prod`, `max`, `min`, `any` or `all` over some dimensions: `%1 = reduce %0 combiner=sum axes=(1,)`."""

    x: Value
    combiner: str
    axes: tuple[int, ...]
    keepdims: bool = False

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        self.require(self.combiner in COMBINERS, f"there is no reduction '{self.combiner}'")
        distinct = len(set(self.axes)) == len(self.axes) and all(0 <= d < x.rank for d in self.axes)
        self.require(distinct, f"{self.axes} are not different dimensions of {x}")
        domain = COMBINERS[self.combiner].domain
        if (domain == "boolean") != (x.dtype.kind == "bool") and self.combiner in ("any", "all"):
            raise CompileError("E0202", f"{self.combiner} of {x}: the elements are not bool", self.span)
        if x.dtype.is_narrow:
            raise CompileError("E0202", f"{self.combiner} of {x}: cast {x.dtype} up first", self.span)
        _, dtype = accumulated(self.combiner, Load("a0", (), x.dtype))
        shape = tuple(
            ONE if d in self.axes else s for d, s in enumerate(x.shape) if self.keepdims or d not in self.axes
        )
        return (TensorType(dtype, shape),)

    @property
    def space(self) -> Space:
        x = self.x.tensor
        axes = axes_for(self.value.tensor.shape)
        names = iter(axes)
        indices: list[Size] = []
        for d in range(x.rank):
            axis = next(names) if self.keepdims or d not in self.axes else None
            indices.append(Size.of(f"r{d}" if d in self.axes or axis is None else axis.name))
        reduced = tuple(Axis.of(f"r{d}", x.shape[d]) for d in self.axes)
        body, dtype = accumulated(self.combiner, Load(operand(0), tuple(indices), x.dtype))
        if not reduced:
            return Space(axes, cast(dtype, body), dtype)
        return Space(axes, body, dtype, reduced, self.combiner)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        _, dtype = accumulated(self.combiner, Load("a0", (), self.x.dtype))
        wide = self.x.dtype.accumulator.numpy if self.x.dtype.is_float else dtype.numpy
        x = arrays[0].astype(wide if self.combiner in ("sum", "prod") else arrays[0].dtype)
        match self.combiner:
            case "max":
                result = np.max(x, axis=self.axes, keepdims=self.keepdims, initial=self.x.dtype.least)
            case "min":
                result = np.min(x, axis=self.axes, keepdims=self.keepdims, initial=self.x.dtype.greatest)
            case _:
                reduce: dict[str, Any] = {"sum": np.sum, "prod": np.prod, "any": np.any, "all": np.all}
                result = reduce[self.combiner](x, axis=self.axes, keepdims=self.keepdims)
        return (np.asarray(result).astype(dtype.numpy),)


@dataclass(frozen=True, eq=False)
class ArgReduce(Node):
    """`argmax` or `argmin` along one dimension: the lowest index of the winner, NaN wins. Gives i64."""

    x: Value
    which: str  # "argmax" or "argmin"
    axis: int

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        self.require(self.which in ("argmax", "argmin"), f"'{self.which}' is neither argmax nor argmin")
        self.require(0 <= self.axis < x.rank, f"{x} has no dimension {self.axis}")
        if x.shape[self.axis].constant == 0:
            raise CompileError("E0207", f"{self.which} over no elements: axis {self.axis} of {x} is empty", self.span)
        return (TensorType(I64, tuple(s for d, s in enumerate(x.shape) if d != self.axis)),)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        x = arrays[0].astype(np.float32) if self.x.dtype == BF16 else arrays[0]
        pick = np.argmax if self.which == "argmax" else np.argmin
        return (np.asarray(pick(x, axis=self.axis)).astype(np.int64),)


@dataclass(frozen=True, eq=False)
class Matmul(Structured):
    """Matrix product `lhs @ rhs` with NumPy's meaning: vectors, matrices, and leading dimensions that broadcast."""

    lhs: Value
    rhs: Value

    def infer(self) -> tuple[Type, ...]:
        a, b = self.lhs.tensor, self.rhs.tensor
        if not a.rank or not b.rank or a.dtype != b.dtype or a.dtype.is_narrow or a.dtype.kind == "bool":
            raise CompileError("E0202", f"matrix product of {a} and {b}: not of one number type", self.span)
        inner_a, inner_b = a.shape[-1], b.shape[-2 if b.rank > 1 else 0]
        if inner_a != inner_b:
            raise CompileError(
                "E0203", f"matrix product of {a} and {b}: inner dimensions {inner_a} and {inner_b} differ", self.span
            )
        batch = broadcast((a.shape[:-2], b.shape[:-2]))
        if batch is None:
            raise CompileError("E0204", f"matrix product of {a} and {b}: leading dimensions differ", self.span)
        rows = a.shape[-2:-1]
        columns = b.shape[-1:] if b.rank > 1 else ()
        _, dtype = accumulated("sum", Load("a0", (), a.dtype))
        return (TensorType(dtype, (*batch, *rows, *columns)),)

    @property
    def space(self) -> Space:
        a, b = self.lhs.tensor, self.rhs.tensor
        axes = axes_for(self.value.tensor.shape)
        names = [Size.of(x.name) for x in axes]
        column = [names.pop()] if b.rank > 1 else []
        row = [names.pop()] if a.rank > 1 else []
        sizes = {symbol for size in (*a.shape, *b.shape) for symbol in size.symbols}
        k = Axis.of("k" if "k" not in sizes else "r0", a.shape[-1])  # a dimension may be called k

        def batch(t: TensorType) -> list[Size]:
            own = names[len(names) - len(t.shape[:-2]) :] if t.rank > 2 else []
            return [ZERO if s == ONE else n for s, n in zip(t.shape[:-2], own)]

        left = Load(operand(0), (*batch(a), *row, Size.of(k.name)), a.dtype)
        right = Load(operand(1), (*batch(b), Size.of(k.name), *column), b.dtype)
        body, dtype = accumulated("sum", Apply("mul", (left, right)))
        return Space(axes, body, dtype, (k,), "sum")

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        wide = self.lhs.dtype.accumulator.numpy
        result = np.matmul(arrays[0].astype(wide), arrays[1].astype(wide))
        return (np.asarray(result).astype(self.value.dtype.numpy),)

"""Reductions and contractions over whole tensors."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.dtypes import I64, DType
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
        kept = [(d, s) for d, s in enumerate(x.shape) if d not in self.axes]
        indices: list[Size] = [ZERO] * x.rank
        axes: list[Axis] = []
        position = 0
        for d, s in enumerate(x.shape):
            if d in self.axes:
                if self.keepdims:
                    axes.append(Axis.of(f"i{position}", ONE))
                    position += 1
                continue
            axes.append(Axis.of(f"i{position}", s))
            indices[d] = Size.of(f"i{position}")
            position += 1
        assert len(axes) == len(kept) + (len(self.axes) if self.keepdims else 0)
        reduced = tuple(Axis.of(f"r{d}", x.shape[d]) for d in self.axes)
        for d in self.axes:
            indices[d] = Size.of(f"r{d}")
        body, dtype = accumulated(self.combiner, Load(operand(0), tuple(indices), x.dtype))
        if not reduced:
            return Space(tuple(axes), cast(dtype, body), dtype)
        return Space(tuple(axes), body, dtype, reduced, self.combiner)


@dataclass(frozen=True, eq=False)
class ArgReduce(Node):
    """`argmax` or `argmin` along one dimension: the lowest index of the winner, NaN wins. Gives i64."""

    x: Value
    which: str  # "argmax" or "argmin"
    axis: int

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        if x.shape[self.axis].constant == 0:
            raise CompileError("E0207", f"{self.which} over no elements: axis {self.axis} of {x} is empty", self.span)
        return (TensorType(I64, tuple(s for d, s in enumerate(x.shape) if d != self.axis)),)


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
        k = Axis.of("k", a.shape[-1])

        def batch(t: TensorType) -> list[Size]:
            own = names[len(names) - len(t.shape[:-2]) :] if t.rank > 2 else []
            return [ZERO if s == ONE else n for s, n in zip(t.shape[:-2], own)]

        left = Load(operand(0), (*batch(a), *row, Size.of("k")), a.dtype)
        right = Load(operand(1), (*batch(b), Size.of("k"), *column), b.dtype)
        body, dtype = accumulated("sum", Apply("mul", (left, right)))
        return Space(axes, body, dtype, (k,), "sum")

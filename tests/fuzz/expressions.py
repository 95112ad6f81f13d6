"""Random scalar expressions, for rules about them."""

from __future__ import annotations

import random

from intarsia.ir.dtypes import BOOL, F16, F32, I32, DType
from intarsia.ir.graph import Graph, Module, Parameter, Region
from intarsia.ir.ops import Compute
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Index, Load
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import TensorType

NUMBERS = (0, 1, -1, 2, 3, 8)
AXIS = Axis.of("i", 64)


class Expressions:
    """Random scalar expressions over an axis i < 64 and two operands of each dtype."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def of(self, dtype: DType, depth: int) -> Expr:
        pick = self.random.random()
        if depth == 0 or pick < 0.1:
            return self.leaf(dtype)
        if dtype == BOOL:
            return self.boolean(depth - 1)
        if pick < 0.2:
            other = self.random.choice([F32, I32, F16])
            return Cast(dtype, self.of(other, depth - 1))
        if pick < 0.3:
            return Apply("where", (self.of(BOOL, depth - 1), self.of(dtype, depth - 1), self.of(dtype, depth - 1)))
        if pick < 0.5:
            name = self.random.choice(["neg", "abs"])
            return Apply(name, (self.of(dtype, depth - 1),))
        names = ["add", "sub", "mul", "maximum", "minimum"]
        names += ["div"] if dtype.is_float else ["floordiv", "mod", "bit_and", "bit_or", "shift_left"]
        left = self.of(dtype, depth - 1)
        right = left if self.random.random() < 0.15 else self.of(dtype, depth - 1)
        return Apply(self.random.choice(names), (left, right))

    def boolean(self, depth: int) -> Expr:
        name = self.random.choice(["not", "and", "or", "lt", "le", "eq", "ne", "where", "index"])
        match name:
            case "not":
                return Apply("not", (self.of(BOOL, depth),))
            case "and" | "or":
                return Apply(name, (self.of(BOOL, depth), self.of(BOOL, depth)))
            case "where":
                return Apply("where", (self.of(BOOL, depth), self.of(BOOL, depth), self.of(BOOL, depth)))
            case "index":
                bound = Index(Size.of(self.random.choice([-1, 0, 5, 63, 64, 70])))
                return Apply(self.random.choice(["lt", "ge", "le", "gt"]), (Index(Size.of("i")), bound))
        dtype = self.random.choice([F32, I32])
        left = self.of(dtype, depth)
        return Apply(name, (left, left if self.random.random() < 0.2 else self.of(dtype, depth)))

    def leaf(self, dtype: DType) -> Expr:
        if self.random.random() < 0.4:
            if dtype == BOOL:
                return Const(self.random.random() < 0.5, BOOL)
            number = self.random.choice([*NUMBERS, -0.0, 0.5] if dtype.is_float else NUMBERS)
            return Const(float(number) if dtype.is_float else int(number), dtype)
        position = [F32, I32, F16, BOOL].index(dtype)
        return Load(f"a{2 * position + self.random.randrange(2)}", (Size.of("i"),), dtype)


def module_of(bodies: list[Expr]) -> Module:
    """A module that computes every body over the axis, from two operands of each dtype."""
    types = [TensorType.of(d, AXIS.extent) for d in (F32, I32, F16, BOOL) for _ in range(2)]
    parameters = tuple(Parameter(f"p{n}", t) for n, t in enumerate(types))
    operands = tuple(p.value for p in parameters)
    computes = tuple(Compute(operands, Space((AXIS,), body, body.dtype)) for body in bodies)
    return Module(Graph("f", Region(parameters, computes, tuple(c.value for c in computes))))

"""Ops without a space: they put elements in order or run along one dimension."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.dtypes import I64
from intarsia.ir.graph import Node, Value
from intarsia.ir.types import Type


@dataclass(frozen=True, eq=False)
class Sort(Node):
    """x in rising order along the last dimension; stable, NaN last."""

    x: Value

    def infer(self) -> tuple[Type, ...]:
        return (self.x.tensor,)


@dataclass(frozen=True, eq=False)
class Argsort(Node):
    """The indices (i64) that sort x along the last dimension; stable, NaN last."""

    x: Value

    def infer(self) -> tuple[Type, ...]:
        return (self.x.tensor.with_dtype(I64),)


@dataclass(frozen=True, eq=False)
class Cumulative(Node):
    """Running `sum` or `prod` along `axis`; element k covers 0..k. The dtype is as that of the reduction."""

    x: Value
    combiner: str
    axis: int

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        dtype = I64 if x.dtype.kind == "bool" else x.dtype if x.dtype.is_float else x.dtype.accumulator
        return (x.with_dtype(dtype),)

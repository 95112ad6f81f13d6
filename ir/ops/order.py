"""Ops without a space: they put elements in order or run along one dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intarsia.ir.dtypes import BF16, I64, Array
from intarsia.ir.graph import Node, Value
from intarsia.ir.types import Type


@dataclass(frozen=True, eq=False)
class Sort(Node):
    """x in rising order along the last dimension; stable, NaN last."""

    x: Value

    def infer(self) -> tuple[Type, ...]:
        self.require(self.x.tensor.rank > 0, f"{self.x.type} has no dimension to sort along")
        return (self.x.tensor,)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        order = np.argsort(_comparable(arrays[0], self.x), axis=-1, kind="stable")
        return (np.take_along_axis(arrays[0], order, axis=-1),)


@dataclass(frozen=True, eq=False)
class Argsort(Node):
    """The indices (i64) that sort x along the last dimension; stable, NaN last."""

    x: Value

    def infer(self) -> tuple[Type, ...]:
        self.require(self.x.tensor.rank > 0, f"{self.x.type} has no dimension to sort along")
        return (self.x.tensor.with_dtype(I64),)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (np.argsort(_comparable(arrays[0], self.x), axis=-1, kind="stable").astype(np.int64),)


@dataclass(frozen=True, eq=False)
class Cumulative(Node):
    """Running `sum` or `prod` along `axis`; element k covers 0..k. The dtype is as that of the reduction."""

    x: Value
    combiner: str
    axis: int

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        self.require(self.combiner in ("sum", "prod"), f"'{self.combiner}' does not run along a dimension")
        self.require(0 <= self.axis < x.rank, f"{x} has no dimension {self.axis}")
        dtype = I64 if x.dtype.kind == "bool" else x.dtype if x.dtype.is_float else x.dtype.accumulator
        return (x.with_dtype(dtype),)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        run = np.cumsum if self.combiner == "sum" else np.cumprod
        dtype = self.value.dtype
        wide = dtype.accumulator.numpy if dtype.is_float else dtype.numpy
        return (run(arrays[0].astype(wide), axis=self.axis, dtype=wide).astype(dtype.numpy),)


def _comparable(array: Array, value: Value) -> Array:
    """bf16 as f32, which NumPy knows how to sort with NaN last."""
    return array.astype(np.float32) if value.dtype == BF16 else array

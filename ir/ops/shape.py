"""Ops that only move elements: every one is a space whose body is a load, so they fuse into what uses them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from intarsia.ir.dtypes import Array, DType
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Structured, Value
from intarsia.ir.ops.elementwise import axes_for, broadcast, broadcast_load
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Apply, Const, Expr, Index, Load, apply, where
from intarsia.ir.sizes import ONE, ZERO, Size, product, row_major_strides
from intarsia.ir.space import Space, operand
from intarsia.ir.types import TensorType, Type


@dataclass(frozen=True, eq=False)
class Reshape(Structured):
    """The same elements in row-major order under another shape."""

    x: Value
    shape: tuple[Size, ...]

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        if product(self.shape) != x.elements and not (x.is_static and all(s.constant is not None for s in self.shape)):
            pass  # symbolic sizes that differ in form are compared when they are known
        elif product(self.shape) != x.elements:
            new = TensorType(x.dtype, self.shape)
            raise CompileError(
                "E0205", f"reshape of {x} to {new}: {x.elements} elements do not make {new.elements}", self.span
            )
        return (TensorType(x.dtype, self.shape),)

    @property
    def space(self) -> Space:
        indices = _reshape_subscripts(self.shape, self.x.tensor.shape)
        return Space(axes_for(self.shape), Load(operand(0), indices, self.x.dtype), self.x.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (arrays[0].reshape([int(s) for s in self.shape]),)


@lru_cache(maxsize=1024)
def _reshape_subscripts(shape: tuple[Size, ...], source: tuple[Size, ...]) -> tuple[Size, ...]:
    """`reshape_indices` for the axes of a result of `shape`: proofs about open sizes take long, shapes come again."""
    axes = axes_for(shape)
    facts = Facts(names=frozenset(n for s in (*shape, *source) for n in s.symbols))
    for axis in axes:
        facts = facts.within(axis.name, 0, axis.upper).given(axis.upper - 1)
    return reshape_indices(tuple(Size.of(a.name) for a in axes), shape, source, facts)


def reshape_indices(
    indices: tuple[Size, ...], shape: tuple[Size, ...], source: tuple[Size, ...], facts: Facts
) -> tuple[Size, ...]:
    """Subscripts into an array of shape `source` for the element at `indices` of the same elements in `shape`."""
    flat = sum((i * s for i, s, extent in zip(indices, row_major_strides(shape), shape) if extent != ONE), ZERO)
    facts = facts.given(*(s - 1 for s in source))
    result: list[Size] = []
    for position, (stride, extent) in enumerate(zip(row_major_strides(source), source)):
        index = simplify(flat // stride, facts)
        result.append(index if position == 0 else simplify(index % extent, facts))
    return tuple(result)


@dataclass(frozen=True, eq=False)
class Transpose(Structured):
    """Dimensions in another order: dimension d of the result is dimension `axes[d]` of x."""

    x: Value
    axes: tuple[int, ...]

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        self.require(sorted(self.axes) == list(range(x.rank)), f"{self.axes} does not order the dimensions of {x}")
        return (TensorType(x.dtype, tuple(x.shape[a] for a in self.axes)),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.value.tensor.shape)
        indices = [ZERO] * len(axes)
        for axis, source in zip(axes, self.axes):
            indices[source] = Size.of(axis.name)
        return Space(axes, Load(operand(0), tuple(indices), self.x.dtype), self.x.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (arrays[0].transpose(self.axes),)


@dataclass(frozen=True, eq=False)
class BroadcastTo(Structured):
    """x repeated along new leading dimensions and along dimensions of extent 1."""

    x: Value
    shape: tuple[Size, ...]

    def infer(self) -> tuple[Type, ...]:
        if broadcast((self.x.tensor.shape, self.shape)) != self.shape:
            new = TensorType(self.x.dtype, self.shape)
            raise CompileError("E0204", f"{self.x.type} does not broadcast to {new}", self.span)
        return (TensorType(self.x.dtype, self.shape),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.shape)
        return Space(axes, broadcast_load(0, self.x, axes), self.x.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (np.broadcast_to(arrays[0], [int(s) for s in self.shape]),)


@dataclass(frozen=True, eq=False)
class Slice(Structured):
    """`x[start : start + step * extent : step]` in every dimension, with steps of 1 where none are given; dimensions in
    `dropped` have extent 1 and go."""

    x: Value
    starts: tuple[Size, ...]
    extents: tuple[Size, ...]
    steps: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.steps or (1,) * len(self.starts))
        super().__post_init__()

    @classmethod
    def along(cls, x: Value, d: int, start: Size | int, extent: Size | int) -> Slice:
        """`x[start : start + extent]` along dimension d, and all of the other dimensions."""
        shape = x.tensor.shape
        starts = (ZERO,) * d + (Size.of(start),) + (ZERO,) * (len(shape) - d - 1)
        return cls(x, starts, (*shape[:d], Size.of(extent), *shape[d + 1 :]))

    @classmethod
    def row(cls, x: Value, number: Size) -> Slice:
        """`x[number]`: one element of the first dimension, and all of the others."""
        shape = x.tensor.shape[1:]
        return cls(x, (number, *(ZERO for _ in shape)), (ONE, *shape), dropped=(0,))

    def infer(self) -> tuple[Type, ...]:
        ranks = {len(self.starts), len(self.extents), len(self.steps), self.x.tensor.rank}
        self.require(len(ranks) == 1, f"a start, an extent and a step for each dimension of {self.x.type}")
        self.require(
            all(self.extents[d] == ONE for d in self.dropped if 0 <= d < self.x.tensor.rank),
            "a dropped dimension has extent 1",
        )
        kept = tuple(e for d, e in enumerate(self.extents) if d not in self.dropped)
        return (TensorType(self.x.dtype, kept),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.value.tensor.shape)
        names = iter(axes)
        indices = tuple(
            start if d in self.dropped else start + Size.of(next(names).name) * step
            for d, (start, step) in enumerate(zip(self.starts, self.steps))
        )
        return Space(axes, Load(operand(0), indices, self.x.dtype), self.x.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        picked = arrays[0]
        for d, (start, extent, step) in enumerate(zip(self.starts, self.extents, self.steps)):
            picked = np.take(picked, [int(start) + k * step for k in range(int(extent))], axis=d)
        return (picked.squeeze(self.dropped),)


@dataclass(frozen=True, eq=False)
class Pad(Structured):
    """x with `before[d]` and `after[d]` elements of `literal` around it along each dimension d."""

    x: Value
    before: tuple[Size, ...]
    after: tuple[Size, ...]
    literal: int | float | bool

    @classmethod
    def along(cls, x: Value, d: int, before: Size | int, after: Size | int) -> Pad:
        """x with so many zeros before and after it along dimension d."""
        rest = x.tensor.rank - d - 1
        front, back = ((ZERO,) * d + (Size.of(n),) + (ZERO,) * rest for n in (before, after))
        return cls(x, front, back, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "literal", Const(self.literal, self.x.dtype).value)
        super().__post_init__()

    def infer(self) -> tuple[Type, ...]:
        x = self.x.tensor
        fits = len(self.before) == len(self.after) == x.rank
        self.require(fits, f"elements before and after each dimension of {x}")
        return (TensorType(x.dtype, tuple(b + s + a for b, s, a in zip(self.before, x.shape, self.after))),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.value.tensor.shape)
        indices = tuple(Size.of(a.name) - b for a, b in zip(axes, self.before))
        conditions: list[Expr] = []
        for axis, before, after, extent in zip(axes, self.before, self.after, self.x.tensor.shape):
            if before != ZERO:
                conditions.append(apply("ge", Index(Size.of(axis.name)), Index(before)))
            if after != ZERO:
                conditions.append(apply("lt", Index(Size.of(axis.name)), Index(before + extent)))
        body: Expr = Load(operand(0), indices, self.x.dtype)
        if conditions:
            inside = conditions[0]
            for c in conditions[1:]:
                inside = Apply("and", (inside, c))
            body = where(inside, body, Const(self.literal, self.x.dtype))
        return Space(axes, body, self.x.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        result = np.full([int(s) for s in self.value.tensor.shape], self.literal, self.x.dtype.numpy)
        result[tuple(slice(int(b), int(b) + n) for b, n in zip(self.before, arrays[0].shape))] = arrays[0]
        return (result,)


@dataclass(frozen=True, eq=False)
class Concat(Structured):
    """Tensors one after the other along `axis`."""

    parts: tuple[Value, ...]
    axis: int

    def infer(self) -> tuple[Type, ...]:
        self.require(bool(self.parts), "nothing to put together")
        first = self.parts[0].tensor
        self.require(0 <= self.axis < first.rank, f"{first} has no dimension {self.axis}")
        for part in self.parts[1:]:
            same = part.tensor.rank == first.rank and all(
                d == self.axis or a == b for d, (a, b) in enumerate(zip(part.tensor.shape, first.shape))
            )
            if not same or part.dtype != first.dtype:
                raise CompileError(
                    "E0206", f"concat of {first} and {part.type} along axis {self.axis}: they do not fit", self.span
                )
        shape = list(first.shape)
        shape[self.axis] = sum((p.tensor.shape[self.axis] for p in self.parts), ZERO)
        return (TensorType(first.dtype, tuple(shape)),)

    @property
    def space(self) -> Space:
        axes = axes_for(self.value.tensor.shape)
        dtype: DType = self.value.dtype
        along = Size.of(axes[self.axis].name)
        offsets = [ZERO]
        for part in self.parts[:-1]:
            offsets.append(offsets[-1] + part.tensor.shape[self.axis])

        def element(position: int) -> Load:
            indices = [Size.of(a.name) for a in axes]
            indices[self.axis] = along - offsets[position]
            return Load(operand(position), tuple(indices), dtype)

        body: Expr = element(len(self.parts) - 1)
        for position in reversed(range(len(self.parts) - 1)):
            body = where(apply("lt", Index(along), Index(offsets[position + 1])), element(position), body)
        return Space(axes, body, dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return (np.concatenate(arrays, axis=self.axis),)

"""`dequantize` and `quantize`: what a block format means, as nodes of the graph.

A value of a group is (code - zero) * scale. Each element reads the scale of its group, `scale[k // 128, n]`, so
whatever reads the values computes them from codes on the way, and no wide tensor need exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from intarsia.dsl.semantics.values import Item, ListElement
from intarsia.ir.conversion import largest
from intarsia.ir.dtypes import F32, I32, U8, U32, DType
from intarsia.ir.errors import Span
from intarsia.ir.formats import BlockFormat
from intarsia.ir.graph import Value
from intarsia.ir.scalar import Expr, apply
from intarsia.ir.sizes import ZERO, Size, minimum
from intarsia.ir.space import Axis, Space
from intarsia.ir.terms import Term, where

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder

Point: TypeAlias = "tuple[Size, ...]"
Parts: TypeAlias = "Mapping[str, Item]"
"""The tensors that store one, by the dotted names of `BlockFormat.leaves`."""


@dataclass(frozen=True)
class Blocks:
    """A tensor of `shape` in a format, and what writes nodes about it."""

    builder: Builder
    format: BlockFormat
    shape: tuple[Size, ...]
    span: Span

    # ------------------------------------------------------------------ from codes to values

    def values(self, parts: Parts) -> Value:
        """The values, in f32, of the tensors that store them."""
        scales = self._scales(parts)
        return self._each(self.shape, lambda point: self._value(parts, scales, point), F32)

    def value(self, parts: Parts, point: Point) -> Expr:
        """The value of one element."""
        return self._value(parts, self._scales(parts), point).expr

    def _value(self, parts: Parts, scales: Item, point: Point) -> Term:
        group = self._group(point)
        number = self._number(self._load(parts["codes"], point))
        factor = self._factor(scales, group, parts)
        if self.format.zero is None:
            return number * factor
        zero = self._load(parts["zero"], group).cast(F32)
        return number * factor - zero if self.format.zero_means == "value" else (number - zero) * factor

    def _scales(self, parts: Parts) -> Item:
        """The scales as a tensor of floats."""
        if not isinstance(self.format.scale, BlockFormat):
            return parts["scale"]
        own = {name.removeprefix("scale."): part for name, part in parts.items() if name.startswith("scale.")}
        return self._of_scales(self.format.scale).values(own)

    def _of_scales(self, format_: BlockFormat) -> Blocks:
        return Blocks(self.builder, format_, self.format.grouped(self.shape), self.span)

    def _factor(self, scales: Item, group: Point, parts: Parts) -> Term:
        """What a code of 1 is in a group."""
        factor = self._load(scales, group).cast(F32)
        if self.format.tensor_scale is not None:
            factor = factor * self._load(parts["tensor_scale"], ()).cast(F32)
        return factor * self.format.unit if self.format.unit != 1.0 else factor

    def _number(self, code: Term) -> Term:
        """The number that a code stands for: itself, or an entry of the format's table."""
        table = self.format.table
        if table is None:
            return code.cast(F32)
        found = [code.cast(F32).like(entry) for entry in table]
        bit = 1
        while len(found) > 1:  # halved by each bit: the last two by the highest one
            is_set = (code.cast(I32) & bit).differs(0)
            found = [where(is_set, odd, even) for even, odd in zip(found[::2], found[1::2])]
            bit *= 2
        return found[0]

    # ------------------------------------------------------------------ from values to codes

    def codes(self, x: Value) -> dict[str, Item]:
        """The tensors that store the values of `x`, in f32: codes to the nearest, ties to even, saturated."""
        parts = self._symmetric(x) if self.format.zero is None else self._with_zeros(x)
        scales = self._scales(parts)

        def code(point: Point) -> Term:
            group = self._group(point)
            factor, number = self._factor(scales, group, parts), self._load(x, point)
            if self.format.zero is None:
                return self._nearest(_quotient(number, factor))
            zero = self._load(parts["zero"], group).cast(F32)
            if self.format.zero_means == "value":
                return self._nearest(_quotient(number + zero, factor))
            return self._nearest(_quotient(number, factor) + zero)

        return {"codes": self._each(self.shape, code, self.format.codes), **parts}

    def _nearest(self, number: Term) -> Term:
        codes, table = self.format.codes, self.format.table
        if table is not None:
            between = [(a + b) / 2 for a, b in pairwise(table)]
            above = [where(number > middle, Term(number.expr).cast(I32).like(1), 0) for middle in between]
            return sum(above[1:], above[0])
        if codes.is_float:
            return _clipped(number, -self.format.largest, self.format.largest)
        return _clipped(number.round(), float(codes.least), float(codes.greatest)).cast(I32)

    def _symmetric(self, x: Value) -> dict[str, Item]:
        """Scales such that the largest magnitude of a group becomes the largest code."""
        magnitudes = self._over_groups(x, "max", abs)
        shape = self.format.grouped(self.shape)
        if self.format.power:
            return {"scale": self._each(shape, lambda g: self._power(self._load(magnitudes, g)), self._scale_type)}
        if self.format.tensor_scale is None:
            return self._stored(lambda g: self._load(magnitudes, g) * (1.0 / self.format.largest))
        whole = Blocks(self.builder, self.format.along(None), self.shape, self.span)._over_groups(x, "max", abs)
        most = self.format.largest * largest(self._scale_type)
        parts: dict[str, Item] = {}
        parts["tensor_scale"] = self._each((), lambda _: self._load(whole, ()) / most, self.format.tensor_scale)

        def scale(group: Point) -> Term:
            tensor_scale = self._load(parts["tensor_scale"], ()).cast(F32)
            return _quotient(self._load(magnitudes, group) / self.format.largest, tensor_scale)

        return {**self._stored(scale), **parts}

    def _power(self, magnitude: Term) -> Term:
        """The code of 2^(floor(log2 magnitude) - exponent of the largest code): exponent fields differ by as much. A
        group with an infinity or a NaN has the scale NaN."""
        field = (magnitude.bitcast(U32) >> 23).cast(I32)
        exponent = math.floor(math.log2(self.format.largest * self.format.unit))
        code = where(field.equals(255), 255, where(field < exponent, 0, field - exponent))
        return code.cast(U8).bitcast(self._scale_type)

    def _with_zeros(self, x: Value) -> dict[str, Item]:
        """Scales and zero points such that the ends of a group's range become the first and the last code.

        A zero point that is an integer can only be the code of 0, so the range takes in 0.
        """
        codes, zero = self.format.codes, self.format.zero
        assert zero is not None
        least, most = self._over_groups(x, "min", lambda v: v), self._over_groups(x, "max", lambda v: v)

        def ends(group: Point) -> tuple[Term, Term]:
            low, high = self._load(least, group), self._load(most, group)
            return (_least(low, 0.0), _most(high, 0.0)) if zero.is_integer else (low, high)

        steps = float(codes.greatest) - float(codes.least) if codes.is_integer else 2 * self.format.largest
        first = float(codes.least) if codes.is_integer else -self.format.largest

        def scale(group: Point) -> Term:
            low, high = ends(group)
            return (high - low) / steps

        parts = self._stored(scale)
        scales = self._scales(parts)

        def zero_point(group: Point) -> Term:
            low, factor = ends(group)[0], self._factor(scales, group, parts)
            if self.format.zero_means == "value":
                return factor * first - low
            found = first - _quotient(low, factor)
            return _clipped(found.round(), float(zero.least), float(zero.greatest)) if zero.is_integer else found

        parts["zero"] = self._each(self.format.grouped(self.shape), zero_point, zero)
        return parts

    @property
    def _scale_type(self) -> DType:
        assert isinstance(self.format.scale, DType)
        return self.format.scale

    def _stored(self, scale: Callable[[Point], Term]) -> dict[str, Item]:
        """Scales in the type, or the format, in which they are stored."""
        shape = self.format.grouped(self.shape)
        if not isinstance(self.format.scale, BlockFormat):
            most = largest(self.format.scale)
            return {"scale": self._each(shape, lambda g: _least(scale(g), most), self.format.scale)}
        inner = self._of_scales(self.format.scale).codes(self._each(shape, scale, F32))
        return {f"scale.{name}": part for name, part in inner.items()}

    # ------------------------------------------------------------------ nodes

    def _group(self, point: Point) -> Point:
        """The group that a point is in, as subscripts of the scales."""
        if self.format.axis is None:
            return ()
        axis = range(len(self.shape))[self.format.axis]
        own = ZERO if self.format.group is None else point[axis] // self.format.group
        return (*point[:axis], own, *point[axis + 1 :])

    def _load(self, value: Item, point: Point) -> Term:
        assert isinstance(value, (Value, ListElement))
        return Term(self.builder.load(value, point))

    def _each(self, shape: tuple[Size, ...], body: Callable[[Point], Term], dtype: DType) -> Value:
        """A tensor, element by element."""
        axes = self._axes("i", shape)
        space = Space(axes, body(_names(axes)).cast(dtype).expr, dtype)
        return self.builder.compute(space, self.span)

    def _over_groups(self, x: Value, combiner: str, body: Callable[[Term], Term]) -> Value:
        """A function of the elements of `x`, reduced over each group."""
        axes = self._axes("i", self.format.grouped(self.shape))
        if self.format.axis is None:
            inside = self._axes("j", self.shape)
            point = _names(inside)
        else:
            axis, group = range(len(self.shape))[self.format.axis], self.format.group
            names, extent = _names(axes), self.shape[axis]
            start = ZERO if group is None else names[axis] * group
            end = extent if group is None else minimum(extent, start + group)
            inside = (Axis(self.builder.axis_symbol("j", None), start, end),)
            point = (*names[:axis], *_names(inside), *names[axis + 1 :])
        if not inside:
            return self._each((), lambda _: body(self._load(x, ())), F32)
        space = Space(axes, body(self._load(x, point)).expr, F32, inside, combiner)
        return self.builder.compute(space, self.span)

    def _axes(self, letter: str, shape: tuple[Size, ...]) -> tuple[Axis, ...]:
        return tuple(Axis.of(self.builder.axis_symbol(f"{letter}{d}", None), size) for d, size in enumerate(shape))


def _names(axes: tuple[Axis, ...]) -> Point:
    return tuple(Size.of(a.name) for a in axes)


def _quotient(number: Term, divisor: Term) -> Term:
    """The quotient; 0 where a group is all zeros and so is its scale."""
    return where(divisor.equals(0.0), 0.0, number / divisor)


def _least(x: Term, bound: float) -> Term:
    return Term(apply("minimum", x.expr, x.like(bound).expr))


def _most(x: Term, bound: float) -> Term:
    return Term(apply("maximum", x.expr, x.like(bound).expr))


def _clipped(x: Term, low: float, high: float) -> Term:
    return _least(_most(x, low), high)

"""Spaces and updates evaluated with NumPy: one evaluator for every structured op.

A box with too many points is cut in halves. A sum of products over plain ranges is a matrix product over the factors,
each evaluated over the axes that it uses: the same terms in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.functions import COMBINERS
from intarsia.ir.kernel import PUT_FUNCTIONS, PutOperator
from intarsia.ir.points import Context, Operand, Points, TooLarge
from intarsia.ir.ranges import cut_ranges
from intarsia.ir.scalar import Apply, Expr, apply
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space

_LIMIT = 1 << 24
"""Points held at once."""

_SPARSE_LIMIT = 1 << 16
"""The same where less than a quarter of the box counts, as in the rows of a sparse matrix."""

Ranges = dict[str, tuple[int, int]]


def evaluate_space(space: Space, operands: Mapping[str, Operand], context: Context) -> Array:
    """The tensor that a space describes; `operands` by the names that its loads use."""
    if not context.checks:
        space = cut_ranges(space, lambda name: _extents(operands[name]))
    value = _SpaceEvaluator(space, operands, context).box({})
    return context.arithmetic.cast(value, space.body.dtype, space.dtype)


def _extents(operand: Operand) -> tuple[Size, ...]:
    """One extent for each subscript; a list has one more, its length."""
    shape = operand.shape if isinstance(operand, np.ndarray) else (len(operand), *operand[0].shape)
    return tuple(map(Size.of, shape))


@dataclass(frozen=True)
class _SpaceEvaluator:
    """Evaluates parts of one space: `box` gives the part within some ranges, in the dtype of the body."""

    space: Space
    operands: Mapping[str, Operand]
    context: Context

    def box(self, within: Ranges) -> Array:
        if self.factors:
            parts = [self._points(axes, within) for axes in self.factor_axes]
            if max(p.count for p in parts) <= _LIMIT:
                return self._contract(parts, within)
        try:
            points = self._points(self.space.all_axes, within, _LIMIT)
            if not _is_sparse(points):
                return self._dense(points)
        except TooLarge:
            pass
        name, (low, high) = self._longest_axis(within)
        if high - low <= 1:
            return self._dense(self._points(self.space.all_axes, within))
        middle = (low + high) // 2
        first, second = (self.box({**within, name: r}) for r in ((low, middle), (middle, high)))
        for position, axis in enumerate(self.space.axes):
            if axis.name == name:
                return np.concatenate((first, second), axis=position)
        assert self.space.combiner is not None
        dtype = self.space.body.dtype
        return self.context.arithmetic.apply(COMBINERS[self.space.combiner].function, (first, second), (dtype, dtype))

    def _points(self, axes: Sequence[Axis], within: Ranges, limit: int | None = None) -> Points:
        return Points(axes, self.context, self.operands, within, limit)

    def _longest_axis(self, within: Ranges) -> tuple[str, tuple[int, int]]:
        """Where to cut: the longest axis of the result, of those that other bounds depend on if there are any; where
        the result is one point, the first reduced axis that is longer than 1."""
        outline = self._points(self.space.axes, within)
        bounds = [b for a in self.space.all_axes for b in (a.lower, a.upper)]
        driving = {n: r for n, r in outline.ranges.items() if any(n in b.symbols for b in bounds) and r[1] - r[0] > 1}
        ranges = dict(driving or outline.ranges)
        for count in range(len(self.space.reduced)):
            if any(high - low > 1 for low, high in ranges.values()):
                break
            ranges = self._points((*self.space.axes, *self.space.reduced[: count + 1]), within).ranges
        return max(ranges.items(), key=lambda r: r[1][1] - r[1][0])

    def _dense(self, points: Points) -> Array:
        """The value at every point of the box, reduced."""
        space, arithmetic = self.space, self.context.arithmetic
        value = np.broadcast_to(points.value(space.body), points.shape)
        if space.combiner is None:
            return value
        dtype = space.body.dtype
        if points.is_ragged:
            neutral = arithmetic.lift(np.asarray(space.neutral, dtype.numpy), dtype)
            value = np.where(points.active, value, neutral)
        return arithmetic.reduce(space.combiner, value, tuple(range(len(space.axes), value.ndim)), dtype)

    # ------------------------------------------------------------------ sums of products

    @cached_property
    def factors(self) -> tuple[Expr, ...]:
        """The factors of a sum of products over plain ranges, two or more with axes; else none."""
        space = self.space
        names = {a.name for a in space.all_axes}
        if space.combiner != "sum" or any(
            b.symbols & names or b.opaques for a in space.all_axes for b in (a.lower, a.upper)
        ):
            return ()
        factors = _product(space.body, names)
        used = [f.symbols & names for f in factors]
        covered = {a.name for a in space.reduced} <= set().union(*used)
        return factors if covered and sum(map(bool, used)) > 1 else ()

    @cached_property
    def factor_axes(self) -> list[tuple[Axis, ...]]:
        return [tuple(a for a in self.space.all_axes if a.name in f.symbols) for f in self.factors]

    def _contract(self, parts: list[Points], within: Ranges) -> Array:
        """Multiply the factors pairwise, the smallest first, down to two; those by a matrix product."""
        dtype = self.space.body.dtype
        tensors = [_Named(tuple(p.ranges), np.broadcast_to(p.value(f), p.shape)) for f, p in zip(self.factors, parts)]
        while len(tensors) > 2:
            tensors.sort(key=lambda t: t.array.size)
            first, second = tensors.pop(0), tensors.pop(0)
            names = first.union(second)
            both = self.context.arithmetic.apply("mul", (first.over(names), second.over(names)), (dtype, dtype))
            tensors.append(_Named(names, both))
        result = self._matrix_product(*tensors)
        reduced = tuple(d for d, n in enumerate(result.names) if n not in {a.name for a in self.space.axes})
        if reduced:
            array = self.context.arithmetic.reduce("sum", result.array, reduced, dtype)
            result = _Named(tuple(n for n in result.names if n in {a.name for a in self.space.axes}), array)
        outline = self._points(self.space.axes, within)
        return np.broadcast_to(result.over(tuple(outline.ranges)), outline.shape)

    def _matrix_product(self, left: _Named, right: _Named) -> _Named:
        """The product of two factors, summed over the reduced axes that both have."""
        kept = {a.name for a in self.space.axes}
        batch = [n for n in left.names if n in right.names and n in kept]
        inner = [n for n in left.names if n in right.names and n not in kept]
        rows = [n for n in left.names if n not in right.names]
        columns = [n for n in right.names if n not in left.names]
        a, b = left.grouped(batch, rows, inner), right.grouped(batch, inner, columns)
        extent = {**dict(zip(left.names, left.array.shape)), **dict(zip(right.names, right.array.shape))}
        names = (*batch, *rows, *columns)
        array = self.context.arithmetic.matmul(a, b, self.space.body.dtype)
        return _Named(names, array.reshape([extent[n] for n in names]))


@dataclass(frozen=True, eq=False)
class _Named:
    """An array whose dimensions have the names of axes."""

    names: tuple[str, ...]
    array: Array

    def union(self, other: _Named) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.names, *other.names)))

    def over(self, names: tuple[str, ...]) -> Array:
        """The array with its dimensions in the order of `names`, of extent 1 where it lacks one."""
        order = [self.names.index(n) for n in names if n in self.names]
        array = self.array.transpose(order)
        extents = dict(zip((n for n in names if n in self.names), array.shape))
        return array.reshape([extents.get(n, 1) for n in names])

    def grouped(self, *groups: list[str]) -> Array:
        """The array with one dimension for each group of names."""
        order = [self.names.index(n) for group in groups for n in group]
        extent = dict(zip(self.names, self.array.shape))
        shape = [int(np.prod([extent[n] for n in group], dtype=np.int64)) for group in groups]
        return self.array.transpose(order).reshape(shape)


def _product(e: Expr, axes: set[str]) -> tuple[Expr, ...]:
    """The factors of a product. What depends on no axis stays with what it is multiplied by: a power of two that brings
    a number into the range of its type could leave it elsewhere."""
    match e:
        case Apply("mul", (left, right)):
            (*before, last), (first, *after) = _product(left, axes), _product(right, axes)
            if last.symbols & axes and first.symbols & axes:
                return (*before, last, first, *after)
            return (*before, apply("mul", last, first), *after)
    return (e,)


def _is_sparse(points: Points) -> bool:
    """Is the box large, and do few of its points count?"""
    if not points.is_ragged or points.count <= _SPARSE_LIMIT:
        return False
    return float(np.mean(points.active)) < 0.25


@dataclass(frozen=True)
class UpdateEvaluator:
    """Evaluates an update of `base`; the other fields are those of `ops.index.Update`."""

    base: Array
    axes: tuple[Axis, ...]
    targets: tuple[Size, ...]
    operator: PutOperator
    body: Expr
    operands: Mapping[str, Operand]
    context: Context

    def result(self) -> Array:
        """`base` with the body written, or merged by the operator, at the targets of every point."""
        result = self.base.copy()
        written = np.zeros(self.base.shape, np.int64) if self.context.checks and self.operator == "=" else None
        for points in self._boxes({}):
            index, values = self._writes(points)
            if self.operator == "=":
                result[index] = values
            else:
                function = PUT_FUNCTIONS[self.operator]
                result = self.context.arithmetic.merge_at(function, result, index, values, self.body.dtype)
            if written is not None:
                np.add.at(written, index, 1)
        if written is not None and (written > 1).any():
            place = ", ".join(map(str, np.argwhere(written > 1)[0]))
            raise CompileError("E0803", f"more than one value is written to [{place}]", self.context.span)
        return result

    def _boxes(self, within: Ranges) -> Iterator[Points]:
        """The points, in as many boxes as it takes."""
        try:
            yield Points(self.axes, self.context, self.operands, within, _LIMIT)
        except TooLarge:
            name, (low, high) = self._first_long_axis(within)
            middle = (low + high) // 2
            yield from self._boxes({**within, name: (low, middle)})
            yield from self._boxes({**within, name: (middle, high)})

    def _first_long_axis(self, within: Ranges) -> tuple[str, tuple[int, int]]:
        for count in range(1, len(self.axes) + 1):
            ranges = Points(self.axes[:count], self.context, self.operands, within).ranges
            name, (low, high) = list(ranges.items())[-1]
            if high - low > 1:
                return name, (low, high)
        raise AssertionError("one point does not fit")

    def _writes(self, points: Points) -> tuple[tuple[Array, ...], Array]:
        """Index arrays and the values that go there, one for each point that writes inside the tensor."""
        where = np.broadcast_to(points.active, points.shape).copy()
        places: list[Array] = []
        for d, (target, extent) in enumerate(zip(self.targets, self.base.shape)):
            place = np.broadcast_to(np.asarray(points.size(target)), points.shape)
            outside = ((place < 0) | (place >= extent)) & where
            if self.context.checks and target.opaques:
                points.report(outside, place, f"target {{}} of dimension {d} is outside 0..{extent}")
            assert target.opaques or not outside.any(), f"target {target} is outside dimension {d} of extent {extent}"
            where &= ~outside
            places.append(place)
        values = np.broadcast_to(points.value(self.body), points.shape)
        return tuple(p[where] for p in places), values[where]

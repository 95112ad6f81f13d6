"""Expressions evaluated at all points of a box of axes at once, as NumPy arrays.

Every axis has a dimension of its own. A bound that depends on other axes or on data makes the box the hull of the
points, and `active` says which of them count. `active` is narrowed inside the arms of a `where` and under the mask of a
load; elsewhere a subscript may fall outside and reads the nearest element, as language.md, section 5, says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load
from intarsia.ir.sizes import Atom, Extremum, Opaque, Quotient, Remainder, Size
from intarsia.ir.space import Axis

Integers: TypeAlias = "int | Array"
"""A number, or an i64 array over the axes."""

Operand: TypeAlias = "Array | list[Array]"


@dataclass(frozen=True)
class Context:
    """What an evaluation needs besides its axes.

    names: dimensions and counters. arithmetic: how floats are computed. checks: report subscripts that depend on data
    and fall outside, and divisions by zero, at `span`.
    """

    names: Mapping[str, int]
    arithmetic: Arithmetic
    checks: bool = False
    span: Span | None = None


class TooLarge(Exception):
    """The box holds more points than the evaluator takes at once."""


class Points:
    """The points of a box of axes, and what expressions are there."""

    def __init__(
        self,
        axes: Sequence[Axis],
        context: Context,
        operands: Mapping[str, Operand],
        within: Mapping[str, tuple[int, int]] | None = None,
        limit: int | None = None,
    ) -> None:
        """Lay out `axes`, each restricted to its range in `within`. Raises TooLarge beyond `limit` points."""
        self.context = context
        self.operands = operands
        self.rank = len(axes)
        self.ranges: dict[str, tuple[int, int]] = {}
        self.dimension = {axis.name: d for d, axis in enumerate(axes)}
        self.active: Array = np.ones((1,) * self.rank, np.bool_)
        self.is_ragged = False
        self._indices: dict[str, Array] = {}
        self._memo: dict[tuple[Expr, int], Array] = {}
        self._guards: list[Array] = [self.active]
        self._by_data: set[str] = set()  # axes whose bounds depend on data
        self.count = 1
        for axis in axes:
            self._append(axis, (within or {}).get(axis.name), limit)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(high - low for low, high in self.ranges.values())

    def _append(self, axis: Axis, within: tuple[int, int] | None, limit: int | None) -> None:
        lower, upper = self.size(axis.lower), self.size(axis.upper)
        if self._depends_on_data(axis.lower) or self._depends_on_data(axis.upper):
            self._by_data.add(axis.name)
        low, high = self._extreme(lower, np.minimum), self._extreme(upper, np.maximum)
        if within is not None:
            low, high = max(low, within[0]), min(high, within[1])
        self.ranges[axis.name] = (low, max(low, high))
        self.count *= max(0, high - low)
        if limit is not None and self.count > limit:
            raise TooLarge
        if high <= low:  # no point counts, whatever else there is
            self.active = np.zeros((1,) * self.rank, np.bool_)
            self._guards.append(self.active)
        index = np.arange(low, max(low, high), dtype=np.int64)
        index = index.reshape([-1 if d == self.dimension[axis.name] else 1 for d in range(self.rank)])
        self._indices[axis.name] = index
        if isinstance(lower, np.ndarray) or isinstance(upper, np.ndarray):
            self.is_ragged = True
            self.active = self.active & (index >= lower) & (index < upper)
            self._guards.append(self.active)

    def _extreme(self, bound: Integers, pick: np.ufunc) -> int:
        """The least or greatest value of a bound at the active points; 0 if there are none."""
        if isinstance(bound, int):
            return bound
        values, active = np.broadcast_arrays(bound, self.active)
        return int(pick.reduce(values[active])) if active.any() else 0

    # ------------------------------------------------------------------ integers

    def size(self, size: Size) -> Integers:
        """The value of an integer expression over axes, names and data."""
        if (number := size.constant) is not None:
            return number
        total: Integers = 0
        for monomial, coefficient in size.terms:
            term: Integers = coefficient
            for atom in monomial:
                term = term * self._atom(atom)
            total = total + term
        return total

    def _atom(self, atom: Atom) -> Integers:
        match atom:
            case str():
                return self._indices[atom] if atom in self._indices else int(self.context.names[atom])
            case Quotient(a, b):
                return _divide(self.size(a), self.size(b))[0]
            case Remainder(a, b):
                return _divide(self.size(a), self.size(b))[1]
            case Extremum(name, arguments):
                values = [self.size(a) for a in arguments]
                if all(isinstance(v, int) for v in values):
                    return min(values) if name == "min" else max(values)
                pick = np.minimum if name == "min" else np.maximum
                result = values[0]
                for v in values[1:]:
                    result = pick(result, v)
                return result
            case Opaque(value):
                found = self.value(value).astype(np.int64)
                return int(found.reshape(())) if found.size == 1 else found

    # ------------------------------------------------------------------ scalars

    def value(self, e: Expr) -> Array:
        """The value at every point, as an array that broadcasts to the shape of the box."""
        key = (e, id(self.active))
        if key not in self._memo:
            self._memo[key] = self._value(e)
        return self._memo[key]

    def _value(self, e: Expr) -> Array:
        arithmetic = self.context.arithmetic
        match e:
            case Const():
                return arithmetic.constant(e)
            case Index(size):
                return np.asarray(self.size(size), np.int64)
            case Load():
                return self._load(e)
            case Cast(dtype, inner):
                return arithmetic.cast(self.value(inner), inner.dtype, dtype)
            case Bitcast(dtype, inner):
                return arithmetic.bitcast(self.value(inner), inner.dtype, dtype)
            case Apply("where", (condition, then, otherwise)):
                holds = self.value(condition)
                arms = [self._under(holds, then), self._under(~holds, otherwise)]
                return arithmetic.apply("where", [holds, *arms], [condition.dtype, then.dtype, then.dtype])
            case Apply(function, arguments):
                values = [self.value(a) for a in arguments]
                if self.context.checks and function in ("floordiv", "mod") and e.dtype.is_integer:
                    self._check_divisor(values[1])
                return arithmetic.apply(function, values, [a.dtype for a in arguments])

    def _under(self, guard: Array, e: Expr) -> Array:
        """The value of `e`, which counts only where `guard` holds too."""
        outer = self.active
        self.active = outer & guard
        self._guards.append(self.active)  # the memo is keyed by its identity
        result = self.value(e)
        self.active = outer
        return result

    def _load(self, load: Load) -> Array:
        arithmetic = self.context.arithmetic
        if load.mask:
            holds = np.ones((1,) * self.rank, np.bool_)
            for condition in load.mask:
                holds = holds & np.asarray(self.size(condition) > 0)
            other = load.other or Const(0, load.dtype)
            value = self._under(holds, replace(load, mask=(), other=None))
            return arithmetic.apply("where", [holds, value, arithmetic.constant(other)], [load.dtype] * 3)
        source, indices = self.operands[load.buffer], load.indices
        if isinstance(source, list):
            source, indices = self.list_element(source, indices[0]), indices[1:]
            if not isinstance(source, np.ndarray):
                source, indices = np.stack(source), load.indices
        if (view := self._view(source, indices)) is not None:
            return view
        if not source.size:
            if self.context.checks:
                self._gathered(load, source, indices)
            return np.zeros((1,) * self.rank, source.dtype)
        return np.asarray(source[self._gathered(load, source, indices)])

    def list_element(self, source: list[Array], index: Size) -> Operand:
        """The one tensor of a list that is read, or the whole list if the axes decide."""
        position = self.size(index)
        if not isinstance(position, int):
            return source
        if not 0 <= position < len(source):
            if self.context.checks and index.opaques:
                outside = np.ones((1,), np.bool_)
                self.report(outside, np.asarray(position), f"subscript {{}} of a list is outside 0..{len(source)}")
            assert index.opaques or not self.active.any(), f"{index} is outside a list of {len(source)}"
            position = max(0, min(position, len(source) - 1))
        return source[position]

    def _view(self, source: Array, indices: tuple[Size, ...]) -> Array | None:
        """A load whose every subscript is `c*axis + k` of its own axis, or a number, in bounds: a slice, no copy."""
        slices: list[Any] = []
        placed: dict[int, int] = {}
        for d, (index, extent) in enumerate(zip(indices, source.shape)):
            own = [a for a in index.symbols if a in self._indices]
            if index.opaques or len(own) > 1:
                return None
            low, step, length = 0, 1, 1
            if own:
                coefficient = index.coefficient(own[0])
                dimension = self.dimension[own[0]]
                if not coefficient or coefficient < 0 or dimension in placed:
                    return None
                low, high = self.ranges[own[0]]
                step, length = coefficient, high - low
                index = index - Size.of(own[0]) * coefficient
                placed[dimension] = d
            start = self.size(index) + low * step
            if not isinstance(start, int) or not 0 <= start <= extent - 1 - (length - 1) * step or not length:
                return None
            slices.append(slice(start, start + (length - 1) * step + 1, step))
        order = [placed[k] for k in sorted(placed)]
        rest = [d for d in range(source.ndim) if d not in placed.values()]
        slices.append(...)
        view = source[tuple(slices)].transpose([*order, *rest])
        extents = dict(zip(sorted(placed), view.shape))
        return np.asarray(view.reshape([extents.get(k, 1) for k in range(self.rank)]))

    def _gathered(self, load: Load, source: Array, indices: tuple[Size, ...]) -> tuple[Array, ...]:
        """Index arrays, clamped to the tensor. What depends on data is checked, what does not is our duty."""
        found: list[Array] = []
        for d, (index, extent) in enumerate(zip(indices, source.shape)):
            position = np.asarray(self.size(index))
            outside = (position < 0) | (position >= extent)
            if outside.any():
                wrong = outside & self.active
                by_data = self._depends_on_data(index)
                if by_data and self.context.checks:
                    self.report(wrong, position, f"subscript {{}} of dimension {d} is outside 0..{extent}")
                assert by_data or not wrong.any(), f"{load} is outside dimension {d} of extent {extent}"
                position = np.clip(position, 0, extent - 1)
            found.append(position)
        return tuple(found)

    def _depends_on_data(self, size: Size) -> bool:
        return bool(size.opaques) or bool(size.symbols & self._by_data)

    # ------------------------------------------------------------------ checks

    def _check_divisor(self, divisor: Array) -> None:
        wrong = (divisor == 0) & self.active
        if wrong.any():
            where = self._place(wrong)
            raise CompileError("E0802", f"integer division by zero{where}", self.context.span)

    def report(self, wrong: Array, position: Array, message: str) -> None:
        """Raise the error of the first point where `wrong` holds, if there is one."""
        if not wrong.any():
            return
        first = tuple(np.argwhere(wrong)[0])
        value = np.broadcast_to(position, wrong.shape)[first]
        raise CompileError("E0801", message.format(int(value)) + self._place(wrong), self.context.span)

    def _place(self, wrong: Array) -> str:
        """The values of the axes at the first point where `wrong` holds."""
        first = np.argwhere(wrong)[0]
        shown = [
            f"{name} = {low + int(k)}"
            for (name, (low, _)), k, extent in zip(self.ranges.items(), first, wrong.shape)
            if extent > 1 or self.ranges[name][1] - low == 1
        ]
        return f" (at {', '.join(shown)})" if shown else ""


def _divide(a: Integers, b: Integers) -> tuple[Integers, Integers]:
    """Floor quotient and remainder, 0 where the divisor is 0."""
    if isinstance(a, int) and isinstance(b, int):
        return divmod(a, b) if b else (0, 0)
    divisor = np.asarray(b)
    safe = np.where(divisor == 0, 1, divisor)
    return np.where(divisor == 0, 0, a // safe), np.where(divisor == 0, 0, a % safe)

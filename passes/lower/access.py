"""Accesses of a kernel made safe: a kernel touches no memory outside its buffers, whatever its data.

Subscripts that depend on data are clamped to the tensor they read, before spaces are composed (`clamp`). When a
statement is written, `Guard` proves every other subscript in bounds from the ranges of the axes; what holds only inside
an arm of `where(i > 0, x[i - 1], …)` becomes a masked load, and what cannot be proved is clamped too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from intarsia.ir.dtypes import BOOL
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import (
    Apply,
    Bitcast,
    Cast,
    Const,
    Expr,
    Index,
    Load,
    Mask,
    apply,
    as_size,
    constant,
    transform,
    where,
)
from intarsia.ir.sizes import Size, maximum, minimum

Extents = Callable[[str], "tuple[Size, ...]"]
"""The extents of a buffer by its name, one for each subscript."""


def clamp(expression: Expr, extents: Extents) -> Expr:
    """Hold subscripts that depend on data inside what they read: `x[max(0, min(i, n - 1))]`, and 0 where n is 0."""

    def rule(e: Expr) -> Expr | None:
        if not isinstance(e, Load) or not any(i.opaques for i in e.indices):
            return None
        shape = extents(e.buffer)
        held: Expr = replace(e, indices=tuple(_clamped(i, n) if i.opaques else i for i, n in zip(e.indices, shape)))
        for index, extent in zip(e.indices, shape):
            if index.opaques and extent.constant == 0:
                return constant(0, e.dtype)
            if index.opaques and extent.constant is None:
                held = where(apply("gt", Index(extent), Index(Size.of(0))), held, constant(0, e.dtype))
        return held

    return transform(expression, rule=rule)


def _clamped(index: Size, extent: Size) -> Size:
    return maximum(0, minimum(_signed(index), extent - 1))


def _signed(index: Size) -> Size:
    """Values of u64 beyond the range of i64 become its greatest, so that they clamp upward."""

    def bounded(value: Expr) -> Size:
        if value.dtype.name == "u64":
            value = apply("minimum", value, Const((1 << 63) - 1, value.dtype))
        return Size.opaque(value)

    return index.substitute({}, bounded)


def affine_conditions(condition: Expr) -> tuple[Mask, bool]:
    """The comparisons of integer expressions without data that a condition joins by `and`, each as an expression that
    is greater than 0 where it holds; and whether they are all of the condition."""
    match condition:
        case Apply("and", (left, right)):
            (first, whole), (second, rest) = affine_conditions(left), affine_conditions(right)
            return tuple(dict.fromkeys((*first, *second))), whole and rest
        case Apply("lt" | "le" | "gt" | "ge" | "eq", (left, right)) if left.dtype.name == "i64":
            a, b = as_size(left), as_size(right)
            if a.opaques or b.opaques:
                return (), False
            match condition.function:
                case "lt":
                    return (b - a,), True
                case "le":
                    return (b - a + 1,), True
                case "gt":
                    return (a - b,), True
                case "ge":
                    return (a - b + 1,), True
            return (a - b + 1, b - a + 1), True
        case Apply("not", (inner,)):
            return negated_condition(inner)
        case Const(True, dtype) if dtype == BOOL:
            return (), True
    return (), False


def negated_condition(condition: Expr) -> tuple[Mask, bool]:
    """What holds where a single comparison does not; nothing for any other condition."""
    match condition:
        case Apply("lt" | "le" | "gt" | "ge"):
            found, whole = affine_conditions(condition)
            return tuple(1 - c for c in found), whole
        case Apply("not", (inner,)):
            return affine_conditions(inner)
        case Const(False, dtype) if dtype == BOOL:
            return (), True
    return (), False


class Guard:
    """Proves or makes safe the accesses of one statement, from facts about the names in scope and buffer extents."""

    def __init__(self, facts: Facts, extents: Mapping[str, tuple[Size, ...]]) -> None:
        self.facts = facts
        self.extents = extents
        self._memo: dict[tuple[Expr, Mask], Expr] = {}
        self._known: dict[Mask, Facts] = {(): facts}

    def expression(self, e: Expr, mask: Mask = ()) -> Expr:
        """The expression with safe loads, given the conditions that hold around it."""
        key = (e, mask)
        if key not in self._memo:
            self._memo[key] = self._guard(e, mask)
        return self._memo[key]

    def size(self, size: Size, mask: Mask = ()) -> Size:
        """An integer expression with the data it depends on read safely, its quotients simplified where possible."""
        if size.opaques:
            size = size.substitute({}, lambda value: as_size(self.expression(value, mask)))
        return simplify(size, self.facts)

    def is_within(self, index: Size, extent: Size, mask: Mask = ()) -> bool:
        known = self._facts(mask)
        return known.proves(index) and known.proves_below(index, extent)

    def _facts(self, mask: Mask) -> Facts:
        if mask not in self._known:
            self._known[mask] = self.facts.given(*(condition - 1 for condition in mask))
        return self._known[mask]

    def _guard(self, e: Expr, mask: Mask) -> Expr:
        match e:
            case Load():
                return self._load(e, mask)
            case Index(size):
                return Index(self.size(size, mask))
            case Apply("where", (condition, then, otherwise)):
                return self._where(condition, then, otherwise, mask)
            case Apply(function, arguments):
                return Apply(function, tuple(self.expression(a, mask) for a in arguments))
            case Cast(dtype, value):
                return Cast(dtype, self.expression(value, mask))
            case Bitcast(dtype, value):
                return Bitcast(dtype, self.expression(value, mask))
        return e

    def _where(self, condition: Expr, then: Expr, otherwise: Expr, mask: Mask) -> Expr:
        """`where` with guarded arms; one arm alone where the axes decide the condition, and a masked load where that
        says the same."""
        holds, whole = affine_conditions(condition)
        known = self._facts(mask)
        if any(known.proves(-c) for c in holds):
            return self.expression(otherwise, mask)
        unknown = tuple(c for c in holds if not known.proves(c - 1))
        if whole and not unknown:
            return self.expression(then, mask)
        first = self.expression(then, _joined(mask, unknown))
        second = self.expression(otherwise, _joined(mask, negated_condition(condition)[0]))
        if whole and (masked := _as_masked_load(mask, unknown, first, second)) is not None:
            return masked
        return where(self.expression(condition, mask), first, second)

    def _load(self, e: Load, mask: Mask) -> Expr:
        assert not e.mask, f"{e} is masked before it is guarded"
        extents = self.extents[e.buffer]
        indices = [self.size(i, mask) for i in e.indices]
        needs = [need for i, n in zip(indices, extents) for need in (i, n - 1 - i)]
        unproved = [need for need in needs if not self.facts.proves(need)]
        if not unproved:
            return replace(e, indices=tuple(indices))
        if mask and self._prove_all(unproved, mask):
            return replace(e, indices=tuple(indices), mask=self._needed(unproved, mask))
        may_be_empty: list[Size] = []
        for position, (index, extent) in enumerate(zip(indices, extents)):
            if index in unproved or extent - 1 - index in unproved:
                indices[position] = _clamped(index, extent)
                if not self.facts.proves(extent - 1):
                    may_be_empty.append(extent)
        return replace(e, indices=tuple(indices), mask=tuple(may_be_empty))

    def _prove_all(self, needs: list[Size], mask: Mask) -> bool:
        known = self._facts(mask)
        return all(known.proves(need) for need in needs)

    def _needed(self, needs: list[Size], mask: Mask) -> Mask:
        """The conditions of a mask without which the needs cannot be proved."""
        for condition in mask:
            rest = tuple(c for c in mask if c is not condition)
            if self._prove_all(needs, rest):
                mask = rest
        return mask


def _joined(mask: Mask, more: Mask) -> Mask:
    return tuple(dict.fromkeys((*mask, *more)))


def _as_masked_load(around: Mask, conditions: Mask, then: Expr, otherwise: Expr) -> Expr | None:
    """`where(c, x[i] if c, k)` is `x[i] if c else k` wherever the conditions `around` it hold; a conversion of the load
    stays outside where it maps 0 to k."""
    if not isinstance(otherwise, Const):
        return None
    match then:
        case Load(mask=mask) if mask and set(mask) <= {*around, *conditions}:
            needed = tuple(c for c in mask if c not in conditions)
            return replace(then, mask=(*needed, *conditions), other=None if _is_zero(otherwise) else otherwise)
        case Cast(dtype, value) if _is_zero(otherwise):
            inner = _as_masked_load(around, conditions, value, constant(0, value.dtype))
            return None if inner is None else Cast(dtype, inner)
    return None


def _is_zero(value: Const) -> bool:
    """Is it 0, but not -0.0?"""
    return value.value == 0 and math.copysign(1.0, value.value) > 0

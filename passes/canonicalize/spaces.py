"""Spaces: bodies by the scalar rules and by what the bounds of axes say; trivial axes and whole spaces vanish."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from intarsia.ir.dtypes import BOOL
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import BroadcastTo, Compute, Constant, Transpose, Update
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Apply, Const, Expr, Index, Load, as_size, cast, loads, transform
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand, size_loads
from intarsia.ir.types import TensorType
from intarsia.passes.canonicalize.scalar import simplified
from intarsia.passes.canonicalize.values import literal_of


def facts_of(axes: Iterable[Axis]) -> Facts:
    """What the axes of a space say: dimension names are at least 0, and lower <= axis < upper."""
    axes = tuple(axes)
    own = {a.name for a in axes}
    names = {n for a in axes for bound in (a.lower, a.upper) if not bound.opaques for n in bound.symbols} - own
    facts = Facts(names=frozenset(names))
    for axis in axes:
        facts = facts.given(Size.of(axis.name) - axis.lower) if not axis.lower.opaques else facts
        facts = facts.given(axis.upper - 1 - axis.name) if not axis.upper.opaques else facts
    return facts


def simplify_body(body: Expr, facts: Facts) -> Expr:
    """The body after the scalar rules and the comparisons of subscripts that the facts decide."""

    def rule(e: Expr) -> Expr | None:
        better = _step(e, facts)
        while better is not None and (again := _step(better, facts)) is not None:
            better = again
        return better

    return transform(body, rule=rule)


def _step(e: Expr, facts: Facts) -> Expr | None:
    return decided(e, facts) or shorter_subscripts(e, facts) or simplified(e)


def shorter_subscripts(e: Expr, facts: Facts) -> Expr | None:
    """x[(8 * i + j) // 8] -> x[i] where 0 <= j < 8"""
    match e:
        case Load(indices=indices):
            shorter = tuple(simplify(i, facts) for i in indices)
            return None if shorter == indices else replace(e, indices=shorter)
        case Index(size):
            short = simplify(size, facts)
            return None if short == size else Index(short)
    return None


def decided(e: Expr, facts: Facts) -> Expr | None:
    """i < n -> true where the bounds of the axes say so, -> false where they say the opposite"""
    match e:
        case Apply("lt" | "le" | "gt" | "ge" as name, (left, right)) if isinstance(left, Index) | isinstance(
            right, Index
        ):
            if not all(isinstance(a, (Index, Const)) for a in (left, right)):
                return None
            a, b = as_size(left), as_size(right)
            if name in ("gt", "ge"):
                a, b = b, a
            slack = 1 if name in ("lt", "gt") else 0  # a < b is b - a - 1 >= 0, a <= b is b - a >= 0
            if facts.proves(b - a - slack):
                return Const(True, BOOL)
            if facts.proves(a - b - 1 + slack):
                return Const(False, BOOL)
    return None


def simplify_space(node: Node) -> Node | None:
    """compute [i < n](e) -> compute [i < n](what the scalar rules and the bounds of i make of e); updates likewise"""
    match node:
        case Compute(arguments, space):
            body = simplify_body(space.body, facts_of(space.all_axes))
            return None if body == space.body else Compute(arguments, replace(space, body=body), **node.spans)
        case Update(axes=axes, body=old):
            body = simplify_body(old, facts_of(axes))
            return None if body == old else replace(node, body=body)
    return None


def reduce_over_one(node: Node) -> Node | None:
    """sum[k in a..a + 1](e) -> e at k = a, plus 0 where the sum is of floats, since it starts at 0"""
    match node:
        case Compute(arguments, space) if any(_is_one(a) for a in space.reduced):
            space = space.substitute({a.name: a.lower for a in space.reduced if _is_one(a)})
            reduced = tuple(a for a in space.reduced if not _is_one(a))
            if reduced:
                return Compute(arguments, replace(space, reduced=reduced), **node.spans)
            body = space.body
            if space.combiner == "sum" and body.dtype.is_float:
                body = Apply("add", (body, Const(0.0, body.dtype)))
            space = replace(space, body=cast(space.dtype, body), reduced=(), combiner=None)
            return Compute(arguments, space, **node.spans)
    return None


def _is_one(axis: Axis) -> bool:
    return axis.extent == ONE and not axis.lower.opaques


def reduce_over_nothing(node: Node) -> Node | None:
    """sum[k in 3..3](e) -> 0, max[k in 3..3](e) -> -inf, …"""
    match node:
        case Compute(_, space) if any((a.extent.constant or 0) < 0 or a.extent == ZERO for a in space.reduced):
            assert space.combiner is not None
            literal = COMBINERS[space.combiner].neutral(space.body.dtype)
            body = simplified(cast(space.dtype, Const(_as(literal, space.body), space.body.dtype)))
            return _filled(body or Const(_as(literal, space.body), space.dtype), node)
    return None


def _as(literal: int | float | bool, body: Expr) -> int | float | bool:
    return float(literal) if body.dtype.is_float else literal


def constant_space(node: Node) -> Node | None:
    """compute [i < n](c) -> broadcast(c)"""
    match node:
        case Compute(_, Space(body=Const() as literal, reduced=(), dtype=dtype)) if literal.dtype == dtype:
            return _filled(literal, node)
    return None


def _filled(literal: Expr, node: Node) -> Node:
    assert isinstance(literal, Const)
    scalar = Constant(literal.value, literal.dtype, span=node.span)
    shape = node.value.tensor.shape
    return BroadcastTo(scalar.value, shape, **node.spans) if shape else scalar


def literal_operand(node: Node) -> Node | None:
    """compute [i](x[i] * c[i]) -> compute [i](x[i] * 2.0) where c is 2.0, also broadcast; updates likewise

    Not in subscripts: one that depends on data is clamped to the tensor, and one that is a number is not.
    """
    match node:
        case Compute(operands, Space(body=body)) | Update(arguments=operands, body=body):
            first = len(node.operands) - len(operands)
            known = {operand(first + p): c for p, v in enumerate(operands) if (c := literal_of(v)) is not None}
            for inside in size_loads(index for load in loads(body) for index in load.indices) if known else ():
                known.pop(inside.buffer, None)

            def rule(e: Expr) -> Expr | None:
                return known.get(e.buffer) if isinstance(e, Load) else None

            changed = transform(body, rule=rule) if known else body
            if changed == body:
                return None
            if isinstance(node, Update):
                return replace(node, body=changed)
            assert isinstance(node, Compute)
            return Compute(operands, replace(node.space, body=changed), **node.spans)
    return None


def space_is_view(node: Node) -> Node | Value | None:
    """compute [i, j](x[i, j]) -> x, [i, j](x[j, i]) -> transpose(x), [i, j](x[j]) -> broadcast(x)"""
    match node:
        case Compute((x,), Space(axes, Load(indices=indices, dtype=dtype), result, ())) if dtype == result:
            if not isinstance(x.type, TensorType):
                return None
            position = {a.name: d for d, a in enumerate(axes)}
            read = [position.get(i.as_name or "") for i in indices]
            shape = node.value.tensor.shape
            if any(d is None or shape[d] != extent for d, extent in zip(read, x.tensor.shape)):
                return None
            dimensions = [d for d in read if d is not None]
            if dimensions == list(range(len(shape))):
                return x
            if sorted(dimensions) == list(range(len(shape))):
                return Transpose(x, tuple(dimensions.index(d) for d in range(len(shape))), **node.spans)
            if dimensions == list(range(len(shape) - len(dimensions), len(shape))):
                return BroadcastTo(x, shape, **node.spans)
    return None


def empty_update(node: Node) -> Value | None:
    """update a[i in 3..3] = e -> a"""
    match node:
        case Update(base, axes=axes) if any((a.extent.constant or 0) < 0 or a.extent == ZERO for a in axes):
            return base
    return None


RULES = (
    simplify_space,
    literal_operand,
    reduce_over_one,
    reduce_over_nothing,
    constant_space,
    space_is_view,
    empty_update,
)

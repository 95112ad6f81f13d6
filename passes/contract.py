"""Sums of products of several factors become sums of products of two, where that is less work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import ClassVar

from intarsia.ir.dtypes import DType
from intarsia.ir.graph import Module, Node, Value
from intarsia.ir.ops import Compute
from intarsia.ir.rewriting import rewrite
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Load, apply, cast, loads
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis, Space
from intarsia.passes.pipeline import Context, Pass

MOST_FACTORS = 6
"""The orders of more factors are too many to try."""

STORED = 16
"""What an element of a new tensor costs, in multiplications: it is written and read again."""

WORTH = 2 / 3
"""The part of the work that may be left."""


@dataclass(frozen=True)
class Contract(Pass):
    """Take the factors of a sum of products two at a time, and sum at once over what no other factor has.

    Before:  %0 = compute [i < 40, j < 50] sum[a < 16, b < 16](%g[a, b] * %u[i, a] * %v[j, b])
    After:   %0 = compute [b < 16, i < 40] sum[a < 16](%g[a, b] * %u[i, a])
             %1 = compute [i < 40, j < 50] sum[b < 16](%0[b, i] * %v[j, b])

    All orders are tried, and the one of least work is taken if it saves a third. Sizes that are not known, bounds that
    depend on other indices and factors that are no plain loads stay as they are.

    Keeps: values, to the last digits, as a factor is moved across a sum. Needs: `specialize`. Leaves: no sum of
    products of known sizes for which two at a time is much less work.
    """

    name: ClassVar[str] = "contract"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        def rule(node: Node) -> Node | None:
            new = pairwise(node)
            if new is not None:
                self.remark(context, "fusion", "factors of a sum are taken two at a time: less work", node.span)
            return new

        body = rewrite(module.graph.body, (rule,))
        return module.with_body(body)


Axes = frozenset[str]


@dataclass(frozen=True)
class Plan:
    """An order of contracting: a pair of factors by position (or one alone, to be summed first), what is left of their
    axes, and the plan for the other factors with the result behind them. `work` is all of it."""

    work: float
    merged: tuple[int, ...] = ()
    kept: Axes = frozenset()
    rest: Plan | None = None


def pairwise(node: Node) -> Node | None:
    """sum[i, j](a[i] * b[i, j] * c[j]) -> sum[j](sum[i](a[i] * b[i, j]) * c[j])"""
    match node:
        case Compute(arguments, Space(combiner="sum") as space) if _is_box(space):
            factors = _factors(space.body)
        case _:
            return None
    if factors is None:
        return None
    constants: list[Expr] = [f for f in factors if isinstance(f, Const)]
    terms: list[Expr] = [f for f in factors if not isinstance(f, Const)]
    extents = {a.name: int(a.extent.constant or 0) for a in space.all_axes}
    used = [frozenset(t.symbols & extents.keys()) for t in terms]
    if not 2 <= len(terms) <= MOST_FACTORS or not {a.name for a in space.reduced} <= frozenset().union(*used):
        return None
    result = frozenset(a.name for a in space.axes)
    plan = _plan(tuple(used), result, extents)
    if plan.rest is None or plan.work > WORTH * (len(terms) - 1) * math.prod(extents.values()):
        return None
    return _built(node, list(arguments), space, terms, constants, plan)


def _is_box(space: Space) -> bool:
    """Is every extent a number of at least 1? A sum of nothing is 0, whatever its factors are."""
    return all(a.lower == ZERO and (a.extent.constant or 0) > 0 for a in space.all_axes)


def _factors(body: Expr) -> list[Expr] | None:
    """What a body multiplies, if that is nothing but loads and numbers."""
    match body:
        case Apply("mul", (left, right)):
            first, second = _factors(left), _factors(right)
            return None if first is None or second is None else first + second
        case Load() | Const() | Cast(_, Load()):
            return [body]
    return None


def _plan(terms: tuple[Axes, ...], result: Axes, extents: Mapping[str, int]) -> Plan:
    """The order of least work for factors with these axes."""

    def points(axes: Axes) -> int:
        return math.prod(extents[a] for a in axes)

    def after(merged: tuple[int, ...]) -> Plan:
        others = tuple(t for n, t in enumerate(terms) if n not in merged)
        axes = frozenset().union(*(terms[n] for n in merged))
        kept = axes & result.union(*others)
        rest = _plan((*others, kept), result, extents)
        return Plan(points(axes) + STORED * points(kept) + rest.work, merged, kept, rest)

    for n, own in enumerate(terms):
        if len(terms) > 1 and own - result.union(*terms[:n], *terms[n + 1 :]):
            return after((n,))  # what only one factor has is summed first: never more work
    if len(terms) <= 2:
        return Plan(points(result.union(*terms)))
    return min((after(pair) for pair in combinations(range(len(terms)), 2)), key=lambda p: p.work)


def _built(
    node: Compute, arguments: list[Value], space: Space, terms: list[Expr], constants: list[Expr], plan: Plan
) -> Node:
    """The computations of a plan; numbers are multiplied last."""
    axes = {a.name: a for a in space.all_axes}
    while plan.rest is not None:
        merged = [terms[n] for n in plan.merged]
        kept = tuple(axes[name] for name in _layout(merged, plan.kept))
        step = _compute(node, arguments, merged, kept, space.body.dtype, axes)
        load = Load(f"a{len(arguments)}", tuple(Size.of(a.name) for a in kept), space.body.dtype)
        arguments = [*arguments, step.value]
        terms = [*(t for n, t in enumerate(terms) if n not in plan.merged), load]
        plan = plan.rest
    return _compute(node, arguments, [*terms, *constants], space.axes, space.dtype, axes)


def _layout(factors: list[Expr], kept: Axes) -> list[str]:
    """The order of the axes of a new tensor: as in its factors, those of the largest last, and at the end one along
    which a factor lies in memory."""
    read = [x for f in sorted(factors, key=lambda f: len(f.symbols)) for x in loads(f)]
    order = dict.fromkeys(name for x in read for i in x.indices for name in sorted(i.symbols & kept))
    dense = [name for x in read for i in x.indices[-1:] for name in sorted(i.symbols & kept)]
    return sorted(order, key=lambda name: name in dense[-1:])


def _compute(
    node: Compute,
    arguments: list[Value],
    factors: list[Expr],
    kept: tuple[Axis, ...],
    dtype: DType,
    axes: Mapping[str, Axis],
) -> Compute:
    """The product of factors, summed over those of their axes that are not kept."""
    body = reduce(lambda a, b: apply("mul", a, b), factors)
    names = {a.name for a in kept}
    reduced = tuple(a for name, a in axes.items() if name in body.symbols and name not in names)
    space = Space(kept, body if reduced else cast(dtype, body), dtype, reduced, "sum" if reduced else None)
    return Compute(tuple(arguments), space, **node.spans)

"""Factors of a sum of products of codes that do not change along it are multiplied after it: scales, above all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from intarsia.ir.dtypes import F32, I32
from intarsia.ir.graph import Module, Node, Structured, Value
from intarsia.ir.ops import Compute
from intarsia.ir.rewriting import rewrite
from intarsia.ir.scalar import Cast, Expr, Load, apply, cast, constant, loads, transform
from intarsia.ir.sizes import Size
from intarsia.ir.space import Space, operand, operand_position, rename_buffers
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.schedule.grouping import fits, integers
from intarsia.passes.schedule.groups import has_dots
from intarsia.passes.schedule.products import Product

NARROW = 8
"""Bits of elements up to which they are codes: read in place of the numbers that are made of them, they save memory."""


@dataclass(frozen=True)
class SinkScales(Pass):
    """Multiply what does not change along a sum of products of codes after it, and sum products of integers exactly.

    Before:  %0 = compute [i < M, k < K] (f32(%a[i, k]) * %s[i]) : f32[M, K]
             %1 = compute [k < K, j < N] (f32(%b[k, j]) * %t[j]) : f32[K, N]
             %2 = compute [i < M, j < N] sum[k < K](%0[i, k] * %1[k, j]) : f32[M, N]
    After:   %2 = compute [i < M, j < N] sum[k < K](i32(%a[i, k]) * i32(%b[k, j])) : i32[M, N]
             %3 = compute [i < M, j < N] (f32(%2[i, j]) * %s[i] * %t[j] + 0.0) : f32[M, N]

    The sum reads what its operands are made of, where that is codes of 8 bits or fewer times factors that do not change
    along it. What is left is summed in i32 if it is two integers, their sum always fits, and the target has dot
    instructions. Scales of groups along the sum stay in it: schedules form sums of groups.

    Keeps: values, to the last digits, as a factor is moved across a sum. Needs: `specialize`, `legalize-dtype`. Leaves:
    operands that nobody reads to `dce`.
    """

    name: ClassVar[str] = "sink-scales"
    exact: ClassVar[bool] = False
    moves_factors: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> Module:
        exact = has_dots(context.target)

        def rule(node: Node) -> Value | None:
            new = sunk(node, exact)
            if new is not None:
                self.remark(context, "fusion", "factors that do not change along a sum are multiplied once", node.span)
            return new

        body = rewrite(module.graph.body, (rule,))
        return module if body is module.graph.body else module.with_body(body)


def sunk(node: Node, exact: bool) -> Value | None:
    """sum[k](a[k] * s * (b[k, j] * t[j])) -> sum[k](a[k] * b[k, j]) * s * t[j], where a or b are codes"""
    if not isinstance(node, Structured) or node.space.combiner != "sum" or node.space.body.dtype != F32:
        return None
    space, arguments = node.space, list(node.operands)
    reduced = {axis.name for axis in space.reduced}
    product = Product.of(space.body)
    if product.below:
        return None
    factors = tuple(chain(*(_opened(f, arguments, reduced) for f in product.above)))
    fixed = [f for f in factors if not f.symbols & reduced]
    rest = [f for f in factors if f.symbols & reduced]
    if not fixed or not any(map(_is_code, rest)):
        return None
    body = Product(tuple(rest)).value(F32)
    count = math.prod(axis.extent.constant or 1 << 31 for axis in space.reduced)
    if exact and (product_of_integers := _of_integers(rest, count)) is not None:
        body = product_of_integers
    made = Compute(tuple(arguments), Space(space.axes, body, body.dtype, space.reduced, "sum"), span=node.span)
    total = cast(F32, Load(operand(len(arguments)), tuple(Size.of(a.name) for a in space.axes), body.dtype))
    scaled = apply("add", Product(tuple(fixed)).times(total), constant(0.0, F32))  # sums are never -0.0
    after = Space(space.axes, cast(space.dtype, scaled), space.dtype)
    return Compute((*arguments, made.value), after, span=node.span).value


def _opened(factor: Expr, arguments: list[Value], reduced: set[str]) -> Sequence[Expr]:
    """What a factor is the product of: codes, and what does not change along the sum; else the factor alone. What is
    read then is added to the arguments."""
    if not isinstance(factor, Load) or not factor.symbols & reduced:
        return (factor,)
    node = arguments[operand_position(factor.buffer)].node
    if not isinstance(node, Structured) or node.space.combiner is not None or any(i.opaques for i in factor.indices):
        return (factor,)
    own = dict(zip((a.name for a in node.space.axes), factor.indices))
    names = {operand(p): operand(len(arguments) + p) for p in range(len(node.operands))}
    product = Product.of(rename_buffers(transform(node.space.body, own), names))
    changing = [f for f in product.above if f.symbols & reduced]
    count = len(arguments)
    arguments += node.operands
    match product.above:
        case (Load(mask=()) as moved,) if not product.below:  # as a transpose does
            found = _opened(moved, arguments, reduced)
        case _:
            is_opened = not product.below and len(changing) < len(product.above) and all(map(_is_code, changing))
            found = product.above if is_opened else ()
    if len(found) > 1:
        return found
    del arguments[count:]
    return (factor,)


def _is_code(factor: Expr) -> bool:
    """Is it made of a stored element of few bits, and nothing else?"""
    read = list(dict.fromkeys(loads(factor)))
    return len(read) == 1 and read[0].dtype.bits <= NARROW


def _of_integers(factors: Sequence[Expr], count: int) -> Expr | None:
    """The product of two integers as one in i32, in which the sum of so many always fits."""
    pair = integers(factors)
    return None if pair is None or not fits(pair, count) else apply("mul", *(Cast(I32, e) for e in pair))

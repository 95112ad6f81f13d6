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
from intarsia.passes.schedule.grouping import fits, integers, without_zero
from intarsia.passes.schedule.groups import has_dots, is_integer
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
    instructions. Scales of groups along the sum stay in it, and so do zero points on a CPU: schedules form sums of
    groups. Codes that the program computes, such as those of activations, are read on a CPU only where integers are
    summed: it would decode them again and again.

    Keeps: values, to the last digits, as a factor is moved across a sum. Needs: `specialize`, `legalize-dtype`. Leaves:
    operands that nobody reads to `dce`.
    """

    name: ClassVar[str] = "sink-scales"
    exact: ClassVar[bool] = False
    moves_factors: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> Module:
        exact, on_cpu = has_dots(context.target), context.target.kind == "cpu"

        def rule(node: Node) -> Value | None:
            new = sunk(node, exact, on_cpu)
            if new is not None:
                self.remark(context, "fusion", "factors that do not change along a sum are multiplied once", node.span)
            return new

        body = rewrite(module.graph.body, (rule,))
        return module.with_body(body)


def sunk(node: Node, exact: bool, on_cpu: bool) -> Value | None:
    """sum[k](a[k] * s * (b[k, j] * t[j])) -> sum[k](a[k] * b[k, j]) * s * t[j], where a or b are codes"""
    if not isinstance(node, Structured) or node.space.combiner != "sum" or node.space.body.dtype != F32:
        return None
    space, arguments = node.space, list(node.operands)
    reduced = {axis.name for axis in space.reduced}
    product = Product.of(space.body)
    if product.below:
        return None
    ways = [_opened(f, arguments, reduced, on_cpu) for f in product.above]
    integral = exact and all(_has_integer(f, node.operands) for f in product.above if f.symbols & reduced)
    if on_cpu and not integral:
        ways = [(f,) if _is_computed(way, arguments, reduced) else way for f, way in zip(product.above, ways)]
    factors = tuple(chain(*ways))
    fixed = [f for f in factors if not f.symbols & reduced]
    rest = [f for f in factors if f.symbols & reduced]
    if not fixed or not any(_is_code(f, reduced, on_cpu) for f in rest):
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


def _maker(factor: Expr, arguments: Sequence[Value]) -> Structured | None:
    """The node that makes what a factor loads, element by element."""
    if not isinstance(factor, Load) or any(i.opaques for i in factor.indices):
        return None
    node = arguments[operand_position(factor.buffer)].node
    return node if isinstance(node, Structured) and node.space.combiner is None else None


def _has_integer(factor: Expr, arguments: Sequence[Value]) -> bool:
    """Is a factor an integer, or made as the product of one and others?"""
    node = _maker(factor, arguments)
    if node is None:
        return is_integer(factor)
    return any(_has_integer(f, node.operands) for f in Product.of(node.space.body).above)


def _is_computed(way: Sequence[Expr], arguments: Sequence[Value], reduced: set[str]) -> bool:
    """Does the program compute the codes that a factor was opened to, rather than read or move them?"""
    if len(way) == 1:
        return False
    read = chain(*(loads(f) for f in way if f.symbols & reduced))
    makers = (_maker(x, arguments) for x in read)
    return any(node is not None and not isinstance(node.space.body, Load) for node in makers)


def _opened(factor: Expr, arguments: list[Value], reduced: set[str], zeros: bool) -> Sequence[Expr]:
    """What a factor is the product of: codes, and what does not change along the sum; else the factor alone. What is
    read then is added to the arguments."""
    node = _maker(factor, arguments) if factor.symbols & reduced else None
    if node is None:
        return (factor,)
    assert isinstance(factor, Load)
    own = dict(zip((a.name for a in node.space.axes), factor.indices))
    names = {operand(p): operand(len(arguments) + p) for p in range(len(node.operands))}
    product = Product.of(rename_buffers(transform(node.space.body, own), names))
    changing = [f for f in product.above if f.symbols & reduced]
    count = len(arguments)
    arguments += node.operands
    match product.above:
        case (Load(mask=()) as moved,) if not product.below:  # as a transpose does
            found = _opened(moved, arguments, reduced, zeros)
        case _:
            are_codes = all(_is_code(f, reduced, zeros) for f in changing)
            is_opened = not product.below and len(changing) < len(product.above) and are_codes
            found = product.above if is_opened else ()
    if len(found) > 1:
        return found
    del arguments[count:]
    return (factor,)


def _is_code(factor: Expr, reduced: set[str], zeros: bool) -> bool:
    """Is it made of a stored element of few bits, and nothing else? zeros: but a zero point that is taken from it."""
    number = without_zero(factor, reduced)[0] if zeros else factor
    read = list(dict.fromkeys(loads(number)))
    return len(read) == 1 and read[0].dtype.bits <= NARROW


def _of_integers(factors: Sequence[Expr], count: int) -> Expr | None:
    """The product of two integers as one in i32, in which the sum of so many always fits."""
    pair = integers(factors)
    return None if pair is None or not fits(pair, count) else apply("mul", *(Cast(I32, e) for e in pair))

"""Sums of products with a sum: the inner and the outer sum change places, so that a large product need not be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.ops import Compute, Loop
from intarsia.ir.rewriting import rewrite
from intarsia.ir.scalar import Load, cast, loads
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_buffers
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions
from intarsia.passes.schedule.products import Product

WORTH = 2
"""The product has so many times the elements of what is formed in its place, at least."""


@dataclass(frozen=True)
class Exchange(Pass):
    """Sum products with a large product in the other order.

    Before:  %0 = compute [i < 1024, j < 1024] sum[d < 64](%g[i, d] * %v[j, d])
             %1 = compute [i < 1024] sum[j < 1024](%p[i, j] * %0[i, j])
    After:   %2 = compute [i < 1024, d < 64] sum[j < 1024](%p[i, j] * %v[j, d])
             %3 = compute [i < 1024] sum[d < 64](%g[i, d] * %2[i, d])

    Where %2 is there already, as it is in the gradient of attention, whose value it is, that is nearly no work; and
    what else needs %0 need not wait until a sum over all of it is known. It is done then, and where %0 is larger than
    the last cache, so that it had better not be kept.

    Keeps: values, but for the order of sums. Needs: `specialize`. Leaves: products that nobody reads to `dce`.
    """

    name: ClassVar[str] = "exchange"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        body = self._region(module.graph.body, context)
        return module.with_body(body)

    def _region(self, region: Region, context: Context) -> Region:
        inner = change_regions(region, lambda node, r: self._region(r, context) if isinstance(node, Loop) else r)
        own = frozenset(inner.nodes)
        sums = [n for n in inner.nodes if isinstance(n, Structured) and n.space.combiner == "sum"]

        def rule(node: Node) -> Node | None:
            new = _exchanged(node, sums, context.target.caches[-1]) if node in own else None
            if new is not None:
                text = "a sum over a product is formed of what the product is made of, in the other order"
                self.remark(context, "fusion", text, node.span)
            return new

        return rewrite(inner, (rule,))


def _exchanged(node: Node, sums: Sequence[Structured], large: int) -> Node | None:
    """sum[j](p[i, j] * sum[d](g[i, d] * v[j, d]) * s[i]) -> sum[d](g[i, d] * sum[j](p[i, j] * v[j, d]) * s[i])"""
    if not isinstance(node, Structured) or node.space.combiner != "sum" or not _is_box(node.space):
        return None
    whole = Space(node.space.axes, node.space.body, node.space.dtype, node.space.reduced, "sum")
    product = Product.of(whole.body)
    over = {a.name for a in whole.reduced}
    for load in (f for f in product.above if isinstance(f, Load) and f.symbols & over):
        inner = node.operands[operand_position(load.buffer)].node
        if isinstance(inner, Structured) and inner.space.combiner == "sum" and _is_box(inner.space):
            others = Product(tuple(f for f in product.above if f is not load), product.below)
            new = _in_other_order(node, load, others, inner, sums, large)
            if new is not None:
                return new
    return None


def _in_other_order(
    node: Structured, load: Load, others: Product, inner: Structured, sums: Sequence[Structured], large: int
) -> Node | None:
    """The same with one load, that of what `inner` gives, and `others`, the factors beside it."""
    space = node.space
    names = [i.as_name for i in load.indices]
    over = {a.name for a in space.reduced}
    if None in names or len(set(names)) < len(names) or not over <= set(names):
        return None
    if any(a.extent != ONE and a.name not in names for a in space.axes):
        return None  # a product of matrices with a matrix: the order in which they are multiplied is the program's
    if any(x.buffer == load.buffer for f in others.factors for x in loads(f)):
        return None  # the product would be needed all the same
    arguments = [*node.operands, *inner.operands]
    taken = {a.name for a in space.all_axes}
    free = (f"d{n}" for n in range(len(taken) + len(inner.space.reduced)) if f"d{n}" not in taken)
    renamed = {a.name: Size.of(n) for a, n in zip(inner.space.axes, names)}  # type: ignore[arg-type]
    renamed |= {a.name: Size.of(n) for a, n in zip(inner.space.reduced, free)}
    buffers = {operand(n): operand(n + len(node.operands)) for n in range(len(inner.operands))}
    own = rename_buffers(inner.space.substitute(renamed).body, buffers)
    made_of = Product.of(own)
    depth = tuple(Axis(str(renamed[a.name]), a.lower, a.upper) for a in inner.space.reduced)
    first = made_of.where(lambda f: not f.symbols & over)
    parts = [p.where(lambda f: bool(f.symbols & over)) for p in (others, made_of)]
    summed = Product(parts[0].above + parts[1].above, parts[0].below + parts[1].below)
    used = frozenset().union(*(f.symbols for f in summed.factors))
    axes = (*(a for a in space.axes if a.name in used), *depth)
    left = others.where(lambda f: not f.symbols & over)
    if not first.factors or WORTH * _points(axes) > _points(inner.space.axes) or inner.space.dtype != own.dtype:
        return None
    found = next((s for s in sums if s is not node and _is_same(s, arguments, axes, space.reduced, summed)), None)
    if found is None:
        if _points(inner.space.axes) * inner.space.dtype.bytes <= large:
            return None
        inside = Space(axes, summed.value(own.dtype), own.dtype, space.reduced, "sum")
        found = Compute(tuple(arguments), inside, **node.spans)
    value = Load(operand(len(arguments)), tuple(Size.of(a.name) for a in axes), found.value.dtype)
    product = Product((*first.above, value), first.below).value(own.dtype)
    arguments.append(found.value)
    if not left.factors:
        outer = Space(space.axes, product, space.dtype, depth, "sum")
        return Compute(tuple(arguments), outer, **node.spans)
    total = Compute(tuple(arguments), Space(space.axes, product, own.dtype, depth, "sum"), span=node.span)
    whole = Load(operand(len(node.operands)), tuple(Size.of(a.name) for a in space.axes), own.dtype)
    scaled = Space(space.axes, cast(space.dtype, left.times(whole)), space.dtype)
    return Compute((*node.operands, total.value), scaled, **node.spans)


def _is_same(
    other: Structured, arguments: Sequence[Value], axes: tuple[Axis, ...], reduced: tuple[Axis, ...], product: Product
) -> bool:
    """Does a node compute the sum of a product over `reduced`, with just these axes in its result?"""
    space = other.space
    if not _is_box(space) or any(v not in arguments for v in other.operands) or space.dtype != space.body.dtype:
        return False
    ours = [*(a for a in axes), *reduced]
    if len(space.axes) != len(axes) or len(space.reduced) != len(reduced):
        return False
    if any(a.extent != b.extent for a, b in zip(space.all_axes, ours)):
        return False
    buffers = {operand(n): operand(arguments.index(v)) for n, v in enumerate(other.operands)}
    body = rename_buffers(
        space.substitute({a.name: Size.of(b.name) for a, b in zip(space.all_axes, ours)}).body, buffers
    )
    theirs = Product.of(body)
    first = {operand(n): operand(arguments.index(v)) for n, v in enumerate(arguments)}

    def key(p: Product) -> tuple[list[str], list[str]]:
        return tuple(sorted(str(rename_buffers(f, first)) for f in side) for side in (p.above, p.below))  # type: ignore[return-value]

    return key(theirs) == key(product)


def _is_box(space: Space) -> bool:
    """Is every extent a number of at least 1? A sum of nothing is 0, whatever its factors are."""
    return all(a.lower == ZERO and (a.extent.constant or 0) > 0 for a in space.all_axes)


def _points(axes: Iterable[Axis]) -> int:
    return math.prod(a.extent.constant or 0 for a in axes)

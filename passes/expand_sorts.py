"""Sorts for targets without a routine for them: the rank of every element at once, then the elements by rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.dtypes import BOOL, I32, I64, U8
from intarsia.ir.graph import Module, Node, Value
from intarsia.ir.ops import Argsort, Compute, Sort
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.rewriting import rewrite
from intarsia.ir.scalar import Const, Expr, Index, Load, apply, cast, where
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.passes.pipeline import Context, Pass


@dataclass(frozen=True)
class ExpandSorts(Pass):
    """Make sums of sorts, for GPUs: all elements of a row at once, in time that grows with the square of its length.

    Before:  %0 = argsort %x : i64[3, 64]
    After:   %0 = compute [i0 < 3, i1 < 64] sum[k < 64](i32(%x[i0, k] comes before %x[i0, i1])) : i32[3, 64]
             %1 = compute [i0 < 3, i1 < 64] sum[k < 64](where(%0[i0, k] == i32(i1), i32(k), 0)) : i64[3, 64]

    An element comes before another one if it is less, or no NaN while the other is one, or if neither is after the
    other and it stands before it. A sort reads the elements at the places that this gives.

    Keeps: values, exactly. Needs: nothing. Leaves: no `sort` or `argsort` for a GPU.
    """

    name: ClassVar[str] = "expand-sorts"

    def run(self, module: Module, context: Context) -> Module:
        if context.target.kind != "gpu":
            return module
        body = rewrite(module.graph.body, (expand_sort,))
        return module.with_body(body)


def expand_sort(node: Node) -> Value | None:
    """sort(x)[r] -> x[argsort(x)[r]], argsort(x)[r] -> the j of which rank(x)[j] = r"""
    if not isinstance(node, (Sort, Argsort)):
        return None
    x, axes = node.x, axes_for(node.x.tensor.shape)
    row = tuple(Size.of(a.name) for a in axes[:-1])
    own, other = axes[-1], Axis.of("k", axes[-1].extent)
    here, there = Size.of(own.name), Size.of(other.name)

    def compute(arguments: tuple[Value, ...], space: Space) -> Value:
        return Compute(arguments, space, **node.spans).value

    mine, theirs = _key(Load("a0", (*row, here), x.dtype)), _key(Load("a0", (*row, there), x.dtype))
    earlier = apply("lt", Index(there), Index(here))
    is_before = apply("or", _less(theirs, mine), apply("and", earlier, apply("not", _less(mine, theirs))))
    ranks = compute((x,), Space(axes, cast(I32, is_before), I32, (other,), "sum"))
    found = apply("eq", Load("a0", (*row, there), I32), cast(I32, Index(here)))
    numbers = where(found, cast(I32, Index(there)), Const(0, I32))
    places = compute((ranks,), Space(axes, numbers, I64, (other,), "sum"))
    if isinstance(node, Argsort):
        return places
    place = Size.opaque(Load("a1", (*row, here), I64))
    return compute((x, places), Space(axes, Load("a0", (*row, place), x.dtype), x.dtype))


def _key(element: Expr) -> Expr:
    """What is compared in place of an element."""
    return cast(U8, element) if element.dtype == BOOL else element


def _less(a: Expr, b: Expr) -> Expr:
    """Does `a` stand before `b` in order, NaN last?"""
    less = apply("lt", a, b)
    if not a.dtype.is_float:
        return less
    return apply("or", less, apply("and", apply("isnan", b), apply("not", apply("isnan", a))))

"""Sorting and running totals along one dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from intarsia.dsl.primitives.arguments import Arguments, Primitive
from intarsia.dsl.primitives.reductions import require_reducible, require_tensor
from intarsia.dsl.primitives.shapes import transposed
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import Item
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.ops import Argsort, Cumulative, Sort

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def _sorting(op: type[Sort] | type[Argsort]) -> Callable[[Builder, Scope, Arguments, Span], Item]:
    """The op works along the last dimension; another one is moved there and back."""

    def build(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
        require_tensor(builder, scope, arguments)
        x = arguments.tensor(builder, "x")
        rank = x.tensor.rank
        axis = arguments.axis("axis", rank)
        if x.dtype.is_narrow:
            hint = f"{x.dtype} is storage: cast it up first, as in f32(x)"
            raise CompileError("E0202", f"{op.name} of {x.type}", span, hint=hint)
        order = (*(d for d in range(rank) if d != axis), axis)
        back = tuple(order.index(d) for d in range(rank))
        found = builder.add(op(transposed(builder, x, order, span), span=span)).value
        return transposed(builder, found, back, span)

    return build


def _cumulative(combiner: str) -> Callable[[Builder, Scope, Arguments, Span], Item]:
    def build(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
        require_tensor(builder, scope, arguments)
        x = arguments.tensor(builder, "x")
        require_reducible(combiner, x.dtype, span)
        return builder.add(Cumulative(x, combiner, arguments.axis("axis", x.tensor.rank), span=span)).value

    return build


ORDER = (
    Primitive("sort", "x; axis=-1", _sorting(Sort)),
    Primitive("argsort", "x; axis=-1", _sorting(Argsort)),
    Primitive("cumsum", "x; axis", _cumulative("sum")),
    Primitive("cumprod", "x; axis", _cumulative("prod")),
)

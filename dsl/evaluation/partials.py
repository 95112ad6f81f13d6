"""Derivatives within index notation: of functions of elements, as expressions, for which no tensor is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from intarsia.dsl.semantics.literals import adapt
from intarsia.dsl.semantics.values import Item, describe, is_weak
from intarsia.ir.dtypes import F32, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.gradients.scalar import derivative
from intarsia.ir.graph import Parameter
from intarsia.ir.scalar import Expr, Load, cast, constant, loads, transform
from intarsia.ir.sizes import Size
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


class _Element(Parameter):
    """Stands for an element while a derivative with respect to it is taken."""


def element_of(builder: Builder, item: Item, dtype: DType, span: Span) -> Expr:
    """A scalar as an expression; a literal has the dtype."""
    return adapt(item, dtype, span) if is_weak(item) else builder.element(item, span)


def stands_for_element(builder: Builder, item: Size | Expr) -> bool:
    """Is an expression made of what stands for an element while a derivative is taken?"""
    values = (builder.buffer_values[load.buffer] for load in loads(item)) if not isinstance(item, Size) else ()
    return any(isinstance(value.node, _Element) for value in values)


def differentiated(
    builder: Builder, elements: Sequence[Expr], evaluate: Callable[[Sequence[Load]], Item], span: Span
) -> tuple[Expr, list[Expr]]:
    """What a function gives for elements, and its derivative with respect to each of them.

    `evaluate` is given loads that stand for the elements. Raises E0323 where it gives no float, E0325 where there is no
    derivative, E0409 where it makes a tensor of what is given.
    """
    stand_ins = [_Element(f"element{n}", TensorType(e.dtype)).value for n, e in enumerate(elements)]
    read = [builder.load(value, ()) for value in stand_ins]
    before = len(builder.regions[-1])
    item = evaluate(read)
    used = {v for node in builder.regions[-1][before:] for v in node.inputs}
    if not used.isdisjoint(stand_ins):
        hint = "take the derivative of a function of whole tensors, outside of the definition"
        message = "a function whose derivative is taken element by element makes a tensor of what is given"
        raise CompileError("E0409", message, span, hint=hint)
    value = element_of(builder, item, F32, span)
    if not value.dtype.is_float:
        raise CompileError("E0323", f"a gradient is of one float, and this gives {describe(item)}", span)
    known = {load.buffer: element for load, element in zip(read, elements)}

    def placed(expression: Expr) -> Expr:
        return transform(expression, rule=lambda e: known.get(e.buffer) if isinstance(e, Load) else None)

    partials = [derivative(value, load) or constant(0.0, value.dtype) for load in read]
    return placed(value), [cast(load.dtype, placed(p)) for load, p in zip(read, partials)]

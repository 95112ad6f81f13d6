"""Items given the types that are asked of them: parameters, results, states and whatever is declared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intarsia.dsl.evaluation.operators import sharing_hint
from intarsia.dsl.semantics.literals import adapt
from intarsia.dsl.semantics.signature import Signature
from intarsia.dsl.semantics.types import Pattern, StructPattern, TensorPattern, TuplePattern, struct_fields
from intarsia.dsl.semantics.unify import Unifier
from intarsia.dsl.semantics.values import (
    EXPRESSIONS,
    Format,
    FormatTensor,
    Item,
    Struct,
    StructList,
    describe,
    tensor_of,
)
from intarsia.ir.dtypes import I64
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.ops import Shard
from intarsia.ir.sizes import Size
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def fit_parameter(builder: Builder, item: Item, pattern: Pattern, unifier: Unifier, where: str, span: Span) -> Item:
    """An argument with the form that its parameter's type has; the unifier has found that it fits."""
    if isinstance(item, (Struct, StructList)):
        return item
    assert isinstance(pattern, TensorPattern)
    if isinstance(item, FormatTensor):
        return _placed(builder, item, pattern, unifier, span)
    return fit(builder, item, unifier.tensor(pattern), where, span)


def fit(builder: Builder, item: Item, wanted: TensorType, what: str, span: Span) -> Item:
    """An item that must have a type: a literal takes it; sizes that are equal by value are written alike.

    Raises:
        CompileError: E0304, it has another type.
    """
    if isinstance(item, (int, float, Size)):
        if wanted.rank:
            hint = f"full({wanted}, {item}) is a tensor of one number"
            raise CompileError("E0304", f"{what} is {wanted}, and this is {describe(item)}", span, hint=hint)
        if wanted.dtype == I64 and not isinstance(item, (bool, float)):
            return Size.of(item)
        return adapt(item, wanted.dtype, span)
    found = tensor_of(item)
    if found is None:
        raise CompileError("E0304", f"{what} is {wanted}, and this is {describe(item)}", span)
    if found.dtype != wanted.dtype:
        hint = f"nothing is converted unasked: cast it with {wanted.dtype}(…)"
        raise CompileError("E0304", f"{what} is {wanted}, and this is {found}: the dtypes differ", span, hint=hint)
    if found.rank != wanted.rank:
        raise CompileError("E0304", f"{what} is {wanted}, and this is {found}", span)
    for left, right in zip(found.shape, wanted.shape):
        if builder.bounds.compare(left, right) is False:
            show = builder.bounds.show
            message = f"{what} is {wanted}, and this is {found}: {show(right)} and {show(left)} differ"
            raise CompileError("E0304", message, span, hint=sharing_hint(right, left))
    if wanted.sharding is not None:
        value = builder.reshaped(builder.as_value(item, span), wanted.shape, span)
        return builder.add(Shard(value, span=span, shardings=(wanted.sharding,))).value
    if isinstance(item, EXPRESSIONS) or found.shape == wanted.shape:
        return item
    return builder.reshaped(builder.as_value(item, span), wanted.shape, span)


def fit_results(
    builder: Builder, items: tuple[Item, ...], signature: Signature, unifier: Unifier, spans: list[Span]
) -> tuple[Item, ...]:
    """The results of a function with the types that it declares."""
    if signature.result is None:
        return items
    patterns = signature.result.items if isinstance(signature.result, TuplePattern) else (signature.result,)
    if len(patterns) != len(items):
        count = "1 value is" if len(items) == 1 else f"{len(items)} values are"
        message = f"{signature.name} gives {signature.result}, and {count} returned"
        raise CompileError("E0505", message, spans[0].to(spans[-1]))
    fitted: list[Item] = []
    for number, (item, pattern, span) in enumerate(zip(items, patterns, spans)):
        what = f"the result of {signature.name}" if len(items) == 1 else f"result {number + 1} of {signature.name}"
        assert not isinstance(pattern, TuplePattern)
        fitted.append(fit_pattern(builder, item, pattern, unifier, what, span))
    return tuple(fitted)


def fit_pattern(
    builder: Builder, item: Item, pattern: TensorPattern | StructPattern, unifier: Unifier, what: str, span: Span
) -> Item:
    """An item that must have a type whose names are known. Raises CompileError E0304 or E0308."""
    if isinstance(pattern, StructPattern):
        return _fit_struct(builder, item, pattern, unifier, what, span)
    if isinstance(item, FormatTensor) or isinstance(unifier.element(pattern), Format):
        return _fit_format(builder, item, pattern, unifier, what, span)
    return fit(builder, item, unifier.tensor(pattern), what, span)


def _fit_struct(builder: Builder, item: Item, pattern: StructPattern, unifier: Unifier, what: str, span: Span) -> Item:
    wanted = unifier.struct(pattern)
    found = item.element if isinstance(item, StructList) else item
    is_list = isinstance(item, StructList)
    if (
        not isinstance(found, Struct)
        or found.declaration is not pattern.declaration
        or is_list != (wanted.length is not None)
    ):
        raise CompileError("E0304", f"{what} is {wanted}, and this is {describe(item)}", span)
    sizes = [*zip(found.dims, wanted.dims), *([(item.length, wanted.length)] if isinstance(item, StructList) else [])]
    for own, size in sizes:
        assert size is not None
        if builder.bounds.compare(own, size) is False:
            show = builder.bounds.show
            message = f"{what} is {wanted}, and this is {item}: {show(size)} and {show(own)} differ"
            raise CompileError("E0304", message, span, hint=sharing_hint(size, own))
    if isinstance(item, StructList):
        assert wanted.length is not None
        return StructList(replace(item.element, dims=wanted.dims), wanted.length)
    fields: dict[str, Item] = {}
    for field, inner in struct_fields(wanted):
        assert not isinstance(inner, TuplePattern)
        part, name = found.fields[field.name.text], f"`{field.name}` of {what}"
        fields[field.name.text] = fit_pattern(builder, part, inner, unifier, name, span)
    return replace(found, dims=wanted.dims, fields=fields)


def _fit_format(builder: Builder, item: Item, pattern: TensorPattern, unifier: Unifier, what: str, span: Span) -> Item:
    wanted = unifier.shape(pattern)
    element = unifier.element(pattern)
    if (
        not isinstance(item, FormatTensor)
        or not isinstance(element, Format)
        or len(item.shape) != len(wanted)
        or not item.format.stores_like(element, len(wanted))
    ):
        raise CompileError("E0304", f"{what} is {describe(item)}, and {pattern} is wanted", span)
    for found, size in zip(item.shape, wanted):
        if builder.bounds.compare(found, size) is False:
            raise CompileError("E0308", f"{what} is {item}, and {pattern} is wanted", span)
    return _placed(builder, replace(item, format=element, shape=wanted), pattern, unifier, span)


def _placed(builder: Builder, item: FormatTensor, pattern: TensorPattern, unifier: Unifier, span: Span) -> FormatTensor:
    """A tensor of a format that lies as its type says: its codes do, and its scales follow them."""
    sharding = unifier.sharding(pattern)
    codes = item.parts.get("codes")
    if sharding is None or codes is None:
        return item
    laid = builder.add(Shard(builder.as_value(codes, span), span=span, shardings=(sharding,)))
    return replace(item, parts={**item.parts, "codes": laid.value})

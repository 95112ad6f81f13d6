"""Functions of tensors gone through with structs: `map(f)(p, g)` and `fold(f)(start, p)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from intarsia.dsl.evaluation import fitting, loops
from intarsia.dsl.evaluation.structs import same_struct
from intarsia.dsl.primitives.arguments import Argument
from intarsia.dsl.semantics.values import FormatTensor, Item, Struct, StructList, describe, is_weak, tensor_of
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.sizes import Size

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder

Applied: TypeAlias = Callable[[Sequence[Argument]], Item]
"""A function with its arguments by position."""


def mapped(builder: Builder, apply: Applied, arguments: Sequence[Argument], span: Span) -> Item:
    """A function of each tensor of a struct, or of several of one type, and a struct for each of its results.

    What is no struct is an argument of every call. Raises E0304 where the structs differ, or a result has not the type
    of the tensor that it stands for.
    """
    results = _mapped(builder, apply, arguments, _form(builder, arguments, span), span)
    return results[0] if len(results) == 1 else tuple(results)


def _mapped(builder: Builder, apply: Applied, arguments: Sequence[Argument], form: Item, span: Span) -> list[Item]:
    """The results, each in the form of the struct."""
    match form:
        case Struct():
            fields = {n: _mapped(builder, apply, _field(arguments, n), f, span) for n, f in form.fields.items()}
            counts = {len(results) for results in fields.values()} or {1}
            if len(counts) > 1:
                message = "what is mapped gives more results for one tensor than for another"
                raise CompileError("E0505", message, span)
            return [replace(form, fields={n: r[k] for n, r in fields.items()}) for k in range(counts.pop())]
        case StructList(element, length):
            return loops.stack(
                builder, length, lambda at: _mapped(builder, apply, _record(arguments, at), element.at(at), span), span
            )
    found = apply(arguments)
    return [_like(builder, result, form, span) for result in (found if isinstance(found, tuple) else (found,))]


def _like(builder: Builder, result: Item, form: Item, span: Span) -> Item:
    """A result, which has the type of the tensor that it stands for. Raises E0304."""
    wanted, found = tensor_of(form), tensor_of(result)
    if wanted is not None and (is_weak(result) or (found is not None and found.rank == wanted.rank)):
        return fitting.fit(builder, result, wanted, "what is mapped", span)
    if isinstance(form, FormatTensor) and isinstance(result, FormatTensor) and str(result) == str(form):
        return result
    hint = "map gives structs of the same type; fold(f)(start, p) gives one result for all tensors"
    raise CompileError("E0304", f"what is mapped is {describe(form)}, and becomes {describe(result)}", span, hint=hint)


def folded(builder: Builder, apply: Applied, arguments: Sequence[Argument], span: Span) -> Item:
    """A function of a total and each tensor of a struct, one after the other: the last total.

    Raises E0304 where there is no struct, or the total becomes one of another type.
    """
    if not arguments:
        raise CompileError("E0315", "fold begins with a first total: fold(f)(0.0, p)", span)
    return _folded(builder, apply, arguments[0], arguments[1:], _form(builder, arguments[1:], span), span)


def _folded(
    builder: Builder, apply: Applied, total: Argument, arguments: Sequence[Argument], form: Item, span: Span
) -> Item:
    match form:
        case Struct():
            for name, field in form.fields.items():
                found = _folded(builder, apply, total, _field(arguments, name), field, span)
                total = replace(total, item=found)
            return total.item
        case StructList(element, length):
            return loops.accumulate(
                builder,
                length,
                builder.as_value(total.item, total.span),
                lambda at, before: _folded(
                    builder, apply, replace(total, item=before), _record(arguments, at), element.at(at), span
                ),
                span,
            )
    return apply([total, *arguments])


# ---------------------------------------------------------------------- arguments


def _form(builder: Builder, arguments: Sequence[Argument], span: Span) -> Struct | StructList:
    """The struct that is gone through. Raises E0304 where there is none, or another one differs."""
    forms = [(a.item, a.span) for a in arguments if isinstance(a.item, (Struct, StructList))]
    if not forms:
        hint = "map(f)(p, x) calls f on each tensor of the struct p; on a tensor, call f itself"
        raise CompileError("E0304", "no argument is a struct", span, hint=hint)
    first = forms[0][0]
    for other, place in forms[1:]:
        if not same_struct(builder, first, other):
            raise CompileError("E0304", f"{first} and {other} are not of one type", place)
    return first


def _field(arguments: Sequence[Argument], name: str) -> list[Argument]:
    return [replace(a, item=a.item.fields[name]) if isinstance(a.item, Struct) else a for a in arguments]


def _record(arguments: Sequence[Argument], index: Size) -> list[Argument]:
    return [replace(a, item=a.item.element.at(index)) if isinstance(a.item, StructList) else a for a in arguments]

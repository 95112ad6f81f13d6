"""Structs as values: made of their fields, taken apart into tensors and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from intarsia.dsl import ast
from intarsia.dsl.evaluation import fitting
from intarsia.dsl.primitives.arguments import Argument
from intarsia.dsl.semantics.scope import File, suggest
from intarsia.dsl.semantics.types import StructPattern, TuplePattern, struct_fields
from intarsia.dsl.semantics.unify import Unifier, unknown
from intarsia.dsl.semantics.values import Item, Struct, StructList, changed, describe, is_weak, leaves_of
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import ListType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def construct(
    builder: Builder,
    declaration: ast.Struct,
    file: File,
    positional: Sequence[Argument],
    given: Mapping[str, Argument],
    span: Span,
) -> Struct:
    """The value of `Linear(weight=w, bias=b)`, whose dimensions the fields decide, or of `Linear(p, bias=b)`, in which
    the other fields are those of `p`.

    Raises CompileError E0315 where a field is missing or unknown, E0304 to E0309 where one does not fit.
    """
    name = declaration.name.text
    known = [field.name.text for field in declaration.fields]
    usage = f"{name}({', '.join(f'{field}=…' for field in known)})"
    match [argument.item for argument in positional]:
        case []:
            pass
        case [Struct(found, _, fields)] if found is declaration:
            given = {label: Argument(item, positional[0].span) for label, item in fields.items()} | {**given}
        case _:
            hint = f"{usage}, or {name}(p, {known[0]}=…) with others as in p"
            raise CompileError("E0315", f"the fields of {name} are given by name", positional[0].span, hint=hint)
    for label, argument in given.items():
        if label not in known:
            hint = suggest(label, known) or usage
            raise CompileError("E0315", f"{name} has no field `{label}`", argument.span, hint=hint)
    if missing := [label for label in known if label not in given]:
        raise CompileError("E0315", f"`{missing[0]}` of {name} is not given", span, hint=usage)
    unknowns = tuple(Size.of(unknown(dim.text)) for dim in declaration.dims)
    unifier = Unifier(builder.bounds, {})
    parts = [
        (field.name.text, pattern, given[field.name.text], f"`{field.name}` of {name}")
        for field, pattern in struct_fields(StructPattern(declaration, file, unknowns))
        if not isinstance(pattern, TuplePattern)
    ]
    for _, pattern, argument, where in parts:
        if not is_weak(argument.item):
            unifier.match(pattern, argument.item, where, argument.span)
    unifier.solve()
    for dim, size in zip(declaration.dims, unknowns):
        if size.symbols - unifier.sizes.keys():
            raise CompileError("E0309", f"no field of {name} decides its dimension {dim}", span)
    fitted = {
        label: fitting.fit_pattern(builder, argument.item, pattern, unifier, where, argument.span)
        for label, pattern, argument, where in parts
    }
    return Struct(declaration, tuple(map(unifier.size, unknowns)), fitted)


def tensors_of(builder: Builder, item: Item, span: Span) -> list[Value]:
    """The tensors of a struct, in order; those of a list have its length as their first dimension. Anything else is one
    tensor."""
    if not isinstance(item, (Struct, StructList)):
        return [builder.as_value(item, span)]
    return [stacked(builder, builder.as_value(leaf, span), span) for _, leaf in leaves_of(item)]


def stacked(builder: Builder, value: Value, span: Span) -> Value:
    """A list of tensors as one tensor."""
    if not isinstance(value.type, ListType):
        return value
    found = value.type
    axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate((found.length, *found.element.shape)))
    load = Load(builder.buffer(value), tuple(Size.of(a.name) for a in axes), found.element.dtype)
    return builder.compute(Space(axes, load, load.dtype), span)


def put_together(form: Item, values: Iterable[Item]) -> Item:
    """An item of the form of another one, made of other tensors."""
    left = iter(values)
    return changed(form, lambda leaf, label: next(left))


def listed(form: Item, length: Size, values: Iterable[Item], span: Span) -> Item:
    """What all steps of a scan give: a list of structs where one gives a struct. Raises E0901 for a list in a list."""
    item = put_together(form, values)
    if any("*" in label for label, _ in leaves_of(form)):
        raise CompileError("E0901", f"a list of {describe(form)}", span, hint="use one list of one struct")
    return StructList(item, length) if isinstance(item, Struct) else item


def same_struct(builder: Builder, first: Item, other: Item) -> bool:
    """Are two items structs, or lists of structs, of one type?"""
    match first, other:
        case Struct(declaration, dims), Struct(found, sizes):
            alike = (builder.bounds.compare(a, b) is not False for a, b in zip(dims, sizes))
            return declaration is found and all(alike)
        case StructList(element, length), StructList(record, count):
            return same_struct(builder, element, record) and builder.bounds.compare(length, count) is not False
    return False

"""What `wrt` names: parameters of a function, or fields of structs among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.dsl import ast
from intarsia.dsl.semantics.scope import File, suggest
from intarsia.dsl.semantics.values import Item, Struct, describe
from intarsia.ir.errors import CompileError, Span


@dataclass(frozen=True)
class Wanted:
    """What `wrt` names: a parameter, or a field of a struct, `p.layer`."""

    parameter: str
    fields: tuple[str, ...]
    span: Span

    def __str__(self) -> str:
        return ".".join((self.parameter, *self.fields))

    def of(self, item: Item) -> Item:
        """The part of the parameter's argument that is meant. Raises E0322."""
        for name in self.fields:
            if not isinstance(item, Struct) or name not in item.fields:
                hint = suggest(name, item.fields) if isinstance(item, Struct) else ""
                message = f"`{self}`: {describe(item)} has no field `{name}`"
                raise CompileError("E0322", message, self.span, hint=hint)
            item = item.fields[name]
        return item

    def replaced(self, item: Item, part: Item) -> Item:
        """The parameter's argument with another one in place of the part."""
        return _replaced(item, self.fields, part)


def _replaced(item: Item, fields: Sequence[str], part: Item) -> Item:
    if not fields:
        return part
    assert isinstance(item, Struct)
    first, *rest = fields
    return replace(item, fields={**item.fields, first: _replaced(item.fields[first], rest, part)})


def parts_of(transform: ast.Call) -> tuple[ast.Expression, tuple[Wanted, ...]]:
    """The function that a transform is of, and what its `wrt` names. Raises E0322."""
    if len(transform.positional) != 1 or [k.name.text for k in transform.keywords] != ["wrt"]:
        usage = f"{transform.function}(loss, wrt=(w, b))(x, w, b)"
        raise CompileError("E0322", f"{transform.function} takes a function and `wrt`", transform.span, hint=usage)
    wrt = transform.keywords[0].value
    items = wrt.items if isinstance(wrt, ast.TupleExpr) else (wrt,)
    found = tuple(wanted for item in items if (wanted := _wanted(item)) is not None)
    names = [f"{wanted}." for wanted in found]
    overlaps = any(a.startswith(b) for n, a in enumerate(names) for m, b in enumerate(names) if n != m)
    if not found or len(found) < len(items) or overlaps:
        hint = "wrt=w, or wrt=(w, b) for several"
        raise CompileError("E0322", "`wrt` names parameters of the function, each once", wrt.span, hint=hint)
    return transform.positional[0], found


def _wanted(expression: ast.Expression) -> Wanted | None:
    """A parameter, or a field of one."""
    match expression:
        case ast.Name(name):
            return Wanted(name, (), expression.span)
        case ast.Field(value, name) if (around := _wanted(value)) is not None:
            return Wanted(around.parameter, (*around.fields, name.text), expression.span)
    return None


def no_parameter(function: str, wanted: Wanted, known: Collection[str]) -> CompileError:
    hint = suggest(str(wanted), known) or f"its parameters are {', '.join(known)}"
    return CompileError("E0322", f"{function} has no parameter `{wanted}`", wanted.span, hint=hint)


def changing_parameter(wanted: Wanted, parameters: Mapping[str, ast.Parameter], file: File) -> ast.Parameter | None:
    """The parameter for a change of what is wanted, `d_w`, or `d_p_head` for a field; None where that has no type.

    `file` is where the parameters are declared.
    """
    if (whole := parameters.get(wanted.parameter)) is None:
        return None
    kind = whole.type
    for name in wanted.fields:
        if not isinstance(kind, ast.StructTypeExpr) or kind.list_length is not None:
            return None
        if (found := file.struct(kind.name.text)) is None:
            return None
        struct, file = found
        field = next((f for f in struct.fields if f.name.text == name), None)
        if field is None:
            return None
        given = (d.size for d in kind.dims if isinstance(d, ast.Dim))
        kind = _with_dims(field.type, {d.text: size for d, size in zip(struct.dims, given)})
    label = ast.Identifier("_".join(("d", wanted.parameter, *wanted.fields)), span=wanted.span)
    return replace(whole, name=label, type=kind, default=None, const=False)


def _with_dims(kind: ast.TypeExpression, sizes: Mapping[str, ast.DimExpression]) -> ast.TypeExpression:
    """The type of a field with the sizes that its struct is given."""

    def size(old: ast.DimExpression) -> ast.DimExpression:
        match old:
            case ast.DimName(name):
                return sizes.get(name, old)
            case ast.DimBinary(_, left, right):
                return replace(old, left=size(left), right=size(right))
        return old

    def dim(old: ast.TypeDim) -> ast.TypeDim:
        return replace(old, size=size(old.size)) if isinstance(old, ast.Dim) else old

    match kind:
        case ast.TensorTypeExpr(dims=dims):
            return replace(kind, dims=tuple(map(dim, dims)))
        case ast.StructTypeExpr(dims=dims, list_length=length):
            own = None if length is None else size(length)
            return replace(kind, dims=tuple(map(dim, dims)), list_length=own)
    return kind

"""Mistakes of declarations that no use needs to show: structs, constants, formats and meshes."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.dsl import ast
from intarsia.dsl.semantics.scope import File
from intarsia.dsl.semantics.types import BUILT_IN_FORMATS, StructPattern, TuplePattern, struct_fields
from intarsia.ir.dtypes import dtype
from intarsia.ir.errors import CompileError, Diagnostic
from intarsia.ir.sizes import Size


def check_declarations(file: File, declarations: tuple[ast.Declaration, ...]) -> Iterator[Diagnostic]:
    """What is wrong with the declarations of a file, functions and tests left out."""
    meshes = 0
    for declaration in declarations:
        try:
            match declaration:
                case ast.Struct():
                    _check_struct(file, declaration)
                case ast.Mesh():
                    meshes += 1
                    _check_mesh(declaration, meshes)
                case ast.Format():
                    _check_format(declaration)
        except CompileError as error:
            yield from error.diagnostics


def _check_struct(file: File, struct: ast.Struct) -> None:
    names: set[str] = set()
    for name in (*struct.dims, *(f.name for f in struct.fields)):
        if name.text in names:
            raise CompileError("E0314", f"`{name}` is declared twice", name.span)
        names.add(name.text)
    sizes = tuple(Size.of(str(d)) for d in struct.dims)
    for field, inner in struct_fields(StructPattern(struct, file, sizes)):
        if isinstance(inner, TuplePattern):
            raise CompileError("E0303", "a field is no tuple", field.span, hint="give each tensor a field of its own")


QUANT_OPTIONS = ("scale", "group", "axis", "zero", "zero_means")


def _check_format(format_: ast.Format) -> None:
    """A format is `quant(codes, …)` or a built-in one along another axis, `mxfp4(axis=0)`."""
    call, name = format_.value, format_.value.function.text
    if name != "quant" and name not in BUILT_IN_FORMATS:
        hint = f"quant(…), or one of {', '.join(BUILT_IN_FORMATS)}"
        raise CompileError("E0303", f"no format is made by `{name}`", call.function.span, hint=hint)
    options = QUANT_OPTIONS if name == "quant" else ("axis",)
    for keyword in call.keywords:
        if keyword.name.text not in options:
            raise CompileError(
                "E0303", f"a format has no option `{keyword.name}`", keyword.span, hint=", ".join(options)
            )
    if name == "quant":
        _check_codes(call)
    elif call.positional:
        raise CompileError("E0303", f"{name} is given codes", call.span, hint=f"it has its own: {name}(axis=0)")
    for keyword in call.keywords:
        match keyword.name.text, keyword.value:
            case ("group", ast.Number(_, int() as number)) if number > 0:
                pass
            case ("group" | "axis" | "zero", ast.NoneLiteral()):
                pass
            case ("group", _):
                raise CompileError("E0303", "a group is a number of elements, or none", keyword.value.span)
            case ("zero_means", ast.String(text)) if text not in ("code", "value", "quantized"):
                hint = '"code", "value" or "quantized"'
                raise CompileError("E0303", f'zero_means is "{text}"', keyword.value.span, hint=hint)


def _check_codes(call: ast.Call) -> None:
    names = [value.name for value in call.positional if isinstance(value, ast.Name)]
    if len(call.positional) != 1 or len(names) != 1 or (dtype(names[0]) is None and names[0] != "ternary"):
        hint = "quant(i4, scale=f16, group=128, axis=0)"
        raise CompileError("E0303", "a format has one type of codes", call.span, hint=hint)
    if all(keyword.name.text != "scale" for keyword in call.keywords):
        raise CompileError("E0303", "a format has a scale", call.span, hint="its dtype: scale=f16")


def _check_mesh(mesh: ast.Mesh, number: int) -> None:
    if number > 1:
        raise CompileError("E0314", "a second mesh: a program has one", mesh.span)
    seen: set[str] = set()
    for axis in mesh.axes:
        if axis.name.text in seen:
            raise CompileError("E0314", f"the axis `{axis.name}` is declared twice", axis.span)
        seen.add(axis.name.text)
        match axis.value:
            case ast.Number(_, int() as value) if value > 0:
                pass
            case _:
                hint = "the number of devices along it, as in data=2"
                raise CompileError("E0303", f"the axis `{axis.name}` has no size", axis.value.span, hint=hint)

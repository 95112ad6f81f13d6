"""Mistakes of declarations that no use needs to show: structs, constants, formats and meshes."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.dsl import ast
from intarsia.dsl.semantics.formats import read_format
from intarsia.dsl.semantics.scope import File
from intarsia.dsl.semantics.types import StructPattern, TuplePattern, struct_fields
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
                    read_format(declaration.value)
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

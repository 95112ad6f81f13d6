"""Mistakes of declarations that no use needs to show: structs, constants, formats and meshes."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.dsl import ast
from intarsia.dsl.semantics.formats import read_format
from intarsia.dsl.semantics.scope import File
from intarsia.dsl.semantics.types import StructPattern, TuplePattern, read_mesh, struct_fields
from intarsia.ir.errors import CompileError, Diagnostic
from intarsia.ir.sizes import Size


def check_declarations(file: File, declarations: tuple[ast.Declaration, ...]) -> Iterator[Diagnostic]:
    """What is wrong with the declarations of a file, functions and tests left out."""
    for declaration in declarations:
        try:
            match declaration:
                case ast.Struct():
                    _check_struct(file, declaration)
                case ast.Mesh():
                    read_mesh(declaration)
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

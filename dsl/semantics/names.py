"""What the names in a type stand for: in a signature, where they are unknown, and in a body, where they are bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intarsia.dsl import ast
from intarsia.dsl.semantics.scope import File, Scope, suggest
from intarsia.dsl.semantics.types import GenericDType, PackName, named_format
from intarsia.dsl.semantics.unify import unknown
from intarsia.dsl.semantics.values import Format, PackDims, describe
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.sizes import Size


@dataclass(frozen=True)
class ScopeNames:
    """Names in a type within a body."""

    scope: Scope

    @property
    def file(self) -> File:
        return self.scope.file

    def size(self, name: str, span: Span) -> Size:
        found = self.scope.lookup(name)
        if found is None:
            if (number := integer_constant(self.file, name)) is not None:
                return Size.of(number)
            hint = suggest(name, self.scope.visible()) or "dimension names are bound by the types of the parameters"
            raise CompileError("E0302", f"no dimension is named `{name}`", span, hint=hint)
        if isinstance(found.item, (int, Size)) and not isinstance(found.item, bool):
            return Size.of(found.item)
        hint = ""
        if isinstance(found.item, PackDims):
            hint = f"it is a pack: write ..{name}"
        raise CompileError("E0302", f"`{name}` is {describe(found.item)}, not a dimension", span, hint=hint)

    def pack(self, name: str, span: Span) -> tuple[Size | PackName, ...]:
        found = self.scope.lookup(name)
        if found is None or not isinstance(found.item, PackDims):
            raise CompileError("E0302", f"no pack is named `..{name}`", span)
        return found.item.dims

    def element(self, name: str) -> DType | GenericDType | Format | None:
        found = self.scope.lookup(name)
        if found is not None:
            return found.item if isinstance(found.item, (DType, Format)) else None
        return named_format(name, self.file.format(name))

    def visible(self) -> list[str]:
        return [n for n in self.scope.visible() if isinstance(self._item(n), (DType, Format))]

    def _item(self, name: str) -> object:
        found = self.scope.find(name)
        return found.item if found is not None else None


@dataclass(frozen=True)
class SignatureNames:
    """Names in the types of a function's parameters and result: every dimension is an unknown.

    `dimensions` collects them in order. A name that the file declares as an integer constant is that number.
    """

    file: File
    classes: Mapping[str, str]
    dimensions: dict[str, Span] = field(default_factory=dict)
    packs: dict[str, Span] = field(default_factory=dict)

    def size(self, name: str, span: Span) -> Size:
        if (number := integer_constant(self.file, name)) is not None:
            return Size.of(number)
        self.dimensions.setdefault(name, span)
        return Size.of(unknown(name))

    def pack(self, name: str, span: Span) -> tuple[Size | PackName, ...]:
        self.packs.setdefault(name, span)
        return (PackName(name),)

    def element(self, name: str) -> DType | GenericDType | Format | None:
        if name in self.classes:
            return GenericDType(name)
        return named_format(name, self.file.format(name))

    def visible(self) -> list[str]:
        return list(self.classes)


def integer_constant(file: File, name: str) -> int | None:
    """The integer that a constant of a file is."""
    match file.constant(name):
        case (ast.Const(_, ast.Number(_, int() as value)), _):
            return value
    return None

"""Names: what a file declares and imports, and what is bound where a statement stands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from intarsia.dsl import ast
from intarsia.dsl.semantics.values import Item, Poison, Poisoned
from intarsia.ir.errors import Source, Span

if TYPE_CHECKING:
    from intarsia.dsl.semantics.frames import Frame


class File(Protocol):
    """One source file as the builder sees it: every declaration that is visible in it, with the file it comes from."""

    @property
    def source(self) -> Source: ...

    @property
    def is_prelude(self) -> bool: ...

    def function(self, name: str) -> tuple[ast.Function, File] | None:
        """A function that the file declares or imports."""

    def struct(self, name: str) -> tuple[ast.Struct, File] | None: ...

    def constant(self, name: str) -> tuple[ast.Const, File] | None: ...

    def format(self, name: str) -> ast.Format | None: ...

    def mesh(self) -> ast.Mesh | None:
        """The device mesh of the program: an imported file uses that of its importer."""

    def names(self) -> Iterable[str]:
        """Every name that is visible, for suggestions."""


Kind = Literal["value", "dimension", "index", "counter", "generic"]


@dataclass(frozen=True)
class Binding:
    """What a name stands for, and where it was bound."""

    item: Item
    span: Span
    kind: Kind = "value"


@dataclass
class Scope:
    """The names bound at one place. A loop body or the body of a definition is a child of the scope around it.

    `frame` is the innermost definition, reduction or update whose indices may be used. `memo` keeps, for one evaluation
    of a function body, the index-free expressions that are subscripted within index notation.
    """

    file: File
    names: dict[str, Binding] = field(default_factory=dict)
    parent: Scope | None = None
    frame: Frame | None = None
    memo: dict[ast.Node, Item] = field(default_factory=dict)

    def child(self, frame: Frame | None = None) -> Scope:
        return Scope(self.file, {}, self, frame or self.frame, self.memo)

    def find(self, name: str) -> Binding | None:
        """What a name stands for, or None."""
        scope: Scope | None = self
        while scope is not None:
            if (found := scope.names.get(name)) is not None:
                return found
            scope = scope.parent
        return None

    def lookup(self, name: str) -> Binding | None:
        """Like `find`; a name whose definition was wrong raises Poisoned."""
        found = self.find(name)
        if found is not None and isinstance(found.item, Poison):
            raise Poisoned
        return found

    def bind(self, name: str, item: Item, span: Span, kind: Kind = "value") -> None:
        if name != "_":
            self.names[name] = Binding(item, span, kind)

    def visible(self) -> list[str]:
        """Every name that is bound here, innermost first."""
        found: list[str] = []
        scope: Scope | None = self
        while scope is not None:
            found += scope.names
            scope = scope.parent
        return found


def suggest(name: str, candidates: Iterable[str]) -> str:
    """A hint that names the nearest candidate, or nothing."""
    near = difflib.get_close_matches(name, sorted(set(candidates)), 1)
    return f"did you mean `{near[0]}`?" if near else ""

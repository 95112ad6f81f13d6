"""Laying out text within a width: groups of a document stand on one line where they fit, else all their lines break.

After Wadler, "A prettier printer" (2003), in the strict, iterative form of Lindig, "Strictly pretty" (2000).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

INDENT = 4


@dataclass(frozen=True)
class Line:
    """A place where a line may end: `flat` is what stands there if it does not. A `hard` one always ends."""

    flat: str = " "
    hard: bool = False
    blank: bool = False


@dataclass(frozen=True)
class Indent:
    """Content whose lines begin one level further in."""

    content: Document


@dataclass(frozen=True)
class Group:
    """Content that is laid out on one line where it fits and has no hard line."""

    content: Document


@dataclass(frozen=True)
class IfBroken:
    """Text that is there only if the group around it is broken: the comma after a last item."""

    text: str


@dataclass(frozen=True)
class LineEnd:
    """A comment, which stands at the end of its line whatever its width."""

    text: str


Document: TypeAlias = "str | Line | Indent | Group | IfBroken | LineEnd | tuple[Document, ...]"

SOFT = Line("")
SPACE = Line(" ")
HARD = Line(hard=True)
BLANK = Line(hard=True, blank=True)


def join(separator: Document, items: Iterable[Document]) -> Document:
    """The items with a separator between any two."""
    parts: list[Document] = []
    for item in items:
        parts += [separator, item] if parts else [item]
    return tuple(parts)


def render(document: Document, width: int) -> str:
    """The text of a document, within `width` columns where its groups allow it. Lines end without spaces."""
    output: list[str] = []
    column = 0
    stack: list[tuple[int, bool, Document]] = [(0, False, document)]
    while stack:
        indent, flat, item = stack.pop()
        match item:
            case str():
                output.append(item)
                column += len(item)
            case tuple():
                stack.extend((indent, flat, part) for part in reversed(item))
            case Indent(content):
                stack.append((indent + INDENT, flat, content))
            case Group(content):
                stack.append((indent, flat or _fits(content, width - column, stack), content))
            case IfBroken(text):
                stack.append((indent, flat, "" if flat else text))
            case LineEnd(text):
                output.append(f"  {text}")
            case Line() if flat and not item.hard:
                output.append(item.flat)
                column += len(item.flat)
            case Line():
                output.append(("\n\n" if item.blank else "\n") + " " * indent)
                column = indent
    return "\n".join(line.rstrip() for line in "".join(output).split("\n"))


def _fits(content: Document, room: int, rest: Sequence[tuple[int, bool, Document]]) -> bool:
    """Whether `content`, laid out flat, and what follows it up to the next line end take at most `room` columns."""
    stack: list[tuple[bool, Document]] = [(True, content)]
    following = len(rest)
    while room >= 0:
        if not stack:
            if not following:
                return True
            following -= 1
            _, flat, item = rest[following]
            stack.append((flat, item))
        flat, item = stack.pop()
        match item:
            case str():
                room -= len(item)
            case tuple():
                stack.extend((flat, part) for part in reversed(item))
            case Indent(inner) | Group(inner):
                stack.append((flat, inner))
            case IfBroken(text) if not flat:
                room -= len(text)
            case Line(hard=True):
                return not flat
            case Line(text) if flat:
                room -= len(text)
            case Line():
                return True
    return False

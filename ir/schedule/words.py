"""The words of a schedule step, as its reader takes them."""

from __future__ import annotations

import re
from typing import get_args

from intarsia.ir.errors import CompileError
from intarsia.ir.kernel import Memory


class Words:
    """The words of a step, taken one after the other."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._words = re.findall(r"[A-Za-z_][\w.']*|\d+|->|\S", text)
        self._next = 0

    @property
    def next(self) -> str:
        """The next word, or nothing at the end."""
        return self._words[self._next] if self._next < len(self._words) else ""

    def take(self) -> str:
        word = self.next
        self._next += 1
        return word

    def accept(self, *words: str) -> str | None:
        """Take the next word if it is one of these."""
        return self.take() if self.next and self.next in words else None

    def expect(self, word: str) -> None:
        if not self.accept(word):
            raise self.error(f"'{word}'")

    def name(self) -> str:
        if not re.match(r"[A-Za-z_]", self.next):
            raise self.error("a name")
        return self.take()

    def names(self) -> tuple[str, ...]:
        """All names that follow, at least one."""
        found = [self.name()]
        while re.match(r"[A-Za-z_]", self.next):
            found.append(self.name())
        return tuple(found)

    def number(self) -> int:
        if not self.next.isdigit():
            raise self.error("a number")
        return int(self.take())

    def new_names(self, count: int) -> tuple[str, ...]:
        """`-> a b`: names of new things, or none."""
        return tuple(self.name() for _ in range(count)) if self.accept("->") else ()

    def memory(self) -> Memory:
        for memory in get_args(Memory):
            if self.accept(memory):
                return memory  # type: ignore[no-any-return]
        raise self.error(f"one of {', '.join(get_args(Memory))}")

    def end(self) -> None:
        if self.next:
            raise self.error("the end")

    def error(self, wanted: str) -> CompileError:
        found = f"'{self.next}'" if self.next else "the end"
        return CompileError("E1601", f"schedule step '{self.text}': expected {wanted}, found {found}")


def arrow(names: tuple[str, ...]) -> str:
    """Names of new things as `new_names` reads them."""
    return f" -> {' '.join(names)}" if names else ""

"""How a stage calls a pure function on each of many things: one after the other, or however who compiles wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Mapper(Protocol):
    """As the function `map` of Python, which is one: the results in order. The longest work comes first where that is
    known."""

    def __call__(self, function: Callable[[A], B], items: Sequence[A], /) -> Iterable[B]: ...

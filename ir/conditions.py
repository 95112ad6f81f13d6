"""What must hold of sizes that stay open until a program runs, so that its code is right for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from intarsia.ir.errors import Span
from intarsia.ir.sizes import Size


@dataclass(frozen=True)
class Condition:
    """`size` is at least 0, or exactly 0, wherever all of `ranges` are greater than 0.

    size: over dimension names; None where what must hold has no such form. message: what is wrong where it does not
    hold. ranges: the lengths of the ranges of the indices that it speaks of, of which an empty one accesses nothing.
    """

    size: Size | None
    message: str
    span: Span | None = None
    exact: bool = False
    ranges: tuple[Size, ...] = ()

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Is it met by these sizes?"""
        assert self.size is not None
        value = self.size.evaluate(sizes)
        met = value == 0 if self.exact else value >= 0
        return met or any(r.evaluate(sizes) <= 0 for r in self.ranges)

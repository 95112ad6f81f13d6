"""Steps for the dot instructions of a target (`ir/dots.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import OfAxes, Step
from intarsia.ir.schedule.words import Words


@dataclass(frozen=True)
class Dot(OfAxes):
    """Let the iterations of loops be the parts of a word in each lane of the vector around them: `dot k`.

        lane j in 0..16 { for k in 0..4 { y[j] += i32(a[k]) * i32(b[j, k]) } }   ->   … { dot k in 0..4 { … } }

    A sum of products of narrow numbers is one instruction then, where the target has it, and a copy moves whole words.
    The bounds are numbers. Refused unless one write is all that is inside, or where one iteration needs what another
    one makes; a write that accumulates over the axis is fine.
    """


@dataclass(frozen=True)
class Multiply(Step):
    """Take the factors of a sum of products in other types, of which there is a dot instruction:
    `multiply y as u8 i8 -> z`.

        for i { for j { for k { y[i, j] += i32(a[i, k]) * i32(b[k, j]) } } }; … y[i, j] …
     -> for j.0 { z[j.0] = 0 }; for j.1 { for k.0 { z[j.1] += i32(b[k.0, j.1]) } }
        for i { for j { for k { y[i, j] += i32(bitcast(a[i, k], u8) ^ 128) * i32(b[k, j]) } } }
        … y[i, j] - 128 * z[j] …

    A factor becomes a wider integer, which changes nothing, or one of the same width with the other sign; that adds or
    takes away 128, for which the sums of the other factor make up, where y is read. They are computed once for all
    calls if that factor is constant. y is a temporary, which nothing else adds to. In a sum of floats an integer, or
    the difference of two, becomes a shorter float that holds it.
    """

    buffer: str
    left: str
    right: str
    new: str = ""

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("as")
        left, right = words.name(), words.name()
        return Multiply(buffer, left, right, *words.new_names(1))

    def rest(self) -> str:
        new = f" -> {self.new}" if self.new else ""
        return f"{self.buffer} as {self.left} {self.right}{new}"

"""Schedule steps about elements of few bits."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import Step
from intarsia.ir.schedule.words import Words


@dataclass(frozen=True)
class Squeeze(Step):
    """Let elements of few bits that follow one another along loops share words: `squeeze wp at k in u8 -> wq`.

        alloc wp: i4[8, 16]; for k in 0..8 { for j in 0..16 { wp[k, j] = w[k, j] } }; … wp[i, j.1] …
     -> alloc wq: u8[4, 16]
        for k in 0..4 { for j in 0..16 { wq[k, j] = code of w[2 * k, j] | code of w[2 * k + 1, j] << 4 } }
        … bitcast(wq[i // 2, j.1] >> 4 * (i % 2), i4) …

    Along the loops, of which the last one changes first, element i of n bits is at bits [i*n, (i+1)*n) of the words,
    the lowest bits first, whether it ends in the word in which it begins or in the next one. Words are u8, u16 or u32.
    Refused but for a temporary of fewer than 8 bits that one statement sets, in loops over all of a dimension each
    whose elements fill whole words.
    """

    buffer: str
    axes: tuple[str, ...]
    element: str
    new: str

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("at")
        axes = [words.name()]
        while not words.accept("in"):
            axes.append(words.name())
        element = words.name()
        words.expect("->")
        return cls(buffer, tuple(axes), element, words.name())

    def rest(self) -> str:
        return f"{self.buffer} at {' '.join(self.axes)} in {self.element} -> {self.new}"


@dataclass(frozen=True)
class Group(Step):
    """Form a sum in groups, and multiply once for each what does not change within it: `group y at k 128 -> t`.

        y = 0.0; for j { for k in 0..K { y[j] += x[k] * (w[k, j] * s[k // 128, j]) } }
     -> y = 0.0; for g { for j { t[g, j] = 0.0 } }
        for g { for j { for k in 0..128 { t[g, j] += x[128 * g + k] * w[128 * g + k, j] } } }
        for g { for j { y[j] += t[g, j] * s[g, j] } }

    A shorter last group follows, with a t of its own. With `as i32` these are of that type: products of two integers
    are summed exactly, and an integer z that is taken from a factor, the same within a group, is taken from the sum,
    times that of the other factor: t[g, j] - z[g, j] * t.0[g]. Refused unless one nest over numbers adds floats to y,
    after a statement that sets it to 0.0, and unless sums of integers always fit into i32.
    """

    buffer: str
    axis: str
    size: int
    new: str
    total: str = ""

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("at")
        axis, size = words.name(), words.number()
        total = words.name() if words.accept("as") else ""
        words.expect("->")
        return Group(buffer, axis, size, words.name(), total)

    def rest(self) -> str:
        total = f" as {self.total}" if self.total else ""
        return f"{self.buffer} at {self.axis} {self.size}{total} -> {self.new}"

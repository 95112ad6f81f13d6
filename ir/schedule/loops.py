"""The schedule steps that make other loops of loops, in another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from intarsia.ir.schedule.step import OfAxes, Step
from intarsia.ir.schedule.words import Words, arrow

Tail: TypeAlias = Literal["mask", "min", "peel", "step"]


@dataclass(frozen=True)
class Split(Step):
    """Make two loops of one: `split i 16`.

        for i in 0..N { … i … }   ->   for i.0 in 0..(N + 15) // 16 { for i.1 in 0..16 { … 16 * i.0 + i.1 … } }

    Where 16 does not divide the extent, `tail` says what becomes of the rest: `mask` (as above, all writes and the
    loads that use i get the condition that it is below N), `min` (the inner bound is min(16, N - 16 * i.0)), `peel` (a
    second loop runs over the rest), or `step` (as min, but `for i.0 in 0..N step 16` counts elements).
    """

    axis: str
    factor: int
    tail: Tail = "mask"
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, words: Words) -> Step:
        axis, factor = words.name(), words.number()
        tail = words.accept(*get_args(Tail)) or "mask"
        return Split(axis, factor, tail, words.new_names(2))  # type: ignore[arg-type]

    def rest(self) -> str:
        tail = "" if self.tail == "mask" else f" {self.tail}"
        return f"{self.axis} {self.factor}{tail}{arrow(self.names)}"


@dataclass(frozen=True)
class Collapse(Step):
    """Make one loop of two that are perfectly nested and run over memory in order: `collapse i j -> f`.

        for i in 0..N { for j in 0..M { y[i, j] = x[i, j] } }   ->   for f in 0..N * M { y[f] = x[f] }

    Dimensions that i and j subscript become one: of a parameter, that is another view of the same memory. Every
    subscript must use the two as M * i + j or side by side in that order.
    """

    outer: str
    inner: str
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, words: Words) -> Step:
        return Collapse(words.name(), words.name(), words.new_names(1))

    def rest(self) -> str:
        return f"{self.outer} {self.inner}{arrow(self.names)}"


@dataclass(frozen=True)
class Peel(Step):
    """Run the iterations in which all masks hold without them, then the others: `peel i.0`. Those before them come
    first where masks only begin to hold.

       for i.0 in 0..(N + 15) // 16 { for i.1 in 0..16 { y[16 * i.0 + i.1] = … where 16 * i.0 + i.1 < N } }
    -> for i.0 in 0..N // 16 { for i.1 in 0..16 { y[16 * i.0 + i.1] = … } }
       for i.0.0 in N // 16..(N + 15) // 16 { for i.1.0 in 0..16 { y[…] = … where 16 * i.0.0 + i.1.0 < N } }
    """

    axis: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Peel(words.name())

    def rest(self) -> str:
        return self.axis


@dataclass(frozen=True)
class Partition(Step):
    """Make parts of a loop in each of which a choice or mask has one outcome: `partition i`.

       for i in 0..N + M { y[i] = where(i < N, a[i], b[i - N]) }
    -> for i in 0..N { y[i] = a[i] }
       for i.0 in N..N + M { y[i.0] = b[i.0 - N] }
    """

    axis: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Partition(words.name())

    def rest(self) -> str:
        return self.axis


@dataclass(frozen=True)
class Align(Step):
    """Run the first iterations by themselves, so that the others begin at a multiple of 64 bytes of a buffer:
    `align j to y`. Where the buffer itself begins is not asked.

       for i { for j in 0..100 { y[i, j] = … } }
    -> for i { for j.0 in 0..12 * i - 16 * (3 * i // 4) { y[i, j.0] = … }; for j in 12 * i - …..100 { y[i, j] = … } }
    """

    axis: str
    buffer: str

    @classmethod
    def read(cls, words: Words) -> Step:
        axis = words.name()
        words.expect("to")
        return Align(axis, words.name())

    def rest(self) -> str:
        return f"{self.axis} to {self.buffer}"


@dataclass(frozen=True)
class Skew(Step):
    """Let the range of a loop move with one around it: `skew j i 2`. Then `reorder j i` walks wavefronts 2 * i + j.

    for i { for j in 0..M { … j … } }   ->   for i { for j in 2 * i..M + 2 * i { … j - 2 * i … } }
    """

    axis: str
    outer: str
    factor: int

    @classmethod
    def read(cls, words: Words) -> Step:
        return Skew(words.name(), words.name(), words.number())

    def rest(self) -> str:
        return f"{self.axis} {self.outer} {self.factor}"


@dataclass(frozen=True)
class Wavefront(Step):
    """Walk two nested loops along the diagonals `2 * i + j`, whose points are independent: `wavefront i j 2`.

       for i in 0..4 { for j in 0..M { a[i, j] = a[i - 1, j + 1] + a[i, j - 1] } }
    -> for j in 0..6 { for i in 0..min(4, j // 2 + 1) { a[i, j - 2 * i] = a[i - 1, j - 2 * i + 1] + … } }
       for j.0 in 6..M { for i.0 in 0..4 { … } }
       for j.1 in M..M + 6 { for i.1 in …..4 { … } }

    The diagonals that have a point in every iteration of the outer loop stand apart from those at both ends, so that
    they can be unrolled, or be a vector. Where none has, or that cannot be proved, all are one loop. Refused where an
    iteration would overtake one on which it depends, or where points of a diagonal depend on each other.
    """

    outer: str
    inner: str
    factor: int

    @classmethod
    def read(cls, words: Words) -> Step:
        return Wavefront(words.name(), words.name(), words.number())

    def rest(self) -> str:
        return f"{self.outer} {self.inner} {self.factor}"


@dataclass(frozen=True)
class Reorder(OfAxes):
    """Permute loops of a perfect nest: `reorder k i j`. Loops of the nest that are not named keep their places.

        for i { for j { for k { … } } }   ->   for k { for i { for j { … } } }

    Bounds that are linear in an axis that comes to stand inside become bounds of that axis. Refused where others need
    such an axis, or where an iteration would overtake one on which it depends. Accumulating writes by one operator may
    change their order.
    """

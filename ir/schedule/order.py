"""The schedule steps by which statements change places."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import OfAxes, Step
from intarsia.ir.schedule.words import Words, arrow


@dataclass(frozen=True)
class Merge(OfAxes):
    """Make one loop of several that follow each other and have equal bounds: `merge i j`.

        for i in 0..N { t[i] = … }; for j in 0..N { y[j] = t[j] }   ->   for i in 0..N { t[i] = …; y[i] = t[i] }

    The first axis stays. The later loops move up past statements that they do not depend on. Refused where an iteration
    of a later loop would run before one of an earlier loop on which it depends.
    """


@dataclass(frozen=True)
class Sink(Step):
    """Do what a loop does in the first iterations of a later loop that uses it: `sink i into j`.

       for i in 0..N { t[i] = x[i] }; for r { for j in 0..N { y[r] += t[j] } }
    -> for r { for j in 0..N { t[j] = x[j] where r < 1; y[r] += t[j] } }

    The second loop stands inside of others whose first iterations make what the later ones use; `partition r` makes two
    loops of them. Refused where anything else uses what the loop writes, or an iteration would use what a later one
    makes.
    """

    axis: str
    target: str

    @classmethod
    def read(cls, words: Words) -> Step:
        axis = words.name()
        words.expect("into")
        return Sink(axis, words.name())

    def rest(self) -> str:
        return f"{self.axis} into {self.target}"


@dataclass(frozen=True)
class Move(Step):
    """Put a statement before another of the same block: `move i before j`. A loop goes by its axis, a write that stands
    in no loop of the block by its buffer. Refused where it would overtake a statement on which it depends."""

    statement: str
    before: str

    @classmethod
    def read(cls, words: Words) -> Step:
        statement = words.name()
        words.expect("before")
        return Move(statement, words.name())

    def rest(self) -> str:
        return f"{self.statement} before {self.before}"


@dataclass(frozen=True)
class Distribute(Step):
    """Make two loops of one: `distribute i at k`. The second begins with a statement of its body, named as for `move`.

       for i { alloc t: f32; t = f(i); for k { y[i, k] = t } }
    -> alloc t: f32[N]; for i { t[i] = f(i) }; for i.0 { for k { y[i.0, k] = t[i.0] } }

    Temporaries that both need get an element for each iteration. Refused where an iteration of the first loop would run
    before one of the second on which it depends.
    """

    axis: str
    statement: str

    @classmethod
    def read(cls, words: Words) -> Step:
        axis = words.name()
        words.expect("at")
        return Distribute(axis, words.name())

    def rest(self) -> str:
        return f"{self.axis} at {self.statement}"


@dataclass(frozen=True)
class Overlap(Step):
    """Make results block by block, each with all that it needs of the temporaries before: `overlap y 32 -> b`.

       for i in 0..N { t[i] = f(x[i]) }; for j in 1..N - 1 { y[j] = t[j - 1] + t[j + 1] }
    -> for b in 0..(N + 31) // 32 {
         alloc t: f32[34] cache
         for i in max(0, 32 * b - 1)..min(N, 32 * b + 33) { t[i - 32 * b + 1] = f(x[i]) }
         for j in max(1, 32 * b)..min(N - 1, 32 * b + 32) { y[j] = t[j - 32 * b] + t[j - 32 * b + 2] } }

    What blocks share is computed in both. Several results may be made together, and blocks may have an extent in each
    of the first dimensions: `overlap y z 16 128`. The stages that make the results move into the blocks, and those
    before them whose temporaries nothing else uses. A result that other stages read too is copied at the end of a
    block. Refused where these do not subscript a blocked dimension by an axis of theirs and a number.
    """

    buffers: tuple[str, ...]
    extents: tuple[int, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, words: Words) -> Step:
        buffers, extents = words.names(), [words.number()]
        while words.next.isdigit():
            extents.append(words.number())
        return Overlap(buffers, tuple(extents), words.new_names(len(extents)))

    def rest(self) -> str:
        return f"{' '.join(self.buffers)} {' '.join(map(str, self.extents))}{arrow(self.names)}"

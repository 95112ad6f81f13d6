"""Schedule steps about how a GPU runs the programs of a launch."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import Step
from intarsia.ir.schedule.words import Words


@dataclass(frozen=True)
class _Count(Step, is_form=True):
    """A step that wants a number."""

    count: int

    @classmethod
    def read(cls, words: Words) -> Step:
        return cls(words.number())

    def rest(self) -> str:
        return str(self.count)


@dataclass(frozen=True)
class Warps(_Count):
    """Let so many groups of 32 threads run each program: `warps 8`. Refused unless it is a power of two up to 32."""


@dataclass(frozen=True)
class Stages(_Count):
    """Have so many steps of a loop over blocks under way at once, what they read in shared memory: `stages 3`. Refused
    beyond 8."""


@dataclass(frozen=True)
class Programs(_Count):
    """Launch at most so many programs, one for each core, say: `programs 132`. Each of them walks through every 132nd
    iteration of the loops over a grid, in their order, and what it has set up serves them all. Refused where no loop is
    over a grid."""


@dataclass(frozen=True)
class Describe(Step):
    """Move blocks of these buffers by tensor descriptors, as whole rectangles: `describe a b`. Chips from sm_90 on have
    an engine for that (TMA), which also leaves out what lies outside of the buffer.

    Refused where no access of a buffer by lanes is a rectangle: each lane is one dimension of it, in steps of 1, the
    last one of at least 16 bytes; rows begin at multiples of 16 bytes, and sizes are numbers. Other accesses of the
    buffer stay as they are.
    """

    buffers: tuple[str, ...]

    @classmethod
    def read(cls, words: Words) -> Step:
        return Describe(words.names())

    def rest(self) -> str:
        return " ".join(self.buffers)

"""Schedule steps about how a GPU runs the programs of a launch."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule_step import STEPS, Step
from intarsia.ir.schedule_words import Words


@dataclass(frozen=True)
class _Count(Step):
    """A step that wants a number."""

    count: int

    @classmethod
    def read(cls, words: Words) -> Step:
        return cls(words.number())

    def rest(self) -> str:
        return str(self.count)


del STEPS["_count"]


@dataclass(frozen=True)
class Warps(_Count):
    """Let so many groups of 32 threads run each program: `warps 8`. Refused unless it is a power of two up to 32."""


@dataclass(frozen=True)
class Stages(_Count):
    """Have so many steps of a loop over blocks under way at once, what they read in shared memory: `stages 3`. Refused
    beyond 8."""

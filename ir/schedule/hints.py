"""The schedule steps that are hints: they change no value."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import Step
from intarsia.ir.schedule.words import Words


def _level(words: Words, usual: int) -> int:
    """The number of a cache, or the usual one."""
    level = words.accept("L1", "L2", "L3")
    return int(level[1:]) if level else usual


@dataclass(frozen=True)
class Prefetch(Step):
    """Fetch early what a later iteration reads: `prefetch x in t i +1 L1`: before the statement that writes t, bring
    the line that it will read of x one iteration of i later into the first cache."""

    buffer: str
    statement: str
    axis: str
    distance: int
    level: int = 1

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("in")
        statement, axis = words.name(), words.name()
        words.expect("+")
        distance = words.number()
        return Prefetch(buffer, statement, axis, distance, _level(words, Prefetch.level))

    def rest(self) -> str:
        return f"{self.buffer} in {self.statement} {self.axis} +{self.distance} L{self.level}"


@dataclass(frozen=True)
class Fetch(Step):
    """Fetch what the next iteration of a loop reads while a loop inside it runs, some lines in each of its iterations:
    `fetch b for j in k L2`; `for j +2`: what the one after that reads. The extents of the loops from j to k, and of
    what is read, are numbers. After the last iteration of a loop that is alone in another comes its first one in the
    next iteration of that."""

    buffer: str
    axis: str
    during: str
    level: int = 2
    distance: int = 1

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("for")
        axis = words.name()
        distance = words.number() if words.accept("+") else Fetch.distance
        words.expect("in")
        during = words.name()
        return Fetch(buffer, axis, during, _level(words, Fetch.level), distance)

    def rest(self) -> str:
        distance = f" +{self.distance}" if self.distance != Fetch.distance else ""
        return f"{self.buffer} for {self.axis}{distance} in {self.during} L{self.level}"


@dataclass(frozen=True)
class Nontemporal(Step):
    """Let the writes of a buffer bypass the caches: `nontemporal y`. Refused where the kernel reads it."""

    buffer: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Nontemporal(words.name())

    def rest(self) -> str:
        return self.buffer

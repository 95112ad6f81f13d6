"""What every schedule step is, and the table of all kinds by name."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from intarsia.ir.schedule.words import Words

STEPS: dict[str, type[Step]] = {}
"""Every kind of step by the word that begins it."""


@dataclass(frozen=True)
class Step:
    """One change of a kernel that keeps its meaning, or a ScheduleError."""

    def __init_subclass__(cls, *, is_form: bool = False) -> None:
        """A form is what several kinds of steps look like, and no kind itself."""
        if not is_form:
            STEPS[cls.word()] = cls

    @classmethod
    def word(cls) -> str:
        return cls.__name__.lower()

    @classmethod
    @abstractmethod
    def read(cls, words: Words) -> Step:
        """The step whose words after the first are `words`."""

    @abstractmethod
    def rest(self) -> str:
        """What follows the first word."""

    def __str__(self) -> str:
        return f"{self.word()} {self.rest()}".rstrip()


@dataclass(frozen=True)
class OfAxes(Step, is_form=True):
    """A step that wants axes only."""

    axes: tuple[str, ...]

    @classmethod
    def read(cls, words: Words) -> Step:
        return cls(words.names())

    def rest(self) -> str:
        return " ".join(self.axes)


@dataclass(frozen=True)
class AtAxis(Step, is_form=True):
    """A step that makes a buffer of another one at an axis: its words are `h at p -> c`."""

    buffer: str
    axis: str
    new: str

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("at")
        axis = words.name()
        words.expect("->")
        return cls(buffer, axis, words.name())

    def rest(self) -> str:
        return f"{self.buffer} at {self.axis} -> {self.new}"

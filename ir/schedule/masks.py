"""Schedule steps about masks: conditions under which elements are read and written."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import Step
from intarsia.ir.schedule.words import Words


@dataclass(frozen=True)
class Version(Step):
    """Choose at run time between a body without masks and the body as it is: `version i`. Masks on axes to `keep` stay.

       for i { lane j in 0..16 { y[16 * i + j] = … where 16 * i + j < N } }
    -> for i { if 16 * i + 15 < N { lane j { y[16 * i + j] = … } } else { lane j.0 { … where 16 * i + j.0 < N } } }
    """

    axis: str
    keep: tuple[str, ...] = ()

    @classmethod
    def read(cls, words: Words) -> Step:
        return Version(words.name(), words.names() if words.accept("keep") else ())

    def rest(self) -> str:
        return f"{self.axis} keep {' '.join(self.keep)}" if self.keep else self.axis


@dataclass(frozen=True)
class Unmask(Step):
    """Drop the masks of the writes of a temporary: `unmask t`. Refused unless every reader stays where they hold."""

    buffer: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Unmask(words.name())

    def rest(self) -> str:
        return self.buffer


@dataclass(frozen=True)
class Tighten(Step):
    """Begin and end a loop where the masks of all that it does can first and last hold: `tighten k`.

    for k in 0..N { s[i] += … where k < i + 1 }   ->   for k in 0..min(N, i + 1) { s[i] += … where k < i + 1 }
    """

    axis: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Tighten(words.name())

    def rest(self) -> str:
        return self.axis


@dataclass(frozen=True)
class Skip(Step):
    """Begin and end a loop that adds to sums where masks first and last let it add anything: `skip i`.

       for i in 0..N { for j { y[j] += where(j <= i, x[i, j], 0.0) * g[i] } }
    -> for i { some max= … 0.0 * g[i] … }
       end = N if some > 0.0 else 0; for i in max(0, min(j, end))..N { … }

    What is left out adds 0 times other factors. These change along one side of the sum only, so that it is found out
    before whether any of them is infinite or NaN; then nothing is left out.
    """

    axis: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Skip(words.name())

    def rest(self) -> str:
        return self.axis


@dataclass(frozen=True)
class Widen(Step):
    """Make the bounds of a loop such that they need no axis around it, and masks of what they were: `widen k`.

    for i in 0..N { for k in i + 1..N { s[i] += … } }   ->   for i in 0..N { for k in 1..N { s[i] += … where i < k } }
    """

    axis: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Widen(words.name())

    def rest(self) -> str:
        return self.axis


@dataclass(frozen=True)
class Restrict(Step):
    """Turn a choice of the neutral element into a mask: `restrict m`.

    m[i] max= where(j < i + 1, s[i, j], -inf)   ->   m[i] max= s[i, j] where j < i + 1
    """

    buffer: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Restrict(words.name())

    def rest(self) -> str:
        return self.buffer

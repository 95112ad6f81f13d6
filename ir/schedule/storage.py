"""The schedule steps about where values lie: temporaries, and copies in them."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.kernel import Memory
from intarsia.ir.schedule.step import Step
from intarsia.ir.schedule.words import Words


@dataclass(frozen=True)
class Localize(Step):
    """Shrink a temporary to what one iteration of a loop touches: `localize t at i register`.

        alloc t: f32[N, M]; for i { for j { t[i, j] = … } … }   ->   for i { alloc t: f32[M]; for j { t[j] = … } … }

    Refused where a value crosses from one iteration to another, or the iteration touches it in several places.
    """

    buffer: str
    axis: str
    memory: Memory

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("at")
        return Localize(buffer, words.name(), words.memory())

    def rest(self) -> str:
        return f"{self.buffer} at {self.axis} {self.memory}"


@dataclass(frozen=True)
class Pack(Step):
    """Copy what an iteration of a loop (or the kernel, at `root`) reads of a buffer: `pack b at j -> bp[k, j.1] cache`.

        for j { for k { for j.1 { … b[k, 16 * j + j.1] … } } }
     -> for j { alloc bp: f32[K, 16]; for k.0 { for j.1.0 { bp[k.0, j.1.0] = b[k.0, 16 * j + j.1.0] } }
                for k { for j.1 { … bp[k, j.1] … } } }

    The dimensions of the copy are axes inside the loop, in any order: that is its layout. Axes of one subscript may
    share a dimension, so that windows that overlap are copied once: of `x[2 * i + r - 1]` the layout `[i, r]` holds
    one window after the other, `[i + r]` each element that one of them has. Masks of the loads move into the copy,
    which pads with what they gave. Where the buffer is read in several ways, as in `x[i, k] * x[j, k]`, the layout
    tells which one is meant. Refused unless just one reads along these axes, and where the buffer is written.
    With memory `prepared` the copy is made once for all calls; that takes a constant, and `root`.
    """

    buffer: str
    axis: str
    new: str
    layout: tuple[str, ...]
    memory: Memory

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("at")
        axis = words.name()
        words.expect("->")
        new = words.name()
        words.expect("[")
        layout = [words.name()]
        while joint := words.accept(",", "+"):
            following = words.name()
            layout[-1:] = [f"{layout[-1]} + {following}"] if joint == "+" else [layout[-1], following]
        words.expect("]")
        return Pack(buffer, axis, new, tuple(layout), words.memory())

    @property
    def dimensions(self) -> tuple[tuple[str, ...], ...]:
        """The axes of each dimension of the copy."""
        return tuple(tuple(axes.split(" + ")) for axes in self.layout)

    def rest(self) -> str:
        return f"{self.buffer} at {self.axis} -> {self.new}[{', '.join(self.layout)}] {self.memory}"


@dataclass(frozen=True)
class Stage(Step):
    """Compute a result in a temporary, and copy it at the end: `stage y -> t`.

    for i { y[i] = 0.0; for k { y[i] += … } }   ->   alloc t: f32[N]; for i { t[i] = 0.0; for k { t[i] += … } }
                                                     for d0 in 0..N { y[d0] = t[d0] }
    """

    buffer: str
    new: str

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("->")
        return Stage(buffer, words.name())

    def rest(self) -> str:
        return f"{self.buffer} -> {self.new}"


@dataclass(frozen=True)
class Inline(Step):
    """Compute a temporary where it is used: `inline t`.

        for i { t[i] = f(i) }; for j { y[j] = t[j] }   ->   for j { y[j] = f(j) }

    Refused unless one statement defines it, point by point, from what does not change before the uses.
    """

    buffer: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Inline(words.name())

    def rest(self) -> str:
        return self.buffer


@dataclass(frozen=True)
class Reuse(Step):
    """Let a temporary lie in the memory of another one that is not needed any more: `reuse s for e`.

        alloc e: f32[64]; for i { e[i] = exp(s[i]) }; for j { y += e[j] }
     -> for i { s[i] = exp(s[i]) }; for j { y += s[j] }

    Refused unless both are made by one block, alike, and no element of s is touched after that of e is written.
    """

    buffer: str
    user: str

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("for")
        return Reuse(buffer, words.name())

    def rest(self) -> str:
        return f"{self.buffer} for {self.user}"

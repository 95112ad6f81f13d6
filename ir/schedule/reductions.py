"""The schedule steps that reduce in another way: into tiles, block by block, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from intarsia.ir.kernel import Memory
from intarsia.ir.schedule.step import Step
from intarsia.ir.schedule.words import Words, arrow

AccumulateMode: TypeAlias = Literal["add", "set", "first", "load"]


@dataclass(frozen=True)
class Accumulate(Step):
    """Reduce over a loop, and the reduction loops inside it, into a tile: `accumulate c at k -> acc register set`.

        for i { for k { for j { c[i, j] += … } } }
     -> for i { alloc acc: f32[16]; for j.0 { acc[j.0] = 0 }; for k { for j { acc[j] += … } }
                for j.1 { c[i, j.1] += acc[j.1] } }

    mode: `add` as above; `set` writes `c = acc` and drops the statement that set c to the neutral element, which must
    be there; `first o` does so in the first iteration of the outer reduction loop o, of which there has to be one, and
    adds in the others; `load` starts from c. Axes to `keep` stay dimensions of the tile, so that it holds partial
    results (also the loop itself). Conditions on axes of the tile move to where it is written back; elements beyond
    them hold anything.
    """

    buffer: str
    axis: str
    new: str
    memory: Memory
    mode: AccumulateMode = "add"
    keep: tuple[str, ...] = ()
    outer: str = ""

    @classmethod
    def read(cls, words: Words) -> Step:
        buffer = words.name()
        words.expect("at")
        axis = words.name()
        words.expect("->")
        new, memory = words.name(), words.memory()
        mode = words.accept(*get_args(AccumulateMode)) or "add"
        outer = words.name() if mode == "first" else ""
        keep = words.names() if words.accept("keep") else ()
        return Accumulate(buffer, axis, new, memory, mode, keep, outer)  # type: ignore[arg-type]

    def rest(self) -> str:
        mode = "" if self.mode == "add" else f" {self.mode} {self.outer}".rstrip()
        keep = f" keep {' '.join(self.keep)}" if self.keep else ""
        return f"{self.buffer} at {self.axis} -> {self.new} {self.memory}{mode}{keep}"


@dataclass(frozen=True)
class Factor(Step):
    """Take factors that do not change along a sum out of it: `factor y`.

        y = 0.0; for j { y += e[j] / l * v[j] }   ->   y = 0.0; for j { y += e[j] * v[j] }; y = y / l + 0.0

    Refused unless one nest adds to y, after a statement that sets it to 0. A sum of nothing stays 0, and none is -0.0.
    """

    buffer: str

    @classmethod
    def read(cls, words: Words) -> Step:
        return Factor(words.name())

    def rest(self) -> str:
        return self.buffer


@dataclass(frozen=True)
class Online(Step):
    """Reduce block by block, so that a reduction that needs the result of another one along the same axis need not
    wait for it, nor what they read be kept longer than a block: `online m 512 -> b`.

        m = -inf; for i in 0..N { m max= x[i] }
        l = 0.0; for j in 0..N { l += exp(x[j] - m) }
     -> m = -inf; l = 0.0
        for b in 0..N step 512 {
          m.0 = m
          for i in 0..min(512, N - b) { m max= x[b + i] }
          m.1 = where(m == -inf, 0.0, m)
          m.2 = where(m.0 == -inf, 1.0, exp(m.0 - m))
          l *= m.2
          for j in 0..min(512, N - b) { l += exp(x[b + j] - m.1) } }
        l = where(m == -inf, nan, l)

    All stages of the block of statements that run along the axis of m take part; where m is a maximum, a sum that uses
    it is rescaled where it moves. Each of its summands needs one factor `exp(c * x - c * m)`, where x is what m is the
    maximum of. Blocks in which a mask makes every x neutral are left out; what they would add to rescaled sums, 0 times
    a factor, is added after the loop.

    Where m is a sum of x, others may add up (x[j] - m / N) * (x[j] - m / N), or what differs from that by a factor and
    by what does not need m. In each block they are relative to the mean of what was seen, and are shifted where it
    moves. A row in which that gives an infinity or NaN is gone through again as before.
    """

    buffer: str
    size: int
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, words: Words) -> Step:
        return Online(words.name(), words.number(), words.new_names(1))

    def rest(self) -> str:
        return f"{self.buffer} {self.size}{arrow(self.names)}"


@dataclass(frozen=True)
class Parts(Step):
    """Reduce parts of an axis side by side, also where a reduction needs the result of another one along that axis, and
    merge what they give: `parts m 512 -> p`.

        m = -inf; for i in 0..N { m max= x[i] }
        l = 0.0; for j in 0..N { l += exp(x[j] - m) }
     -> for p.0 in 0..(N + 511) // 512 { m.0[p.0] = -inf }
        for p { for i in 0..512 { m.0[p] max= x[512 * p + i] where 512 * p + i < N } }
        for p.1 { l.0[p.1] = 0.0 }
        for p.2 { for j in 0..512 { l.0[p.2] += exp(x[…] - where(m.0[p.2] == -inf, 0.0, m.0[p.2])) where … } }
        for p.3 { m.1[p.3] = m.0[p.3] }; for p.4 { l.1[p.4] = l.0[p.4] }
        m = -inf; for p.5 { m max= m.1[p.5] }
        for p.6 { m.2[p.6] = where(m.1[p.6] == -inf, 1.0, exp(m.1[p.6] - m)) }
        l = 0.0; for p.7 { l += l.1[p.7] * m.2[p.7] }
        l = where(m == -inf, nan, l)

    What the parts find is copied, so that the rest of them may become one loop with temporaries of its own. The stages
    that take part, and what they may be, are those of `online`, which may be the next step for the parts.
    """

    buffer: str
    size: int
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, words: Words) -> Step:
        return Parts(words.name(), words.number(), words.new_names(1))

    def rest(self) -> str:
        return f"{self.buffer} {self.size}{arrow(self.names)}"

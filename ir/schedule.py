"""Schedules as data: steps that print, parse, compare and hash. `passes/schedule` applies them.

A schedule is text such as `split m 64; reorder m.0 k m.1; accumulate c at k -> acc register set; vectorize j`. Steps
are separated by `;` or newlines, `#` begins a comment. A step that makes loops names them after the one they come from:
`i` gives `i.0`, `i.1`, … with the lowest numbers that are free, unless names are given after `->`.

In the pictures of the docstrings `…` stands for the rest of a body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from intarsia.ir.errors import CompileError
from intarsia.ir.kernel import Memory
from intarsia.ir.schedule_codes import Group as Group
from intarsia.ir.schedule_codes import Squeeze as Squeeze
from intarsia.ir.schedule_dots import Dot as Dot
from intarsia.ir.schedule_dots import Multiply as Multiply
from intarsia.ir.schedule_hints import Fetch as Fetch
from intarsia.ir.schedule_hints import Nontemporal as Nontemporal
from intarsia.ir.schedule_hints import Prefetch as Prefetch
from intarsia.ir.schedule_launch import Describe as Describe
from intarsia.ir.schedule_launch import Programs as Programs
from intarsia.ir.schedule_launch import Stages as Stages
from intarsia.ir.schedule_launch import Warps as Warps
from intarsia.ir.schedule_masks import Restrict as Restrict
from intarsia.ir.schedule_masks import Skip as Skip
from intarsia.ir.schedule_masks import Tighten as Tighten
from intarsia.ir.schedule_masks import Unmask as Unmask
from intarsia.ir.schedule_masks import Version as Version
from intarsia.ir.schedule_masks import Widen as Widen
from intarsia.ir.schedule_order import Distribute as Distribute
from intarsia.ir.schedule_order import Merge as Merge
from intarsia.ir.schedule_order import Move as Move
from intarsia.ir.schedule_order import Overlap as Overlap
from intarsia.ir.schedule_order import Sink as Sink
from intarsia.ir.schedule_scans import Restart as Restart
from intarsia.ir.schedule_scans import Scan as Scan
from intarsia.ir.schedule_step import STEPS as STEPS
from intarsia.ir.schedule_step import Step as Step
from intarsia.ir.schedule_words import Words

Tail: TypeAlias = Literal["mask", "min", "peel", "step"]
AccumulateMode: TypeAlias = Literal["add", "set", "first", "load"]

ROOT = "root"
"""The name that stands for the body of the whole kernel where a step wants a loop."""


@dataclass(frozen=True)
class Schedule:
    """Steps in order."""

    steps: tuple[Step, ...] = ()

    @staticmethod
    def parse(text: str) -> Schedule:
        """Read a schedule. Raises CompileError E1601 where the text is none."""
        lines = (line.partition("#")[0] for line in text.splitlines())
        parts = (part.strip() for line in lines for part in line.split(";"))
        return Schedule(tuple(parse_step(part) for part in parts if part))

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps))

    def __add__(self, other: Schedule) -> Schedule:
        return Schedule(self.steps + other.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def parse_step(text: str) -> Step:
    """Read one step. Raises CompileError E1601."""
    words = Words(text)
    word = words.name()
    if word not in STEPS:
        raise CompileError("E1601", f"no schedule step is named '{word}'", hint=f"steps: {', '.join(sorted(STEPS))}")
    step = STEPS[word].read(words)
    words.end()
    return step


def _arrow(names: tuple[str, ...]) -> str:
    return f" -> {' '.join(names)}" if names else ""


# ---------------------------------------------------------------------- loops


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
        return f"{self.axis} {self.factor}{tail}{_arrow(self.names)}"


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
        return f"{self.outer} {self.inner}{_arrow(self.names)}"


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
class Reorder(Step):
    """Permute loops of a perfect nest: `reorder k i j`. Loops of the nest that are not named keep their places.

        for i { for j { for k { … } } }   ->   for k { for i { for j { … } } }

    Bounds that are linear in an axis that comes to stand inside become bounds of that axis. Refused where others need
    such an axis, or where an iteration would overtake one on which it depends. Accumulating writes by one operator may
    change their order.
    """

    axes: tuple[str, ...]

    @classmethod
    def read(cls, words: Words) -> Step:
        return Reorder(words.names())

    def rest(self) -> str:
        return " ".join(self.axes)


# ---------------------------------------------------------------------- storage


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
        return f"{self.buffer} {self.size}{_arrow(self.names)}"


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
        return f"{self.buffer} {self.size}{_arrow(self.names)}"


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


# ---------------------------------------------------------------------- kinds


@dataclass(frozen=True)
class _Axes(Step):
    """A step that wants axes only."""

    axes: tuple[str, ...]

    @classmethod
    def read(cls, words: Words) -> Step:
        return cls(words.names())

    def rest(self) -> str:
        return " ".join(self.axes)


del STEPS["_axes"]


@dataclass(frozen=True)
class Vectorize(_Axes):
    """Run the iterations of loops at once, as the lanes of a vector: `vectorize j`.

        for j in 0..16 { y[j] = x[j] }   ->   lane j in 0..16 { y[j] = x[j] }

    The bounds are numbers. Refused where one iteration needs what another makes; a write that accumulates over the axis
    is fine: the lanes are reduced.
    """


@dataclass(frozen=True)
class Unroll(_Axes):
    """Write the iterations of loops out one after the other: `unroll i`. The bounds are numbers."""


@dataclass(frozen=True)
class Parallel(_Axes):
    """Let threads share the iterations of loops: `parallel i`. Refused where one iteration touches what another writes;
    accumulating writes count, unless they are atomic."""


@dataclass(frozen=True)
class Grid(_Axes):
    """Let the programs of a GPU launch share the iterations of loops: `grid i`. Refused as `parallel` is."""

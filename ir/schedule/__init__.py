"""Schedules as data: steps that print, parse, compare and hash. `passes/schedule` applies them; the modules beside this
one define them.

A schedule is text such as `split m 64; reorder m.0 k m.1; accumulate c at k -> acc register set; vectorize j`. Steps
are separated by `;` or newlines, `#` begins a comment. A step that makes loops names them after the one they come from:
`i` gives `i.0`, `i.1`, … with the lowest numbers that are free, unless names are given after `->`.

In the pictures of the docstrings `…` stands for the rest of a body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from intarsia.ir.errors import CompileError
from intarsia.ir.schedule.codes import Group as Group
from intarsia.ir.schedule.codes import Squeeze as Squeeze
from intarsia.ir.schedule.dots import Dot as Dot
from intarsia.ir.schedule.dots import Multiply as Multiply
from intarsia.ir.schedule.hints import Fetch as Fetch
from intarsia.ir.schedule.hints import Nontemporal as Nontemporal
from intarsia.ir.schedule.hints import Prefetch as Prefetch
from intarsia.ir.schedule.kinds import Grid as Grid
from intarsia.ir.schedule.kinds import Parallel as Parallel
from intarsia.ir.schedule.kinds import Unroll as Unroll
from intarsia.ir.schedule.kinds import Vectorize as Vectorize
from intarsia.ir.schedule.launch import Describe as Describe
from intarsia.ir.schedule.launch import Programs as Programs
from intarsia.ir.schedule.launch import Stages as Stages
from intarsia.ir.schedule.launch import Warps as Warps
from intarsia.ir.schedule.loops import Align as Align
from intarsia.ir.schedule.loops import Collapse as Collapse
from intarsia.ir.schedule.loops import Partition as Partition
from intarsia.ir.schedule.loops import Peel as Peel
from intarsia.ir.schedule.loops import Reorder as Reorder
from intarsia.ir.schedule.loops import Skew as Skew
from intarsia.ir.schedule.loops import Split as Split
from intarsia.ir.schedule.loops import Tail as Tail
from intarsia.ir.schedule.loops import Wavefront as Wavefront
from intarsia.ir.schedule.masks import Restrict as Restrict
from intarsia.ir.schedule.masks import Skip as Skip
from intarsia.ir.schedule.masks import Tighten as Tighten
from intarsia.ir.schedule.masks import Unmask as Unmask
from intarsia.ir.schedule.masks import Version as Version
from intarsia.ir.schedule.masks import Widen as Widen
from intarsia.ir.schedule.order import Distribute as Distribute
from intarsia.ir.schedule.order import Merge as Merge
from intarsia.ir.schedule.order import Move as Move
from intarsia.ir.schedule.order import Overlap as Overlap
from intarsia.ir.schedule.order import Sink as Sink
from intarsia.ir.schedule.reductions import Accumulate as Accumulate
from intarsia.ir.schedule.reductions import AccumulateMode as AccumulateMode
from intarsia.ir.schedule.reductions import Factor as Factor
from intarsia.ir.schedule.reductions import Online as Online
from intarsia.ir.schedule.reductions import Parts as Parts
from intarsia.ir.schedule.scans import Restart as Restart
from intarsia.ir.schedule.scans import Scan as Scan
from intarsia.ir.schedule.step import STEPS as STEPS
from intarsia.ir.schedule.step import Step as Step
from intarsia.ir.schedule.storage import Inline as Inline
from intarsia.ir.schedule.storage import Localize as Localize
from intarsia.ir.schedule.storage import Pack as Pack
from intarsia.ir.schedule.storage import Reuse as Reuse
from intarsia.ir.schedule.storage import Stage as Stage
from intarsia.ir.schedule.words import Words

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

"""Of the states that a loop keeps for the way back over its steps some are kept, the others made again from these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from intarsia.ir.graph import Module, Region, Structured
from intarsia.ir.ops import Loop, Update
from intarsia.ir.sizes import Size
from intarsia.passes.checkpoint.records import Group, groups
from intarsia.passes.checkpoint.segments import checkpointed
from intarsia.passes.dce import prune
from intarsia.passes.fuse.report import bytes_text, title
from intarsia.passes.lower.stages import Names
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.recompute import WORTH
from intarsia.passes.recompute.storage import Storage
from intarsia.passes.regions import change_regions

MOST = 1 << 30
"""Bytes that may wait before steps are run again, where nobody says how many."""


@dataclass(frozen=True)
class Checkpoint(Pass):
    """Keep one state of a loop for every k steps, and run these steps again before a loop goes back over them.

    Before:  %0:2 = scan t in 0..12 (%h = %h0) {
               …
               yield %1
               emit %h
             } : f32[N], f32[12, N]
             %2 = loop s in 0..12 (%d = %d0) {
               %3 = compute [i < N] (%0#1[11 - s, i]) : f32[N]
               …
             } : f32[N]
    After:   %0:2 = loop t in 0..12 (%h = %h0, %h_kept = broadcast_to %h0 : f32[3, N]) {
               …
               %2 = update %h_kept[r, i] = [r in (t + 3) // 4..t // 4 + 1, i < N] (%h[i]) : f32[3, N]
               yield %1, %2
             } : f32[N], f32[3, N]
             %3 = loop q in 0..3 (%d = %d0) {
               %4 = slice %0#1 starts=(2 - q, 0) … : f32[N]
               %5:2 = scan t in 8 - 4 * q..12 - 4 * q (%h = %4) {
                 …
                 emit %h
               } : f32[N], f32[4, N]
               %6 = loop s in 4 * q..4 * q + 4 (%d = %d) {
                 %7 = compute [i < N] (%5#1[3 - s + 4 * q, i]) : f32[N]
                 …

    Every step is run once more, and ceil(T / k) + k states are in memory in place of T (Chen et al., "Training Deep
    Nets with Sublinear Memory Cost", 2016). That is done where more bytes wait for a loop that goes back than a
    `budget`, or `least` where there is none, and the states are a sixteenth of them at least. k is the least number
    with which what waits is within that bound, about the square root of T where none is; a larger one that divides T
    is taken where it does as well. `every` is a k for all loops, whatever waits.

    The loop may stack its states, or carry them as rows where data says how many steps there are; the one that goes
    back may be any that reads one row in each step. With `--checks` the former has to be counted, since steps are run
    again in full segments, also those of the last one that were not run before.

    Keeps: values, bit for bit. Needs: `dce`. Leaves: what `hoist`, `recompute` and `fuse` take on.
    """

    name: ClassVar[str] = "checkpoint"
    budget: int = 0
    least: int = MOST
    every: int = 0

    def run(self, module: Module, context: Context) -> Module:
        names = Names(_names(module.graph.body))
        body = self._region(module.graph.body, context, names.fresh)
        return module.with_body(body)

    def _region(self, region: Region, context: Context, fresh: Callable[[str], str]) -> Region:
        inside = partial(self._region, context=context, fresh=fresh)
        region = change_regions(region, lambda node, r: inside(r) if isinstance(node, Loop) else r)
        while (found := self._largest(region, context)) is not None:
            group, length = found
            self._explain(group, length, context)
            made = checkpointed(region, group, length, fresh)
            region = prune(made, made.results)
        return region

    def _largest(self, region: Region, context: Context) -> tuple[Group, int] | None:
        """The largest records of a region that had better not be kept whole, and the length of their segments."""
        found = [g for g in groups(region) if not (context.checks and any(r.is_open for r in g.records))]
        waiting = {region.nodes[n]: held for n, held in Storage().bytes_waiting(region)} if found else {}
        for group in sorted(found, key=lambda g: g.bytes, reverse=True):
            length = self._length(group, max(waiting[loop] for loop in group.readers))
            if length is not None:
                return group, length
        return None

    def _length(self, group: Group, waiting: int) -> int | None:
        """The length of segments, where so many bytes wait for a reader; None if all rows are kept."""
        if self.every:
            return self.every if group.count > self.every else None
        most = self.budget or self.least
        if waiting <= most or not group.bytes:
            return None
        length = _shortest(group, most - (waiting - group.bytes))
        return length if WORTH * (group.bytes - _bytes(group, length)) >= waiting else None

    def _explain(self, group: Group, length: int, context: Context) -> None:
        count = -(-group.count // length)
        before, after = (bytes_text(Size.of(n)) for n in (group.bytes, _bytes(group, length)))
        for record in group.records:
            loop, again = record.loop, count * length * len(record.readers)
            what = f"{count} of {group.count} states of the {title(loop)} are kept, and {length} at a time made again"
            text = f"{what}: {after} in place of {before}; {again} steps are run again"
            self.remark(context, "memory", text, loop.span)


def _bytes(group: Group, length: int) -> int:
    """Bytes of the states that are kept, and of those of one segment."""
    return -(-group.count // length) * group.bytes_needed + length * group.bytes // group.count


def _shortest(group: Group, most: int) -> int:
    """The least length of segments with which records take `most` bytes, else that with which they take least; one that
    divides the steps is taken if it is as good, or nearly so."""
    best = math.ceil(math.sqrt(group.count * group.bytes_needed * group.count / group.bytes))
    first = next((k for k in range(2, best) if _bytes(group, k) <= most), best)
    most = max(most, _bytes(group, first) * 5 // 4)
    even = (k for k in range(first, 2 * first) if group.count % k == 0 and _bytes(group, k) <= most)
    return next(even, first)


def _names(region: Region) -> Iterator[str]:
    """The names of counters and axes."""
    for node in region.walk():
        match node:
            case Loop():
                yield node.counter
            case Structured():
                yield from (a.name for a in node.space.all_axes)
            case Update():
                yield from (a.name for a in node.axes)

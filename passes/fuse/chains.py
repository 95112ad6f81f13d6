"""Groups that are chains of reductions: may products and reductions of their rows be one kernel?

That they may is for the scheduler to say: a group is fused if its kernel gets a schedule that makes one sweep of it. To
make that schedule is dear; a look at the naive kernel is not, and says nearly always the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.ir.graph import Node, Region, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.proofs import Facts
from intarsia.ir.space import Axis
from intarsia.ir.text_printer import canonical_region_text
from intarsia.passes.fuse.members import Member
from intarsia.passes.lower.kernel import GroupLowering
from intarsia.passes.pipeline import Context
from intarsia.passes.schedule.both_ways import runs_both_ways, schedule_in_one
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.chain import is_chain
from intarsia.passes.schedule.programs import chain_of_programs
from intarsia.passes.skip_rounding import without_roundings

FEW = {"cpu": 192, "gpu": 384}
"""Multiply-adds for each element of a product, in all, up to which it is dear to keep; matrix units do twice as many
while memory moves an element."""

NEAR = 0.75
"""From this part of FEW on, whether a product is kept is weighed: see `weighing.py`."""

LARGE = 1 << 18
"""Elements of a product from which on it leaves the second cache."""

TYPICAL = 512
"""What an extent without a number counts as."""

ChainTest = Callable[[Sequence[Member], "frozenset[Value]"], bool]
"""Are members, of which some values are needed outside, one chain of reductions?"""


def never(members: Sequence[Member], outputs: frozenset[Value]) -> bool:
    """The test where there is nothing that could schedule a chain."""
    return False


def may_chain(members: Sequence[Member], kind: str) -> bool:
    """Is there a maximum that a sweep could begin with, or a product that would take about as long to write and to read
    as to compute? `kind` is that of the target."""
    return any(m.is_reduced and m.space.combiner == "max" for m in members) or _is_dear_to_keep(members, kind)


def is_near(members: Sequence[Member], kind: str) -> bool:
    """Is the largest product of a chain hardly dear enough to keep for being computed in blocks?"""
    reduced = any(m.is_reduced and m.space.combiner == "max" for m in members)
    return not reduced and not _is_dear_to_keep(members, kind, NEAR)


def _is_dear_to_keep(members: Sequence[Member], kind: str, part: float = 1.0) -> bool:
    reduced = [m for m in members if m.is_reduced]
    largest = max((_points(m.space.axes) for m in reduced if _is_product(m)), default=0)
    return largest >= LARGE and sum(_points(m.space.all_axes) for m in reduced) <= part * FEW[kind] * largest


def _is_product(member: Member) -> bool:
    """Does it sum over what it reads for many of its elements, as a matrix product does?"""
    kept = {a.name for a in member.wide_axes}
    read = [frozenset().union(*(i.symbols for i in indices)) for _, indices in member.reads]
    return member.is_reduced and member.space.combiner == "sum" and any(kept - symbols for symbols in read)


def _points(axes: Sequence[Axis]) -> int:
    return math.prod(TYPICAL if a.extent.constant is None else a.extent.constant for a in axes)


@dataclass(frozen=True)
class Chains:
    """The two tests, of a look and of a trial; `names` are the dimensions and counters that may occur. Groups with all
    nodes of one of the `sweeps` are to be one kernel even if its products could be kept; it may go through blocks of
    rows and columns.

    Equal groups, such as those of the layers of a network, are looked at and tried once. Schedules that were found are
    left to the context, so that they need not be made again.
    """

    context: Context
    names: Sequence[str]
    sweeps: Mapping[frozenset[Node], bool] = field(default_factory=dict)
    _looks: dict[tuple[str, bool | None], Kernel | None] = field(default_factory=dict)
    _tried: dict[Kernel, bool] = field(default_factory=dict)

    def looks_right(self, members: Sequence[Member], outputs: frozenset[Value]) -> bool:
        """Is the naive kernel of the group a chain?"""
        return self._kernel(members, outputs) is not None

    def works(self, members: Sequence[Member], outputs: frozenset[Value]) -> bool:
        """Does the kernel of the group get a schedule that makes one sweep of it?"""
        kernel = self._kernel(members, outputs)
        if kernel is None:
            return False
        if kernel not in self._tried:
            builder = self._scheduled(kernel)
            self._tried[kernel] = builder is not None
            if builder is not None:
                self.context.tried[kernel] = builder
        return self._tried[kernel]

    def _scheduled(self, kernel: Kernel) -> Builder | None:
        """The kernel as one sweep on the target; None if that cannot be."""
        if self.context.target.kind == "gpu":
            return chain_of_programs(kernel, self.context.target, self.context.writable)
        builder = Builder(kernel, self.context.target)
        return builder if schedule_in_one(builder) else None

    def makes(self, members: Sequence[Member], outputs: frozenset[Value], both_ways: bool) -> bool:
        """Does the naive kernel of the group look right for a sweep or, asked for that, for blocks of rows and columns?
        On a GPU these would have to add to the same sums."""
        if both_ways and self.context.target.kind == "gpu":
            return False
        return self._kernel(members, outputs, both_ways) is not None

    def _kernel(
        self, members: Sequence[Member], outputs: frozenset[Value], both_ways: bool | None = None
    ) -> Kernel | None:
        """The naive kernel of a group, without a name, if it is a chain, or goes through blocks of rows and columns,
        which is asked of a sweep only."""
        nodes = tuple(m.node for m in members)
        if both_ways is None:
            both_ways = next((both for own, both in self.sweeps.items() if own.issubset(nodes)), None)
        is_sweep = both_ways is not None
        if not (is_sweep or may_chain(members, self.context.target.kind)) or not any(_is_product(m) for m in members):
            return None
        group = without_roundings(Region((), nodes, tuple(v for n in nodes for v in n.values if v in outputs)))
        key = canonical_region_text(group), both_ways
        if key not in self._looks:
            facts = Facts(names=frozenset(self.names))
            kernel = GroupLowering(group.nodes, group.results, self.names, facts).run("", nodes[-1].span).kernel
            again = is_sweep and self.context.target.kind == "gpu"  # matrix units make products again in little time
            rescaled = not again and not _is_dear_to_keep(members, self.context.target.kind)
            builder = Builder(kernel, self.context.target)
            fits = runs_both_ways(builder) if both_ways else is_chain(builder, rescaled)
            self._looks[key] = kernel if fits else None
        return self._looks[key]

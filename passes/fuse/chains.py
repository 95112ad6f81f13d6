"""Groups that are chains of reductions: may products and reductions of their rows be one kernel?

That they may is for the scheduler to say: a group is fused if its kernel gets a schedule that makes one sweep of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from intarsia.ir.graph import Region, Value
from intarsia.ir.proofs import Facts
from intarsia.ir.target import Target
from intarsia.ir.text_printer import canonical_region_text
from intarsia.passes.fuse.members import Member
from intarsia.passes.lower.kernel import GroupLowering
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.chained import schedule_chain
from intarsia.passes.skip_rounding import without_roundings

ChainTest = Callable[[Sequence[Member], "frozenset[Value]"], bool]
"""Are members, of which some values are needed outside, one chain of reductions?"""


def never(members: Sequence[Member], outputs: frozenset[Value]) -> bool:
    """The test where there is nothing that could schedule a chain."""
    return False


def may_chain(members: Sequence[Member]) -> bool:
    """Is there a maximum that a sweep could begin with?"""
    return any(m.is_reduced and m.space.combiner == "max" for m in members)


def chain_test(target: Target, names: Sequence[str]) -> ChainTest:
    """The test for a target; `names` are the dimensions and counters that may occur. It tries equal groups, such as
    those of the layers of a network, once."""
    known: dict[str, bool] = {}

    def test(members: Sequence[Member], outputs: frozenset[Value]) -> bool:
        if not may_chain(members) or not any(m.is_contraction for m in members):
            return False
        nodes = tuple(m.node for m in members)
        group = without_roundings(Region((), nodes, tuple(v for n in nodes for v in n.values if v in outputs)))
        key = canonical_region_text(group)
        if key not in known:
            facts = Facts(names=frozenset(names))
            kernel = GroupLowering(group.nodes, group.results, names, facts).run("chain", nodes[-1].span).kernel
            known[key] = schedule_chain(Builder(kernel, target))
        return known[key]

    return test

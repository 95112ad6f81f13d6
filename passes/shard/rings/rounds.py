"""How often blocks have to go round the devices, until all that is made of them is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.passes.shard.rings.gathered import Gathered


@dataclass(frozen=True)
class Round:
    """What is made while the blocks go round once. outputs: the values of the members that others need."""

    members: tuple[Structured, ...]
    outputs: tuple[Value, ...]


def find_rounds(region: Region, group: Gathered, is_chain: Callable[[Round], bool]) -> list[Round]:
    """As few rounds as there can be; none at all where something fits into no round.

    What needs a sum over all blocks, other than one that it follows as that grows, waits for the next round, in which
    all that lies between it and the blocks is made again: so the gradient of attention makes the scores once more, from
    the maximum and the sum of each row. `is_chain` says whether something can be done in one round.
    """
    found: list[tuple[tuple[Structured, ...], Set[Node]]] = []
    left, finished = list(group.ends), set[Node]()
    while left:
        taken: list[Structured] = []
        for end in left:
            members = _between(region, group, [end], finished)
            needed = [n for n in left if n is not end and n in (members or ())]
            if members is None or not set(needed).issubset(taken):
                continue
            if not needed or is_chain(Round(members, tuple(n.value for n in (*needed, end)))):
                taken.append(end)
        members = _between(region, group, taken, finished)
        if not taken or members is None:
            return []
        found.append((members, set(taken)))
        finished |= set(taken)
        left = [n for n in left if n not in finished]
    rounds: list[Round] = []
    again: set[Node] = set()
    for members, ends in reversed(found):
        own = {n for n in members if n in ends or n not in group.along}
        inside = set(members) - again
        used = {v for n in region.nodes if n not in inside for v in n.inputs} | set(region.results)
        rounds.insert(0, Round(members, tuple(n.value for n in members if n in own and n.value in used)))
        again |= set(members)
    return rounds


def _between(
    region: Region, group: Gathered, ends: Sequence[Structured], finished: Set[Node]
) -> tuple[Structured, ...] | None:
    """All that lies between what is gathered and some ends and is not finished, and what is made along the dimension
    for that; None where some of it has no space, or is gathered only when other ends are there."""
    below, above = set[Node](group.gathers), set[Node](ends)
    late: set[Node] = set()
    for node in region.nodes:
        is_below = any(v.node in below for v in node.inputs)
        if node not in finished and (is_below or node in group.along):
            below.add(node)
        if is_below and node in group.gathers:
            late.add(node)
    for node in reversed(region.nodes):
        if node in above and node in below and node not in group.gathers:
            above.update(v.node for v in node.inputs)
    between = [n for n in region.nodes if n in below and n in above and n not in group.gathers]
    members = tuple(n for n in between if isinstance(n, Structured))
    return members if len(members) == len(between) and late.isdisjoint(above) else None

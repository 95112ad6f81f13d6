"""Products that share an operand become one product."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.ops import Loop
from intarsia.ir.space import Space
from intarsia.ir.target import Target
from intarsia.ir.text_printer import canonical_region_text
from intarsia.passes.fuse.members import only_moves
from intarsia.passes.fuse.report import title
from intarsia.passes.fuse.weighing import Weighing, against
from intarsia.passes.merge.fixed import Fixed
from intarsia.passes.merge.parts import Along, Merged, Part, along, merged, product_parts
from intarsia.passes.merge.surroundings import MOST, Surroundings, fused, independent, launches
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions

LARGE = 1 << 24
"""Multiply-adds of a product that is shared well enough among the cores of a CPU."""

BETTER = 1.4
"""How much better cores have to be used: at 1.25 and 1.3 nothing was gained."""

TYPICAL = 64
"""What an extent without a number counts as."""


Known = dict[Hashable, tuple[bool, str]]
"""Whether it paid, and why, for what was weighed before."""


@dataclass(frozen=True)
class Merge(Pass):
    """Make one product of products that have an operand in common, where that is expected to pay.

    Before:  %0 = matmul %x, %a : f32[S, 8]          After:  %0 = concat %a, %b axis=1 : f32[D, 12]
             %1 = matmul %x, %b : f32[S, 4]                  %1 = matmul %x, %0 : f32[S, 12]
                                                             and slices of %1 for all that reads the two

    Any sums of products of two elements, if the operands that differ do so along one axis of the result: columns or
    rows, heads, filters. Pointwise work that all of the results get alike is done for all at once. Operands that are
    constants are put together before the first call; others in each call, on a CPU, if even that pays.

    On a CPU it pays where one product, with what would be fused with it, is predicted to be faster since its work is
    shared better among cores; on a GPU where there are fewer launches. `always`: wherever it is possible.

    Keeps: values, each the same sum as before. Needs: nothing. Leaves: products with operands of their own, and those
    that are faster apart.
    """

    name: ClassVar[str] = "merge"
    exact: ClassVar[bool] = False  # the order of a sum is that of the loops, and may depend on the width
    always: bool = False

    def run(self, module: Module, context: Context) -> Module:
        body = self._region(module.graph.body, context, module.graph.dimensions, module.graph.dimensions)
        return module.with_body(body)

    def _region(self, region: Region, context: Context, names: tuple[str, ...], dimensions: tuple[str, ...]) -> Region:
        """The region with its products merged; `names` are the dimensions and counters that may occur in it."""

        def inside(node: Node, r: Region) -> Region:
            return self._region(r, context, (*names, node.counter), dimensions) if isinstance(node, Loop) else r

        region = change_regions(region, inside)
        fixed = Fixed(dimensions, rows=context.target.kind == "cpu")
        weighing = Weighing(context, names, fixed)
        ways: dict[Node, list[Along]] = {}
        tried: set[frozenset[Node]] = set()
        known: Known = {}
        while (group := _next_group(region, ways, tried)) is not None:
            tried.add(frozenset(m.node for m in group))
            if not self.always and _fills_cores(group[0].space, context.target):
                self._say(context, group, False, "each by itself keeps all cores busy")
                continue
            steps = _with_epilogues(group, Surroundings(region), fixed)
            new = _replaced(region, steps)
            if self.always or self._pays(steps, region, new, weighing, fixed, known):
                region = new.region
                tried = {frozenset(new.made.get(n, n) for n in nodes) for nodes in tried}
                ways = {made: [w.of(made) for w in ways[n]] for n, made in new.made.items() if n in ways}
        return region

    def _pays(
        self, steps: Sequence[Step], region: Region, new: Change, weighing: Weighing, fixed: Fixed, known: Known
    ) -> bool:
        """Is a region better with some nodes merged? A remark says so, or why not; layers alike are weighed once."""
        kind = weighing.context.target.kind
        own = [m.node for step in steps for m in step.group]
        after = [new.made[n] for step in steps for n in step.merged.nodes if n in new.made]
        before = Surroundings(region).around(own, fixed)
        one = Surroundings(new.region).around(after, fixed)
        copied = any(not fixed(new.made[n].values[0]) for step in steps for n in step.merged.joined)
        key = tuple((canonical_region_text(r), tuple(map(fixed, r.captures))) for r in (before, one))
        if key not in known:
            both = fused(one, kind, MOST), fused(before, kind, MOST)
            known[key] = _fewer(*both, copied) if kind == "gpu" else _faster(*both, weighing)
        pays, why = known[key]
        if why:
            self._say(weighing.context, steps[0].group, pays, why)
        return pays

    def _say(self, context: Context, group: Sequence[Along], pays: bool, why: str) -> None:
        """A remark about products, and what they share."""
        shared = ", ".join(title(v.node) for v in group[0].shared)
        text = f"{len(group)} products with {shared} are {'one' if pays else 'not one'}: {why}"
        self.remark(context, "fusion", text, group[0].node.span, pays)


def _fills_cores(space: Space, target: Target) -> bool:
    """Is a product large enough for all cores of a CPU?"""
    points = math.prod(TYPICAL if a.extent.constant is None else a.extent.constant for a in space.all_axes)
    return target.kind == "cpu" and (target.cores == 1 or points > LARGE)


def _fewer(one: Region, before: Region, copied: bool) -> tuple[bool, str]:
    """Are there fewer launches, and are no operands put together in each call? And what a remark says of it."""
    if copied:
        return False, "their operands would be put together in each call"
    counts = launches(one), launches(before)
    return counts[0] < counts[1], f"{counts[0]} launches against {counts[1]}"


def _faster(one: Region, before: Region, weighing: Weighing) -> tuple[bool, str]:
    """Is one product predicted to be faster, and to share its work so much better among cores that it is?"""
    together, apart = weighing.seconds(one), weighing.seconds(before)
    on_one_core = weighing.alone.seconds(one), weighing.alone.seconds(before)
    if together is None or apart is None or on_one_core[0] is None or on_one_core[1] is None:
        return False, ""
    gain = apart / together * on_one_core[0] / on_one_core[1]
    pays = apart > together and gain > BETTER
    times = against(together, apart) if pays else against(apart, together)
    return pays, f"{times}, cores are used {gain:.2f} times as well in one"


@dataclass(frozen=True)
class Step:
    """Nodes that become one, and what takes their place."""

    group: Sequence[Along]
    merged: Merged


@dataclass(frozen=True)
class Change:
    """A new region, and what the nodes of the old one, and those that are new, have become in it."""

    region: Region
    made: Mapping[Node, Node]


def _next_group(
    region: Region, ways: dict[Node, list[Along]], tried: Collection[frozenset[Node]]
) -> list[Along] | None:
    """The largest group of products that could be one and were not tried; `ways` keeps what is known of nodes."""
    table: dict[Hashable, list[Along]] = {}
    for node in region.nodes:
        if node not in ways:
            ways[node] = list(product_parts(node))
        for way in ways[node]:
            table.setdefault(way.key, []).append(way)
    for group in sorted((g for g in table.values() if len(g) > 1), key=len, reverse=True):
        left = independent([m.node for m in group], region)
        if len(left) > 1 and frozenset(left) not in tried:
            return [m for m in group if m.node in left]
    return None


def _with_epilogues(group: Sequence[Along], around: Surroundings, fixed: Fixed) -> list[Step]:
    """A group, then the pointwise work that all of its results get alike, as long as there is any."""
    steps = [Step(group, merged(group, {}, fixed))]
    while (after := _epilogue(steps[-1].group, around, fixed)) is not None:
        last = steps[-1]
        parts = {m.node.value: Part(last.merged.made.value, n, m.axis) for n, m in enumerate(last.group)}
        steps.append(Step(after, merged(after, parts, fixed)))
    return steps


def _epilogue(group: Sequence[Along], around: Surroundings, fixed: Fixed) -> list[Along] | None:
    """The nodes that alone read the results of a group and can be one, with constants put together at most."""
    users = [around.only_user(m.node.value) for m in group]
    if len(set(users)) < len(users) or not all(isinstance(u, Structured) and not u.space.reduced for u in users):
        return None
    rank = users[0].value.tensor.rank if users[0] is not None else 0
    for axis in range(rank):
        found = [way for u in users if isinstance(u, Structured) and (way := along(u, axis)) is not None]
        if len(found) == len(users) and len({w.key for w in found}) == 1 and _fits(group, found, fixed):
            return found
    return None


def _fits(group: Sequence[Along], users: Sequence[Along], fixed: Fixed) -> bool:
    """Does each of some nodes do more than move its part, along the axis of the parts, and are all of their other parts
    constants?"""
    own = [m.node.value for m in group]
    for position, dim in enumerate(users[0].dims):
        values = [u.node.operands[position] for u in users]
        if values == own:
            if dim != group[0].axis:
                return False
        elif dim is not None and not fixed.together(values):
            return False
    return own in [[u.node.operands[p] for u in users] for p in range(len(users[0].dims))] and not any(
        only_moves(u.space.body) for u in users
    )


def _replaced(region: Region, steps: Sequence[Step]) -> Change:
    """The region with merged nodes in place of their parts, each node after what it reads."""
    new = {m.node.value: v.value for step in steps for m, v in zip(step.group, step.merged.views)}
    own = {*region.nodes, *(n for step in steps for n in step.merged.nodes)} - {v.node for v in new}
    values: dict[Value, Value] = {}
    made: dict[Node, Node] = {}
    stack = [v.node for v in (new.get(v, v) for v in reversed(region.results)) if v.node in own]
    stack += [n for n in reversed(region.nodes) if n in own]
    while stack:
        node = stack[-1]
        reads = {v: new.get(v, v) for v in node.inputs}
        if node in made:
            stack.pop()
        elif waits := [w.node for w in reads.values() if w.node in own and w.node not in made]:
            stack += reversed(waits)
        else:
            changed = {v: values.get(w, w) for v, w in reads.items() if values.get(w, w) != v}
            made[node] = node.with_operands(changed) if changed else node
            if changed:
                values.update(zip(node.values, made[node].values))
            stack.pop()
    results = (new.get(v, v) for v in region.results)
    return Change(Region(region.parameters, tuple(made.values()), tuple(values.get(w, w) for w in results)), made)

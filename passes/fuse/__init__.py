"""Nodes that become one kernel are put into one group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from intarsia.ir.errors import Span
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import After, Call, Constant, Fused, ListGet, Loop, Reshape
from intarsia.ir.sizes import Size
from intarsia.passes.fuse.chains import Chains, ChainTest, is_near, never
from intarsia.passes.fuse.groups import Group, Search, estimated_bytes, sink_views
from intarsia.passes.fuse.members import Member
from intarsia.passes.fuse.report import bytes_text, operations, saving, title
from intarsia.passes.fuse.sweeps import is_masked, with_sweeps
from intarsia.passes.fuse.weighing import SURE, Weighing, against
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions


@dataclass(frozen=True)
class Fuse(Pass):
    """Put nodes that can share one kernel into `fused` groups, so that what passes between them stays in the cache.

    Before:  %0 = exp %x : f32[N, M]
             %1 = reduce %0 combiner=sum axes=(1,) : f32[N]
    After:   %0 = fused {
               %1 = exp %x : f32[N, M]
               %2 = reduce %1 combiner=sum axes=(1,) : f32[N]
               yield %2
             } : f32[N]

    Producers join consumers through views, broadcasts and reductions. All stored values of a group have rows in
    common (see `fuse/rows.py`): a softmax or layer norm is one group. A contraction takes views and casts of its
    operands in, and pointwise work on its result. At most one contraction, but for chains, and at most `max-ops`
    nodes, are in a group; what is dear is not computed twice; loops hold groups inside and are in none. Every edge
    that stays between groups leaves a remark that names the rule.

    Keeps: values, bit for bit. Needs: `legalize-dtype`, else casts stay between groups. Leaves: structured ops, alone
    or in groups.
    """

    name: ClassVar[str] = "fuse"
    max_ops: int = 64

    def run(self, module: Module, context: Context) -> Module:
        body = self._region(module.graph.body, context, module.graph.dimensions)
        return module.with_body(body)

    def _region(self, region: Region, context: Context, names: tuple[str, ...]) -> Region:
        """The region with its nodes in groups; `names` are the dimensions and counters that may occur in it."""

        def inside(node: Node, r: Region) -> Region:
            return self._region(r, context, (*names, node.counter)) if isinstance(node, Loop) else r

        inner = change_regions(region, inside)
        search, groups, fused = self._best_search(inner, context, names)
        self._explain(search, groups, context)
        if all(len(g.nodes) == 1 for g in groups) and inner is region:
            return region
        return fused

    def _best_search(
        self, region: Region, context: Context, names: tuple[str, ...]
    ) -> tuple[Search, list[Group], Region]:
        """The groups of a region; with copies of large products where these need not be stored then."""
        sunk, origin = sink_views(region, context.target.kind)
        chains = Chains(context, names)
        found = self._search(sunk, origin, chains)
        *near, last = context.target.caches
        large = near[-1] if near else last
        stored = _products(found, large)
        kinds = [v.type for v in stored]
        # What is stored is computed as a whole, in sweeps a mask leaves out a part.
        masked = context.target.kind == "cpu" and any(is_masked(n, kinds) for n in sunk.nodes)
        if context.checks or sum(map(estimated_bytes, stored)) <= (large if masked else last):
            return found
        products = [n for n in sunk.nodes if (m := Member.of(n)) and m.is_contraction and n.value.type in kinds]
        copied, sweeps = with_sweeps(sunk, products, chains.makes)
        if not sweeps:
            return found
        chains = replace(chains, sweeps=sweeps)
        other = self._search(copied, origin, chains, sweeps)
        left = _products(other, large)
        made = [(g.members, other[0].outputs(g.nodes)) for g in other[1] if any(own <= {*g.nodes} for own in sweeps)]
        less = sum(map(estimated_bytes, left)) < sum(map(estimated_bytes, stored))
        if not less or not all(chains.works(*group) for group in made):
            return found
        weighing = Weighing(context, names)
        once, again = weighing.seconds(found[2]), weighing.seconds(other[2])
        predicted = "" if once is None or again is None else f"; {against(again, once)}"
        places = {(v.node.span, v.type) for v in left}
        for value in (v for v in stored if (v.node.span, v.type) not in places):
            size = bytes_text(Size.of(estimated_bytes(value)))
            text = f"{title(value.node)} is computed again in each sweep over it: {size} less memory"
            self.remark(context, "fusion", text + predicted, value.node.span)
        return other

    def _search(
        self, region: Region, origin: Mapping[Node, Node], chains: Chains, sweeps: Collection[frozenset[Node]] = ()
    ) -> tuple[Search, list[Group], Region]:
        """The groups of a region, and the region made of them; `sweeps` are one group each. A look decides where chains
        form, and what comes out is tried; where one that looks right does not work, all is searched again with a trial
        at every step."""
        context = chains.context

        def run(is_chain: ChainTest) -> tuple[Search, list[Group], Region]:
            search = Search(region.nodes, region.results, self.max_ops, is_chain, context.target.kind, sweeps)
            parts = [part for group in search.run() for part in _without_numbers_of_others(group, search)]
            groups = [inner for part in parts for inner in _without_outer_reshapes(part)]
            return search, groups, emit(region, groups, search, origin)

        if context.checks:
            return run(never)
        found = run(chains.looks_right)
        made = [
            (b, _members(b), frozenset(b.results)) for n in found[2].nodes if isinstance(n, Fused) for b in [n.body]
        ]
        chained = [(body, members) for body, members, results in made if chains.looks_right(members, results)]
        if not all(chains.works(members, frozenset(body.results)) for body, members in chained):
            return run(chains.works)
        near = [body for body, members in chained if is_near(members, context.target.kind)]
        weighing = Weighing(context, chains.names)
        apart = {node for body in near if self._is_slow(body, weighing) for node in body.nodes}
        if not apart:
            return found
        return run(
            lambda members, outputs: chains.works(members, outputs) and apart.isdisjoint(m.node for m in members)
        )

    def _is_slow(self, chain: Region, weighing: Weighing) -> bool:
        """Is a chain predicted to take longer as one kernel than as several?"""
        search = Search(chain.nodes, chain.results, self.max_ops, kind=weighing.context.target.kind)
        together = Region((), (Fused(chain),), ())
        one, several = weighing.seconds(together), weighing.seconds(emit(chain, search.run(), search, {}))
        if one is None or several is None:
            return False
        slow = one > SURE * several
        text = f"{operations(_members(chain))} {'are several kernels' if slow else 'are one kernel'}: "
        text += against(several, one) if slow else against(one, several)
        self.remark(weighing.context, "fusion", text, chain.nodes[-1].span)
        return slow

    def _explain(self, search: Search, groups: Sequence[Group], context: Context) -> None:
        """Remarks: what each group saves, and why other edges stay."""
        for group in groups:
            if len([n for n in group.nodes if not isinstance(n, Constant)]) > 1:
                ops = operations(group.members)
                saved = saving(group.nodes, search.outputs(group.nodes))
                self.remark(context, "fusion", f"one kernel for {ops}: saves {saved}", group.nodes[-1].span)
        refusals: dict[tuple[str, Span | None], None] = {}  # copies of a view say the same
        for edge in search.edges():
            refused = None if _is_alias(edge.user) or _is_alias(edge.value.node) else search.refuse(edge)
            if refused is not None:
                text = f"{title(edge.user)} is not fused with {title(edge.value.node)}: {refused}"
                refusals[text, edge.user.span or edge.value.node.span] = None
        for value, first, last, refused in search.beside():
            one, other = (operations(g.members) for g in (first, last))
            text = f"{other} and {one} read {title(value.node)} in kernels of their own: {refused}"
            refusals[text, last.nodes[-1].span] = None
        for text, span in refusals:
            self.remark(context, "fusion", text, span, done=False)


def _members(region: Region) -> list[Member]:
    return [member for node in region.nodes if (member := Member.of(node))]


def _products(found: tuple[Search, list[Group], Region], size: int) -> list[Value]:
    """The values of more than so many bytes that groups with a product store."""
    search, groups, _ = found
    values = [v for group in groups if group.has_contraction for v in search.outputs(group.nodes)]
    return [v for v in values if estimated_bytes(v) > size]


def _is_alias(node: Node) -> bool:
    """Does it compute nothing: a literal, a view of memory under another shape, a tensor of a list?"""
    return isinstance(node, (Constant, Reshape, ListGet, After, Call))


def _without_outer_reshapes(group: Group) -> list[Group]:
    """The group without reshapes of what it reads, which come before it, and of what it gives, which come after: such
    a reshape is another view of memory and costs nothing, while in a group it makes subscripts longer."""
    before: list[Node] = []
    after: list[Node] = []
    nodes = list(group.nodes)
    for node in group.nodes:
        if isinstance(node, Reshape) and len(nodes) > 1 and node.x.node not in nodes:
            nodes.remove(node)
            before.append(node)
    for node in reversed(nodes.copy()):
        if isinstance(node, Reshape) and len(nodes) > 1 and not any(node.value in n.operands for n in nodes):
            nodes.remove(node)
            after.insert(0, node)
    return [Group([n]) for n in before] + [Group(nodes, group.members)] + [Group([n]) for n in after]


def _without_numbers_of_others(group: Group, search: Search) -> list[Group]:
    """The group, after a kernel of its own for the numbers that it makes of numbers, if others would wait for all that
    the group reads only to get these: updates of weights wait for no gradient but their own to know the powers of
    Adam's factors."""
    own = {m.value for m in group.members}
    numbers: dict[Value, None] = {}
    for member in group.members:
        is_number = not member.is_reduced and not member.wide_axes
        if is_number and all(v in numbers or v not in own for v in member.node.operands):
            numbers[member.value] = None
    others = [m for m in group.members if m.value not in numbers]
    if not any(v.node in search.group_of and v not in own for m in others for v in m.node.inputs):
        return [group]
    later = search.that_need(group, lambda v: v not in numbers)
    taken: set[Node] = set()
    for value in reversed(numbers):
        users = search.users.get(value, ())
        if any(search.group_of[u] not in later or u in taken for u in users):
            taken.add(value.node)
    first, rest = ([m for m in group.members if (m.node in taken) is one] for one in (True, False))
    return [Group([m.node for m in part], part) for part in (first, rest)] if first else [group]


def emit(region: Region, groups: Sequence[Group], search: Search, origin: Mapping[Node, Node]) -> Region:
    """The region with one node for each group. Copies of one view that stayed alone become one again."""
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    alone: dict[tuple[Node, tuple[Value, ...]], Node] = {}
    for group in groups:
        if len(group.nodes) == 1:
            node = group.nodes[0].with_operands(values)
            key = (origin.get(group.nodes[0], group.nodes[0]), node.operands)
            found = alone.setdefault(key, node)
            if found is node:
                nodes.append(node)
            values.update(zip(group.nodes[0].values, found.values))
            continue
        outputs = search.outputs(group.nodes)
        results = tuple(v for node in group.nodes for v in node.values if v in outputs)
        fused = Fused(Region((), tuple(group.nodes), results).with_captures(values), **_spans(group.nodes))
        values.update(zip(results, fused.values))
        nodes.append(fused)
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))


def _spans(nodes: Sequence[Node]) -> dict[str, Any]:
    """The span of the last node, and those of all others."""
    spans: dict[Span, None] = {}
    seen: set[int] = set()  # the copies of a view, or of a literal used everywhere, share one tuple
    for node in reversed(nodes):
        if node.span is not None:
            spans[node.span] = None
        if id(node.more_spans) not in seen:
            seen.add(id(node.more_spans))
            spans.update(dict.fromkeys(node.more_spans))
    first, *more = spans or [None]
    return {"span": first, "more_spans": tuple(more)}

"""Greedy rewriting of regions by rules.

A rule is a function: a node in, and what is better out, or None; its docstring is its equation.

    def cancel_transpose(node: Node) -> Value | None:
        \"\"\"transpose(transpose(x)) -> x, where the second undoes the first\"\"\"
        match node:
            case Transpose(Value(Transpose(x, inner)), outer) if [inner[d] for d in outer] == sorted(outer):
                return x
        return None
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from intarsia.ir.digest import node_key
from intarsia.ir.errors import Span
from intarsia.ir.graph import Node, Parameter, Region, Value, reachable

Rule: TypeAlias = Callable[[Node], "Node | Value | Sequence[Value] | None"]

_STEPS = 1000
"""Rules that fire more often than this for each node do not settle."""


def rewrite(region: Region, rules: Sequence[Rule]) -> Region:
    """Apply rules to every node, operands first, until none fires; the region itself if none does.

    A node that a rule makes is rewritten too, and takes the span of the node that it replaces if it has none. Equal
    nodes become one, which keeps the spans of all; so a rewrite without rules merges equal nodes. Regions of nodes are
    rewritten before the node. What the results do not need is dropped. The work is linear in the nodes that there are
    and that rules make. Raises AssertionError if the rules do not settle.
    """
    merged: dict[Node, list[Span]] = {}
    new = _Rewriter(rules, region, merged, [reachable(v.node for v in region.captures)], []).run()
    return _with_spans(new, merged) if merged else new


class _Rewriter:
    """Rewrites one region. `around` are the nodes of the regions around it, `tables` their nodes by key."""

    def __init__(
        self,
        rules: Sequence[Rule],
        region: Region,
        merged: dict[Node, list[Span]],
        around: list[set[Node]],
        tables: list[dict[object, Node]],
    ) -> None:
        self.rules = rules
        self.region = region
        self.merged = merged
        self.own: set[Node] = set(region.parameters)  # and the nodes of the new region
        self.around = [*around, self.own]
        self.table: dict[object, Node] = {}
        self.tables = [*tables, self.table]
        self.nodes: list[Node] = []  # of the new region, in order
        self.values: dict[Value, Value] = {}  # what each value has become
        self.done: set[Node] = set()
        self.replaced: dict[Node, tuple[Value, ...]] = {}  # what a rule gave for a node that waits for it
        self.fired = 0

    def run(self) -> Region:
        for node in self.region.nodes:
            self.settle(node)
        results = tuple(self.values.get(v, v) for v in self.region.results)
        needed = self._needed(results)
        nodes = tuple(n for n in self.nodes if n in needed)
        old = self.region
        same = len(nodes) == len(old.nodes) and all(a is b for a, b in zip(nodes, old.nodes))
        return old if same and results == old.results else Region(old.parameters, nodes, results)

    def _needed(self, results: Iterable[Value]) -> set[Node]:
        own = set(self.nodes)
        found: set[Node] = set()
        stack = [v.node for v in results if v.node in own]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += [v.node for v in node.inputs if v.node in own]
        return found

    def settle(self, root: Node) -> None:
        """Finish a node and what it needs. A stack, not recursion: graphs are deep."""
        stack: list[tuple[Node, Span | None]] = [(root, root.span)]
        while stack:
            node, span = stack[-1]
            waits_for = [v.node for v in self.replaced.get(node, node.inputs) if not self.is_done(v.node)]
            if self.is_done(node):
                stack.pop()
            elif waits_for:
                # What a rule made has the span of what it replaces.
                stack += [(n, n.span or span) for n in reversed(waits_for)]
            else:
                self.finish(node, span)

    def is_done(self, node: Node) -> bool:
        return node in self.done or isinstance(node, Parameter) or any(node in nodes for nodes in self.around)

    def finish(self, node: Node, span: Span | None) -> None:
        """Finish a node whose inputs are finished, or leave it to wait for what a rule gives in its place."""
        if node in self.replaced:
            self.become(node, tuple(self.values.get(v, v) for v in self.replaced.pop(node)))
            return
        new = self.with_regions(node.with_operands(self.values).at(span))
        key = node_key(new)
        for table in self.tables:
            if (first := table.get(key)) is not None:
                self.merge(first, new)
                self.become(node, first.values)
                return
        for rule in self.rules:
            better = rule(new)
            if better is not None:
                self.fired += 1
                names = ", ".join(getattr(r, "__name__", str(r)) for r in self.rules)
                limit = _STEPS * (len(self.region.nodes) + 1)
                assert self.fired <= limit, f"rules do not settle at {node.name}: {names}"
                self.replaced[node] = _values(better)
                return
        self.table[key] = new
        self.nodes.append(new)
        self.own.add(new)
        self.become(node, new.values)

    def become(self, node: Node, values: tuple[Value, ...]) -> None:
        assert len(values) == len(node.results), f"a rule gives {len(values)} values for {node.name}"
        for old, new in zip(node.values, values):
            assert old.type.plain == new.type.plain, (
                f"a rule changes the type of {node.name} from {old.type} to {new.type}"
            )
            self.values[old] = new
        self.done.add(node)

    def merge(self, first: Node, new: Node) -> None:
        """Remember the spans of a node that goes, for the one that stays."""
        spans = [s for s in (new.span, *new.more_spans) if s and s not in (first.span, *first.more_spans)]
        if spans and first is not new:
            self.merged.setdefault(first, []).extend(spans)

    def with_regions(self, node: Node) -> Node:
        changed: dict[str, Any] = {}
        for name, value in node._fields():
            if isinstance(value, Region):
                new = _Rewriter(self.rules, value, self.merged, self.around, self.tables).run()
                if new is not value:
                    changed[name] = new
        return dataclasses.replace(node, **changed) if changed else node


def _values(better: Node | Value | Sequence[Value]) -> tuple[Value, ...]:
    match better:
        case Node():
            return better.values
        case Value():
            return (better,)
    return tuple(better)


def _with_spans(
    region: Region, merged: Mapping[Node, Sequence[Span]], outer: Mapping[Value, Value] | None = None
) -> Region:
    """The region with spans added to some of its nodes; `outer` are the values of nodes around it that have changed."""
    values = dict(outer or {})
    nodes: list[Node] = []
    for node in region.nodes:
        changed: dict[str, Any] = {}
        for name, value in node._fields():
            if isinstance(value, Region) and (inner := _with_spans(value, merged, values)) is not value:
                changed[name] = inner
        if node in merged:
            changed["more_spans"] = tuple(dict.fromkeys((*node.more_spans, *merged[node])))
        new = (dataclasses.replace(node, **changed) if changed else node).with_operands(values)
        if new is not node:
            values.update(zip(node.values, new.values))
        nodes.append(new)
    results = tuple(values.get(v, v) for v in region.results)
    if results == region.results and all(a is b for a, b in zip(nodes, region.nodes)):
        return region
    return Region(region.parameters, tuple(nodes), results)

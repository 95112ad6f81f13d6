"""What is cheap to compute again is not kept while large products run, as between the two directions of a gradient."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.ops import After, Loop
from intarsia.ir.sizes import Size, product
from intarsia.passes.dce import prune
from intarsia.passes.fuse.groups import TYPICAL, estimated_bytes
from intarsia.passes.fuse.members import Member
from intarsia.passes.fuse.report import bytes_text, title
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.recompute.conditions import is_packable, packed, packed_bytes, unpacked, with_conditions
from intarsia.passes.recompute.cut import Network
from intarsia.passes.recompute.storage import Storage
from intarsia.passes.regions import change_regions

WORTH = 16
"""A cut has to leave out this part of what is kept."""

ROUNDS = 16
"""Cuts that are tried at most."""


@dataclass(frozen=True)
class Recompute(Pass):
    """Compute pointwise values again after a product, from what is kept anyway, where they would wait for its end.

    Before:  %0 = exp %x : f32[N, K]                          After:  %0 = exp %x : f32[N, K]
             %1 = matmul %0, %w : f32[N, M]                           %1 = matmul %0, %w : f32[N, M]
             …                                                        …
             %2 = compute [i < N, j < K] (… %0[i, j] …)               %2 = exp %x : f32[N, K]
                                                                      %3 = compute [i < N, j < K] (… %2[i, j] …)

    Wherever the most is kept while a product or loop runs, and more than the last cache holds, the nodes before it and
    after it are parted by a minimum cut: what is on its edges is kept, each value as dear as it is large, and all that
    the nodes after it read besides is made of that by pointwise work, which `fuse` takes into the kernels of its
    readers. So what is copied for that may be a chain, and nothing is kept that no reader needs (He and Yu,
    "Transcending Runtime-Memory Tradeoffs in Checkpointing by being Fusion Aware", 2023). What a product or loop reads
    has to be stored for it, so that it is kept, but for views.

    Of a value that the nodes after it only ask for conditions, such as whether the argument of a relu is positive, the
    cut may keep the truth values: a bit for each element, eight to a byte (`conditions.py`).

    With a `budget`, in bytes of values that are kept at one time, this happens wherever more is kept, and products and
    reductions are computed again too, those first that take the least work for each byte (the greedy rule for
    knapsacks: Dantzig, "Discrete-Variable Extremum Problems", 1957), until the rest is within it.

    Keeps: values, bit for bit. Needs: nothing. Leaves: equal nodes, which `cse` would make one again.
    """

    name: ClassVar[str] = "recompute"
    budget: int = 0
    least: int = 0  # bytes from which on values are computed again; 0: what the last cache holds

    def run(self, module: Module, context: Context) -> Module:
        body = self._region(module.graph.body, context)
        return module.with_body(body)

    def _region(self, region: Region, context: Context) -> Region:
        region = change_regions(region, lambda node, r: self._region(r, context) if isinstance(node, Loop) else r)
        storage = Storage()
        most = self.budget or self.least or context.target.caches[-1]
        done: set[Node] = set()
        for _ in range(ROUNDS):
            moments = [(kept, n) for n, kept in storage.bytes_waiting(region) if region.nodes[n] not in done]
            kept, position = max(moments, default=(0, 0))
            if kept <= most:
                break
            done.add(region.nodes[position])
            cut = _Cut(region, position, self.budget, storage)
            needed = cut.before
            if not context.checks:  # conditions of their own are computed for elements that were not asked for, too
                with_bits = _Cut(*with_conditions(region, position, storage), self.budget, storage)
                cut = min(cut, with_bits, key=lambda c: c.kept_bytes)
            if WORTH * (_bytes(needed) - cut.kept_bytes) >= kept:
                self._explain(needed, cut, context)
                made = cut.applied()
                region = prune(made, made.results)
        return region

    def _explain(self, needed: Collection[Value], cut: _Cut, context: Context) -> None:
        """Remarks: what waits for the node at the position, against all that was needed, and why."""
        here = cut.second[0]
        before, after = (bytes_text(Size.of(n)) for n in (_bytes(needed), cut.kept_bytes))
        self.remark(context, "memory", f"{after} wait for {title(here)} to end, in place of {before}", here.span)
        for value in (v for v in needed if v not in cut.after):
            size = bytes_text(Size.of(estimated_bytes(value)))
            why = "is computed again, not kept" if value in cut.before else "is not kept, only conditions on it"
            text = f"{title(value.node)} {why}: {size}"
            self.remark(context, "memory", text, value.node.span)
        for value in cut.after:
            size = bytes_text(Size.of(cut.bytes_of(value)))
            bits = "a bit for each element, " if value in cut.packed else ""
            text = f"{title(value.node)} is kept, {bits}{size}: {cut.why(value)}"
            self.remark(context, "memory", text, value.node.span, False)


def _bytes(values: Iterable[Value]) -> int:
    return sum(map(estimated_bytes, values))


class _Cut:
    """What is kept across a position of a region: all that is needed, `before`, and what a minimum cut leaves, `after`.

    Values are `given` that are results, and that nodes after the position want to have stored: these are kept, unless a
    `budget` says otherwise.
    """

    def __init__(self, region: Region, position: int, budget: int, storage: Storage) -> None:
        self.region = region
        self.storage = storage
        self.first, self.second = region.nodes[:position], region.nodes[position:]
        made = {v for node in self.first for v in node.values}
        self.results = {v for r in region.results if (v := self.storage.in_memory(r)) in made}
        self.needed = [v for v in dict.fromkeys(v for node in self.second for v in node.inputs) if v in made]
        self.before = {
            v: None
            for n in self.needed
            if not self.storage.is_view(v := self.storage.in_memory(n)) and v not in self.results
        }
        self.dear = set() if budget else {v for node in self.second for v in storage.needed_by(node)}
        self.again: set[Value] = set()  # products and reductions that are computed again
        self._find()
        while budget and (excess := self.kept_bytes - budget) > 0 and (chosen := self._cheapest(excess)):
            self.again.update(chosen)
            self._find()

    def _find(self) -> None:
        network: Network[object] = Network()
        source, sink = object(), object()
        for value in (v for node in self.first for v in node.values):
            free = value in self.results
            network.add(
                (value, 0), (value, 1), math.inf if self.storage.is_view(value) else 0 if free else self.bytes_of(value)
            )
            if not self._may_be_made_again(value):
                network.add(source, (value, 0))
                continue
            for operand in value.node.operands:
                network.add((operand, 1), (value, 0))
        for value in self.needed:
            network.add((value, 1), sink)
        self.late = network.near_sink(source, sink)
        on_cut = (v for node in self.first for v in node.values if (v, 0) not in self.late and (v, 1) in self.late)
        self.after = dict.fromkeys(v for v in on_cut if v not in self.results)
        self.packed = {v for v in self.after if self._as_bits(v)}

    def _as_bits(self, value: Value) -> bool:
        """Would a value be kept as bits? Not where it has to be in memory as it is."""
        return (
            is_packable(value)
            and value not in self.dear
            and value not in self.results
            and not self.storage.is_view(value)
        )

    def bytes_of(self, value: Value) -> int:
        """What it takes to keep a value."""
        return packed_bytes(value) if self._as_bits(value) else estimated_bytes(value)

    @property
    def kept_bytes(self) -> int:
        """What it takes to keep all that is kept."""
        return sum(map(self.bytes_of, self.after))

    def _may_be_made_again(self, value: Value) -> bool:
        if self.storage.is_view(value) or value in self.again:
            return True
        node = value.node
        pointwise = isinstance(node, Structured) and not node.space.reduced
        return pointwise and value not in self.dear and value not in self.results

    def _is_late(self, value: Value) -> bool:
        """Is a value computed again?"""
        return (value, 0) in self.late and value not in self.results

    def _is_changed(self, value: Value) -> bool:
        """Do the nodes after the position read something else in its place?"""
        return self._is_late(value) or value in self.packed

    def _anchors(self) -> tuple[Value, ...]:
        """What nothing is to be computed again before: what the node at the position reads from memory, else gives."""
        node, made = self.second[0], {v for n in self.first for v in n.values}
        read = dict.fromkeys(v for operand in node.inputs if (v := self.storage.in_memory(operand)) in made)
        return (
            tuple(v for v in read if not self.storage.is_view(v) and not self._is_late(v)) if read else node.values[:1]
        )

    def why(self, value: Value) -> str:
        """Why a value is kept."""
        if value in self.dear:
            return "a product, a loop or the like reads it"
        if not self._may_be_made_again(value):
            return "it is made by a product, a reduction or the like"
        return "what it is made of is larger"

    def _cheapest(self, excess: int) -> list[Value]:
        """Of the products and reductions that are not computed again yet, those that take the least work a byte, until
        they are as large as what is too much."""
        values = (v for n in self.first if isinstance(n, Structured) for v in n.values if v not in self.results)
        dear = [v for v in values if not self._may_be_made_again(v)]
        chosen: list[Value] = []
        for value in sorted(dear, key=lambda v: _work(v) / max(1, estimated_bytes(v))):
            if _bytes(chosen) < excess:
                chosen.append(value)
        return chosen

    def applied(self) -> Region:
        """The region in which nodes after the position read what is kept, and copies of what is computed again."""
        bits: dict[Value, Node] = {}
        nodes: list[Node] = []
        for node in self.first:
            nodes.append(node)
            for value in (v for v in node.values if v in self.packed):
                stored = After(value, (value,))  # else the kernel that packs would need what it is made of
                bits[value] = packed(stored.value)
                nodes += [stored, bits[value]]
        copies: dict[Value, Value] = {}
        values: dict[Value, Value] = {}
        anchors = self._anchors()

        def later(value: Value) -> Value:
            if anchors:
                nodes.append(After(value, anchors))
            return nodes[-1].values[0] if anchors else value

        def again(value: Value) -> Value:
            if value not in copies:
                if value in bits:
                    nodes.append(unpacked(later(bits[value].values[0]), value))
                    copies[value] = nodes[-1].values[0]
                elif self._is_late(value):
                    own = {v: again(v) for v in value.node.operands}
                    nodes.append(replace(value.node.with_operands(own)))
                    copies[value] = nodes[-1].values[value.index]
                else:
                    copies[value] = later(value)
            return copies[value]

        needed = set(self.needed)
        for node in self.second:
            values.update(
                (v, again(v)) for v in node.inputs if v in needed and self._is_changed(self.storage.in_memory(v))
            )
            new = node.with_operands(values)
            values.update(zip(node.values, new.values))
            nodes.append(new)
        results = tuple(values.get(r, r) if r not in needed else r for r in self.region.results)
        return Region(self.region.parameters, tuple(nodes), results)


def _work(value: Value) -> int:
    """Scalar work on a value, with a typical number for extents that have none."""
    member = Member.of(value.node)
    assert member is not None
    points = product(e for e in member.extents.values())
    return (member.work + 1) * points.evaluate(dict.fromkeys(points.symbols, TYPICAL))

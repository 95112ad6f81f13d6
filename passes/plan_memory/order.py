"""The order of calls in which the least has to be in memory at one time.

    %1 = call @f_matmul(%x)                        %1 = call @f_matmul(%x)
    %2 = call @f_exp(%1)                           %2 = call @f_exp(%1)
    %3 = call @f_matmul(%2)                        %5 = call @f_sum(%1, %2)      nothing needs %1 and %2 any more
    %4 = call @f_exp(%3)                     =>    %3 = call @f_matmul(%2)
    %5 = call @f_sum(%1, %2)                       %4 = call @f_exp(%3)

To find the least is NP-hard. A call that may run, needs no more than was needed before it, and leaves no more behind,
runs at once: no order is better. Where there is none, each call that may run is tried, and of the sets of calls that
have run then, so many of a size are kept that need the least (dynamic programming over sets of calls, cut to a beam:
Ahn et al., "Ordering Chaos: Memory-Aware Scheduling of Irregularly Wired Neural Networks for Edge Devices", 2020).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.kernel import Check, Kernel, walk
from intarsia.ir.ops import Call, Collective, DeviceIndex, ListGet, Loop, Reshape
from intarsia.ir.sizes import product
from intarsia.passes.fuse.groups import estimated, estimated_bytes
from intarsia.passes.lower.order import changed_in_place, memory_of
from intarsia.passes.plan_memory.overwriting import may_overwrite
from intarsia.passes.regions import change_regions

BEAM = 32
"""Sets of calls of a size that are kept at most, and calls that are tried after each of them."""

TRIED = 1024
"""About how many sets are kept in all: fewer of each size in long programs."""


def in_order_of_memory(
    module: Module, kernels: Mapping[str, Kernel], donated: Collection[str], overwriting: bool
) -> Module:
    """The module with its calls, also those in loops, in the order that was found.

    `kernels` by name, temporaries that live in the workspace made parameters; `donated` are names of parameters in
    whose memory results may lie, and `overwriting` says whether a kernel may write a result where an operand is. A
    region with run-time checks or collectives stays as it is.
    """
    given = {p.value for p in module.graph.parameters if p.label.partition(".")[0] in donated}
    body, _ = _ordered(module.graph.body, kernels, given, overwriting)
    return module.with_body(body)


def _ordered(
    region: Region, kernels: Mapping[str, Kernel], given: Collection[Value], overwriting: bool
) -> tuple[Region, int]:
    """The region in order, and the bytes that it needs; results may take the memory of what is `given` to it."""
    inside: dict[str, int] = {}

    def ordered(node: Node, inner: Region) -> Region:
        if not isinstance(node, Loop) or inner is not node.body:
            return inner
        states = {p.value for p in inner.parameters}
        inner, inside[node.counter] = _ordered(inner, kernels, states, overwriting)
        return inner

    region = change_regions(region, ordered)
    calls = _Calls(region, kernels, given, overwriting, inside)
    best = calls.best()
    nodes = tuple(calls.items[n].node for n in best.order)
    return (region if nodes == region.nodes else Region(region.parameters, nodes, region.results)), best.peak


class _State(NamedTuple):
    """What has run. peak: the most bytes that were needed at one time. apart: those of results that lie beside what
    they could have taken the place of. live: those that are still needed. done: the numbers of calls as bits. ready:
    the calls that may run next."""

    peak: int
    apart: int
    live: int
    done: int
    order: tuple[int, ...]
    ready: tuple[int, ...]

    @property
    def rank(self) -> tuple[int, int, tuple[int, ...]]:
        """What is better comes first: less memory, and then what is nearer to the order that was there."""
        return self.peak + self.apart, self.live, self.order


@dataclass
class _Item:
    """A call, a loop, or a view, which costs nothing.

    reads, makes: values in memory. needs: the bytes that there are while it runs besides those of what it reads.
    leaves: those of what it makes for others. frees: of what it reads, the readers, as bits, and the bytes. takes:
    operands and the results that may lie there. before: the items that have to run first, as bits; after: those that
    wait for it.
    """

    node: Node
    reads: dict[Value, None] = field(default_factory=dict)
    makes: tuple[Value, ...] = ()
    needs: int = 0
    leaves: int = 0
    frees: list[tuple[int, int]] = field(default_factory=list)
    takes: list[tuple[Value, Value]] = field(default_factory=list)
    before: int = 0
    after: list[int] = field(default_factory=list)


class _Calls:
    """The calls, loops and views of a region, and the values that they pass on. `given` are those that results may take
    the place of, `inside` the bytes that the steps of loops need, by counter."""

    def __init__(
        self,
        region: Region,
        kernels: Mapping[str, Kernel],
        given: Collection[Value],
        overwriting: bool,
        inside: Mapping[str, int],
    ) -> None:
        self.kernels = kernels
        self.given = given
        self.results = {memory_of(v) for v in region.results}
        self.items = [_item(node) for node in region.nodes]
        self.readers = {value: 1 << len(self.items) for value in self.results}
        for n, item in enumerate(self.items):
            for value in item.reads:
                self.readers[value] = self.readers.get(value, 0) | 1 << n
        self.bytes = {v: 0 if v in self.results else estimated_bytes(v) for i in self.items for v in i.makes}
        for item in self.items:
            item.leaves = sum(self.bytes[v] for v in item.makes if v in self.readers)
            item.needs = sum(self.bytes[v] for v in item.makes) + _own_bytes(item.node, kernels, inside)
            item.frees = [(self.readers[v], self.bytes[v]) for v in item.reads if self.bytes.get(v)]
            item.takes = list(self._may_take(item.node)) if overwriting else []
        self._find_order()

    def _may_take(self, node: Node) -> Iterator[tuple[Value, Value]]:
        """Operands and the results that may lie there, if less memory is needed then."""

        def matters(operand: Value, result: Value) -> bool:
            is_kept = operand in self.given if result in self.results else bool(self.bytes.get(operand))
            return is_kept and operand.type == result.type

        if isinstance(node, Loop):
            yield from ((memory_of(v), r) for v, r in zip(node.initial, node.values) if matters(memory_of(v), r))
        if not isinstance(node, Call):
            return
        kernel = self.kernels[node.kernel]
        operands = [memory_of(v) for v in node.arguments]
        read = [b for b in kernel.parameters if b.role in ("in", "inout")]
        for result, made in zip(node.values, kernel.outputs, strict=True):
            for operand, buffer in zip(operands, read, strict=True):
                fits = matters(operand, result) and operands.count(operand) == 1
                if fits and (buffer is made or may_overwrite(kernel, buffer.name, made.name)):
                    yield operand, result

    def _find_order(self) -> None:
        """Which calls have to come before which."""
        number = {item.node: n for n, item in enumerate(self.items)}
        as_written = any(_has_its_place(item.node, self.kernels) for item in self.items)
        for n, item in enumerate(self.items):
            before = {n - 1} - {-1} if as_written else {number[v.node] for v in item.node.inputs if v.node in number}
            if isinstance(item.node, Call):
                for base in {memory_of(v) for v in changed_in_place(item.node, self.kernels[item.node.kernel])}:
                    before |= {m for m in range(n) if base in self.items[m].reads}
            item.before = sum(1 << m for m in before)
            for m in before:
                self.items[m].after.append(n)

    def best(self) -> _State:
        """All calls have run, in the best order that was found."""
        count = len(self.items)
        width = max(1, min(BEAM, TRIED // max(1, count)))
        levels: list[dict[int, _State]] = [{} for _ in range(count + 1)]
        self._keep(levels, _State(0, 0, 0, 0, (), tuple(n for n, i in enumerate(self.items) if not i.before)))
        for level in levels[:-1]:
            for state in sorted(level.values(), key=lambda s: s.rank)[:width]:
                costs = sorted(
                    (peak + apart, live, n) for n in state.ready for peak, apart, live in [self._cost(state, n)]
                )
                for *_, n in costs[:BEAM]:
                    self._keep(levels, self._run(state, n))
        (found,) = levels[-1].values()
        return found

    def _keep(self, levels: Sequence[dict[int, _State]], state: _State) -> None:
        """Keep a state, after what costs nothing, unless there is a better one in which the same has run."""
        while (n := next((n for n in state.ready if self._costs_nothing(state, n)), None)) is not None:
            state = self._run(state, n)
        level = levels[len(state.order)]
        if state.done not in level or state.rank < level[state.done].rank:
            level[state.done] = state

    def _costs_nothing(self, state: _State, n: int) -> bool:
        peak, apart, live = self._cost(state, n)
        return peak == state.peak and apart == state.apart and live <= state.live

    def _cost(self, state: _State, n: int) -> tuple[int, int, int]:
        """The bytes at most, of results apart, and of what is live, after one more call."""
        item, left = self.items[n], ~(state.done | 1 << n)
        live, peak, apart = state.live + item.leaves, state.live + item.needs, state.apart
        for readers, size in item.frees:
            if not readers & left:
                live -= size
        if item.takes:
            taken: dict[Value, Value] = {}
            for operand, result in item.takes:
                if not self.readers[operand] & left and operand not in taken.values():
                    taken.setdefault(result, operand)
            peak -= sum(self.bytes[v] for v in taken)
            beside = {r for _, r in item.takes if r in self.results and r not in taken}
            apart += sum(map(estimated_bytes, beside))
        return max(state.peak, peak), apart, live

    def _run(self, state: _State, n: int) -> _State:
        """What is after one more call."""
        done = state.done | 1 << n
        later = [m for m in self.items[n].after if not self.items[m].before & ~done]
        ready = tuple(sorted([*(m for m in state.ready if m != n), *later]))
        return _State(*self._cost(state, n), done, (*state.order, n), ready)


def _item(node: Node) -> _Item:
    if isinstance(node, Reshape | ListGet):
        return _Item(node)
    return _Item(node, dict.fromkeys(map(memory_of, node.inputs)), node.values)


def _has_its_place(node: Node, kernels: Mapping[str, Kernel]) -> bool:
    """Does it matter when a node runs? Others run while what is exchanged is under way; the first check that fails is
    the one that is told."""
    if isinstance(node, Call):
        return any(isinstance(s, Check) for s, _ in walk(kernels[node.kernel].body))
    return isinstance(node, Collective | DeviceIndex)


def _own_bytes(node: Node, kernels: Mapping[str, Kernel], inside: Mapping[str, int]) -> int:
    """What a node needs in the workspace beside operands and results."""
    if isinstance(node, Loop):
        return inside[node.counter]
    if not isinstance(node, Call):
        return 0
    temporary = (b for b in kernels[node.kernel].parameters if b.role == "temp")
    return sum(estimated(product(b.shape)) * b.dtype.bytes for b in temporary)

"""Several steps of a loop for one exchange with neighbours: each device computes some of what its neighbours do.

A step of a stencil needs a row of each neighbour, k steps need k rows, if the device computes what lies between. Such
halos are called deep, or ghost zones. There are a k-th of the messages; and as nothing is waited for between the steps,
one kernel can do them all while a block of the grid is in a cache (`lower`). What is computed twice is the price.

After Ding and He, "A ghost cell expansion method for reducing communications in solving PDE problems", SC 2001, and
Demmel et al., "Avoiding communication in sparse matrix computations", IPDPS 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from intarsia.ir.cluster import Cluster
from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value, region_of
from intarsia.ir.ops import Collective, Concat, Loop, Reshape
from intarsia.ir.sizes import ONE, ZERO, Size, maximum
from intarsia.ir.spmd import is_partitioned
from intarsia.ir.substitution import copied
from intarsia.ir.types import TensorType
from intarsia.ir.work import work
from intarsia.passes.collectives.timeline import Costs
from intarsia.passes.collectives.widening import CannotWiden, Widening
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions
from intarsia.passes.shard.counters import Counters
from intarsia.passes.shard.halos import halo_of, widened

DEPTHS = (8, 4, 2)
"""Steps for one exchange, of which the model chooses: at most those that `lower` makes one kernel of."""

WORTH = 0.9
"""Halos are deep if that is predicted to take at most this part of the time."""


LONGEST = 512
"""Ops of all steps for one exchange, at most: they are written out."""


@dataclass(frozen=True)
class DeepHalos(Pass):
    """Exchange with neighbours, in loops, once for several steps, and compute what these need beyond a device's part.

    Before:  %0 = loop t in 0..9 (%h = %u) {                          with rows of %h before and after the device's
               … %1 = concat %before, %h, %after axis=0 : f32[18]
               %2 = compute [i < 16] (%1[i] + %1[i + 2]) : f32[16]
               yield %2
             } : f32[16]
    After:   %0 = loop t.0 in 0..4 (%h = %u) {
               … %1 = concat %before, %h, %after axis=0 : f32[20]     two rows from each neighbour
               %2 = compute [i < 18] (%1[i] + %1[i + 2]) : f32[18]
               %3 = compute [i < 16] (%2[i] + %2[i + 2]) : f32[16]
               yield %3
             } : f32[16]
             %4 = loop t in 8..9 (%h = %0) { … }                      the step that is left

    steps: so many for one exchange; 0 takes 8, 4, 2 or 1, what takes least by the model: latency and bytes of messages
    on the cluster, operations, and passes over memory, of which steps that wait for nothing are one on a CPU.

    Keeps: values, bit for bit. Needs: a partitioned program. Leaves: loops that ask a condition, whose bounds depend on
    data in their beginning, or whose steps wait for devices in another way.
    """

    name: ClassVar[str] = "deep-halos"
    steps: int = 0
    cluster: str = "laptop"

    def run(self, module: Module, context: Context) -> Module:
        if not is_partitioned(module) or self.steps == 1 or context.checks:
            return module
        costs = Costs.of(module, Cluster.read(self.cluster))
        counters = Counters(module)

        def region(old: Region) -> Region:
            old = change_regions(old, lambda _, inner: region(inner))
            values: dict[Value, Value] = {}
            nodes: list[Node] = []
            for node in old.nodes:
                new = node.with_operands(values)
                nodes.append(new)
                results = new.values
                if isinstance(new, Loop) and any(map(halo_of, new.body.nodes)):
                    made = self._best(new, costs, counters, context)
                    if made is not None:
                        nodes[-1:] = made.nodes
                        results = made.results
                values.update((a, b) for a, b in zip(node.values, results) if a is not b)
            return Region(old.parameters, tuple(nodes), tuple(values.get(v, v) for v in old.results)) if values else old

        body = region(module.graph.body)
        return module.with_body(body)

    def _best(self, loop: Loop, costs: Costs, counters: Counters, context: Context) -> _Deep | None:
        """The loop with the number of steps for one exchange that takes least; None if that is one."""

        def seconds_of(nodes: Sequence[Node], steps: int) -> float:
            return _seconds(nodes, loop, steps, costs, counters, context)

        least = one = seconds_of(loop.body.nodes, 1)
        best: _Deep | None = None
        depths = self._depths(loop)
        problem = "the model says that this takes least" if depths else "there are no two of them"
        for steps in depths:
            try:
                made = _Deep.of(loop, steps, counters)
            except CannotWiden as error:
                problem = str(error)
                continue
            seconds = seconds_of(made.block, steps)
            if self.steps or seconds < min(WORTH * one, least):
                least, best = seconds, made
        if best is None:
            self.remark(context, "sharding", f"each step exchanges halos: {problem}", loop.span, done=False)
        else:
            text = f"halos are exchanged once for {best.steps} steps: about {least * 1e6:.3g} us a step"
            self.remark(context, "sharding", f"{text}, {one * 1e6:.3g} us with one for each", loop.span)
        return best

    def _depths(self, loop: Loop) -> Sequence[int]:
        count = (loop.upper - loop.lower).constant
        wanted = (self.steps,) if self.steps else DEPTHS
        most = wanted[0] if count is None else count
        return tuple(dict.fromkeys(min(n, most) for n in wanted if min(n, most) > 1))


def _seconds(
    nodes: Sequence[Node], loop: Loop, steps: int, costs: Costs, counters: Counters, context: Context
) -> float:
    """What one step of a loop takes, of which so many are `nodes`. Of operations and memory the half of what takes less
    hides behind the other, as with blocks (`schedule/grids.py`)."""
    sizes = dict.fromkeys(counters.names, 0)
    sent = sum(costs.sending(n) for n in nodes if isinstance(n, Collective))
    computed = (n for n in nodes if isinstance(n, Structured) and halo_of(n) is None)
    operations = sum(work(n, sizes).operations for n in computed)
    states = [_bytes(v) for v in loop.initial]
    every = sum(states) + sum(map(_bytes, loop.body.results)) + sum(map(_bytes, loop.body.captures))
    target, cluster = context.target, costs.cluster
    once = target.kind == "cpu"  # a block of the grid stays in a cache meanwhile
    is_near = once and sum(states) <= target.caches[1]
    memory = 0.0 if is_near else every / cluster.memory_bytes_per_second * (1 if once else steps)
    computing = operations / cluster.operations_per_second
    return (max(computing, memory) + min(computing, memory) / 2 + sent) / steps


def _bytes(value: Value) -> int:
    if not isinstance(value.type, TensorType):
        return 0
    return int(value.tensor.elements) * value.dtype.bits // 8


@dataclass(frozen=True)
class _Deep:
    """A loop that exchanges halos once for so many steps. block: their nodes; nodes: what stands for the loop."""

    steps: int
    block: tuple[Node, ...]
    nodes: tuple[Node, ...]
    results: tuple[Value, ...]

    @staticmethod
    def of(loop: Loop, steps: int, counters: Counters) -> _Deep:
        """Raises CannotWiden."""
        if loop.condition is not None:
            raise CannotWiden("after each step it asks a condition")
        if loop.lower.opaques:
            raise CannotWiden("data say where it begins")
        if len(loop.body.nodes) * steps > LONGEST:
            raise CannotWiden(f"{steps} steps are more than {LONGEST} ops")
        outer = counters.fresh(f"{loop.counter}.0")
        before: list[Node] = []
        parameters = tuple(Parameter(p.label, p.type) for p in loop.states)
        nodes, results = _block(loop, steps, outer, parameters, before, counters)
        times = (loop.upper - loop.lower) // steps
        times = times if times.constant is not None else maximum(ZERO, times)
        body = region_of(parameters, nodes, results)
        several = replace(loop, counter=outer, lower=ZERO, upper=times, body=body)
        every: list[Node] = [*before, several]
        count = len(loop.initial)

        def add(node: Node) -> Value:
            every.append(replace(node, **loop.spans))
            return every[-1].values[0]

        stacks = [add(Reshape(v, (times * steps, *v.tensor.shape[2:]))) for v in several.values[count:]]
        made = (*several.values[:count], *stacks)
        done = loop.lower + times * steps
        if done != loop.upper:
            rest = replace(loop, lower=done, initial=made[:count])
            every.append(rest)
            joined = (add(Concat(pair, 0)) for pair in zip(stacks, rest.values[count:]))
            made = (*rest.values[:count], *joined)
        return _Deep(steps, body.nodes, tuple(every), made)


def _block(
    loop: Loop, steps: int, outer: str, parameters: Sequence[Parameter], before: list[Node], counters: Counters
) -> tuple[list[Node], list[Value]]:
    """The nodes of so many steps, with one exchange of what they need, and what they yield; what is exchanged once for
    all steps is put into `before`."""
    every, results = _unrolled(loop, steps, outer, counters)
    widening = Widening(every, results)
    inside = set(every)
    nodes: list[Node] = []

    def adding(to: list[Node]) -> Callable[[Node], Value]:
        def add(node: Node) -> Value:
            to.append(node if node.span is not None else replace(node, **loop.spans))
            return to[-1].values[0]

        return add

    own = dict(zip((p.value for p in loop.states), (p.value for p in parameters)))
    given = dict(own)
    for value, margins in widening.wanted.items():
        if value.node in inside:
            continue
        for d, margin in sorted(margins.items()):
            extent, most = int(value.tensor.shape[d]), max(margin.before, margin.after)
            if most > extent:
                raise CannotWiden(f"{steps} steps need {most} elements of a neighbour, which has {extent}")
            add = adding(nodes if value in own else before)
            given[value] = widened(given.get(value, value), d, margin.axes, margin.devices, margin.halo, add)
    made = widening.made(given, adding(nodes))
    states, emitted = made[: len(own)], made[len(own) :]
    return nodes, [*states, *(_stack(emitted[n :: loop.stacked], adding(nodes)) for n in range(loop.stacked))]


def _unrolled(loop: Loop, steps: int, outer: str, counters: Counters) -> tuple[list[Node], list[Value]]:
    """So many steps one after the other, with the states after them, then what each step emits."""
    nodes: list[Node] = []
    states, emitted = [p.value for p in loop.states], list[Value]()
    for step in range(steps):
        names = {loop.counter: loop.lower + Size.of(outer) * steps + step}
        values = dict(zip((p.value for p in loop.states), states))
        for node in loop.body.nodes:
            nodes.append(copied(node, names, values, counters.fresh))
            values.update(zip(node.values, nodes[-1].values))
        results = [values.get(v, v) for v in loop.body.results]
        states = results[: len(states)]
        emitted += results[len(states) :]
    return nodes, [*states, *emitted]


def _stack(rows: Sequence[Value], add: Callable[[Node], Value]) -> Value:
    """Values of one type as the rows of one."""
    return add(Concat(tuple(add(Reshape(v, (ONE, *v.tensor.shape))) for v in rows), 0))

"""Prefix sums and recurrences along a dimension that is split: each device goes through its own part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value, region_of
from intarsia.ir.ops.control import Loop
from intarsia.ir.ops.elementwise import Cast, axes_for
from intarsia.ir.ops.index import Compute
from intarsia.ir.ops.order import Cumulative
from intarsia.ir.ops.reduction import Reduce
from intarsia.ir.ops.shape import Transpose
from intarsia.ir.scalar import Const, Expr, Index, Load, apply, constant, where
from intarsia.ir.sharding import Axes, Mesh, Sharding, local_extent
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.spmd import mesh_of
from intarsia.ir.types import placed
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_node_regions
from intarsia.passes.shard.counters import Counters
from intarsia.passes.shard.edges import rows_of
from intarsia.passes.shard.scans.recurrences import Recurrence, find_recurrence
from intarsia.passes.shard.scans.sections import Lift, Sections
from intarsia.passes.shard.ways import sharding_of


@dataclass(frozen=True)
class SplitScans(Pass):
    """Prefix sums and linear recurrences along a dimension that is split go through the parts side by side.

    Before:  %0 = cumulative %x combiner=sum axis=0 : f32[8@seq]                  with %x: f32[8@seq], four devices
    After:   %0 = reshape %x : f32[4@seq, 2]
             %1 = cumulative %0 combiner=sum axis=1 : f32[4@seq, 2]
             … what comes before each part: the sums of the parts before it, of which every device needs all …
             … both together, as f32[8@seq] …

    A scan whose states become `a * state + b`, with a and b made of what does not depend on states, is done twice: from
    0, for what each part makes of a state, and then from the state in which it really begins. In between the devices
    gather the states of all parts: what is sent does not depend on the length.

    Keeps: values, up to the order of sums and products. Needs: `propagate-sharding`. Source: Blelloch, "Prefix sums and
    their applications", 1990; for linear attention Sun et al., "LASP-2: Rethinking sequence parallelism for linear
    attention and its hybrid", 2025, https://arxiv.org/abs/2502.07563.
    """

    name: ClassVar[str] = "split-scans"
    exact: ClassVar[bool] = False
    moves_factors: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None:
            return module
        body = _Splitter(self, context, mesh, Counters(module)).region(module.graph.body)
        return module.with_body(body)


@dataclass
class _Splitter:
    settings: SplitScans
    context: Context
    mesh: Mesh
    counters: Counters

    def region(self, region: Region) -> Region:
        """The region with what runs along split dimensions split."""
        values: dict[Value, Value] = {}
        nodes: list[Node] = []
        for old in region.nodes:
            node = change_node_regions(old.with_operands(values), self.region)
            made: Sequence[Value] | None = None
            if isinstance(node, Cumulative):
                made = self.cumulative(node, nodes)
            elif isinstance(node, Loop):
                made = self.scan(node, nodes)
            if made is None:
                made = node.values
                nodes.append(node)
            if made is not old.values:
                values.update(zip(old.values, made))
        if not values:
            return region
        return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))

    def sections(self, axes: Axes, extent: Size, like: Node, nodes: list[Node]) -> Sections | None:
        """The parts into which a dimension is split; None if it is not."""
        count = self.mesh.size(axes)
        if count == 1 or extent.constant is None:
            return None
        checks = self.context.checks
        return Sections(self.mesh, axes, count, local_extent(int(extent), count), int(extent), like, nodes, checks)

    def cumulative(self, node: Cumulative, nodes: list[Node]) -> Sequence[Value] | None:
        """Prefix sums of each part, and what comes before each."""
        d, x = node.axis, node.x
        axes = sharding_of(x).axes[d] or sharding_of(node.value).axes[d]
        sections = self.sections(axes, x.tensor.shape[d], node, nodes)
        if sections is None:
            return None
        message = f"each of {sections.count} devices sums up its own part"
        self.settings.remark(self.context, "sharding", message, node.span)
        rest = sections.free(sharding_of(x).axes)
        around = (*rest[:d], axes, (), *rest[d + 1 :])
        if node.value.dtype.is_float and node.value.dtype != node.value.dtype.accumulator:
            x = sections.add(Cast(x, node.value.dtype.accumulator), (*rest[:d], axes, *rest[d + 1 :]))
        cut = sections.cut(x, d)
        own = sections.add(Cumulative(cut, node.combiner, d + 1), around)
        totals = sections.add(Reduce(cut, node.combiner, (d + 1,)), (*around[: d + 1], *around[d + 2 :]))
        known = sections.laid(totals, (*rest[:d], (), *rest[d + 1 :]))
        names = axes_for(known.tensor.shape)
        neutral = Const(COMBINERS[node.combiner].neutral(known.dtype), known.dtype)
        earlier = [Size.of(a.name) for a in names]
        earlier[d] = Size.of("r")
        is_before = apply("lt", Index(earlier[d]), Index(Size.of(names[d].name)))
        body = where(is_before, Load(operand(0), tuple(earlier), known.dtype), neutral)
        reduced = (Axis.of("r", sections.count),)
        start = Compute((known,), Space(names, body, known.dtype, reduced, node.combiner))
        offset = sections.add(start, (*rest[:d], axes, *rest[d + 1 :]))
        both = axes_for(own.tensor.shape)
        place = tuple(Size.of(a.name) for a in both)
        parts = (Load(operand(0), place, own.dtype), Load(operand(1), (*place[: d + 1], *place[d + 2 :]), own.dtype))
        body = apply(COMBINERS[node.combiner].function, *parts)
        whole = sections.add(Compute((own, offset), Space(both, body, own.dtype)), around)
        joined = sections.joined(whole, d)
        if joined.dtype != node.value.dtype:
            joined = sections.add(Cast(joined, node.value.dtype), sharding_of(joined).axes)
        return (joined,)

    # ------------------------------------------------------------------ scans

    def scan(self, loop: Loop, nodes: list[Node]) -> Sequence[Value] | None:
        """The states before each part, and each part from there."""
        rows = rows_of(loop)
        split = [a for v, d in rows if (a := sharding_of(v).axes[d]) and self.mesh.size(a) > 1]
        sections = self.sections(split[0], loop.upper, loop, nodes) if split else None
        if loop.condition is not None or sections is None:
            return None
        recurrences = [find_recurrence(loop, n) for n in range(len(loop.initial))]
        if None in recurrences or not all(isinstance(n, Structured) for n in loop.body.nodes):
            message = "each device goes through all steps: a state does not become a * state + b"
            self.settings.remark(self.context, "sharding", message, loop.span, done=False)
            return None
        message = f"each of {sections.count} devices goes through its own steps"
        self.settings.remark(self.context, "sharding", message, loop.span)
        return _Scan(loop, sections, [r for r in recurrences if r is not None], self.counters).split()


@dataclass
class _Scan:
    """Splits one scan."""

    loop: Loop
    sections: Sections
    recurrences: Sequence[Recurrence]
    counters: Counters

    def split(self) -> tuple[Value, ...]:
        """The last states, and what is stacked."""
        loop, sections = self.loop, self.sections
        count = len(loop.initial)
        rest = [sections.free(sharding_of(p.value).axes) for p in loop.states]
        shapes = [(Size.of(sections.count), *p.value.tensor.shape) for p in loop.states]
        zeros = [
            sections.filled(0, shape, p.value.dtype, (sections.axes, *r))
            for p, shape, r in zip(loop.states, shapes, rest)
        ]
        rates = {n: self._first_rate(n, rest[n]) for n, r in enumerate(self.recurrences) if r.rate is not None}
        totals = [sections.laid(v, ((), *sharding_of(v).axes[1:])) for v in self._run(zeros, rates, ())]
        scales = dict(zip(rates, totals[count:]))
        last, before = self._prefix(totals[:count], scales, rest)
        if not loop.stacked:
            return last
        begin = [sections.laid(v, (sections.axes, *r)) for v, r in zip(before, rest)]
        stacked = self._run(begin, {}, loop.body.results[count:])[count:]
        return (*last, *(self._rows(v) for v in stacked))

    def _first_rate(self, position: int, rest: Sequence[Axes]) -> Value:
        """The product of no rates for each section: one element, on every device, where the rate is the same along a
        dimension of the state."""
        rate, state, sections = self.recurrences[position].rate, self.loop.states[position].value, self.sections
        assert rate is not None
        own = [f"i{d}" in rate.symbols for d in range(len(rest))]
        shape = (Size.of(sections.count), *(e if varies else ONE for e, varies in zip(state.tensor.shape, own)))
        axes = (sections.axes, *(a if varies else () for a, varies in zip(rest, own)))
        return sections.filled(1, shape, state.dtype, axes)

    def _run(self, initial: Sequence[Value], rates: Mapping[int, Value], emitted: Sequence[Value]) -> tuple[Value, ...]:
        """All sections side by side: the states after the last step of each, by what all steps of it together multiply
        states, and what is emitted, stacked."""
        loop, sections = self.loop, self.sections
        count = len(initial)
        lift = Lift(loop, sections, self.counters.fresh("step"))
        labels = (*(p.label for p in loop.states), *("rate" for _ in rates))
        states = [Parameter(label, v.type) for label, v in zip(labels, (*initial, *rates.values()))]
        results = (*loop.body.results[:count], *emitted)
        lift.nodes_of(region_of((), loop.body.nodes, results).nodes, [p.value for p in states[:count]])
        found = [lift.kept(lift.of(v), p.value) for v, p in zip(results, states[:count])]
        for n, p in zip(rates, states[count:]):
            found.append(lift.kept(self._rate(lift, n, p.value), p.value))
        found += [lift.of(v) for v in emitted]
        body = Region(tuple(states), tuple(lift.nodes), tuple(found))
        laid = [sharding_of(p.value) for p in states] + [
            Sharding.of(((), *sharding_of(v).axes)) for v in found[len(states) :]
        ]
        begin = (*initial, *rates.values())
        made = Loop(
            lift.counter, ZERO, Size.of(sections.extent), (), begin, body, None, len(emitted), shardings=tuple(laid)
        )
        sections.nodes.append(replace(made, **loop.spans))
        return sections.nodes[-1].values

    def _rate(self, lift: Lift, position: int, so_far: Value) -> Value:
        """The product of the rates so far and that of the step."""
        recurrence = self.recurrences[position]
        assert recurrence.rate is not None
        shape = so_far.tensor.shape[1:]
        axes = axes_for(shape)
        place = tuple(ZERO if e == ONE else Size.of(a.name) for a, e in zip(axes, shape))
        lift.values[so_far] = so_far
        held = Load(operand(len(recurrence.operands)), place, so_far.dtype)
        space = Space(axes, apply("mul", held, recurrence.rate), so_far.dtype)
        return lift.add(space, (*recurrence.operands, so_far), sharding_of(so_far).axes[1:])

    def _prefix(
        self, totals: Sequence[Value], scales: Mapping[int, Value], rest: Sequence[Sequence[Axes]]
    ) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """The last states, and those before each section; every device finds them."""
        loop, counter = self.loop, self.counters.fresh("step")
        states = [Parameter(p.label, placed(p.value.type, Sharding.of(r))) for p, r in zip(loop.states, rest)]
        nodes: list[Node] = []
        for n, (state, total) in enumerate(zip(states, totals)):
            axes = axes_for(state.value.tensor.shape)
            place = tuple(Size.of(a.name) for a in axes)
            dtype = state.value.dtype
            held, more = Load(operand(0), place, dtype), Load(operand(1), (Size.of(counter), *place), dtype)
            value: Expr = apply("add", held, more)
            operands: tuple[Value, ...] = (state.value, total)
            if n in scales:
                shape = scales[n].tensor.shape[1:]
                indices = tuple(ZERO if e == ONE else i for e, i in zip(shape, place))
                scale = Load(operand(2), (Size.of(counter), *indices), dtype)
                # The product of many rates may be infinite; what is made of 0 has no part in that.
                nothing = apply("eq", held, constant(0.0, dtype))
                value = where(nothing, more, apply("add", apply("mul", scale, held), more))
                operands = (*operands, scales[n])
            nodes.append(Compute(operands, Space(axes, value, dtype), shardings=(Sharding.of(rest[n]),)))
        results = (*(n.value for n in nodes), *(p.value for p in states))
        body = Region(tuple(states), tuple(nodes), results)
        laid = (*(Sharding.of(r) for r in rest), *(Sharding.of(((), *r)) for r in rest))
        initial = tuple(self.sections.laid(v, r) for v, r in zip(loop.initial, rest))
        made = Loop(
            counter,
            ZERO,
            Size.of(self.sections.count),
            (),
            initial,
            body,
            None,
            len(states),
            span=loop.span,
            shardings=laid,
        )
        self.sections.nodes.append(made)
        return made.values[: len(states)], made.values[len(states) :]

    def _rows(self, stacked: Value) -> Value:
        """What was stacked step by step, for all sections, in the order of the rows."""
        own = sharding_of(stacked).axes
        order = (1, 0, *range(2, stacked.tensor.rank))
        turned = self.sections.add(Transpose(stacked, order), tuple(own[d] for d in order))
        return self.sections.joined(turned, 0)

"""From tensors to loops: every group of nodes becomes one naive kernel and a `Call` of it.

    %1 = exp %x : f32[4, 8]                  kernel f_exp_sum(x: f32[4, 8]) -> (y: f32[4]) {
    %2 = reduce %1 combiner=sum axes=(1,)      for i0 in 0..4 { y[i0] = 0 }
                                         =>    for i0.1 in 0..4 { for r1 in 0..8 { y[i0.1] += exp(x[i0.1, r1]) } }
                                             }
                                             %1 = call f_exp_sum(%x) : f32[4]

A kernel is a list of stages, perfect loop nests in the order of the nodes, without any choice: what runs together, in
which order and how fast is for schedules to say. Afterwards the graph holds calls, loops, `list_get`s and reshapes of
values in memory, and the order of its nodes is the order of execution. See docs/lowering.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, TypeVar

from intarsia.ir.dtypes import I64
from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import (
    ArgReduce,
    Argsort,
    Call,
    Constant,
    Cumulative,
    Fused,
    ListGet,
    Loop,
    Reshape,
    Sort,
    Update,
)
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Expr, Load, as_size, transform
from intarsia.ir.sizes import Size, maximum, minimum
from intarsia.ir.space import operand, operand_position
from intarsia.ir.types import ListType
from intarsia.passes.canonicalize.values import literal_of, unwrapped
from intarsia.passes.lower.chains import chain_of, one_kernel
from intarsia.passes.lower.checks import Checks, checked_position
from intarsia.passes.lower.constants import Constants
from intarsia.passes.lower.kernel import GroupLowering, LoweredGroup
from intarsia.passes.lower.loops import lower_pointwise_loop, members_of, runs_inside
from intarsia.passes.lower.names import kernel_label
from intarsia.passes.lower.order import readers_first, without_order
from intarsia.passes.lower.recurrences import recurrence
from intarsia.passes.lower.rows_of_constants import with_rows
from intarsia.passes.lower.several_steps import Steps, in_blocks, several_steps
from intarsia.passes.lower.stages import Names, rename_buffers
from intarsia.passes.lower.whole_loops import whole_loop
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.schedule.grids import find_blocks
from intarsia.passes.schedule.programs_of_loops import loop_of_programs
from intarsia.passes.schedule.step_costs import step_costs


@dataclass(frozen=True)
class Lower(Pass):
    """Groups become kernels. Needs a graph after `fuse`; leaves naive kernels, those that are equal shared.

    `pointwise_loops`: loops that work on each element by itself become kernels too (see `lower/loops.py`).
    `whole_loops`: so do those whose steps are several kernels (see `lower/whole_loops.py`); `auto`: where a GPU gains.
    `steps_at_once`: of a loop over grids that no cache of a CPU holds, so many steps become one kernel (see
    `lower/several_steps.py`).
    """

    pointwise_loops: bool = True
    whole_loops: Literal["auto", "always", "never"] = "auto"
    steps_at_once: int = 8
    name = "lower"
    exact = False  # the order of a sum is that of the loops

    def run(self, module: Module, context: Context) -> Module:
        graph = module.graph
        kernels = Kernels(graph.name, module.kernels)
        scope = _Scope(graph.dimensions, Facts(names=frozenset(graph.dimensions)))
        checks = Checks(outside=context.target.kind == "gpu") if context.checks else None
        loops_inside = self.pointwise_loops and checks is None
        whole = partial(self._is_whole, context)
        in_blocks = partial(self._in_blocks, context)
        constants = Constants(kernels.named, frozenset(graph.dimensions))
        parameters = frozenset(graph.body.parameters)
        lowering = _RegionLowering(kernels, parameters, checks, loops_inside, whole, in_blocks, constants)
        body = lowering.region(without_order(graph.body), scope, {})
        called = frozenset(kernels_called(body))
        lowered = replace(module.with_body(body), kernels=tuple(k for k in kernels.in_order if k.name in called))
        return with_rows(lowered) if context.target.kind == "cpu" and checks is None else lowered

    def _is_whole(self, context: Context, kernel: Kernel, launches: int) -> bool:
        """Is a kernel that does all steps of a loop worth it? `launches`: how many kernels a step is otherwise."""
        if self.whole_loops != "auto" or context.checks:
            return self.whole_loops == "always" and not context.checks
        if context.target.kind != "gpu":
            return False
        made = loop_of_programs(kernel, context.target, context.writable)
        if made is None:
            self.remark(
                context, "schedule", "steps of the loop are launches: no program can do all of them", kernel.span, False
            )
            return False
        built, steps = made
        costs = step_costs(built.kernel, steps, launches, context.target)
        what = "all steps of the loop are one kernel" if costs.is_one_better else "steps of the loop are launches"
        text = f"{what}: about {costs.one} cycles a step in one kernel, {costs.launches} in {launches} launches"
        self.remark(context, "schedule", text, kernel.span, costs.is_one_better)
        return costs.is_one_better

    def _in_blocks(
        self, context: Context, values: Sequence[Value], make: Callable[[int], Merged | None]
    ) -> Merged | None:
        """Kernels that work on values one after the other as one, which `make` writes, if these are so large that
        blocks of them pay. `make` is told how many steps of a loop to take."""
        large = sum(math.prod(s.constant or 0 for s in v.tensor.shape) * v.dtype.bytes for v in values)
        if (
            self.steps_at_once < 2
            or context.checks
            or context.target.kind != "cpu"
            or large <= context.target.caches[1]
        ):
            return None
        made = make(self.steps_at_once)
        if made is None or not find_blocks(made.kernel, context.target):
            return None
        what = f"{made.count} steps of the loop" if isinstance(made, Steps) else "kernels"
        text = f"{what} are one kernel, so that blocks of what they work on stay in a cache"
        self.remark(context, "schedule", text, made.kernel.span)
        return made


Merged = TypeVar("Merged", Steps, LoweredGroup)
"""Several kernels as one: steps of a loop, or a chain of calls."""


class InBlocks(Protocol):
    """Several kernels as one where that pays, or nothing."""

    def __call__(self, values: Sequence[Value], make: Callable[[int], Merged | None]) -> Merged | None: ...


def kernels_called(region: Region) -> Iterator[str]:
    """The names of the kernels that a region calls."""
    for node in region.nodes:
        match node:
            case Call(kernel):
                yield kernel
            case Loop(body=body, condition=condition):
                yield from kernels_called(body)
                yield from kernels_called(condition) if condition is not None else ()


class Kernels:
    """The kernels of a module; equal ones, whatever their parameters are called, are kept once."""

    def __init__(self, prefix: str, existing: Sequence[Kernel]) -> None:
        self.prefix = prefix
        self.in_order: tuple[Kernel, ...] = tuple(existing)
        self._names = Names((k.name for k in existing), mark="_")
        self._known: dict[Kernel, Kernel] = {}

    def named(self, name: str) -> Kernel:
        """The kernel of that name."""
        return next(k for k in self.in_order if k.name == name)

    def add(self, kernel: Kernel, label: str) -> Kernel:
        """The kernel, or one that is equal to it, under a name of its own."""
        positions = {b.name: f"#{n}" for n, b in enumerate(kernel.buffers().values())}
        key = replace(rename_buffers(kernel, positions), name="", span=None)
        if key not in self._known:
            name = self._names.fresh(f"{self.prefix}_{label}".replace(".", "_"))
            self._known[key] = replace(kernel, name=name)
            self.in_order = (*self.in_order, self._known[key])
        return self._known[key]


@dataclass(frozen=True)
class _Scope:
    """The symbols in scope, in order of binding, and what is known of them."""

    names: tuple[str, ...]
    facts: Facts
    counters: frozenset[str] = frozenset()

    def inside(self, loop: Loop) -> _Scope:
        """Within a loop: its counter is in its bounds where these do not depend on data."""
        counter, facts = Size.of(loop.counter), self.facts
        if not loop.lower.opaques:
            facts = facts.given(counter - loop.lower)
            if self.facts.proves(loop.lower):
                facts = replace(facts, names=facts.names | {loop.counter})
        if not loop.upper.opaques:
            facts = facts.given(loop.upper - 1 - counter)
        return _Scope((*self.names, loop.counter), facts, self.counters | {loop.counter})


@dataclass(frozen=True)
class _RegionLowering:
    """Lowers the nodes of a region and of those inside it. `fixed` are the parameters that nothing may change;
    `loops_inside`: pointwise loops run inside of kernels."""

    kernels: Kernels
    fixed: frozenset[Node]
    checks: Checks | None
    loops_inside: bool
    is_whole: Callable[[Kernel, int], bool]
    in_blocks: InBlocks
    constants: Constants

    def region(self, region: Region, scope: _Scope, outer: Mapping[Value, Value]) -> Region:
        """The lowered region; `outer` gives the lowered values of the regions around it."""
        block = _Block(self, scope, dict(outer))
        for node in region.nodes:
            block.lower(node)
        block.merge_chain([block.value(v) for v in region.results])
        results = tuple(block.value(v) for v in region.results)
        kernels = {k.name: k for k in self.kernels.in_order}
        return Region(region.parameters, readers_first(block.nodes, kernels), results)

    def is_owned(self, value: Value) -> bool:
        """Did the program make this value itself? Inputs are never changed."""
        return value.node not in self.fixed and not isinstance(value.node, ListGet) and literal_of(value) is None


class _Block:
    """The nodes of one region on their way: what they became, and the values that stand for the old ones."""

    def __init__(self, lowering: _RegionLowering, scope: _Scope, values: dict[Value, Value]) -> None:
        self.lowering = lowering
        self.scope = scope
        self.values = values
        self.nodes: list[Node] = []

    def value(self, old: Value) -> Value:
        """The value that stands for an old one; a literal that has to be in memory is written by a kernel."""
        if old not in self.values and literal_of(old) is not None:
            made = unwrapped(old)
            self._group((made.node,), (made,), made.node)
            self.values[old] = self.values[made]
        return self.values.get(old, old)

    def lower(self, node: Node) -> None:
        match node:
            case Structured() if literal_of(node.value) is not None:
                pass  # becomes part of what uses it
            case Fused(body):
                made = [v for v in body.results if literal_of(v) is None]
                self._group(body.nodes, made, node)
                self.values.update((own, self.value(v)) for own, v in zip(node.values, body.results) if v in made)
            case Reshape(x) if literal_of(x) is None:
                self._append(node, replace(node, x=self.value(x)))
            case Structured() | Update() | ArgReduce() | Cumulative() | Sort() | Argsort():
                self._group((node,), node.values, node)
            case Loop() if self.lowering.loops_inside and runs_inside(node):
                self._pointwise_loop(node)
            case Loop():
                self._plan_loop(node)
            case ListGet(source, old) if self.lowering.checks is not None and old.opaques:
                positions, picked = checked_position(node)
                self._group((positions, picked), picked.values, node)
                own = (self.value(picked.value),)
                here = Size.opaque(Load(operand(0), (), I64))
                self._append(node, replace(node, index=here, scalars=own, source=self.value(source)))
            case ListGet(source, old):
                (index,), scalars = self._scalars((old,), node.scalars)
                if old.opaques and not index.opaques and isinstance(source.type, ListType):  # data that is a literal
                    index = maximum(0, minimum(index, source.type.length - 1))
                self._append(node, replace(node, index=index, scalars=scalars, source=self.value(source)))
            case _:
                self._append(node, node.with_operands({v: self.value(v) for v in node.inputs}))

    def _append(self, old: Node, new: Node) -> None:
        self.nodes.append(new)
        self.values.update(zip(old.values, new.values))

    def _group(self, members: Sequence[Node], results: Sequence[Value], node: Node) -> None:
        """One kernel and its call, for those of `results` that the members compute."""
        inside = set(members)
        outputs = tuple(dict.fromkeys(v for v in results if v.node in inside))
        if outputs:
            lowering, scope = self.lowering, self.scope
            group = GroupLowering(members, outputs, scope.names, scope.facts, lowering.is_owned, lowering.checks)
            self._call(group.run("", node.span), kernel_label(members), node)

    def _pointwise_loop(self, loop: Loop) -> None:
        """A loop that runs inside of one kernel."""
        scope = self.scope
        members = members_of(loop.body)
        group = GroupLowering(members, loop.values, scope.names, scope.facts)
        lower_pointwise_loop(group, loop)
        words = ("scan" if loop.stacked else "loop", *((kernel_label(members),) if members else ()))
        self._call(group.finish("", loop.span), "_".join(words), loop)

    def _plan_loop(self, old: Loop) -> None:
        """A loop of the plan, or the kernel that does all its steps if each of them changes single elements."""
        inner = self._steps(old)
        if self._whole_loop(old, inner):
            return
        new = replace(inner, initial=tuple(map(self.value, old.initial)))
        called = {k.name: k for k in self.lowering.kernels.in_order}
        scope = self.scope
        inside = scope.inside(new).facts
        made = recurrence(new, called, scope.names, inside) if self.lowering.loops_inside else None
        if made is None:
            if not self._steps_at_once(old, new):
                self._append(old, new)
            return
        kernel = self.lowering.kernels.add(
            made.kernel, f"{made.kernel.name.removeprefix(self.lowering.kernels.prefix + '_')}_{new.counter}"
        )
        sizes = tuple(map(Size.of, kernel.sizes))
        call = Call(kernel.name, made.arguments, made.types, sizes, **old.spans)
        self.nodes.append(call)
        self.values.update((v, call.values[made.results[n]]) for n, v in enumerate(old.values))

    def _steps_at_once(self, old: Loop, new: Loop) -> bool:
        """Let a loop do several steps at a time, by one kernel, if that is possible and worth it."""
        kernels, scope = {k.name: k for k in self.lowering.kernels.in_order}, self.scope

        def make(count: int) -> Steps | None:
            return several_steps(new, count, kernels, scope.names, scope.facts)

        made = self.lowering.in_blocks(new.initial, make)
        if made is None:
            return False
        kernel = self.lowering.kernels.add(made.kernel, f"steps_{old.counter}")
        several, rest = in_blocks(new, made, kernel.name)
        self.nodes += [several] if rest is None else [several, rest]
        self.values.update(zip(old.values, (rest or several).values))
        return True

    def merge_chain(self, results: Sequence[Value]) -> None:
        """Let calls that pass large values on to each other, and make results, be one of one kernel, if that is worth
        it."""
        kernels, scope = {k.name: k for k in self.lowering.kernels.in_order}, self.scope
        calls = chain_of(self.nodes, frozenset(results), kernels)
        kept = [v for c in calls for v in c.values if v in results]

        def make(_: int) -> LoweredGroup | None:
            return one_kernel(calls, kept, kernels, scope.names, scope.facts)

        made = self.lowering.in_blocks(kept, make) if len(calls) > len(kept) else None
        if made is not None:
            place = self.nodes.index(calls[-1])
            after = [n for n in self.nodes[place + 1 :] if n not in calls]
            self.nodes = [n for n in self.nodes[:place] if n not in calls]
            self._call(made, "chain", calls[-1])
            self.nodes += after
            self.values.update((old, self.values.get(v, v)) for old, v in [*self.values.items()])

    def _whole_loop(self, old: Loop, inner: Loop) -> bool:
        """Make one kernel of a loop, whose body is lowered, if that is possible and worth it."""
        kernels = {k.name: k for k in self.lowering.kernels.in_order}
        initial = [literal_of(v) or self.values.get(v, v) for v in old.initial]
        made = whole_loop(inner, initial, kernels, self.scope.names, self.scope.facts)
        launches = len(inner.body.nodes) + inner.stacked
        if made is None or not self.lowering.is_whole(made.kernel, launches):
            return False
        made = replace(made, results=old.values)
        self._call(made, f"loop_{old.counter}", old)
        return True

    def _call(self, lowered: LoweredGroup, label: str, node: Node) -> None:
        """Call a kernel; its results stand for what the group computes."""
        arguments = tuple(map(self.value, lowered.arguments))
        marked = lowered.kernel
        if not self.scope.counters.intersection(marked.sizes):  # what is made before a loop knows no counter
            marked = self.lowering.constants.marked(marked, arguments)
        kernel = self.lowering.kernels.add(marked, label)
        call = Call(
            kernel.name,
            arguments,
            tuple(v.type for v in lowered.results),
            tuple(map(Size.of, kernel.sizes)),
            **node.spans,
        )
        self.nodes.append(call)
        self.values.update(zip(lowered.results, call.values))

    def _steps(self, loop: Loop) -> Loop:
        """The loop with its bounds and regions lowered."""
        (lower, upper), scalars = self._scalars((loop.lower, loop.upper), loop.scalars)
        scope = self.scope.inside(replace(loop, lower=lower, upper=upper, scalars=scalars))
        return replace(
            loop,
            lower=lower,
            upper=upper,
            scalars=scalars,
            body=self.lowering.region(loop.body, scope, self.values),
            condition=loop.condition and self.lowering.region(loop.condition, scope, self.values),
        )

    def _scalars(self, sizes: Sequence[Size], scalars: Sequence[Value]) -> tuple[tuple[Size, ...], tuple[Value, ...]]:
        """Integer expressions that load scalars `a0`, …: literals are put in, the other scalars are numbered again."""
        order: dict[Value, int] = {}

        def read(e: Expr) -> Expr | None:
            if not isinstance(e, Load):
                return None
            scalar = scalars[operand_position(e.buffer)]
            if isinstance(scalar.node, Constant):
                return scalar.node.space.body
            return replace(e, buffer=operand(order.setdefault(self.value(scalar), len(order))))

        def literal(value: Expr) -> Size:
            return as_size(transform(value, rule=read))

        new = tuple(s.substitute({}, literal) if s.opaques else s for s in sizes)
        return new, tuple(order)

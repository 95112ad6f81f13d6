"""What the steps of a loop compute without its states is computed for all steps at once, before the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.ops import Compute, Constant, Loop, Slice
from intarsia.ir.scalar import Cast, Expr, Load, transform
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis, Space, operand_position
from intarsia.passes.dce import prune
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions

MOST = 1 << 30
"""Bytes that the steps of a loop may have at once of what they had one after the other."""

UNKNOWN = 1024
"""What an extent counts as that is no number."""


@dataclass(frozen=True)
class Hoist(Pass):
    """Take reductions, and what is made of them, out of loops on whose states they do not depend: all steps at once.

    Before:  %0 = loop t in 0..T (%h = %h0) {
               %1 = slice %x starts=(t, 0) extents=(1, 4) … : f32[4]
               %2 = matmul %1, %w : f32[8]
               %3 = add %2, %h : f32[8]
               yield %3
             } : f32[8]
    After:   %0 = compute [t < T, j < 8] sum[k < 4](%x[t, k] * %w[k, j]) : f32[T, 8]
             %1 = loop t in 0..T (%h = %h0) {
               %2 = slice %0 starts=(t, 0) extents=(1, 8) … : f32[8]
               %3 = add %2, %h : f32[8]
               yield %3
             } : f32[8]

    One large product fills a GPU, where a small one in each step waits for the step before. On a CPU, where a program
    that goes step by step needs less memory, loops stay as they are, but with `always`.

    Keeps: values, bit for bit. Needs: `specialize`. Leaves: no reduction in a loop that no state needs, if its bounds
    depend on no data, it asks no condition, and there is memory for all steps (1 GiB).
    """

    name: ClassVar[str] = "hoist"
    always: bool = False

    def run(self, module: Module, context: Context) -> Module:
        if context.checks or not (self.always or context.target.kind == "gpu"):
            return module
        body = self._region(module.graph.body, context)
        return module.with_body(body)

    def _region(self, region: Region, context: Context) -> Region:
        """The region with what can be done before its loops done before them, inner loops first."""
        inner = change_regions(region, lambda node, r: self._region(r, context) if isinstance(node, Loop) else r)
        values: dict[Value, Value] = {}
        nodes: list[Node] = []
        for node in inner.nodes:
            before, new = _hoisted(node) if isinstance(node, Loop) else ((), node)
            for made in before:
                if isinstance(made, Structured) and made.space.reduced:
                    self.remark(context, "fusion", "computed for all steps of the loop at once", made.span)
            for old, made in (*((n, n) for n in before), (node, new)):
                rebuilt = made.with_operands(values)
                if rebuilt is not old:
                    values.update(zip(old.values, rebuilt.values))
                nodes.append(rebuilt)
        if all(a is b for a, b in zip(nodes, inner.nodes)) and len(nodes) == len(inner.nodes):
            return inner
        return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in inner.results))


def _hoisted(loop: Loop) -> tuple[tuple[Node, ...], Loop]:
    """The nodes that come before a loop, and what is left of it."""
    if not _has_steps(loop):
        return (), loop
    free = _free_of_states(loop)
    wanted = {n for n in free if _is_worth(n, free)}
    for node in reversed(loop.body.nodes):  # and what they need
        if node in wanted:
            wanted.update(v.node for v in node.inputs if v.node in free)
    made = _AllSteps(loop)
    for node in loop.body.nodes:
        if node in wanted and isinstance(node, Structured):
            made.add(node)
    worth = [n for n in loop.body.nodes if n in wanted and _is_worth(n, free)]
    if not worth or made.bytes > MOST:
        return (), loop
    values = {n.values[0]: made.of_step(n.values[0]) for n in worth}
    slices = tuple(v.node for v in values.values() if isinstance(v.node, Slice))
    left = replace(loop.body, nodes=tuple(n for n in loop.body.nodes if n not in worth)).rebuild(values)
    body = replace(left, nodes=(*slices, *left.nodes))
    return tuple(made.nodes), replace(loop, body=prune(body, body.results))


def _has_steps(loop: Loop) -> bool:
    """Is the number of steps known before the loop, and not negative?"""
    length = loop.upper - loop.lower
    if loop.condition is not None or loop.scalars or length.constant in (0, 1):
        return False
    named = loop.lower == ZERO and loop.upper.as_name is not None
    return named or (length.constant or 0) > 0 or loop.stacked > 0


def _free_of_states(loop: Loop) -> set[Node]:
    """The nodes of a body that no state reaches."""
    bound = {p.value for p in loop.states}
    free: set[Node] = set()
    for node in loop.body.nodes:
        if isinstance(node, Structured) and not any(v in bound for v in node.inputs):
            free.add(node)
        else:
            bound.update(node.values)
    return free


def _is_worth(node: Node, free: set[Node]) -> bool:
    """Is a node a reduction, or is anything computed from one?"""
    assert isinstance(node, Structured)
    if node.space.reduced:
        return True
    return not _moves(node.space.body) and _has_reduction(node, free)


def _moves(body: Expr) -> bool:
    """Does a body only take what is there, in a wider type perhaps? Then it is as well done in each step."""
    match body:
        case Cast(dtype, Load() as load):
            return dtype.bits >= load.dtype.bits
    return isinstance(body, Load)


def _has_reduction(node: Node, free: set[Node]) -> bool:
    """Does anything that a node needs inside the loop reduce?"""
    stack, seen = [node], {node}
    while stack:
        here = stack.pop()
        if isinstance(here, Structured) and here.space.reduced:
            return True
        for value in here.inputs:
            if value.node in free and value.node not in seen:
                seen.add(value.node)
                stack.append(value.node)
    return False


class _AllSteps:
    """Nodes of a loop for all of its steps: those whose value changes from step to step have a first axis for these."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.steps = loop.upper - loop.lower
        self.nodes: list[Node] = []
        self.values: dict[Value, Value] = {}
        self.stepwise: set[Value] = set()
        self.bytes = 0

    def add(self, node: Structured) -> None:
        """Do a node for all steps."""
        loop, space = self.loop, node.space
        operands = tuple(self.values.get(v, v) for v in node.operands)
        changing = frozenset(n for n, v in enumerate(node.operands) if v in self.stepwise)
        new: Node
        if changing or loop.counter in _symbols(space):
            new = Compute(operands, _with_axis(space, loop, self.steps, changing), span=node.span)
            self.stepwise.add(node.value)
        else:
            new = node.with_operands(self.values)
            if new is node:
                new = replace(node)
        self.nodes.append(new)
        (made,) = new.values
        self.values[node.value] = made
        if not isinstance(node, Constant) and not isinstance(space.body, Load):
            extents = (UNKNOWN if e.constant is None else e.constant for e in made.tensor.shape)
            self.bytes += math.prod(extents) * made.dtype.bytes

    def of_step(self, value: Value) -> Value:
        """A value of the body, taken from that of all steps."""
        made = self.values[value]
        if value not in self.stepwise:
            return made
        return Slice.row(made, Size.of(self.loop.counter) - self.loop.lower).at(value.node.span).value


def _symbols(space: Space) -> frozenset[str]:
    """The names that a space uses."""
    sizes = (bound for a in space.all_axes for bound in (a.lower, a.upper))
    return space.body.symbols.union(*(s.symbols for s in sizes))


def _with_axis(space: Space, loop: Loop, steps: Size, changing: frozenset[int]) -> Space:
    """A space with a first axis for the steps of a loop; operands in `changing` have it too."""
    name = loop.counter
    while name in {a.name for a in space.all_axes}:
        name += "'"
    here = Size.of(name)
    moved = space.substitute({loop.counter: here + loop.lower})

    def read(e: Expr) -> Expr | None:
        if isinstance(e, Load) and operand_position(e.buffer) in changing:
            return replace(e, indices=(here, *e.indices))
        return None

    def size(s: Size) -> Size:
        return s.substitute({}, lambda value: Size.opaque(transform(value, rule=read))) if s.opaques else s

    def axis(a: Axis) -> Axis:
        return Axis(a.name, size(a.lower), size(a.upper))

    return replace(
        moved,
        axes=(Axis(name, ZERO, steps), *map(axis, moved.axes)),
        reduced=tuple(map(axis, moved.reduced)),
        body=transform(moved.body, rule=read),
    )

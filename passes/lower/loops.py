"""Loops whose states are worked on element by element become one kernel: the steps run inside, for each element.

    %1 = loop t in 0..9 (%h = %0) {            kernel f_mul(x: f32[9, 4], a: f32[4], out y: f32[4]) {
      %2 = mul %h, %a : f32[4]                   for i0 in 0..4 { alloc h: f32   h[] = x[i0]
      yield %2                           =>        for t in 0..9 { h[] = h[] * a[i0] }
    } : f32[4]                                     y[i0] = h[] } }

A state then lives in a register from its first step to its last, and elements are independent of each other. A loop
stays in the graph, and becomes one of the plan, if a step reads other elements of a state, reduces over them, or asks a
condition; and if each step reads or writes long rows of its own, which are better walked one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.kernel import Alloc, Buffer, Statement
from intarsia.ir.ops import Constant, Fused, Loop
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.scalar import Expr, Load, cast, loads
from intarsia.ir.sizes import ONE, Size
from intarsia.ir.space import Axis, Space, operand_position
from intarsia.passes.lower.names import op_label
from intarsia.passes.lower.stages import Scope, subscripts
from intarsia.passes.lower.uses import CHEAP, work

if TYPE_CHECKING:
    from intarsia.passes.lower.kernel import GroupLowering


def members_of(region: Region) -> tuple[Node, ...]:
    """The nodes of a region, those of groups in place of the groups."""
    found: list[Node] = []
    for node in region.nodes:
        found += members_of(node.body) if isinstance(node, Fused) else (node,)
    return tuple(found)


SHORT = 256
"""Elements of a row up to which a loop that walks rows runs inside."""


def runs_inside(loop: Loop) -> bool:
    """Is a loop better run for each element than for all elements step by step?"""
    if not is_pointwise(loop):
        return False
    elements = loop.body.results[0].tensor.elements.constant
    return not _walks_rows(loop) or (elements is not None and elements <= SHORT)


def _walks_rows(loop: Loop) -> bool:
    """Does each step read or write elements of its own?"""
    spaces = [n.space for n in members_of(loop.body) if isinstance(n, Structured)]
    used = (frozenset().union(*(i.symbols for i in load.indices)) for s in spaces for load in s.loads())
    axes = {a.name for s in spaces for a in s.axes}
    return loop.stacked > 0 or any(loop.counter in names and names & axes for names in used)


def is_pointwise(loop: Loop) -> bool:
    """Does every element of every state depend on the same element of states alone, besides what does not change?"""
    shapes = {v.tensor.shape for v in (*loop.initial, *loop.body.results)}
    if loop.condition is not None or not loop.initial or len(shapes) != 1:
        return False
    by_state: set[Value] = {p.value for p in loop.states}
    names = _group_values(loop.body)
    for node in members_of(loop.body):
        if not isinstance(node, Structured) or node.space.reduced:
            return False
        operands = [names.get(v, v) for v in node.operands]
        of_states = [load for load in node.space.loads() if operands[operand_position(load.buffer)] in by_state]
        if of_states:
            if node.space.shape not in shapes or not all(_is_same_element(load, node.space) for load in of_states):
                return False
            by_state.add(node.value)
    return True


def _is_same_element(load: Load, space: Space) -> bool:
    """Does a load of a value of the same shape read the element that the space computes?"""
    return all(
        index == Size.of(axis.name) or axis.extent == ONE  # which has one subscript only, however written
        for index, axis in zip(load.indices, space.axes, strict=True)
    )


def _group_values(region: Region) -> dict[Value, Value]:
    """The results of groups as the values inside that they are."""
    found: dict[Value, Value] = {}
    for node in region.nodes:
        if isinstance(node, Fused):
            inner = _group_values(node.body)
            found.update((outer, inner.get(v, v)) for outer, v in zip(node.values, node.body.results))
    return found


def lower_pointwise_loop(group: GroupLowering, loop: Loop) -> None:
    """Write a loop for which `is_pointwise` holds; `group` has its members, and its values as outputs."""
    writer, span = group.writer, loop.span
    axes = axes_for(loop.initial[0].tensor.shape)
    here = subscripts(axes)
    initial = [group.definition(v).at(here) for v in loop.initial]
    counter = Axis(loop.counter, *(group.inlined_size(s, loop.scalars) for s in (loop.lower, loop.upper)))
    states = [writer.temporary(p.label, p.value.dtype, ()).buffer for p in loop.states]
    for parameter, state in zip(loop.states, states):
        group.define_at(parameter.value, axes, _scalar(state))
    yielded = _StepWriter(group, loop, axes)
    results = [group.result(v) for v in loop.values]
    row = (Size.of(loop.counter) - counter.lower, *here)
    assignments = _in_order(group, states, yielded.values[: len(states)])

    def scalar_puts(scope: Scope, pairs: Iterable[tuple[Buffer, Expr]]) -> list[Statement]:
        return [writer.put(scope, b.name, (), "=", e, span) for b, e in pairs]

    def step(scope: Scope) -> tuple[Statement, ...]:
        stacked = zip(results[len(states) :], yielded.values[len(states) :])
        return (
            *scalar_puts(scope, yielded.temporaries),
            *(writer.put(scope, b.name, row, "=", e, span) for b, e in stacked),
            *scalar_puts(scope, assignments),
        )

    def element(scope: Scope) -> tuple[Statement, ...]:
        own = dict.fromkeys((*states, *(b for b, _ in (*yielded.temporaries, *assignments))))
        return (
            *map(Alloc, own),
            *scalar_puts(scope, zip(states, initial)),
            *writer.loops((counter,), step, scope),
            *(writer.put(scope, b.name, here, "=", _scalar(s), span) for b, s in zip(results, states)),
        )

    writer.body += writer.loops(axes, element)


def _scalar(buffer: Buffer) -> Load:
    return Load(buffer.name, (), buffer.dtype)


def _in_order(group: GroupLowering, states: Sequence[Buffer], values: Sequence[Expr]) -> list[tuple[Buffer, Expr]]:
    """The assignments by which all states change at once: those that a later one still reads wait in a temporary."""
    puts: list[tuple[Buffer, Expr]] = []
    late: list[tuple[Buffer, Expr]] = []
    for position, (state, value) in enumerate(zip(states, values)):
        if value == _scalar(state):
            continue
        read_later = any(load.buffer == state.name for e in values[position + 1 :] for load in loads(e))
        if read_later:
            wait = group.writer.temporary("next", state.dtype, ()).buffer
            late.append((state, _scalar(wait)))
            state = wait
        puts.append((state, value))
    return [*puts, *late]


class _StepWriter:
    """The expressions of one step at one element: temporaries in order, then what the body yields."""

    def __init__(self, group: GroupLowering, loop: Loop, axes: Sequence[Axis]) -> None:
        self.group = group
        self.axes = axes
        self.names = _group_values(loop.body)
        self.temporaries: list[tuple[Buffer, Expr]] = []
        members = members_of(loop.body)
        yields = [self.names.get(v, v) for v in loop.body.results]
        reads = self._reads(members)
        for node in members:
            if isinstance(node, Structured) and not isinstance(node, Constant):
                self._member(node, reads.get(node.value, []), yields.count(node.value))
        self.values = [group.definition(v).at(subscripts(axes)) for v in yields]

    def _reads(self, members: Iterable[Node]) -> dict[Value, list[bool]]:
        """For each value, of each of its reads: is it of the element that is computed?"""
        found: dict[Value, list[bool]] = {}
        for node in members:
            assert isinstance(node, Structured)
            for load in dict.fromkeys(node.space.loads()):
                value = node.operands[operand_position(load.buffer)]
                same = len(load.indices) == len(node.space.axes) and _is_same_element(load, node.space)
                found.setdefault(self.names.get(value, value), []).append(same)
        return found

    def _member(self, node: Structured, reads: Sequence[bool], yielded: int) -> None:
        """Put a value into its uses, or into a temporary if it is dear or yielded, and used several times."""
        space = self.group.inlined_space(node.space, [self.names.get(v, v) for v in node.operands])
        value = cast(space.dtype, space.body)
        several = yielded + len(reads) > 1 and (yielded > 0 or work(value) > CHEAP)
        if several and all(reads) and space.shape == tuple(a.extent for a in self.axes):
            names = {a.name: Size.of(b.name) for a, b in zip(space.axes, self.axes)}
            kept = self.group.writer.temporary(f"t_{op_label(node)}", value.dtype, ()).buffer
            self.temporaries.append((kept, value.substitute(names)))
            value = _scalar(kept)
        self.group.define_at(node.value, space.axes, value)

"""The states that the steps of a loop begin with, kept for the way back.

A loop whose number of steps is a size stacks them as results. One whose steps data or a counter around decides carries
tensors for as many steps as there can be, and writes a row of them in each; it carries the number at which it ends too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from intarsia.ir.dtypes import I64
from intarsia.ir.extremes import greatest
from intarsia.ir.gradients.spaces import Make
from intarsia.ir.graph import Parameter, Region, Value
from intarsia.ir.ops import BroadcastTo, Compute, Constant, Loop, Update
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Index, Load
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.types import TensorType

Ranges = Mapping[str, "tuple[Size, Size]"]
"""The counters of the loops around, each from its first value up to the second."""

NO_LOOPS: Ranges = MappingProxyType({})


@dataclass(frozen=True)
class Record:
    """What a loop has kept of its states, which are meant by their numbers.

    The counter runs within `base`..`base + most`. rows: tensors whose row k is a state where the counter is base + k.
    kept: the states that hold such rows, with the state whose they are. counter: where data decides how many steps
    there are, the state that is the counter, its first value, and the one at which it has ended.
    """

    base: Size
    most: Size
    rows: Mapping[int, Value]
    kept: Mapping[int, int] = field(default_factory=dict)
    counter: tuple[int, Value, Value] | None = None

    def range_back(self) -> tuple[Size, Size, tuple[Value, ...]]:
        """The range of a loop with a step for each that has been run, where s is the one with the row most - 1 - s; and
        the scalars that it loads."""
        if self.counter is None:
            return ZERO, self.most, ()
        _, began, ended = self.counter
        begin, end = (Size.opaque(Load(operand(p), (), I64)) - self.base for p in (1, 0))
        return self.most - minimum(end, self.most), self.most - maximum(begin, 0), (ended, began)


def recording(node: Loop, around: Ranges, make: Make) -> Loop | None:
    """The loop that keeps its states; None where no bound for its number of steps is known."""
    if _is_counted(node, around):
        states = tuple(p.value for p in node.states)
        body = replace(node.body, results=(*node.body.results, *states))
        upper = node.lower + _count(node.upper - node.lower)
        return replace(node, upper=upper, body=body, stacked=node.stacked + len(states))
    found = _hull(node, around)
    if found is None or node.stacked:
        return None
    base, most = found
    counter = Parameter(node.counter, TensorType(I64))
    following = Compute((), Space((), Index(Size.of(node.counter) + 1), I64), span=node.span)
    extra, nodes, results = [counter], [*node.body.nodes, following], [*node.body.results, following.value]
    first = [make(Compute(node.scalars, Space((), Index(node.lower), I64), span=node.span)).value]
    for state in node.states:
        kept = state.value.tensor
        rows = Parameter(f"{state.label}_steps", TensorType(kept.dtype, (most, *kept.shape)))
        axes = tuple(Axis.of(f"j{d}", extent) for d, extent in enumerate(kept.shape))
        names = tuple(Size.of(a.name) for a in axes)
        place = (Size.of(node.counter) - base, *names)
        load = Load(operand(1), names, kept.dtype)
        put = Update(rows.value, (state.value,), axes, place, "=", load, span=node.span)
        zero = make(Constant(0, kept.dtype, span=node.span)).value
        first.append(make(BroadcastTo(zero, rows.value.tensor.shape, span=node.span)).value)
        extra, nodes, results = [*extra, rows], [*nodes, put], [*results, put.value]
    condition = node.condition
    if condition is not None:
        unread = tuple(Parameter(p.label, p.type) for p in extra)
        condition = replace(condition, parameters=(*condition.parameters, *unread))
    body = Region((*node.states, *extra), tuple(nodes), tuple(results))
    return replace(node, initial=(*node.initial, *first), body=body, condition=condition)


def record_of(node: Loop, around: Ranges) -> Record | None:
    """What a loop keeps, if it is one that `recording` has made."""
    count = len(node.initial)
    states = [p.value for p in node.states]
    if _is_counted(node, around):
        emitted = node.body.results[count:]
        if not all(s in emitted for s in states):
            return None
        stacks = {k: node.values[count + emitted.index(s)] for k, s in enumerate(states)}
        return Record(node.lower, node.upper - node.lower, stacks)
    if (found := _hull(node, around)) is None:
        return None
    base, most = found
    rows: dict[int, Value] = {}
    kept: dict[int, int] = {}
    counter: tuple[int, Value, Value] | None = None
    for k, (first, result) in enumerate(zip(node.initial, node.body.results)):
        match result.node, first.node:
            case Update(into, (of,), targets=(place, *_), operator="="), _:
                if into is states[k] and of in states and place == Size.of(node.counter) - base:
                    kept[k] = states.index(of)
                    rows[kept[k]] = node.values[k]
            case Compute(definition=Space(body=Index(after))), Compute(scalars, Space(body=Index(before))):
                is_first = before == node.lower and scalars == node.scalars[: len(scalars)]
                if is_first and after == Size.of(node.counter) + 1:
                    counter = k, first, node.values[k]
    if counter is None or {*rows, *kept, counter[0]} != set(range(count)):
        return None
    return Record(base, most, rows, kept, counter)


def _hull(node: Loop, around: Ranges) -> tuple[Size, Size] | None:
    """Where the counter begins at the earliest, and how many numbers from there on it can be. None if no bound is
    known."""
    base = node.lower
    if base.opaques:
        least = greatest(-base, around)
        if least is None:
            return None
        base = -least
    most = greatest(node.upper - base, around)
    return None if most is None else (base, _count(most))


def _count(steps: Size) -> Size:
    """A number of rows: none where the bounds of a loop are the other way round."""
    is_count = Facts(names=steps.symbols).proves(steps)
    return steps if is_count else maximum(ZERO, steps)


def _is_counted(node: Loop, around: Ranges) -> bool:
    """Is the number of steps a size, the same whenever the loop runs?"""
    bounds = (node.lower, node.upper)
    varies = any(b.opaques or not b.symbols.isdisjoint(around) for b in bounds)
    return node.condition is None and not varies

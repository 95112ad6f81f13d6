"""The adjoint of a loop: a loop from the last step to the first, which carries the cotangents of the states.

Every step needs the states that it began with. They are stacked by the loop itself where the program was built to be
differentiated, else by a copy of it; a step computes the rest again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from intarsia.ir.dtypes import I64, DType
from intarsia.ir.errors import CompileError
from intarsia.ir.gradients.records import Record, record_of, recording
from intarsia.ir.gradients.spaces import Contribution, Make, adding, converted, tensor_of, zeros
from intarsia.ir.graph import Node, Parameter, Value, region_of
from intarsia.ir.ops import BroadcastTo, Compute, Constant, Cumulative, Loop
from intarsia.ir.scalar import Index, Load, apply, cast
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.substitution import copied
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.ir.gradients.reverse import Reverse

Found = list[tuple[Value, Contribution]]


def pull_back_loop(node: Loop, flow: Reverse, active: set[Value], make: Make) -> Found:
    """What the cotangents of a loop's results add to those of its first states and of what its body uses.

    Raises E0325 where data says how many steps there are, and no bound is known.
    """
    record = _record(node, flow, make)
    backward = _Backward(node, record, flow)
    states = [k for k, v in enumerate(node.initial) if v.dtype.is_float and k not in record.kept]
    uses = [v for v in node.body.captures if v in active]
    parameters = [Parameter(f"d_{node.states[k].label}", node.initial[k].type) for k in states]
    parameters += [Parameter("d_used", _sum_type(v)) for v in uses]
    step = backward.step(states, uses, parameters)
    initial = [
        converted(flow.cotangents[v], v.dtype, make) if v in flow.cotangents else zeros(v.tensor, make)
        for v in (node.values[k] for k in states)
    ]
    initial += [zeros(_sum_type(v), make) for v in uses]
    body = region_of(parameters, backward.nodes, step)
    first, last, scalars = record.range_back()
    loop = make(Loop(backward.counter, first, last, scalars, tuple(initial), body))
    sources = [*(node.initial[k] for k in states), *uses]
    return [(source, adding(total, make)) for source, total in zip(sources, loop.values)]


def _sum_type(value: Value) -> TensorType:
    """Cotangents of what all steps use are summed in at least f32."""
    tensor = tensor_of(value)
    return tensor.with_dtype(tensor.dtype.accumulator)


class _Backward:
    """The region of one step back: the step again, then what flows back through it."""

    def __init__(self, node: Loop, record: Record, flow: Reverse) -> None:
        self.node = node
        self.record = record
        self.flow = flow
        self.counter = flow.fresh(node.counter)
        self.nodes: list[Node] = []
        self.step_number = record.most - 1 - self.counter
        self.number = record.base + self.step_number
        self.values = {p.value: self.row(record.rows[k]) for k, p in enumerate(node.states) if k in record.rows}
        if record.counter is not None and record.counter[0] < len(node.states):
            now = self.take(Compute((), Space((), Index(self.number), I64)))
            self.values[node.states[record.counter[0]].value] = now.value

    def take(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def row(self, stack: Value) -> Value:
        """What is of the step in a tensor of all steps."""
        axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(stack.tensor.shape[1:]))
        indices = (self.step_number, *(Size.of(a.name) for a in axes))
        return self.take(Compute((stack,), Space(axes, Load(operand(0), indices, stack.dtype), stack.dtype))).value

    def step(self, states: Sequence[int], uses: Sequence[Value], parameters: Sequence[Parameter]) -> list[Value]:
        """The cotangents of the states before the step, and the sums for what it uses with those of the step added."""
        node = self.node
        for inner in node.body.nodes:
            names, custom = {node.counter: self.number}, self.flow.custom
            again = self.take(copied(inner, names, self.values, self.flow.fresh, custom.follow))
            self.values.update(zip(inner.values, again.values))
        back = self.flow.inside(self.take, self.counter, self.record.range_back()[:2])
        back.cotangents.update(zip(uses, (p.value for p in parameters[len(states) :])))
        results = [self.values.get(r, r) for r in node.body.results]
        for k, parameter in zip(states, parameters):
            back.add(results[k], adding(parameter.value, self.take))
        for position in range(len(node.initial), len(results)):
            if (stack := self.flow.cotangents.get(node.values[position])) is not None:
                back.add(results[position], adding(self.row(stack), self.take))
        for position, state in self.record.kept.items():
            if position < len(node.initial) and (rows := self.flow.cotangents.get(node.values[position])) is not None:
                back.add(self.values[node.states[state].value], adding(self.row(rows), self.take))
        leaves = [self.values[node.states[k].value] for k in states]
        back.run([r for r in results if r in back.cotangents], [*leaves, *uses])
        found = [back.cotangents.get(v) or zeros(v.tensor, self.take) for v in (*leaves, *uses)]
        return [converted(v, p.value.dtype, self.take) for v, p in zip(found, parameters)]


def _record(node: Loop, flow: Reverse, make: Make) -> Record:
    """What a loop has kept, or a copy of it keeps. Raises E0325 where it has no bound for its steps."""
    if (found := record_of(node, flow.ranges)) is not None:
        return found
    again = copied(node, {}, {}, flow.fresh, flow.custom.follow)
    assert isinstance(again, Loop)
    keeping = recording(again, flow.ranges, make)
    if keeping is None:
        hint = "say how many steps there are at most: for t < minimum(n, 100)"
        raise CompileError("E0325", "no bound is known for the steps of this loop", hint=hint)
    saved = make(keeping)
    assert isinstance(saved, Loop)
    found = record_of(saved, flow.ranges)
    assert found is not None
    return found


def pull_back_products(node: Cumulative, flow: Reverse, make: Make) -> Found:
    """Running products as the recurrence that they are: exact where an element is 0."""
    loop = running_products(node, flow.fresh, make)
    flow.cotangents[loop.values[1]] = with_axis_at(
        flow.cotangents[node.value], node.axis, 0, loop.values[1].dtype, make
    )
    return pull_back_loop(loop, flow, {node.x}, make)


def running_products(node: Cumulative, fresh: Callable[[str], str], make: Make) -> Loop:
    """A scan over the axis of running products, whose second result stacks them along the first axis."""
    x, axis = node.x, node.axis
    wide = x.dtype.accumulator
    shape = tuple(s for d, s in enumerate(x.tensor.shape) if d != axis)
    axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(shape))
    names = [Size.of(a.name) for a in axes]
    counter = fresh("t")
    state = Parameter("product", TensorType(wide, shape))
    at = (*names[:axis], Size.of(counter), *names[axis:])
    product = apply("mul", Load(operand(0), tuple(names), wide), cast(wide, Load(operand(1), at, x.dtype)))
    step = Compute((state.value, x), Space(axes, product, wide))
    one = make(Constant(1.0, wide)).value
    first = make(BroadcastTo(one, shape)).value if shape else one
    body = region_of([state], [step], [step.value, step.value])
    loop = make(Loop(counter, ZERO, x.tensor.shape[axis], (), (first,), body, None, 1))
    assert isinstance(loop, Loop)
    return loop


def with_axis_at(x: Value, old: int, new: int, dtype: DType, make: Make) -> Value:
    """A tensor with one axis moved, in another dtype."""
    shape = [s for d, s in enumerate(x.tensor.shape) if d != old]
    shape.insert(new, x.tensor.shape[old])
    axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(shape))
    names = [Size.of(a.name) for a in axes]
    names.insert(old, names.pop(new))
    return make(Compute((x,), Space(axes, cast(dtype, Load(operand(0), tuple(names), x.dtype)), dtype))).value

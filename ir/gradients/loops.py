"""The adjoint of a loop: a loop from the last step to the first, which carries the cotangents of the states.

Every step needs the states that it began with. They are stacked by the loop itself where the program was built to be
differentiated, else by a copy of it; a step computes the rest again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from intarsia.ir.errors import CompileError
from intarsia.ir.gradients.spaces import Contribution, Make, adding, converted, tensor_of, zeros
from intarsia.ir.graph import Node, Parameter, Value, region_of
from intarsia.ir.ops import BroadcastTo, Compute, Constant, Cumulative, Loop
from intarsia.ir.scalar import Load, apply, cast
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.substitution import copied
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.ir.gradients.reverse import Reverse

Found = list[tuple[Value, Contribution]]


def pull_back_loop(node: Loop, flow: Reverse, active: set[Value], make: Make) -> Found:
    """What the cotangents of a loop's results add to those of its first states and of what its body uses.

    Raises E0325 where data says how many steps there are.
    """
    if node.condition is not None or node.lower.opaques or node.upper.opaques:
        hint = "give it a size as its count, and no `while`"
        raise CompileError("E0325", "a loop whose steps depend on data has no derivative yet", hint=hint)
    backward = _Backward(node, flow, make)
    states = [k for k, v in enumerate(node.initial) if v.dtype.is_float]
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
    loop = make(Loop(backward.counter, node.lower, node.upper, (), tuple(initial), body))
    sources = [*(node.initial[k] for k in states), *uses]
    return [(source, adding(total, make)) for source, total in zip(sources, loop.values)]


def _sum_type(value: Value) -> TensorType:
    """Cotangents of what all steps use are summed in at least f32."""
    tensor = tensor_of(value)
    return tensor.with_dtype(tensor.dtype.accumulator)


class _Backward:
    """The region of one step back: the step again, then what flows back through it."""

    def __init__(self, node: Loop, flow: Reverse, make: Make) -> None:
        self.node = node
        self.flow = flow
        self.counter = flow.fresh(node.counter)
        self.nodes: list[Node] = []
        self.number = node.lower + node.upper - 1 - self.counter
        self.values = {
            state.value: self.row(stack) for state, stack in zip(node.states, _saved_states(node, flow.fresh, make))
        }

    def take(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def row(self, stack: Value) -> Value:
        """What the step emitted."""
        axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(stack.tensor.shape[1:]))
        indices = (self.number - self.node.lower, *(Size.of(a.name) for a in axes))
        return self.take(Compute((stack,), Space(axes, Load(operand(0), indices, stack.dtype), stack.dtype))).value

    def step(self, states: Sequence[int], uses: Sequence[Value], parameters: Sequence[Parameter]) -> list[Value]:
        """The cotangents of the states before the step, and the sums for what it uses with those of the step added."""
        node = self.node
        for inner in node.body.nodes:
            again = self.take(copied(inner, {node.counter: self.number}, self.values, self.flow.fresh))
            self.flow.follow(inner, again, self.values)
            self.values.update(zip(inner.values, again.values))
        back = self.flow.inside(self.take, self.counter)
        back.cotangents.update(zip(uses, (p.value for p in parameters[len(states) :])))
        results = [self.values.get(r, r) for r in node.body.results]
        for k, parameter in zip(states, parameters):
            back.add(results[k], adding(parameter.value, self.take))
        for position in range(len(node.initial), len(results)):
            if (stack := self.flow.cotangents.get(node.values[position])) is not None:
                back.add(results[position], adding(self.row(stack), self.take))
        leaves = [self.values[node.states[k].value] for k in states]
        back.run([r for r in results if r in back.cotangents], [*leaves, *uses])
        found = [back.cotangents.get(v) or zeros(v.tensor, self.take) for v in (*leaves, *uses)]
        return [converted(v, p.value.dtype, self.take) for v, p in zip(found, parameters)]


def _saved_states(node: Loop, fresh: Callable[[str], str], make: Make) -> list[Value]:
    """The states at the beginning of each step, stacked."""
    states = [p.value for p in node.states]
    if not all(s in node.body.results[len(states) :] for s in states):
        again = copied(node, {}, {}, fresh)
        assert isinstance(again, Loop)
        saved = make(with_saved_states(again))
        assert isinstance(saved, Loop)
        node = saved
        states = [p.value for p in node.states]
    return [node.values[node.body.results.index(s, len(states))] for s in states]


def with_saved_states(node: Loop) -> Loop:
    """The loop with the states at the beginning of each step as further stacked results."""
    states = tuple(p.value for p in node.states)
    body = replace(node.body, results=(*node.body.results, *states))
    return replace(node, body=body, stacked=node.stacked + len(states))


def pull_back_products(node: Cumulative, flow: Reverse, make: Make) -> Found:
    """Running products as the recurrence that they are: exact where an element is 0."""
    x, axis = node.x, node.axis
    wide = x.dtype.accumulator
    shape = tuple(s for d, s in enumerate(x.tensor.shape) if d != axis)
    axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(shape))
    names = [Size.of(a.name) for a in axes]
    counter = flow.fresh("t")
    state = Parameter("product", TensorType(wide, shape))
    at = (*names[:axis], Size.of(counter), *names[axis:])
    product = apply("mul", Load(operand(0), tuple(names), wide), cast(wide, Load(operand(1), at, x.dtype)))
    step = Compute((state.value, x), Space(axes, product, wide))
    one = make(Constant(1.0, wide)).value
    first = make(BroadcastTo(one, shape)).value if shape else one
    body = region_of([state], [step], [step.value, step.value])
    loop = make(Loop(counter, ZERO, x.tensor.shape[axis], (), (first,), body, None, 1))
    assert isinstance(loop, Loop)
    cotangent = flow.cotangents[node.value]
    front = [Size.of(f"i{d + 1}") for d in range(len(shape))]
    front.insert(axis, Size.of("i0"))
    moved = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate((x.tensor.shape[axis], *shape)))
    rows = Space(moved, cast(wide, Load(operand(0), tuple(front), cotangent.dtype)), wide)
    flow.cotangents[loop.values[1]] = make(Compute((cotangent,), rows)).value
    return pull_back_loop(loop, flow, {x}, make)

"""Reverse mode: cotangents flow from a result back to the values that it depends on, node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.gradients.loops import pull_back_loop, pull_back_products
from intarsia.ir.gradients.records import NO_LOOPS, Ranges
from intarsia.ir.gradients.shifts import cancels, is_extreme
from intarsia.ir.gradients.spaces import (
    Contribution,
    CustomRules,
    Make,
    adding,
    at_place_of,
    converted,
    linearise,
    pull_back,
    tensor_of,
    zeros,
)
from intarsia.ir.gradients.whole import pull_back_whole
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops import Constant, Cumulative, Loop, Reshape
from intarsia.ir.sizes import Size


def gradients(
    result: Value,
    wrt: Sequence[Value],
    make: Make,
    fresh: Callable[[str], str],
    custom: CustomRules | None = None,
    ranges: Ranges = NO_LOOPS,
) -> list[Value]:
    """The gradient of a scalar with respect to each of `wrt`, in nodes that `make` takes.

    `fresh` gives a loop's counter a name that no other one has; `custom` are nodes with rules of their own, to which
    their copies come; `ranges` are those of the counters of loops around. A value of
    `wrt` counts as given: nothing flows on to what it is made of. Raises CompileError E0325 where something in between
    has no derivative, at the place of the op.
    """
    seed = make(Constant(1.0, result.dtype)).value
    flow = Reverse(make, fresh, CustomRules() if custom is None else custom, ranges)
    flow.add(result, lambda before: seed)
    flow.run([result], wrt)
    found = [flow.cotangents.get(v) or zeros(tensor_of(v), make) for v in wrt]
    return [converted(g, tensor_of(v).dtype, make) for g, v in zip(found, wrt)]


@dataclass
class Reverse:
    """Cotangents on their way back. `ranges` are those of the counters of loops around the nodes; `counters` are those
    of the loops on the way."""

    make: Make
    fresh: Callable[[str], str]
    custom: CustomRules
    ranges: Ranges
    counters: frozenset[str] = frozenset()
    cotangents: dict[Value, Value] = field(default_factory=dict)

    def inside(self, make: Make, counter: str, range_: tuple[Size, Size]) -> Reverse:
        """What flows through the body of a loop."""
        ranges = {**self.ranges, counter: range_}
        return Reverse(make, self.fresh, self.custom, ranges, self.counters | {counter})

    def add(self, value: Value, contribution: Contribution) -> None:
        self.cotangents[value] = contribution(self.cotangents.get(value))

    def run(self, results: Sequence[Value], wrt: Sequence[Value]) -> None:
        """Carry the cotangents of `results` back to `wrt`."""
        active = set(wrt)
        varying: list[Node] = []
        extremes: set[Value] = set()  # and what is made of nothing else that changes
        nodes = self.custom.between(results, wrt)
        for n, node in enumerate(nodes):
            inputs = self.custom.inputs(node)
            if any(v in active for v in inputs):
                if is_extreme(node) or extremes.issuperset(v for v in inputs if v in active):
                    if node not in self.custom and cancels(node.values[0], nodes[n + 1 :], results, self.custom):
                        continue
                    extremes.update(node.values)
                changing = [v for v in node.values if is_differentiable(v)]
                active.update(changing)
                varying += [node] if changing else []
        for node in reversed(varying):
            if any(v in self.cotangents for v in node.values):
                self._through(node, active)

    def _through(self, node: Node, active: set[Value]) -> None:
        """Carry what has arrived at a node on to its operands."""

        def make(new: Node) -> Node:
            return self.make(new if new.span is not None else replace(new, **node.spans))

        with at_place_of(node):
            for value, contribution in self._pull_back(node, active, make):
                if value in active:
                    self.add(value, contribution)

    def _pull_back(self, node: Node, active: set[Value], make: Make) -> list[tuple[Value, Contribution]]:
        if node in self.custom:
            return self.custom[node].pull_back(self.cotangents[node.values[0]], make)
        match node:
            case Reshape(x):
                back = make(Reshape(self.cotangents[node.value], x.tensor.shape)).value
                return [(x, adding(back, make))]
            case Structured():
                wanted = [p for p, v in enumerate(node.operands) if v in active]
                linear = linearise(node, wanted, make)
                return pull_back(linear, self.cotangents[node.value], make=make, counters=self.counters)
            case Loop():
                return pull_back_loop(node, self, active, make)
            case Cumulative(combiner="prod"):
                return pull_back_products(node, self, make)
        return pull_back_whole(node, self.cotangents, active, make)


def is_differentiable(value: Value) -> bool:
    """Is it a tensor, or a list of tensors, of floats?"""
    return value.dtype.is_float

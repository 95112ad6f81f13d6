"""Forward mode: tangents flow from values on to what is made of them, node by node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.errors import CompileError
from intarsia.ir.gradients.scalar import derivative, plus, times
from intarsia.ir.gradients.spaces import Make, at_place_of, converted, linearise, zeros
from intarsia.ir.graph import Node, Parameter, Region, Structured, Value, region_of
from intarsia.ir.ops import Argsort, Compute, Cumulative, Loop, Reshape, Sort, Update
from intarsia.ir.scalar import Expr, Load, cast, constant, loads
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_buffers, rename_size_buffers
from intarsia.ir.substitution import copied


def push_forward(
    results: Sequence[Value],
    tangents: Mapping[Value, Value],
    make: Make,
    fresh: Callable[[str], str],
    custom: Collection[Node] = (),
) -> list[Value]:
    """How results change with what `tangents` says of other values: the product with the Jacobian, in nodes that
    `make` takes. Raises CompileError E0325 where something in between has no derivative, as the `custom` nodes."""
    flow = _Forward(make, fresh, custom, dict(tangents))
    flow.run(results)
    return [flow.tangents.get(v) or zeros(v.tensor, make) for v in results]


@dataclass
class _Forward:
    make: Make
    fresh: Callable[[str], str]
    custom: Collection[Node]
    tangents: dict[Value, Value] = field(default_factory=dict)

    def run(self, results: Sequence[Value]) -> None:
        """Find the tangents of what lies between the values that have one and `results`."""
        given = frozenset(v.node for v in self.tangents)
        for node in Region.of((), results, given).nodes:
            if any(v in self.tangents for v in node.inputs):
                with at_place_of(node):
                    self._through(node)

    def _through(self, node: Node) -> None:
        def make(new: Node) -> Node:
            return self.make(new if new.span is not None else replace(new, span=node.span, more_spans=node.more_spans))

        inside = (inner for region in node.regions for inner in region.walk())
        if any(inner in self.custom for inner in (node, *inside)):
            raise CompileError("E0325", "custom_grad has no derivative forwards", node.span)
        match node:
            case Reshape(x, shape):
                self.tangents[node.value] = make(Reshape(self.tangents[x], shape)).value
            case Structured():
                self._space(node, make)
            case Update():
                self._update(node, make)
            case Sort(x):
                self._sort(node, x, make)
            case Cumulative(x, "sum", axis):
                self.tangents[node.value] = make(Cumulative(self.tangents[x], "sum", axis)).value
            case Loop():
                self._loop(node, make)
            case _ if any(v.dtype.is_float for v in node.values):
                raise CompileError("E0325", f"{node.name} has no derivative forwards yet")

    def _change(self, factors: Mapping[Load, Expr], operands: list[Value]) -> Expr | None:
        """The sum of the factors times the tangents of what is loaded, which become operands."""
        total: Expr | None = None
        for load, factor in factors.items():
            operands.append(self.tangents[operands[operand_position(load.buffer)]])
            change = replace(load, buffer=operand(len(operands) - 1), dtype=operands[-1].dtype)
            total = plus(total, times(cast(factor.dtype, change), factor))
        return total

    def _space(self, node: Structured, make: Make) -> None:
        linear = linearise(node, [p for p, v in enumerate(node.operands) if v in self.tangents], make)
        operands = list(linear.operands)
        body = self._change(linear.factors, operands)
        if body is not None:
            dtype = node.value.dtype
            body = cast(body.dtype.accumulator if linear.reduced else dtype, body)
            space = Space(linear.axes, body, dtype, linear.reduced, "sum" if linear.reduced else None)
            self.tangents[node.value] = make(Compute(tuple(operands), space)).value

    def _update(self, node: Update, make: Make) -> None:
        if node.operator not in ("=", "+="):
            raise CompileError("E0325", f"an update with {node.operator} has no derivative yet")
        operands = [node.base, *node.arguments]
        factors: dict[Load, Expr] = {}
        for load in dict.fromkeys(loads(node.body)):
            known = operands[operand_position(load.buffer)] in self.tangents
            if known and (factor := derivative(node.body, load)) is not None:
                factors[load] = factor
        body = self._change(factors, operands) or constant(0.0, node.body.dtype)
        base = self.tangents.get(node.base) or zeros(node.base.tensor, make)
        names = {operand(p): operand(p + 1) for p in range(len(operands))}
        axes = tuple(a.rename_operands(names) for a in node.axes)
        targets = tuple(rename_size_buffers(t, names) for t in node.targets)
        changed = Update(base, tuple(operands), axes, targets, node.operator, rename_buffers(body, names))
        self.tangents[node.value] = make(changed).value

    def _sort(self, node: Node, x: Value, make: Make) -> None:
        order = make(Argsort(x)).value
        axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(x.tensor.shape))
        names = tuple(Size.of(a.name) for a in axes)
        place = Size.opaque(Load(operand(1), names, order.dtype))
        picked = Space(axes, Load(operand(0), (*names[:-1], place), x.dtype), x.dtype)
        self.tangents[node.values[0]] = make(Compute((self.tangents[x], order), picked)).value

    def _loop(self, node: Loop, make: Make) -> None:
        """The loop once more, with the tangents of its float states as further states."""
        count = len(node.initial)
        varying = [k for k, v in enumerate(node.initial) if v.dtype.is_float]
        again = copied(node, {}, {}, self.fresh)
        assert isinstance(again, Loop)
        extra = [Parameter(f"d_{node.states[k].label}", node.initial[k].type) for k in varying]
        nodes = list(again.body.nodes)

        def take(new: Node) -> Node:
            nodes.append(new)
            return new

        inner = _Forward(
            take, self.fresh, self.custom, {v: t for v, t in self.tangents.items() if v in again.body.captures}
        )
        inner.tangents.update((again.states[k].value, p.value) for k, p in zip(varying, extra))
        inner.run(again.body.results)

        def tangent(value: Value) -> Value:
            found = inner.tangents.get(value) or zeros(value.tensor, take)
            return converted(found, value.dtype, take)

        emitted = [r for r in again.body.results[count:] if r.dtype.is_float]
        changes = [tangent(again.body.results[k]) for k in varying]
        results = (*again.body.results[:count], *changes, *again.body.results[count:], *map(tangent, emitted))
        condition = again.condition
        if condition is not None:
            unread = tuple(Parameter(p.label, p.type) for p in extra)
            condition = replace(condition, parameters=(*condition.parameters, *unread))
        first = [self.tangents.get(v) or zeros(v.tensor, make) for v in (node.initial[k] for k in varying)]
        made = make(
            replace(
                again,
                initial=(*node.initial, *first),
                body=region_of((*again.states, *extra), nodes, results),
                condition=condition,
                stacked=node.stacked + len(emitted),
            )
        )
        self.tangents.update((node.values[k], made.values[count + n]) for n, k in enumerate(varying))
        changing = [v for v in node.values[count:] if v.dtype.is_float]
        self.tangents.update(zip(changing, made.values[len(made.values) - len(changing) :]))

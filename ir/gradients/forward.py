"""Forward mode: tangents flow from values on to what is made of them, node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.errors import CompileError
from intarsia.ir.gradients.loops import running_products, with_axis_at
from intarsia.ir.gradients.records import NO_LOOPS, Ranges
from intarsia.ir.gradients.reverse import gradients
from intarsia.ir.gradients.scalar import plus, times
from intarsia.ir.gradients.spaces import CustomRule, CustomRules, Make, added, at_place_of, converted, linearise, zeros
from intarsia.ir.gradients.updates import linear_update
from intarsia.ir.graph import Node, Parameter, Structured, Value, region_of
from intarsia.ir.kernel import PutOperator
from intarsia.ir.ops import Argsort, Compute, Cumulative, Loop, Reshape, Sort, Update
from intarsia.ir.scalar import Expr, Load, apply, cast, constant
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_buffers, rename_size_buffers
from intarsia.ir.substitution import copied


def push_forward(
    results: Sequence[Value],
    tangents: Mapping[Value, Value],
    make: Make,
    fresh: Callable[[str], str],
    custom: CustomRules | None = None,
    ranges: Ranges = NO_LOOPS,
) -> list[Value]:
    """How results change with what `tangents` says of other values: the product with the Jacobian, in nodes that
    `make` takes. What the rule of a `custom` node says is taken as linear in the cotangent.

    Raises CompileError E0325 where something in between has no derivative.
    """
    flow = _Forward(make, fresh, CustomRules() if custom is None else custom, ranges, dict(tangents))
    flow.run(results)
    return [flow.tangents.get(v) or zeros(v.tensor, make) for v in results]


@dataclass
class _Forward:
    make: Make
    fresh: Callable[[str], str]
    custom: CustomRules
    ranges: Ranges
    tangents: dict[Value, Value] = field(default_factory=dict)

    def run(self, results: Sequence[Value]) -> None:
        """Find the tangents of what lies between the values that have one and `results`."""
        for node in self.custom.between(results, tuple(self.tangents)):
            if any(v in self.tangents for v in self.custom.inputs(node)):
                with at_place_of(node):
                    self._through(node)

    def _through(self, node: Node) -> None:
        def make(new: Node) -> Node:
            return self.make(new if new.span is not None else replace(new, **node.spans))

        if node in self.custom:
            self._custom(node, self.custom[node], make)
            return
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
            case Cumulative(x, "prod", axis):
                loop = running_products(node, self.fresh, make)
                self._loop(loop, make)
                tangent = self.tangents[loop.values[1]]
                self.tangents[node.value] = with_axis_at(tangent, 0, axis, node.value.dtype, make)
            case Loop():
                self._loop(node, make)
            case _ if any(v.dtype.is_float for v in node.values):
                raise CompileError("E0325", f"{node.name} has no derivative forwards yet")

    def _custom(self, node: Node, rule: CustomRule, make: Make) -> None:
        """What a rule makes of a cotangent g is the transpose of the derivative times g, so that the derivative times a
        tangent is the gradient, with respect to g, of the product of the tangent with that."""
        g = make(Reshape(zeros(node.value.tensor, make), node.value.tensor.shape)).value
        total: Value | None = None
        for source, back in zip(rule.sources, rule.evaluate(rule.arguments, g, make)):
            if (tangent := self.tangents.get(source)) is not None:
                axes = tuple(Axis.of(f"r{d}", extent) for d, extent in enumerate(back.tensor.shape))
                names = tuple(Size.of(a.name) for a in axes)
                wide = back.dtype.accumulator
                left, right = (cast(wide, Load(operand(p), names, v.dtype)) for p, v in enumerate((back, tangent)))
                space = Space((), apply("mul", left, right), wide, axes, "sum" if axes else None)
                total = added(total, make(Compute((back, tangent), space)).value, make)
        if total is not None:
            self.tangents[node.value] = gradients(total, [g], make, self.fresh, self.custom, self.ranges)[0]

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
        update = linear_update(node, self.tangents.keys(), make)
        operands = list(update.operands)
        form = update.form
        body = self._change(update.factors, operands) or constant(0.0, form.body.dtype)
        base = self.tangents.get(node.base) or zeros(node.base.tensor, make)
        if node.operator != "=":
            base = update.of_base(base, make)
        names = {operand(p): operand(p + 1) for p in range(len(operands))}
        axes = tuple(a.rename_operands(names) for a in form.axes)
        targets = tuple(rename_size_buffers(t, names) for t in form.targets)
        operator: PutOperator = "=" if node.operator == "=" else "+="
        changed = Update(base, tuple(operands), axes, targets, operator, rename_buffers(body, names))
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
        again = copied(node, {}, {}, self.fresh, self.custom.follow)
        assert isinstance(again, Loop)
        extra = [Parameter(f"d_{node.states[k].label}", node.initial[k].type) for k in varying]
        nodes = list(again.body.nodes)

        def take(new: Node) -> Node:
            nodes.append(new)
            return new

        ranges = {**self.ranges, again.counter: (again.lower, again.upper)}
        known = {v: t for v, t in self.tangents.items() if v in again.body.captures}
        inner = _Forward(take, self.fresh, self.custom, ranges, known)
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

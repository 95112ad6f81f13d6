"""The adjoints of ops that have no space: updates, orders and running sums."""

from __future__ import annotations

from collections.abc import Mapping

from intarsia.ir.errors import CompileError
from intarsia.ir.gradients.spaces import Contribution, Linear, Make, adding, pull_back
from intarsia.ir.gradients.updates import linear_update
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import Argsort, Compute, Cumulative, Sort, Update
from intarsia.ir.scalar import Load, constant
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand

Found = list[tuple[Value, Contribution]]


def pull_back_whole(node: Node, cotangents: Mapping[Value, Value], active: set[Value], make: Make) -> Found:
    """What the cotangents of a node's results add to those of its operands. Raises E0325."""
    match node:
        case Update():
            return _update(node, cotangents[node.value], active, make)
        case Sort(x):
            return _sort(x, cotangents[node.value], make)
        case Cumulative(x, "sum", axis):
            flipped = _flipped(cotangents[node.value], axis, make)
            total = make(Cumulative(flipped, "sum", axis)).value
            back = _flipped(total, axis, make)
            return [(x, adding(back, make))]
    raise CompileError("E0325", f"{node.name} has no derivative yet", hint="stop_gradient(x) is x, taken as a constant")


def _flipped(x: Value, axis: int, make: Make) -> Value:
    axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(x.tensor.shape))
    indices = [Size.of(a.name) for a in axes]
    indices[axis] = axes[axis].upper - 1 - indices[axis]
    return make(Compute((x,), Space(axes, Load(operand(0), tuple(indices), x.dtype), x.dtype))).value


def _sort(x: Value, cotangent: Value, make: Make) -> Found:
    """The k-th element of the result is the one at the k-th place of the order."""
    order = make(Argsort(x)).value
    axes = tuple(Axis.of(f"j{d}", extent) for d, extent in enumerate(x.tensor.shape))
    names = tuple(Size.of(a.name) for a in axes)
    place = Size.opaque(Load(operand(1), names, order.dtype))
    load = Load(operand(0), (*names[:-1], place), x.dtype)
    return pull_back(Linear(axes, (), (x, order), {load: constant(1.0, x.dtype)}, x.dtype), cotangent, make=make)


def _update(node: Update, cotangent: Value, active: set[Value], make: Make) -> Found:
    """The base gets what is left of its own, what is written the cotangent of its target times its factor."""
    update = linear_update(node, active, make)
    found: Found = []
    if node.base in active:
        found.append((node.base, adding(update.of_base(cotangent, make), make)))
    form, guards = update.form, update.inside()
    linear = Linear(form.axes, (), update.operands, update.factors, form.body.dtype)
    return [*found, *pull_back(linear, cotangent, lambda _: (form.targets, guards), make)]

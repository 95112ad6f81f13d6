"""The adjoints of ops that have no space: updates, orders and running sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from intarsia.ir.errors import CompileError
from intarsia.ir.gradients.scalar import derivative
from intarsia.ir.gradients.spaces import Contribution, Linear, Make, adding, pull_back
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import Argsort, Compute, Cumulative, Sort, Update
from intarsia.ir.scalar import Expr, Index, Load, apply, constant, loads
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_size_buffers

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
    """An element that is set passes nothing on to the base; what is written gets the cotangent of its target."""
    if node.operator not in ("=", "+="):
        raise CompileError("E0325", f"an update with {node.operator} has no derivative yet")
    found: Found = []
    names = {a.name: Size.of(f"j{n}") for n, a in enumerate(node.axes)}
    axes = tuple(replace(a.substitute(names), name=f"j{n}") for n, a in enumerate(node.axes))
    targets = tuple(t.substitute(names) for t in node.targets)
    operands = (node.base, *node.arguments)
    if node.base in active:
        back = _outside(node, cotangent, make) if node.operator == "=" else cotangent
        found.append((node.base, adding(back, make)))
    body = node.body.substitute(names)
    factors: dict[Load, Expr] = {}
    for load in dict.fromkeys(loads(body)):
        if operands[operand_position(load.buffer)] in active and (factor := derivative(body, load)) is not None:
            factors[load] = factor
    linear = Linear(axes, (), operands, factors, body.dtype)
    guards = _inside(targets, node)
    return [*found, *pull_back(linear, cotangent, lambda _: (targets, guards), make)]


def _inside(targets: tuple[Size, ...], node: Update) -> list[Expr]:
    """A write outside of the tensor is dropped; only one that depends on data can be."""
    guards: list[Expr] = []
    for target, extent in zip(targets, node.base.tensor.shape):
        if target.opaques:
            guards.append(apply("ge", Index(target), Index(Size.of(0))))
            guards.append(apply("lt", Index(target), Index(extent)))
    return guards


def _outside(node: Update, cotangent: Value, make: Make) -> Value:
    """The cotangent with zeros where the update sets elements."""
    names = {operand(0): operand(len(node.arguments) + 1)}
    axes = tuple(a.rename_operands(names) for a in node.axes)
    targets = tuple(rename_size_buffers(t, names) for t in node.targets)
    zero = constant(0.0, cotangent.dtype)
    return make(Update(cotangent, (*node.arguments, node.base), axes, targets, "=", zero)).value

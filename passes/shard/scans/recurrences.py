"""Recognizing linear recurrences: states of a loop that become `rate * state + …`, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.control import Loop
from intarsia.ir.scalar import Apply, Const, Expr, Load, constant, transform, walk
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import operand, operand_position
from intarsia.passes.schedule.products import Polynomial


@dataclass(frozen=True)
class Recurrence:
    """A state that becomes `rate * state + …`, element by element; the rate reads `operands`, and None is 1."""

    rate: Expr | None
    operands: tuple[Value, ...]


def _dependent(loop: Loop) -> set[Value]:
    """The values of a step that depend on the states."""
    found = {p.value for p in loop.states}
    for node in loop.body.nodes:
        if any(v in found for v in node.inputs):
            found.update(node.values)
    return found


def find_recurrence(loop: Loop, position: int) -> Recurrence | None:
    """How a state follows from the one before; None where that is not linear, or needs other elements or states."""
    own, dependent = loop.states[position].value, _dependent(loop)
    place = tuple(Size.of(f"i{d}") for d in range(own.tensor.rank))
    state = Load("state", place, own.dtype)
    operands: dict[Value, int] = {}

    known: dict[Value, Expr | None] = {own: state}

    def written(value: Value) -> Expr | None:
        """A value of the step as an expression of the state."""
        if value not in known:
            known[value] = expression(value.node) if value in dependent else leaf(value, place)
        return known[value]

    def leaf(value: Value, indices: tuple[Size, ...]) -> Load:
        return Load(operand(operands.setdefault(value, len(operands))), indices, value.dtype)

    def expression(node: Node) -> Expr | None:
        if not isinstance(node, Structured) or node.space.reduced or node.value.tensor.shape != own.tensor.shape:
            return None
        space = node.space.rename_axes({a.name: f"i{d}" for d, a in enumerate(node.space.axes)})
        for load in space.loads():
            value = node.operands[operand_position(load.buffer)]
            if value in dependent and not (_is_place(load, place, own) and written(value) is not None):
                return None

        def read(e: Expr) -> Expr | None:
            value = node.operands[operand_position(e.buffer)] if isinstance(e, Load) else None
            if value is None or not isinstance(e, Load):
                return None
            return written(value) if value in dependent else leaf(value, e.indices)

        return transform(space.body, rule=read) if space.body.dtype == space.dtype else None

    whole = written(loop.body.results[position])
    polynomial = Polynomial.of(whole, state) if whole is not None and own.dtype.is_float else None
    if polynomial is None or polynomial.degree != 1:
        return None
    rate = polynomial.coefficients[1]
    if any(map(_is_reset, walk(rate))):
        return None
    return Recurrence(None if rate == constant(1.0, own.dtype) else rate, tuple(operands))


def _is_reset(e: Expr) -> bool:
    """Does a condition replace the state? What is not read may be infinite, and 0 times that is NaN."""
    return (
        isinstance(e, Apply)
        and e.function == "where"
        and any(isinstance(x, Const) and not x.value for x in e.arguments)
    )


def _is_place(load: Load, place: Sequence[Size], value: Value) -> bool:
    """Is an element read where it is written? Along a dimension of one element there is only one."""
    return all(i == p or (e == ONE and i == ZERO) for i, p, e in zip(load.indices, place, value.tensor.shape))

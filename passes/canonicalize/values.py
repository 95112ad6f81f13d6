"""Small helpers that the rules share: a value of another shape, a comparison of sizes, the number that a value is."""

from __future__ import annotations

from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import BroadcastTo, Constant, Fused
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Const, constant
from intarsia.ir.sizes import Size, product


def with_shape(value: Value, shape: tuple[Size, ...], origin: Node) -> Value:
    """The value broadcast to a shape; itself where it has it."""
    if value.tensor.shape == shape:
        return value
    return BroadcastTo(value, shape, span=origin.span).value


def is_smaller(shape: tuple[Size, ...] | None, value: Value) -> bool:
    """Has a shape surely fewer elements than a value, whatever the sizes (each at least 1)?"""
    if shape is None or shape == value.tensor.shape:
        return False
    difference = value.tensor.elements - product(shape)
    names = difference.symbols
    facts = Facts(tuple(Size.of(n) - 1 for n in sorted(names)), names)
    return facts.proves(difference) and difference.constant != 0


def unwrapped(value: Value) -> Value:
    """A result of a group as the value inside that it is."""
    while isinstance(value.node, Fused):
        value = value.node.body.results[value.index]
    return value


def literal_of(value: Value) -> Const | None:
    """The number that every element of a value is, if the program says so."""
    match unwrapped(value).node:
        case Constant(literal, dtype):
            return constant(literal, dtype)
        case BroadcastTo(x):
            return literal_of(x)
    return None

"""Algebra of reductions: over nothing, over one element, and with the reshapes around them."""

from __future__ import annotations

from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import ArgReduce, BroadcastTo, Cast, Constant, Cumulative, Elementwise, Matmul, Reduce, Reshape
from intarsia.ir.sizes import ONE, ZERO, Size


def reduce_over_one(node: Node) -> Node | None:
    """sum(x) -> reshape(cast(x)) + 0 where every reduced dimension has extent 1, max(x) -> reshape(x), …

    A sum of floats starts at 0, and 0 + -0.0 is 0.0; so the 0 stays where the elements are floats.
    """
    match node:
        case Reduce(x, combiner, axes) if all(x.tensor.shape[d] == ONE for d in axes):
            found = _reshaped(_converted(x, node), node.value.tensor.shape, node)
            if combiner == "sum" and axes and node.value.dtype.is_float:
                zero = Constant(0.0, node.value.dtype, span=node.span).value
                return Elementwise("add", (found, zero), span=node.span)
            return found.node if found.node is not x.node else Reshape(x, node.value.tensor.shape, span=node.span)
    return None


def _converted(x: Value, node: Node) -> Value:
    return x if x.dtype == node.value.dtype else Cast(x, node.value.dtype, span=node.span).value


def _reshaped(x: Value, shape: tuple[Size, ...], node: Node) -> Value:
    return x if x.tensor.shape == shape else Reshape(x, shape, span=node.span).value


def reduce_over_nothing(node: Node) -> Node | None:
    """sum(x) -> 0, max(x) -> -inf, … where a reduced dimension has extent 0; a matrix product likewise"""
    match node:
        case Reduce(x, combiner, axes) if any(x.tensor.shape[d] == ZERO for d in axes):
            literal = COMBINERS[combiner].neutral(node.value.dtype)
        case Matmul(lhs) if lhs.tensor.shape[-1] == ZERO:
            literal = 0
        case _:
            return None
    dtype = node.value.dtype
    scalar = Constant(float(literal) if dtype.is_float else literal, dtype, span=node.span)
    return BroadcastTo(scalar.value, node.value.tensor.shape, span=node.span)


def reshape_of_reduce(node: Node) -> Node | None:
    """reshape(reduce(x)) -> reduce(x) with or without its dimensions of extent 1, where that is all it changes"""
    match node:
        case Reshape(Value(Reduce(x, combiner, axes, keepdims)), shape):
            other = Reduce(x, combiner, axes, not keepdims, span=node.span)
            return other if other.value.tensor.shape == shape else None
    return None


def arg_reduce_over_one(node: Node) -> Node | None:
    """argmax(x) -> 0 along a dimension of extent 1"""
    match node:
        case ArgReduce(x, _, axis) if x.tensor.shape[axis] == ONE:
            zero = Constant(0, node.value.dtype, span=node.span)
            return BroadcastTo(zero.value, node.value.tensor.shape, span=node.span)
    return None


def cumulative_over_one(node: Node) -> Node | None:
    """cumprod(x) -> x along a dimension of extent 1, likewise cumsum of integers"""
    match node:
        case Cumulative(x, _, axis) if x.tensor.shape[axis] == ONE:
            return Cast(x, node.value.dtype, span=node.span)
    return None


RULES = (reduce_over_one, reduce_over_nothing, reshape_of_reduce, arg_reduce_over_one, cumulative_over_one)

"""The scalar rules for whole tensors: the same algebra, with tensors in place of elements."""

from __future__ import annotations

from dataclasses import dataclass, field

from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import BitcastOp, BroadcastTo, Cast, Constant, Elementwise, Reshape
from intarsia.ir.ops.elementwise import broadcast
from intarsia.ir.scalar import Apply, Bitcast, Const, Expr, Load
from intarsia.ir.scalar import Cast as CastExpr
from intarsia.ir.sizes import Size
from intarsia.passes.canonicalize.scalar import simplified
from intarsia.passes.canonicalize.values import is_smaller, with_shape

DEPTH = 3
"""How many ops deep the scalar rules look."""


def elementwise_algebra(node: Node) -> Value | None:
    """f(x) -> what the scalar rules make of f, of the shape that f(x) has"""
    if not isinstance(node, (Elementwise, Cast, BitcastOp)):
        return None
    terms = _Terms()
    better = simplified(terms.expression(node.value, DEPTH))
    if better is None:
        return None
    return with_shape(terms.value(better, node), node.value.tensor.shape, node)


@dataclass
class _Terms:
    """Tensors as scalar expressions: a value that is no elementwise op stands as a load without subscripts."""

    values: dict[Expr, Value] = field(default_factory=dict)

    def expression(self, value: Value, depth: int) -> Expr:
        e = self._expression(value, depth)
        self.values.setdefault(e, value)
        return e

    def _expression(self, value: Value, depth: int) -> Expr:
        match value.node:
            case Constant(literal, dtype):
                return Const(literal, dtype)
            case Elementwise(function, arguments) if depth:
                return Apply(function, tuple(self.expression(a, depth - 1) for a in arguments))
            case Cast(x, dtype) if depth:
                return CastExpr(dtype, self.expression(x, depth - 1))
            case BitcastOp(x, dtype) if depth:
                return Bitcast(dtype, self.expression(x, depth - 1))
        known = next((e for e, v in self.values.items() if v == value), None)
        return known or Load(f"v{len(self.values)}", (), value.dtype)

    def value(self, e: Expr, origin: Node) -> Value:
        """The tensor of an expression; those that were there already are taken."""
        if e not in self.values:
            self.values[e] = self._node(e, origin).value
        return self.values[e]

    def _node(self, e: Expr, origin: Node) -> Node:
        match e:
            case Const(value, dtype):
                return Constant(value, dtype, span=origin.span)
            case Apply(function, arguments):
                return Elementwise(function, tuple(self.value(a, origin) for a in arguments), span=origin.span)
            case CastExpr(dtype, value):
                return Cast(self.value(value, origin), dtype, span=origin.span)
            case Bitcast(dtype, value):
                return BitcastOp(self.value(value, origin), dtype, span=origin.span)
        raise AssertionError(f"{e} has no tensor")


def drop_broadcast(node: Node) -> Node | None:
    """f(broadcast(x), y) -> f(x, y) where y alone gives the shape, or where x broadcasts to it by itself"""
    if not isinstance(node, Elementwise):
        return None
    arguments = list(node.arguments)
    shape = node.value.tensor.shape
    for position, argument in enumerate(arguments):
        if isinstance(argument.node, BroadcastTo):
            shorter = [*arguments[:position], argument.node.x, *arguments[position + 1 :]]
            if broadcast(tuple(a.tensor.shape for a in shorter)) == shape:
                arguments = shorter
    if tuple(arguments) == node.arguments:
        return None
    return Elementwise(node.function, tuple(arguments), **node.spans)


def compute_before_broadcast(node: Node) -> Node | None:
    """f(broadcast(x), broadcast(y)) -> broadcast(f(x, y)) where f(x, y) is smaller"""
    match node:
        case Elementwise(function, arguments):
            inner = tuple(a.node.x if isinstance(a.node, BroadcastTo) else a for a in arguments)
            if inner == arguments or not is_smaller(broadcast(tuple(a.tensor.shape for a in inner)), node.value):
                return None
            small: Node = Elementwise(function, inner, span=node.span)
        case Cast(Value(BroadcastTo(x)), dtype):
            small = Cast(x, dtype, span=node.span)
        case _:
            return None
    return BroadcastTo(small.value, node.value.tensor.shape, **node.spans)


def compute_before_reshape(node: Node) -> Node | None:
    """f(reshape(x), reshape(y), c) -> reshape(f(x, y, c)) for x and y of one shape and scalars c

    Reshapes move toward the results, so that what computes stands together.
    """
    match node:
        case Elementwise(function, arguments):
            tensors = [a for a in arguments if a.tensor.rank]
            sources = [a.node.x for a in tensors if isinstance(a.node, Reshape)]
            shapes: set[tuple[Size, ...]] = {s.tensor.shape for s in sources}
            fits = len(sources) == len(tensors) and len(shapes) == 1
            if not fits or any(a.tensor.shape != node.value.tensor.shape for a in tensors):
                return None
            inner = tuple(a.node.x if isinstance(a.node, Reshape) and a.tensor.rank else a for a in arguments)
            moved: Node = Elementwise(function, inner, span=node.span)
            if moved.value.tensor.shape not in shapes:
                return None
        case Cast(Value(Reshape(x)), dtype):
            moved = Cast(x, dtype, span=node.span)
        case _:
            return None
    return Reshape(moved.value, node.value.tensor.shape, **node.spans)


RULES = (elementwise_algebra, drop_broadcast, compute_before_broadcast, compute_before_reshape)

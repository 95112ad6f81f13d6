"""The adjoint of a space: a space, or an update, over the same points seen from the elements that they read.

An op's result changes, at each point of its axes, by the sum over its loads of a factor times the change of what is
loaded: `linearise`. Seen from an element of an operand that is the sum, over the points that load it, of the factor
times the cotangent of the result there: `pull_back`. Where the index expressions can be solved for the axes, that is a
space over the operand's elements; else the cotangents are added where the loads point.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError
from intarsia.ir.gradients.inverse import Inverse, invert
from intarsia.ir.gradients.scalar import derivative, plus, times
from intarsia.ir.graph import Node, Structured, Value, depth_first
from intarsia.ir.ops import BroadcastTo, Cast, Compute, Constant, Elementwise, Update
from intarsia.ir.ranges import cut_ranges
from intarsia.ir.scalar import Apply, Const, Expr, Index, Load, apply, cast, constant, every, transform, walk, where
from intarsia.ir.sizes import ONE, ZERO, Size, maximum, minimum
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_size_buffers
from intarsia.ir.types import ListType, TensorType

N = TypeVar("N", bound=Node)
Make = Callable[[Node], Node]
"""Takes a node into the graph, and gives it back."""

Contribution = Callable[["Value | None"], Value]
"""Adds to a cotangent, None at first."""


@dataclass(frozen=True)
class Linear:
    """How a result changes: by the sum over `reduced`, and over the loads, of the factor times the load's change.

    The bodies load `operands` as `a0`, `a1`, …; the factors are of `dtype`, in which the sum is formed.
    """

    axes: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    operands: tuple[Value, ...]
    factors: Mapping[Load, Expr]
    dtype: DType

    @property
    def all_axes(self) -> tuple[Axis, ...]:
        return (*self.axes, *self.reduced)


@dataclass(frozen=True)
class CustomRule:
    """How a node that gives what another one computes pulls its cotangent back, in place of what it is made of.

    sources: what gets the cotangents that `evaluate` makes of `arguments`, sources among them, and of the cotangent.
    """

    sources: tuple[Value, ...]
    arguments: tuple[Value, ...]
    evaluate: Callable[[Sequence[Value], Value, Make], Sequence[Value]]

    def moved(self, values: Mapping[Value, Value]) -> CustomRule:
        """The rule of a copy, in which some values are others."""
        sources, arguments = (tuple(values.get(v, v) for v in own) for own in (self.sources, self.arguments))
        return CustomRule(sources, arguments, self.evaluate)

    def pull_back(self, cotangent: Value, make: Make) -> list[tuple[Value, Contribution]]:
        """What the cotangent adds to those of the sources."""
        found = self.evaluate(self.arguments, cotangent, make)
        return [(source, adding(value, make)) for source, value in zip(self.sources, found)]


class CustomRules(dict[Node, CustomRule]):
    """The nodes that have rules of their own."""

    def inputs(self, node: Node) -> Sequence[Value]:
        """What a node's derivative depends on."""
        return self[node].arguments if node in self else node.inputs

    def between(self, results: Sequence[Value], given: Collection[Value]) -> Sequence[Node]:
        """The nodes from the values that are given to the results, each after those that it depends on."""
        return depth_first(results, {v.node for v in given}, self.inputs)

    def follow(self, node: Node, copy: Node, values: Mapping[Value, Value]) -> None:
        """A copy of a node has its rule, for the values that it has been given."""
        if node in self:
            self[copy] = self[node].moved(values)


@contextmanager
def at_place_of(node: Node) -> Iterator[None]:
    """Give what has no derivative the place of the node that it is in."""
    try:
        yield
    except CompileError as error:
        first = error.diagnostics[0]
        if first.span is not None or node.span is None:
            raise
        raise CompileError(first.code, first.message, node.span, hint=first.hint) from None


def tensor_of(value: Value) -> TensorType:
    """The type of the cotangent of a value: a list's is one tensor with a leading dimension."""
    found = value.type
    if isinstance(found, ListType):
        return TensorType(found.element.dtype, (found.length, *found.element.shape))
    return found


def linearise(node: Structured, wanted: Collection[int], make: Make) -> Linear:
    """How a node's result changes with the operands at the `wanted` positions. Its axes get the names j0, j1, …"""
    space = cut_ranges(with_literals(node), lambda name: tensor_of(node.operands[int(name[1:])]).shape)
    space = space.rename_axes({a.name: f"j{n}" for n, a in enumerate(space.all_axes)})
    operands = [*node.operands]
    result = Load(operand(len(operands)), tuple(Size.of(a.name) for a in space.axes), space.dtype)
    found = {load: derivative(space.body, load) for load in space.loads() if operand_position(load.buffer) in wanted}
    factors = {load: factor for load, factor in found.items() if factor is not None}
    if factors and space.combiner in ("max", "min") and any(a.extent != ONE for a in space.reduced):
        operands.append(node.value)
        selected = _selection(space, result, operands, make)
        factors = {load: selected(factor) for load, factor in factors.items()}
    elif factors and space.combiner == "prod":
        others = _others(space, operands, make)
        factors = {load: times(others, factor) for load, factor in factors.items()}
    elif space.combiner is None and space.body.dtype == space.dtype and isinstance(space.body, Apply):
        # What the node computes need not be computed again: the derivative of exp(x) is the result. And the result of
        # maximum(x, c) is greater than c where x is: it is likelier to be kept, as what is made of it is.
        operands.append(node.value)
        known: dict[Expr, Expr] = {space.body: result}
        if isinstance(space.body, Apply) and space.body.function in ("maximum", "minimum"):
            x, y = space.body.arguments
            if isinstance(y, Const):
                wins = "gt" if space.body.function == "maximum" else "lt"
                known[apply(wins, x, y)] = apply(wins, result, y)
        factors = {load: transform(factor, rule=known.get) for load, factor in factors.items()}
    return Linear(space.axes, space.reduced, tuple(operands), factors, space.body.dtype)


def with_literals(node: Structured) -> Space:
    """The space of a node with the numbers that it reads written in it."""
    known = {operand(p): literal for p, v in enumerate(node.operands) if (literal := _literal(v)) is not None}
    known = {name: literal for name, literal in known.items() if literal.dtype == node.operands[int(name[1:])].dtype}
    if not known:
        return node.space

    def rule(e: Expr) -> Expr | None:
        return known.get(e.buffer) if isinstance(e, Load) else None

    return replace(node.space, body=transform(node.space.body, rule=rule))


def _literal(value: Value) -> Const | None:
    match value.node:
        case Constant(literal, dtype):
            return constant(literal, dtype)
        case BroadcastTo(x) | Cast(x) if x.dtype.is_float:
            return _literal(x)
        case Compute(definition=Space(body=Const() as number, reduced=())):
            return number
    return None


def _selection(space: Space, result: Load, operands: list[Value], make: Make) -> Callable[[Expr], Expr]:
    """The share of a factor at the elements that are the maximum or minimum: equal ones share equally."""
    hit = is_hit(space.body, result)
    wide = space.body.dtype.accumulator
    one = where(hit, constant(1.0, wide), constant(0.0, wide))
    count = make(Compute(tuple(operands), replace(space, body=one, dtype=wide, combiner="sum")))
    operands.append(count.value)
    share = cast(space.body.dtype, replace(result, buffer=operand(len(operands) - 1), dtype=wide))
    one_share = apply("div", constant(1.0, share.dtype), share)

    def selected(factor: Expr) -> Expr:
        return where(hit, times(one_share, factor), constant(0.0, factor.dtype))

    return selected


def is_hit(element: Expr, result: Expr) -> Expr:
    """Is an element the maximum or minimum of those that it is among? NaN is, where it is among them."""
    return apply("or", apply("eq", element, result), apply("isnan", element))


def _others(space: Space, operands: list[Value], make: Make) -> Expr:
    """The product of all elements of a product but the one at the point."""
    own = {a.name for a in space.all_axes}
    if any(a.lower != ZERO or a.upper.opaques or a.upper.symbols & own for a in space.reduced):
        return _others_by_division(space, operands, make)
    copies = {a.name: f"r{n}" for n, a in enumerate(space.reduced)}
    body = space.body.substitute({old: Size.of(new) for old, new in copies.items()})
    same = [apply("eq", Index(Size.of(old)), Index(Size.of(new))) for old, new in copies.items()]
    body = where(every(same), constant(1.0, body.dtype), body)
    reduced = tuple(replace(a, name=copies[a.name]) for a in space.reduced)
    others = make(Compute(tuple(operands), Space(space.all_axes, body, body.dtype, reduced, "prod")))
    operands.append(others.value)
    return Load(operand(len(operands) - 1), tuple(Size.of(a.name) for a in space.all_axes), body.dtype)


def _others_by_division(space: Space, operands: list[Value], make: Make) -> Expr:
    """The same where no tensor can hold it, as the points depend on indices or data."""
    dtype = space.body.dtype
    one, zero = constant(1.0, dtype), constant(0.0, dtype)
    is_zero = apply("eq", space.body, zero)
    values = tuple(operands)
    count = make(Compute(values, replace(space, body=where(is_zero, one, zero), dtype=dtype, combiner="sum"))).value
    rest = make(Compute(values, replace(space, body=where(is_zero, one, space.body), dtype=dtype))).value
    operands += [count, rest]
    place = tuple(Size.of(a.name) for a in space.axes)
    number, product = (Load(operand(len(operands) - n), place, dtype) for n in (2, 1))
    return one_of_product(space.body, number, product)


def one_of_product(factor: Expr, zeros_among: Expr, product: Expr) -> Expr:
    """What one factor of a product is multiplied by: the product of those that are not 0, without it, unless another
    one is 0."""
    dtype = factor.dtype
    zero = constant(0.0, dtype)

    def if_count(number: float, value: Expr) -> Expr:
        return where(apply("eq", zeros_among, constant(number, zeros_among.dtype)), cast(dtype, value), zero)

    is_zero = apply("eq", factor, zero)
    return where(is_zero, if_count(1.0, product), if_count(0.0, apply("div", product, cast(product.dtype, factor))))


# ---------------------------------------------------------------------- pulling back


def pull_back(
    linear: Linear,
    cotangent: Value,
    read: Callable[[Sequence[Size]], tuple[Sequence[Size], Sequence[Expr]]] | None = None,
    make: Make = lambda node: node,
    counters: frozenset[str] = frozenset(),
) -> list[tuple[Value, Contribution]]:
    """What a cotangent of the result adds to those of the operands.

    `read` maps the axes to the element of the cotangent and to guards, where these are not the axes themselves. An
    operand read at a loop counter, one of `counters`, is added to in place, not swept through.
    """
    values = (*linear.operands, cotangent)
    axes = tuple(Size.of(a.name) for a in linear.axes)
    indices, guards = read(axes) if read is not None else (axes, ())
    number = _literal(cotangent)
    arriving: Expr = Load(operand(len(linear.operands)), tuple(indices), cotangent.dtype)
    arriving = cast(linear.dtype, arriving) if number is None else constant(number.value, linear.dtype)
    spaces: dict[tuple[Value, tuple[Axis, ...]], Expr] = {}
    scattered: list[tuple[Value, Contribution]] = []
    for load, factor in linear.factors.items():
        source = linear.operands[operand_position(load.buffer)]
        body = _guarded(guards, times(arriving, factor))
        places = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(tensor_of(source).shape))
        inverse = None
        if not any(i.symbols & counters for i in load.indices):
            inverse = invert(linear.all_axes, load.indices, places)
        if inverse is None:
            scattered.append((source, _scatter(values, linear.all_axes, load, body, source, make)))
        else:
            key, term = _gathered(inverse, body)
            spaces[source, key] = plus(spaces.get((source, key)), term) or term
    gathered = [(s, _gather(values, reduced, body, s, make)) for (s, reduced), body in spaces.items()]
    return [*gathered, *scattered]


def _guarded(guards: Sequence[Expr], body: Expr) -> Expr:
    return where(every(guards), body, constant(0.0, body.dtype)) if guards else body


def _gathered(inverse: Inverse, body: Expr) -> tuple[tuple[Axis, ...], Expr]:
    """The axes that are left, with names of their own order, and the body in them; of one element no sum is formed."""
    left = [a for a in inverse.axes.values() if a.extent != ONE or a.lower.symbols]
    names = {a.name: f"r{n}" for n, a in enumerate(left)}
    sizes = {a.name: Size.of(names[a.name]) if a.name in names else a.lower for a in inverse.axes.values()}
    axes = tuple(replace(a.substitute(sizes), name=names[a.name]) for a in left)
    decided = {n: s.substitute(sizes) for n, s in inverse.names.items()} | sizes
    guards = [g.substitute(sizes) for g in inverse.guards]
    return axes, _guarded(guards, body.substitute(decided))


def wide_dtype(source: DType, body: DType) -> DType:
    """In which a cotangent is summed: at least f32, and as wide as both."""
    return (source if source.bits >= body.bits else body).accumulator


def _gather(values: Sequence[Value], reduced: tuple[Axis, ...], body: Expr, source: Value, make: Make) -> Contribution:
    tensor = tensor_of(source)
    axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(tensor.shape))
    body = cast(wide_dtype(tensor.dtype, body.dtype) if reduced else tensor.dtype, body)
    space = Space(axes, body, tensor.dtype, reduced, "sum" if reduced else None)
    return lambda before: added(before, make(Compute(tuple(values), space)).value, make)


def _scatter(
    values: Sequence[Value], axes: tuple[Axis, ...], load: Load, body: Expr, source: Value, make: Make
) -> Contribution:
    tensor = tensor_of(source)
    wide = wide_dtype(tensor.dtype, body.dtype)
    by_data = {a.name for a in axes if a.lower.opaques or a.upper.opaques}

    def is_proved(index: Size) -> bool:
        """A range that depends on data is cut to what it subscripts alone."""
        return not index.opaques and (index.as_name is not None or not index.symbols & by_data)

    # A read outside of the tensor is clamped to it, or is of an arm that does not count, whose derivative is 0.
    targets = tuple(
        index if is_proved(index) and not _has_guards(body) else maximum(0, minimum(index, extent - 1))
        for index, extent in zip(load.indices, tensor.shape)
    )
    names = {operand(p): operand(p + 1) for p in range(len(values))}

    def contribution(before: Value | None) -> Value:
        base = before if before is not None and before.dtype == wide else zeros(tensor.with_dtype(wide), make)
        own = Space(axes, cast(wide, body), wide).rename_operands(names)
        moved = tuple(rename_size_buffers(t, names) for t in targets)
        total = make(Update(base, tuple(values), own.axes, moved, "+=", own.body)).value
        return total if base is before else added(before, converted(total, tensor.dtype, make), make)

    return contribution


def _has_guards(body: Expr) -> bool:
    return any(isinstance(e, Apply) and e.function == "where" for e in walk(body))


def added(before: Value | None, value: Value, make: Make) -> Value:
    """The sum of two cotangents, in the wider of their dtypes; the first may be missing."""
    if before is None:
        return value
    wide = before.dtype if before.dtype.bits >= value.dtype.bits else value.dtype
    return make(Elementwise("add", (converted(before, wide, make), converted(value, wide, make)))).value


def adding(value: Value, make: Make) -> Contribution:
    """The contribution that is a value."""
    return lambda before: added(before, value, make)


def converted(value: Value, dtype: DType, make: Make) -> Value:
    return value if value.dtype == dtype else make(Cast(value, dtype)).value


def zeros(tensor: TensorType, make: Make) -> Value:
    """A tensor of zeros."""
    scalar = make(Constant(0.0, tensor.dtype)).value
    return make(BroadcastTo(scalar, tensor.shape)).value if tensor.rank else scalar

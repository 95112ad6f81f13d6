"""Functions that move elements: shapes, axes, parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from intarsia.dsl.evaluation.moves import IndexMap, Reshaping, joined_formats, moved
from intarsia.dsl.evaluation.operators import sharing_hint
from intarsia.dsl.primitives.arguments import Arguments, Primitive, adapt_literal
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import FormatTensor, Item, describe, shape_of
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.ops import BroadcastTo, Compute, Concat, Pad, Reshape, Slice, Transpose
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import ONE, ZERO, Size, product
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder

Stored: TypeAlias = "Value | FormatTensor"


def _reshape(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """One entry of the shape may be -1: what is left."""
    x, shape = arguments.stored(builder, "x"), list(arguments.sizes("shape"))
    own = shape_of(x)
    unknown = [position for position, size in enumerate(shape) if size.constant == -1]
    where = arguments["shape"].span
    if len(unknown) > 1:
        raise CompileError("E0205", "reshape: at most one size is -1", where)
    for position, size in enumerate(shape):
        if position not in unknown:
            builder.bounds.require_nonnegative(size, f"size {position} of the shape", where)
    if unknown:
        rest = product(s for position, s in enumerate(shape) if position != unknown[0])
        shape[unknown[0]] = _quotient(builder, x, rest, where)
    elements, wanted = product(own), product(shape)
    new = _with_shape(x, shape)
    # Sizes of other names may be equal by value.
    if not builder.bounds.may_be_zero(elements - wanted, f"reshape of {describe(x)} to {new}", span):
        show = builder.bounds.show
        message = f"reshape of {describe(x)} to {new}: {show(elements)} elements are not {show(wanted)}"
        raise CompileError("E0205", message, span)
    return reshaped(builder, x, tuple(shape), span)


def _with_shape(x: Stored, shape: Sequence[Size]) -> str:
    """The type of a tensor with another shape, for messages."""
    return str(replace(x, shape=tuple(shape)) if isinstance(x, FormatTensor) else TensorType(x.dtype, tuple(shape)))


def reshaped(builder: Builder, x: Stored, shape: tuple[Size, ...], span: Span) -> Stored:
    """The same elements in row-major order under another shape."""
    if isinstance(x, FormatTensor):
        return moved(builder, x, Reshaping(x.shape, shape), span)
    return builder.add(Reshape(x, shape, span=span)).value


def _quotient(builder: Builder, x: Stored, rest: Size, span: Span) -> Size:
    elements = product(shape_of(x))
    exact = divide_exactly(elements, rest)
    if exact is not None:
        return exact
    divides = builder.bounds.may_be_zero(elements % rest, f"reshape: {elements} does not divide by {rest}", span)
    if not divides or builder.bounds.value(rest) == 0 or (elements.constant and rest.constant == 0):
        message = f"reshape of {describe(x)}: {builder.bounds.show(elements)} elements do not divide by {rest}"
        raise CompileError("E0205", message, span)
    return elements // rest


def divide_exactly(dividend: Size, divisor: Size) -> Size | None:
    """The quotient of a polynomial by one product of names, where every term divides."""
    if len(divisor.terms) != 1:
        return None
    (factors, number), total = divisor.terms[0], ZERO
    for monomial, coefficient in dividend.terms:
        left = list(monomial)
        for factor in factors:
            if factor not in left:
                return None
            left.remove(factor)
        if coefficient % number:
            return None
        total = total + Size(((tuple(left), coefficient // number),))
    return total


def _transpose(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    x = arguments.stored(builder, "x")
    rank = len(shape_of(x))
    if arguments.item("axes") is None:
        order = tuple(reversed(range(rank)))
    else:
        order = tuple(arguments.normal("axes", int(a), rank) for a in _numbers(arguments, "axes"))
        if sorted(order) != list(range(rank)):
            message = f"transpose of {describe(x)}: the axes {order} do not name each of its {rank} dimensions once"
            raise CompileError("E0209", message, arguments["axes"].span)
    return _turned(builder, x, order, span)


def _numbers(arguments: Arguments, name: str) -> list[int]:
    sizes = arguments.sizes(name)
    if any(s.constant is None for s in sizes):
        raise arguments.wrong(name, "a tuple of literal integers")
    return [int(s) for s in sizes]


def transposed(builder: Builder, x: Value, order: tuple[int, ...], span: Span) -> Value:
    """Dimensions in another order; x itself where it is the same."""
    if order == tuple(range(len(order))):
        return x
    return builder.add(Transpose(x, order, span=span)).value


def _turned(builder: Builder, x: Stored, order: tuple[int, ...], span: Span) -> Stored:
    """The same of a tensor that may be in a format."""
    if not isinstance(x, FormatTensor):
        return transposed(builder, x, order, span)
    if order == tuple(range(len(order))):
        return x
    axes = _axes(builder, [x.shape[d] for d in order])
    places = tuple(Size.of(axes[order.index(d)].name) for d in range(len(order)))
    return moved(builder, x, IndexMap(axes, places), span)


def _move_axis(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """`count` dimensions that begin at `source` moved so that they begin at `destination`."""
    x, count = arguments.stored(builder, "x"), arguments.integer("count")
    rank = len(shape_of(x))
    if count == 0:
        return x
    source, destination = arguments.axis("source", rank), arguments.axis("destination", rank)
    if count < 0 or max(source, destination) + count > rank:
        message = f"moveaxis of {describe(x)}: {count} dimensions from {source} do not fit at {destination}"
        raise CompileError("E0209", message, arguments["count"].span)
    order = [d for d in range(rank) if not source <= d < source + count]
    order[destination:destination] = range(source, source + count)
    return _turned(builder, x, tuple(order), span)


def _broadcast_to(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    x, shape = arguments.stored(builder, "x"), list(arguments.sizes("shape"))
    own = shape_of(x)
    if len(own) > len(shape):
        raise CompileError("E0204", f"{describe(x)} does not broadcast to {len(shape)} dimensions", span)
    aligned: list[Size] = []
    for found, wanted in zip(own, shape[len(shape) - len(own) :]):
        if found != ONE and builder.bounds.compare(found, wanted) is False:
            message = f"{describe(x)} does not broadcast to {_with_shape(x, shape)}"
            message += f": {builder.bounds.show(found)} is not {wanted}"
            raise CompileError("E0204", message, span, hint=sharing_hint(found, wanted))
        aligned.append(ONE if found == ONE else wanted)
    if isinstance(x, FormatTensor):
        axes = _axes(builder, shape)
        names = [Size.of(axis.name) for axis in axes[len(shape) - len(own) :]]
        places = tuple(ZERO if size == ONE else name for size, name in zip(own, names))
        return moved(builder, x, IndexMap(axes, places), span)
    return builder.add(BroadcastTo(builder.reshaped(x, aligned, span), tuple(shape), span=span)).value


def _concat(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    parts = arguments.tensors(builder, "tensors")
    axis = arguments.axis("axis", len(shape_of(parts[0])))
    return joined(builder, parts, axis, span, "concat")


def joined(builder: Builder, parts: Sequence[Stored], axis: int, span: Span, name: str) -> Stored:
    """Tensors one after the other, in a format or none."""

    def join(items: Sequence[Item]) -> Value:
        return concatenated(builder, [builder.as_value(item, span) for item in items], axis, span, name)

    formats = [part for part in parts if isinstance(part, FormatTensor)]
    return joined_formats(builder, formats, axis, join, span) if formats else join(parts)


def concatenated(builder: Builder, parts: list[Value], axis: int, span: Span, name: str) -> Value:
    """Tensors one after the other, their other sizes written alike. Raises E0202 and E0206."""
    first = parts[0]
    aligned = [first]
    for part in parts[1:]:
        if part.dtype != first.dtype:
            hint = "nothing is converted unasked: cast one of them"
            raise CompileError("E0202", f"{name} of {first.type} and {part.type}: the dtypes differ", span, hint=hint)
        fits = part.tensor.rank == first.tensor.rank
        shape = list(part.tensor.shape)
        for d, (own, wanted) in enumerate(zip(part.tensor.shape, first.tensor.shape)):
            if d != axis:
                fits = fits and builder.bounds.compare(own, wanted) is not False
                shape[d] = wanted
        if not fits:
            message = f"{name} of {first.type} and {part.type} along axis {axis}: they do not fit"
            raise CompileError("E0206", message, span, hint="all dimensions but that one are equal")
        aligned.append(builder.reshaped(part, shape, span))
    if len(aligned) == 1:
        return first
    return builder.add(Concat(tuple(aligned), axis, span=span)).value


def _stack(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    parts = arguments.tensors(builder, "tensors")
    axis = arguments.axis("axis", len(shape_of(parts[0])) + 1)
    raised = []
    for part in parts:
        shape = list(shape_of(part))
        shape.insert(min(axis, len(shape)), ONE)
        raised.append(reshaped(builder, part, tuple(shape), span))
    return joined(builder, raised, axis, span, "stack")


def _split(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """`parts` equal parts, or parts of the sizes that a tuple gives."""
    x = arguments.stored(builder, "x")
    axis = arguments.axis("axis", len(shape_of(x)))
    extent, where = shape_of(x)[axis], arguments["parts"].span
    if isinstance(arguments.item("parts"), tuple):
        sizes = list(arguments.sizes("parts"))
        total = sum(sizes, ZERO)
        if builder.bounds.compare(total, extent) is False:
            message = f"split of {describe(x)}: the parts sum to {builder.bounds.show(total)}, axis {axis} has {extent}"
            raise CompileError("E0206", message, where)
    else:
        count = arguments.integer("parts")
        if count < 1:
            raise arguments.wrong("parts", "at least 1")
        if not builder.bounds.may_be_zero(extent % count, f"split: {extent} is not a multiple of {count}", where):
            message = f"split of {describe(x)}: {builder.bounds.show(extent)} is not a multiple of {count}"
            raise CompileError("E0206", message, where)
        sizes = [extent // count] * count
    starts = [sum(sizes[:position], ZERO) for position in range(len(sizes))]
    return tuple(_part(builder, x, axis, start, size, span) for start, size in zip(starts, sizes))


def _part(builder: Builder, x: Stored, axis: int, start: Size, size: Size, span: Span) -> Stored:
    if isinstance(x, FormatTensor):
        axes = _axes(builder, [size if d == axis else s for d, s in enumerate(x.shape)])
        places = tuple(Size.of(a.name) + (start if d == axis else ZERO) for d, a in enumerate(axes))
        return moved(builder, x, IndexMap(axes, places), span)
    starts = tuple(start if d == axis else ZERO for d in range(x.tensor.rank))
    extents = tuple(size if d == axis else s for d, s in enumerate(x.tensor.shape))
    return builder.add(Slice(x, starts, extents, span=span)).value


def _pad(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """`widths` has a pair (before, after) for each dimension, or one pair or one integer for all of them."""
    x = arguments.tensor(builder, "x")
    rank = x.tensor.rank
    item = arguments.item("widths")
    pairs = item if isinstance(item, tuple) and any(isinstance(i, tuple) for i in item) else (item,) * rank
    if len(pairs) != rank:
        message = f"pad of {x.type}: {len(pairs)} pairs of widths for {rank} dimensions"
        raise CompileError("E0321", message, arguments["widths"].span, hint="write ((before, after), …)")
    before: list[Size] = []
    after: list[Size] = []
    for pair in pairs:
        both = pair if isinstance(pair, tuple) else (pair, pair)
        if len(both) != 2 or any(isinstance(i, bool) or not isinstance(i, (int, Size)) for i in both):
            raise arguments.wrong("widths", "pairs of integers: ((before, after), …)")
        first, second = (Size.of(i) for i in both if isinstance(i, (int, Size)))
        for width in (first, second):
            builder.bounds.require_nonnegative(width, "a width of pad", arguments["widths"].span)
        before.append(first)
        after.append(second)
    value = adapt_literal(arguments, "value", x.dtype)
    return builder.add(Pad(x, tuple(before), tuple(after), value, span=span)).value


def _tile(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """x repeated as a whole, `repeats[d]` times along dimension d."""
    x, repeats = arguments.stored(builder, "x"), list(arguments.sizes("repeats"))
    dims = len(shape_of(x))
    rank = max(len(repeats), dims)
    repeats = [ONE] * (rank - len(repeats)) + repeats
    own = (ONE,) * (rank - dims) + shape_of(x)
    axes = _axes(builder, [s * n for s, n in zip(own, repeats)])
    indices = tuple(
        Size.of(axis.name) % size if n != ONE else Size.of(axis.name) for axis, size, n in zip(axes, own, repeats)
    )[rank - dims :]
    if isinstance(x, FormatTensor):
        return moved(builder, x, IndexMap(axes, indices), span)
    body = Load("a0", indices, x.dtype)
    return builder.add(Compute((x,), Space(axes, body, x.dtype), span=span)).value


def _axes(builder: Builder, shape: Sequence[Size]) -> tuple[Axis, ...]:
    """Names for the dimensions of a result."""
    return tuple(Axis.of(builder.axis_symbol(f"i{d}", None), size) for d, size in enumerate(shape))


SHAPES = (
    Primitive("reshape", "x; shape", _reshape),
    Primitive("transpose", "x; axes=none", _transpose),
    Primitive("moveaxis", "x; source, destination, count=1", _move_axis),
    Primitive("broadcast_to", "x; shape", _broadcast_to),
    Primitive("concat", "tensors; axis=0", _concat),
    Primitive("stack", "tensors; axis=0", _stack),
    Primitive("split", "x; parts, axis=0", _split),
    Primitive("pad", "x; widths, value=0", _pad),
    Primitive("tile", "x; repeats", _tile),
)

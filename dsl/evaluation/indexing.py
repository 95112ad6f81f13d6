"""Subscripts: elements in index notation, NumPy's basic indexing of whole tensors, records of lists, and types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intarsia.dsl import ast
from intarsia.dsl.evaluation.extents import evaluate_base, wrong_count
from intarsia.dsl.evaluation.moves import IndexMap, Reshaping, moved
from intarsia.dsl.semantics.names import ScopeNames
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import (
    EXPRESSIONS,
    Format,
    FormatElement,
    FormatTensor,
    Item,
    ListElement,
    PackIndices,
    Struct,
    StructList,
    Subscripted,
    describe,
    is_weak,
    shape_of,
)
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.ops import Reshape, Slice
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import ONE, ZERO, Size, minimum
from intarsia.ir.space import Axis
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def subscript(builder: Builder, node: ast.Subscript, scope: Scope) -> Item:
    """The value of `value[items]`."""
    base = evaluate_base(builder, node.value, scope) if scope.frame is not None else builder.evaluate(node.value, scope)
    match base:
        case Value() | ListElement() | FormatTensor():
            return _of_tensor(builder, base, node, scope)
        case StructList():
            return _of_list(builder, base, node, scope)
        case DType() | Format():
            return _type(builder, base, node, scope)
        case tuple() if len(node.items) == 1:
            return _of_tuple(builder, base, node, scope)
    if (is_weak(base) or isinstance(base, EXPRESSIONS)) and not evaluate_positions(builder, node.items, scope):
        return base  # a pack of no dimensions
    hint = "index notation subscripts tensors" if isinstance(base, EXPRESSIONS) else ""
    raise CompileError("E0406", f"{describe(base)} has no subscripts", node.span, hint=hint)


def _of_tuple(builder: Builder, base: tuple[Item, ...], node: ast.Subscript, scope: Scope) -> Item:
    item = node.items[0]
    if not isinstance(item, (ast.Slice, ast.Ellipsis, ast.Pack)):
        position = builder.evaluate(item, scope)
        if isinstance(position, int) and -len(base) <= position < len(base):
            return base[position]
    raise CompileError("E0406", f"a tuple of {len(base)} is subscripted by one literal integer", item.span)


def _type(builder: Builder, base: DType | Format, node: ast.Subscript, scope: Scope) -> Item:
    """`f32[N, 2*M]` as an argument."""
    dims: list[Size] = []
    for item in node.items:
        if isinstance(item, ast.Pack):
            dims += [d for d in ScopeNames(scope).pack(item.name, item.span) if isinstance(d, Size)]
        elif isinstance(item, (ast.Slice, ast.Ellipsis)):
            raise CompileError("E0303", "a type has sizes between its brackets", item.span)
        else:
            size = builder.integer(builder.evaluate(item, scope), item.span, "a size")
            if size.opaques:
                hint = "a shape is known before the data"
                raise CompileError("E0303", "this size depends on data", item.span, hint=hint)
            dims.append(size)
    if isinstance(base, Format):
        return FormatTensor(base, tuple(dims))
    return TensorType(base, tuple(dims))


def _of_list(builder: Builder, base: StructList, node: ast.Subscript, scope: Scope) -> Struct:
    if len(node.items) != 1 or isinstance(node.items[0], (ast.Slice, ast.Ellipsis, ast.Pack)):
        raise CompileError("E0406", f"{base} is a list: it has one integer subscript", node.span)
    item = node.items[0]
    index = _position(builder, builder.evaluate(item, scope), base.length, item.span)
    what = f"`{node.span.source.text[node.span.start : node.span.end]}`"
    builder.bounds.require_access(index, base.length, what, 0, str(base), scope.frame, item.span)
    return base.element.at(index)


def _position(builder: Builder, item: Item, extent: Size, span: Span) -> Size:
    """A subscript; a literal negative one counts from the end."""
    if isinstance(item, int) and not isinstance(item, bool) and item < 0:
        return extent + item
    return builder.as_data(builder.integer(item, span, "a subscript"))


# ---------------------------------------------------------------------- tensors


def _of_tensor(builder: Builder, base: Subscripted, node: ast.Subscript, scope: Scope) -> Item:
    """An element where index notation asks for one, else a part of the tensor."""
    items = evaluate_positions(builder, node.items, scope)
    if scope.frame is not None:
        whole = any(isinstance(i.item, (_Slice, _Ellipsis)) or i.item is None for i in items)
        open_items = [i for i in items if _is_open(i.item, scope)]
        if open_items and (whole or len(items) != len(shape_of(base))):
            raise _wrong_count(base, node, items, whole)
        if not whole and len(items) == len(shape_of(base)):
            return element_at(builder, base, items, node, scope)
    if isinstance(base, FormatTensor):
        return part_of_format(builder, base, items, node)
    return part(builder, builder.as_value(base, node.value.span), items, node)


@dataclass(frozen=True)
class _Slice:
    """`start:stop:step`, each None where it is left out."""

    start: Item
    stop: Item
    step: Item
    span: Span


@dataclass(frozen=True)
class _Ellipsis:
    """`...`: as many whole dimensions as are left."""

    span: Span


@dataclass(frozen=True)
class Position:
    """One evaluated subscript: an integer, `none`, a slice or an ellipsis."""

    item: Item | _Slice | _Ellipsis
    span: Span


def evaluate_positions(builder: Builder, nodes: Sequence[ast.SubscriptItem], scope: Scope) -> list[Position]:
    """Subscripts, in which a pack of indices has become several."""
    items: list[Position] = []
    for node in nodes:
        match node:
            case ast.Slice(start, stop, step):
                parts = [None if e is None else builder.evaluate(e, scope) for e in (start, stop, step)]
                items.append(Position(_Slice(parts[0], parts[1], parts[2], node.span), node.span))
            case ast.Ellipsis():
                items.append(Position(_Ellipsis(node.span), node.span))
            case ast.Pack(name):
                items += [Position(index, node.span) for index in _pack_indices(name, node.span, scope)]
            case _:
                items.append(Position(builder.evaluate(node, scope), node.span))
    return items


def _pack_indices(name: str, span: Span, scope: Scope) -> tuple[Size, ...]:
    found = scope.find(f"..{name}")
    if found is None or not isinstance(found.item, PackIndices):
        hint = f"bind it: y[..{name}] = … or tensor[..{name}](…)"
        raise CompileError("E0408", f"no pack of indices is named `..{name}`", span, hint=hint)
    return found.item.indices


def _is_open(item: object, scope: Scope) -> bool:
    """Does a subscript use an index?"""
    if scope.frame is None:
        return False
    symbols = item.symbols if isinstance(item, (Size, *EXPRESSIONS)) else frozenset()
    return not symbols.isdisjoint(scope.frame.names()) or isinstance(item, EXPRESSIONS)


def _wrong_count(base: Subscripted, node: ast.Subscript, items: Sequence[Position], whole: bool) -> CompileError:
    if whole:
        what = f"`{node.span.source.text[node.span.start : node.span.end]}`"
        hint = "in index notation every dimension has an integer subscript; cut the tensor before, outside of it"
        return CompileError("E0406", f"{what} mixes an index with a slice, `...` or none", node.span, hint=hint)
    return wrong_count(node, len(items), shape_of(base))


def element_at(
    builder: Builder, base: Subscripted, items: Sequence[Position], node: ast.Subscript, scope: Scope
) -> Load | FormatElement:
    """One element, proved in bounds. Raises E0403 and E0406."""
    indices: list[Size] = []
    shown = node.span.source.text[node.span.start : node.span.end]
    for dimension, (position, extent) in enumerate(zip(items, shape_of(base))):
        item = position.item
        if isinstance(item, (Value, ListElement)) and item.tensor.rank:
            text = position.span.source.text[position.span.start : position.span.end]
            hint = f"subscript it as well: {text}[i]" if text.isidentifier() else ""
            raise CompileError("E0406", f"the subscript is {item.tensor}, not an integer", position.span, hint=hint)
        assert not isinstance(item, (_Slice, _Ellipsis))
        index = _position(builder, item, extent, position.span)
        name = node.value.name if isinstance(node.value, ast.Name) else "the tensor"
        where = f"{name} ({describe(base)})"
        builder.bounds.require_access(index, extent, f"`{shown}`", dimension, where, scope.frame, node.span)
        indices.append(index)
    return FormatElement(base, tuple(indices)) if isinstance(base, FormatTensor) else builder.load(base, indices)


# ---------------------------------------------------------------------- parts of whole tensors


@dataclass
class _Part:
    """The subscripts of each dimension of a tensor: start, extent and step. `result` are the dimensions of the part,
    -1 for a new axis."""

    starts: list[Size] = field(default_factory=list)
    extents: list[Size] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    result: list[Size] = field(default_factory=list)
    has_new_axis: bool = False

    def take(self, start: Size, extent: Size, step: int) -> None:
        self.starts.append(start)
        self.extents.append(extent)
        self.steps.append(step)
        self.result.append(extent)

    def drop(self, start: Size) -> None:
        self.dropped.append(len(self.starts))
        self.starts.append(start)
        self.extents.append(ONE)
        self.steps.append(1)

    def new_axis(self) -> None:
        self.has_new_axis = True
        self.result.append(ONE)

    def is_whole(self, shape: tuple[Size, ...]) -> bool:
        return (
            not self.dropped
            and tuple(self.extents) == shape
            and all(s == ZERO for s in self.starts)
            and all(s == 1 for s in self.steps)
        )


def select(builder: Builder, shape: tuple[Size, ...], items: Sequence[Position], shown: str, what: str) -> _Part:
    """Read NumPy's basic indexing of a tensor of a shape. Raises E0403 and E0406."""
    taken = sum(i.item is not None and not isinstance(i.item, _Ellipsis) for i in items)
    if taken > len(shape):
        dims = "is a scalar" if not shape else f"has {len(shape)} dimension{'s' if len(shape) > 1 else ''}"
        raise CompileError("E0406", f"`{shown}` has {taken} subscripts, and {what} {dims}", items[-1].span)
    ellipses = [i for i in items if isinstance(i.item, _Ellipsis)]
    if len(ellipses) > 1:
        raise CompileError("E0406", "at most one `...` among subscripts", ellipses[1].span)
    found = _Part()
    left = len(shape) - taken
    for position in items:
        dimension = len(found.starts)
        item = position.item
        if item is None:
            found.new_axis()
        elif isinstance(item, _Ellipsis):
            for extent in shape[dimension : dimension + left]:
                found.take(ZERO, extent, 1)
        elif isinstance(item, _Slice):
            found.take(*_slice(builder, item, shape[dimension]))
        else:
            found.drop(_one(builder, item, shape[dimension], dimension, shown, what, position.span))
    for extent in shape[len(found.starts) :]:
        found.take(ZERO, extent, 1)
    return found


def _one(builder: Builder, item: Item, extent: Size, dimension: int, shown: str, what: str, span: Span) -> Size:
    if isinstance(item, (Value, ListElement)) and item.tensor.rank:
        hint = "use take(x, ids, axis=0), or index notation: y[i] = x[ids[i]]"
        raise CompileError("E0406", f"the subscript is {item.tensor}: tensors are no subscripts", span, hint=hint)
    index = _position(builder, item, extent, span)
    builder.bounds.require_access(index, extent, f"`{shown}`", dimension, what, None, span)
    return index


def _slice(builder: Builder, item: _Slice, extent: Size) -> tuple[Size, Size, int]:
    """Start, extent and step. What lies beyond the end is cut off, as in NumPy."""
    step = 1 if item.step is None else item.step
    if isinstance(step, Size) and step.constant is not None:
        step = step.constant
    if not isinstance(step, int) or isinstance(step, bool) or step == 0:
        raise CompileError("E0406", "the step of a slice is a literal integer, not 0", item.span)
    if step < 0:
        return _backward(builder, item, extent, step)
    start = _bound(builder, item.start, ZERO, extent, item.span)
    stop = _bound(builder, item.stop, extent, extent, item.span)
    if not builder.bounds.counters.keys().isdisjoint(start.symbols | stop.symbols):
        return _moving(builder, start, stop, extent, step, item.span)
    if builder.bounds.holds(extent - stop) is not True:
        stop = minimum(stop, extent)
    length = stop - start
    value = builder.bounds.value(length)
    if value is not None and value < 0:
        start, length = ZERO, ZERO
    return start, length if step == 1 else (length + (step - 1)) // step, step


def _moving(builder: Builder, start: Size, stop: Size, extent: Size, step: int, span: Span) -> tuple[Size, Size, int]:
    """A slice that a loop counter moves: its extent is the same in every step, and it lies inside."""
    length = stop - start
    if not builder.bounds.counters.keys().isdisjoint(length.symbols):
        hint = "a shape is the same in every step: use index notation with a range, or where"
        raise CompileError("E0406", f"the extent {length} of a slice depends on a loop counter", span, hint=hint)
    data = builder.as_data(start)
    if not data.opaques:
        text = f"`{span.source.text[span.start : span.end]}`"
        for end in (start, stop - 1):
            builder.bounds.require_access(end, extent, f"the slice {text}", 0, "the tensor", None, span)
    return data, length if step == 1 else (length + (step - 1)) // step, step


def _backward(builder: Builder, item: _Slice, extent: Size, step: int) -> tuple[Size, Size, int]:
    start = _bound(builder, item.start, extent - 1, extent, item.span)
    stop = Size.of(-1) if item.stop is None else _bound(builder, item.stop, ZERO, extent, item.span)
    if builder.bounds.holds(extent - 1 - start) is not True:
        start = minimum(start, extent - 1)
    length = start - stop
    value = builder.bounds.value(length)
    if value is not None and value < 0:
        length = ZERO
    return start, length if step == -1 else (length + (-step - 1)) // -step, step


def _bound(builder: Builder, item: Item, default: Size, extent: Size, span: Span) -> Size:
    if item is None:
        return default
    if isinstance(item, int) and not isinstance(item, bool) and item < 0:
        size = extent + item
    else:
        size = builder.integer(item, span, "a bound of a slice")
    if size.opaques:
        hint = "a shape is known before the data; use index notation with a range, or where"
        raise CompileError("E0406", "a bound of a slice depends on data", span, hint=hint)
    value = builder.bounds.value(size)
    if value is not None and value < 0:
        return ZERO  # x[-5:] of three elements begins at the first one
    return size


def part(builder: Builder, value: Value, items: Sequence[Position], node: ast.Subscript) -> Value:
    """A part of a tensor by NumPy's basic indexing."""
    shown = node.span.source.text[node.span.start : node.span.end]
    found = select(builder, value.tensor.shape, items, shown, str(value.type))
    for extent in found.result:
        builder.bounds.require_nonnegative(extent, f"an extent of `{shown}`", node.span)
    result = value
    if any(s.opaques for s in found.starts):
        result = _index_map(builder, found).apply(builder, value, node.span)
    elif not found.is_whole(value.tensor.shape):
        fields = (tuple(found.starts), tuple(found.extents), tuple(found.steps), tuple(found.dropped))
        result = builder.add(Slice(value, *fields, span=node.span)).value
    if found.has_new_axis:
        result = builder.add(Reshape(result, tuple(found.result), span=node.span)).value
    return result


def part_of_format(
    builder: Builder, base: FormatTensor, items: Sequence[Position], node: ast.Subscript
) -> FormatTensor:
    """The same of a tensor in a format. Raises E0212 where it cuts through groups."""
    shown = node.span.source.text[node.span.start : node.span.end]
    found = select(builder, base.shape, items, shown, str(base))
    for extent in found.result:
        builder.bounds.require_nonnegative(extent, f"an extent of `{shown}`", node.span)
    result = base if found.is_whole(base.shape) else moved(builder, base, _index_map(builder, found), node.span)
    if found.has_new_axis:
        result = moved(builder, result, Reshaping(result.shape, tuple(found.result)), node.span)
    return result


def _index_map(builder: Builder, found: _Part) -> IndexMap:
    """A part as a map from its places to those of the tensor."""
    kept = [d for d in range(len(found.starts)) if d not in found.dropped]
    axes = tuple(Axis.of(builder.axis_symbol(f"i{n}", None), found.extents[d]) for n, d in enumerate(kept))
    places = {d: Size.of(a.name) * found.steps[d] for d, a in zip(kept, axes)}
    return IndexMap(axes, tuple(start + places.get(d, ZERO) for d, start in enumerate(found.starts)))

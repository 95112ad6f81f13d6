"""`update a[…] op= …`: a tensor equal to another but on a region."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from intarsia.dsl import ast
from intarsia.dsl.evaluation.index import bind_indices
from intarsia.dsl.evaluation.indexing import Position, evaluate_positions, select
from intarsia.dsl.evaluation.nodes import rename_loads
from intarsia.dsl.evaluation.operators import common_shape, sharing_hint
from intarsia.dsl.semantics.frames import Frame
from intarsia.dsl.semantics.literals import adapt, to_size
from intarsia.dsl.semantics.scope import Scope, suggest
from intarsia.dsl.semantics.values import FormatTensor, Item, ListElement, PackIndices, describe, is_weak
from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Value
from intarsia.ir.kernel import PutOperator
from intarsia.ir.ops import Update
from intarsia.ir.scalar import Apply, Expr, loads
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, operand
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder

LARGEST_COUNT = 1 << 16  # points of a region that are compared one by one, to see whether targets repeat


def update(builder: Builder, node: ast.Update, scope: Scope) -> Item:
    """The value of an update."""
    base = _base(builder, node, scope)
    if base.dtype.is_narrow and node.operator != "=":
        hint = f"{base.dtype} is storage: cast it up first, as in f32({node.target})"
        raise CompileError("E0202", f"`{node.operator}` on {base.type}", node.span, hint=hint)
    if base.dtype == BOOL and node.operator in ("+=", "-=", "*="):
        raise CompileError("E0202", f"`{node.operator}` on {base.type}", node.span, hint="max= is `or`, min= is `and`")
    indices = _new_indices(node, scope)
    whole = any(isinstance(i, (ast.Slice, ast.Ellipsis)) for i in node.items)
    if indices and whole:
        hint = "bind an index for every dimension: update a[i, j] = …"
        raise CompileError("E0406", "an update with an index and a slice", node.span, hint=hint)
    if indices or (not whole and len(node.items) == base.tensor.rank):
        return _by_index(builder, node, base, indices, scope)
    return _by_slice(builder, node, base, scope)


def _base(builder: Builder, node: ast.Update, scope: Scope) -> Value:
    name = node.target
    found = scope.lookup(name.text)
    if found is None:
        hint = suggest(name.text, scope.visible())
        raise CompileError("E0301", f"no value is named `{name}`", name.span, hint=hint)
    if not isinstance(found.item, (Value, ListElement)):
        if isinstance(found.item, FormatTensor):
            raise CompileError("E0901", f"updates of {found.item} are not built yet", node.span)
        raise CompileError("E0410", f"`{name}` is {describe(found.item)}: only tensors are updated", name.span)
    base = builder.as_value(found.item, name.span)
    if not base.tensor.rank:
        hint = f"a scalar has no elements: write {name} = …"
        raise CompileError("E0410", f"`{name}` is {base.type}", name.span, hint=hint)
    return base


def _new_indices(node: ast.Update, scope: Scope) -> list[ast.BinderItem]:
    """The indices that the target binds: ranges, packs, and names that have no value."""
    binders: dict[str, ast.BinderItem] = {}
    names: list[ast.Name] = []
    for item in node.items:
        if isinstance(item, ast.Binder):
            binders[item.name.text] = item
        elif isinstance(item, ast.Pack) and not _is_bound_pack(item, scope):
            binders[f"..{item.name}"] = item
        else:
            names += [n for n in ast.walk(item) if isinstance(n, ast.Name)]
    for name in names:
        if name.name not in binders and scope.find(name.name) is None and scope.file.constant(name.name) is None:
            binders[name.name] = ast.Binder(ast.Identifier(name.name, span=name.span), span=name.span)
    return list(binders.values())


def _is_bound_pack(item: ast.Pack, scope: Scope) -> bool:
    found = scope.find(f"..{item.name}")
    return found is not None and isinstance(found.item, PackIndices)


# ---------------------------------------------------------------------- by index


def _by_index(
    builder: Builder, node: ast.Update, base: Value, indices: Sequence[ast.BinderItem], scope: Scope
) -> Value:
    frame = Frame("update", scope.frame)
    inner = scope.child(frame)
    targets = [_plain(item) for item in node.items]
    bind_indices(builder, indices, [*targets, node.value], inner, frame, [(base, targets)])
    positions = evaluate_positions(builder, targets, inner)
    if len(positions) != base.tensor.rank:
        count = "1 subscript" if len(positions) == 1 else f"{len(positions)} subscripts"
        message = f"the target has {count}, and {base.type} has {base.tensor.rank} dimensions"
        raise CompileError("E0406", message, node.span, hint="with an index every dimension has a subscript")
    places = [
        _place(builder, position, extent, dimension, node, base, frame)
        for dimension, (position, extent) in enumerate(zip(positions, base.tensor.shape))
    ]
    item = builder.evaluate(node.value, inner)
    name = node.value.name if isinstance(node.value, ast.Name) else ""
    body = _element(builder, item, base.dtype, node, name)
    axes = tuple(axis.axis for axis in frame.axes)
    if node.operator == "=":
        _require_distinct(builder, axes, places, node)
    return _node(builder, node, base, axes, places, body)


def _plain(item: ast.UpdateItem) -> ast.SubscriptItem:
    """A binder stands for its index."""
    return ast.Name(item.name.text, span=item.span) if isinstance(item, ast.Binder) else item


def _place(
    builder: Builder,
    position: Position,
    extent: Size,
    dimension: int,
    node: ast.Update,
    base: Value,
    frame: Frame,
) -> Size:
    item = position.item
    assert not isinstance(item, (ast.Slice, ast.Ellipsis))
    if isinstance(item, int) and not isinstance(item, bool) and item < 0:
        place = extent + item
    else:
        place = builder.as_data(builder.integer(item, position.span, "a subscript"))  # type: ignore[arg-type]
    what = f"the target `{position.span.source.text[position.span.start : position.span.end]}`"
    shown = f"{node.target} ({base.type})"
    builder.bounds.require_access(place, extent, what, dimension, shown, frame, position.span)
    return place


def _element(builder: Builder, item: Item, dtype: DType, node: ast.Update, name: str) -> Expr:
    """The new element, of the dtype of the base."""
    span = node.value.span
    if is_weak(item):
        return adapt(item, dtype, span)
    element = builder.element(item, span, name)
    if element.dtype != dtype:
        hint = f"nothing is converted unasked: cast it with {dtype}(…)"
        message = f"`{node.target}` holds {dtype}, and the new element is {element.dtype}"
        raise CompileError("E0202", message, span, hint=hint)
    return element


def _node(
    builder: Builder, node: ast.Update, base: Value, axes: tuple[Axis, ...], places: Sequence[Size], body: Expr
) -> Value:
    """The op, with its operands in the order in which it reads them; the base is the first."""
    operator: PutOperator = "+=" if node.operator == "-=" else node.operator
    if node.operator == "-=":
        body = Apply("neg", (body,))
    names = {builder.buffer(base): operand(0)}
    bounds = [b for axis in axes for b in (axis.lower, axis.upper)]
    for value in (body, *(o for size in (*places, *bounds) for o in size.opaques)):
        for load in loads(value):
            names.setdefault(load.buffer, operand(len(names)))

    def size(s: Size) -> Size:
        return s.substitute({}, lambda e: to_size(rename_loads(e, names))) if s.opaques else s

    arguments = tuple(builder.buffer_values[name] for name in list(names)[1:])
    canonical = tuple(Axis(a.name, size(a.lower), size(a.upper)) for a in axes)
    targets = tuple(size(p) for p in places)
    made = Update(base, arguments, canonical, targets, operator, rename_loads(body, names), span=node.span)
    return builder.add(made).value


# ---------------------------------------------------------------------- by slice


def _by_slice(builder: Builder, node: ast.Update, base: Value, scope: Scope) -> Value:
    """A region in NumPy's indexing; the value broadcasts to it."""
    shown = f"{node.target}[…]"
    items = [_plain(item) for item in node.items]
    positions = evaluate_positions(builder, items, scope)
    if any(p.item is None for p in positions):
        raise CompileError("E0406", "`none` among the subscripts of an update", node.span)
    found = select(builder, base.tensor.shape, positions, shown, f"{node.target} ({base.type})")
    item = builder.evaluate(node.value, scope)
    value = builder.as_value(item, node.value.span, base.dtype)
    if value.dtype != base.dtype:
        hint = f"nothing is converted unasked: cast it with {base.dtype}(…)"
        message = f"`{node.target}` holds {base.dtype}, and the new part is {value.type}"
        raise CompileError("E0202", message, node.value.span, hint=hint)
    axes = [Axis.of(builder.axis_symbol(f"i{n}", None), extent) for n, extent in enumerate(found.result)]
    value = _broadcast(builder, value, found.result, node)
    own = axes[len(axes) - value.tensor.rank :]
    indices = [ZERO if s == ONE else Size.of(a.name) for s, a in zip(value.tensor.shape, own)]
    kept = iter(axes)
    places = [
        start if d in found.dropped else start + Size.of(next(kept).name) * step
        for d, (start, step) in enumerate(zip(found.starts, found.steps))
    ]
    return _node(builder, node, base, tuple(axes), places, builder.load(value, indices))


def _broadcast(builder: Builder, value: Value, region: Sequence[Size], node: ast.Update) -> Value:
    """The value with its sizes written as those of the region. Raises E0204."""
    shape = value.tensor.shape
    span = node.value.span

    def complain(left: Size, right: Size) -> CompileError:
        part = TensorType(value.dtype, tuple(region))
        return CompileError("E0204", f"{value.type} does not fill {part}", span, hint=sharing_hint(left, right))

    if len(shape) > len(region):
        raise complain(ZERO, ZERO)
    found = common_shape(builder.bounds, [tuple(region), shape], complain)
    own = found[len(found) - len(shape) :]
    for extent, wanted in zip(region[len(region) - len(shape) :], own):
        if extent == ONE and wanted != ONE:
            raise complain(extent, wanted)
    return builder.reshaped(value, [e if e == ONE else r for e, r in zip(shape, own)], span)


# ---------------------------------------------------------------------- repeated targets


def _require_distinct(builder: Builder, axes: Sequence[Axis], places: Sequence[Size], node: ast.Update) -> None:
    """Raise E0411 where two points can be seen to have one target."""
    bounds = builder.bounds
    ranges = [(bounds.at_hand(a.lower), bounds.at_hand(a.upper)) for a in axes]
    extents = [upper - lower for lower, upper in ranges]
    for axis, extent in zip(axes, extents):
        if all(axis.name not in place.symbols for place in places) and not _at_most_one(extent):
            hint = f"use += to add them all, or take one: sum, max, or a fixed {axis.name}"
            message = f"`{axis.name}` is in no subscript of the target: every value of it writes the same element"
            raise CompileError("E0411", message, node.span, hint=hint)
    if any(place.opaques for place in places):
        return
    names = [a.name for a in axes]
    if all(place.is_affine_in(names) for place in places):
        rows = [[Fraction(place.coefficient(n) or 0) for n in names] for place in places]
        repeated = any(_reaches(step, extents) for step in _null_space(rows, len(names)))
    else:
        repeated = _repeats(bounds.at_hand, axes, places)
    if repeated:
        hint = "accumulate with +=, max= or min=, or let each point write its own element"
        raise CompileError("E0411", "several points of the region write the same element", node.span, hint=hint)


def _at_most_one(extent: Size) -> bool:
    return extent.constant is not None and extent.constant <= 1


def _reaches(step: list[int], extents: Sequence[Size]) -> bool:
    """Are two points that differ by `step` both in the region? A size that is not known counts as large."""
    return all(s == 0 or extent.constant is None or extent.constant > abs(s) for s, extent in zip(step, extents))


def _null_space(rows: list[list[Fraction]], columns: int) -> list[list[int]]:
    """Integer vectors that the rows send to 0, by Gaussian elimination."""
    rows = [list(row) for row in rows]
    pivots: list[int] = []
    for column in range(columns):
        rank = len(pivots)
        pivot = next((r for r in range(rank, len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        rows[rank] = [x / rows[rank][column] for x in rows[rank]]
        for r in range(len(rows)):
            if r != rank and rows[r][column]:
                rows[r] = [x - rows[r][column] * y for x, y in zip(rows[r], rows[rank])]
        pivots.append(column)
    found: list[list[int]] = []
    for free in (c for c in range(columns) if c not in pivots):
        vector = [Fraction(0)] * columns
        vector[free] = Fraction(1)
        for r, pivot in enumerate(pivots):
            vector[pivot] = -rows[r][free]
        scale = math.lcm(*(x.denominator for x in vector))
        found.append([int(x * scale) for x in vector])
    return found


def _repeats(at_hand: Callable[[Size], Size], axes: Sequence[Axis], places: Sequence[Size]) -> bool:
    """Compare the targets of a small region of known sizes one by one."""
    sizes = [at_hand(p) for p in places]
    ranges: list[range] = []
    count = 1
    for axis in axes:
        lower, upper = at_hand(axis.lower).constant, at_hand(axis.upper).constant
        if lower is None or upper is None:
            return False
        ranges.append(range(lower, upper))
        count *= max(0, upper - lower)
    names = [a.name for a in axes]
    if count > LARGEST_COUNT or any(not s.symbols <= set(names) for s in sizes):
        return False
    seen: set[tuple[int, ...]] = set()
    for point in itertools.product(*ranges):
        target = tuple(s.evaluate(dict(zip(names, point))) for s in sizes)
        if target in seen:
            return True
        seen.add(target)
    return False

"""Index notation: `y[i, j] = …`, `tensor[i, j](…)` and the reductions `sum[k](…)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from intarsia.dsl import ast
from intarsia.dsl.evaluation.extents import binder_name, find_extents
from intarsia.dsl.evaluation.moves import IndexMap, moved
from intarsia.dsl.primitives.reductions import require_reducible
from intarsia.dsl.semantics.frames import Frame, Guard, IndexAxis, bound
from intarsia.dsl.semantics.literals import to_size
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import EXPRESSIONS, FormatElement, FormatTensor, Item, PackIndices, Poisoned
from intarsia.ir.dtypes import I64, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Value
from intarsia.ir.ops import ArgReduce
from intarsia.ir.ops.reduction import accumulated
from intarsia.ir.scalar import Apply, Const, Expr, Index, where
from intarsia.ir.sizes import ZERO, Size, maximum
from intarsia.ir.space import Axis, Space

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def define(builder: Builder, node: ast.Define, scope: Scope) -> Value | FormatTensor:
    """`y[i, j] = value`."""
    return definition(builder, node.binders, node.value, scope, node.span)


def comprehension(builder: Builder, node: ast.Comprehension, scope: Scope) -> Item:
    """`tensor[…](…)`, a tensor; or a reduction, an element within index notation and else a scalar tensor."""
    if node.head.text == "tensor":
        return definition(builder, node.binders, node.body, scope, node.span)
    if node.head.text in ("argmax", "argmin"):
        return arg_reduction(builder, node, scope)
    if scope.frame is None:
        return _space_value(builder, (), node, scope, node.span)
    frame, body = _reduction(builder, node, scope)
    return hoisted(builder, frame, node.head.text, body, scope, node.span)


def definition(
    builder: Builder, binders: Sequence[ast.BinderItem], value: ast.Expression, scope: Scope, span: Span
) -> Value | FormatTensor:
    """A tensor with one dimension for each index."""
    frame = Frame("definition")
    inner = scope.child(frame)
    bind_indices(builder, binders, [value], inner, frame)
    axes = tuple(axis.axis for axis in frame.axes)
    for axis, binder in zip(axes, binders):
        builder.bounds.require_nonnegative(axis.upper, f"the extent of {axis.name}", binder.span)
    return _space_value(builder, axes, value, inner, span)


def _space_value(
    builder: Builder, axes: tuple[Axis, ...], value: ast.Expression, scope: Scope, span: Span
) -> Value | FormatTensor:
    """The op for a body; a body that is one reduction is reduced by the same op, one that is an element of a tensor in
    a format moves its elements."""
    if isinstance(value, ast.Comprehension) and value.head.text in COMBINERS:
        frame, body = _reduction(builder, value, scope)
        combiner = value.head.text
        summed, dtype = accumulated(combiner, body)
        reduced = tuple(axis.axis for axis in frame.axes)
        return builder.compute(Space(axes, summed, dtype, reduced, combiner), span)
    name = value.name if isinstance(value, ast.Name) else ""
    item = builder.evaluate(value, scope)
    if isinstance(item, FormatElement):
        return moved(builder, item.tensor, IndexMap(axes, item.indices), span)
    element = builder.element(item, value.span, name)
    return builder.compute(Space(axes, element, element.dtype), span)


def _reduction(builder: Builder, node: ast.Comprehension, scope: Scope) -> tuple[Frame, Expr]:
    """The indices that a reduction binds, and its body."""
    frame = Frame("reduction", scope.frame)
    inner = scope.child(frame)
    bind_indices(builder, node.binders, [node.body], inner, frame)
    name = node.body.name if isinstance(node.body, ast.Name) else ""
    body = builder.element(builder.evaluate(node.body, inner), node.body.span, name)
    require_reducible(node.head.text, body.dtype, node.body.span)
    return frame, body


# ---------------------------------------------------------------------- binding indices


def bind_indices(
    builder: Builder,
    binders: Sequence[ast.BinderItem],
    bodies: Sequence[ast.Node],
    scope: Scope,
    frame: Frame,
    targets: Sequence[tuple[Value, Sequence[ast.Node]]] = (),
) -> None:
    """Give each index a symbol and a range: what its binder states, else the dimension that it subscripts alone.

    The scope is that of the body; `frame`, its innermost frame, gets the axes. `targets` are the tensors that an update
    writes, with the subscripts.
    """
    for binder in binders:
        _require_new(binder, scope)
    extents = find_extents(builder, binders, bodies, scope, targets)
    for binder in binders:
        name = binder_name(binder)
        if isinstance(binder, ast.Pack):
            if name not in extents.packs:
                if extents.poisoned:
                    raise Poisoned
                message = f"the pack ..{name} subscripts no tensor"
                raise CompileError("E0401", message, binder.span, hint=f"use it, as in x[..{name}]")
            symbols = []
            for position, extent in enumerate(extents.packs[name]):
                symbol = builder.axis_symbol(f"{name}{position}", frame)
                frame.axes.append(IndexAxis(Axis.of(symbol, extent), (ZERO, extent), extent))
                symbols.append(Size.of(symbol))
            scope.bind(f"..{name}", PackIndices(tuple(symbols)), binder.span, "index")
            continue
        symbol = builder.axis_symbol(name, frame)
        alone = extents.sizes.get(name)
        if alone is None and binder.upper is None and extents.poisoned:
            raise Poisoned
        if alone is None and binder.upper is None and extents.mismatch is not None:
            raise extents.mismatch
        axis = _range(builder, binder, symbol, alone, scope, frame)
        frame.axes.append(axis)
        scope.bind(name, Size.of(symbol), binder.name.span, "index")


def _require_new(binder: ast.BinderItem, scope: Scope) -> None:
    if isinstance(binder, ast.Pack):
        return
    name = binder.name.text
    found = scope.find(name)
    if found is None:
        return
    letters = [c for c in "ijklmnpqrstuvw" if scope.find(c) is None]
    what = {"index": "an index", "counter": "a loop counter", "dimension": "a dimension"}.get(found.kind, "a value")
    hint = f"use another letter, such as {letters[0]}" if letters else "use another name"
    message = f"the index `{name}` has the name of {what}"
    raise CompileError("E0405", message, binder.name.span, hint=hint, notes=[(f"`{name}` is {what} here", found.span)])


def _range(
    builder: Builder, binder: ast.Binder, symbol: str, alone: Size | None, scope: Scope, frame: Frame
) -> IndexAxis:
    """The range of an index, and a hull that depends on no other index."""
    name = binder.name.text
    if binder.upper is None:
        if alone is None:
            hint = f"state its range, as in [{name} < N], or subscript a dimension with {name} alone"
            raise CompileError("E0401", f"nothing says how far the index `{name}` runs", binder.span, hint=hint)
        return IndexAxis(Axis.of(symbol, alone), (ZERO, alone), alone)
    lower = ZERO
    if binder.lower is not None:
        lower = builder.integer(builder.evaluate(binder.lower, scope), binder.lower.span, "a bound")
    upper = builder.integer(builder.evaluate(binder.upper, scope), binder.upper.span, "a bound")
    axis = Axis(symbol, lower, upper)
    if frame.kind == "definition":
        _require_plain(builder, axis, name, binder, frame)
    counters = builder.bounds.counters
    least, most = bound(lower, frame, False, counters), bound(upper - 1, frame, True, counters)
    if most is None:
        return IndexAxis(axis, None if alone is None else (ZERO, alone), alone)
    return IndexAxis(axis, (ZERO if least is None else least, most + 1), alone)


def _require_plain(builder: Builder, axis: Axis, name: str, binder: ast.Binder, frame: Frame) -> None:
    """The extent of a dimension of a definition begins at 0 and depends on neither indices nor data."""
    if axis.lower != ZERO:
        hint = f"write {name} < {axis.upper - axis.lower}, and {name} + {axis.lower} in the expression"
        raise CompileError("E0407", f"the index `{name}` of a definition begins at 0", binder.span, hint=hint)
    others = sorted(axis.upper.symbols & frame.names())
    if others:
        hint = f"state the whole extent, and use where({name} < …, …, 0)"
        raise CompileError(
            "E0407", f"the extent of `{name}` depends on the index `{others[0]}`", binder.span, hint=hint
        )
    if counters := sorted(axis.upper.symbols & builder.bounds.counters.keys()):
        message = f"the extent of `{name}` depends on the loop counter `{counters[0]}`"
        hint = "a shape is known before the program runs: state the whole extent, and use where"
        raise CompileError("E0407", message, binder.span, hint=hint)
    if axis.upper.opaques:
        hint = "a shape is known before the data: use a dimension that is large enough"
        raise CompileError("E0407", f"the extent of `{name}` depends on data", binder.span, hint=hint)


# ---------------------------------------------------------------------- reductions within expressions


def hoisted(builder: Builder, frame: Frame, combiner: str, body: Expr, scope: Scope, span: Span) -> Expr:
    """A reduction inside a larger expression: an op of its own over the indices around it that it uses, and the element
    of its result that belongs to this place."""
    summed, dtype = accumulated(combiner, body)
    neutral = Const(COMBINERS[combiner].neutral(summed.dtype), summed.dtype)
    reduced = tuple(axis.axis for axis in frame.axes)
    value, indices = _over_outer_axes(builder, frame, reduced, summed, neutral, combiner, dtype, span)
    return builder.load(value, indices)


def _over_outer_axes(
    builder: Builder,
    frame: Frame,
    reduced: tuple[Axis, ...],
    body: Expr,
    neutral: Const,
    combiner: str | None,
    dtype: DType,
    span: Span,
) -> tuple[Value, list[Size]]:
    """Compute a body for all values of the indices around `frame` that it uses.

    Gives the tensor, and the subscripts of the element for the present values. Where the body is in bounds only under
    conditions of the frames around, they go with it.
    """
    if frame.guarded:
        held = _conjunction([g.condition for g in frame.outer_guards()])
        body = where(held, body, neutral)
        reduced = tuple(_guarded_bounds(axis, held) for axis in reduced)
    used = body.symbols.union(*(a.lower.symbols | a.upper.symbols for a in reduced))
    axes: list[Axis] = []
    indices: list[Size] = []
    shifts: dict[str, Size] = {}
    for axis in (a for a in frame.outer_axes() if a.name in used):
        lower, extent = _hull(builder, axis, span)
        axes.append(Axis.of(axis.name, extent))
        indices.append(Size.of(axis.name) - lower)
        shifts[axis.name] = Size.of(axis.name) + lower
    if combiner is None:
        for own in (a.axis for a in frame.axes):
            axes.append(Axis.of(own.name, own.extent))
            shifts[own.name] = Size.of(own.name) + own.lower
    space = Space(tuple(axes), body, dtype, reduced, combiner)
    return builder.compute(space.substitute(shifts), span), indices


def _hull(builder: Builder, axis: IndexAxis, span: Span) -> tuple[Size, Size]:
    """Where a range that contains an index begins, and its extent. Raises E0902 where none is known."""
    if axis.hull is None:
        hint = "give the inner reduction a definition of its own, with a range that is known"
        message = f"the range of `{axis.name}` depends on data, and a reduction inside uses it"
        raise CompileError("E0902", message, span, hint=hint)
    lower, upper = axis.hull
    extent = upper - lower
    return lower, extent if builder.bounds.holds(extent) is True else maximum(extent, 0)


def _conjunction(conditions: Sequence[Expr]) -> Expr:
    held = conditions[0]
    for condition in conditions[1:]:
        held = Apply("and", (held, condition))
    return held


def _guarded_bounds(axis: Axis, held: Expr) -> Axis:
    """Bounds that read data are read only where the conditions around hold; elsewhere they are 0."""

    def guarded(bound: Size) -> Size:
        if not bound.opaques:
            return bound
        return bound.substitute({}, lambda value: to_size(where(held, value, Const(0, value.dtype))))

    return dataclasses.replace(axis, lower=guarded(axis.lower), upper=guarded(axis.upper))


def arg_reduction(builder: Builder, node: ast.Comprehension, scope: Scope) -> Item:
    """`argmax[k](…)`: the elements as a tensor along `k`, then the index of the winner."""
    which = node.head.text
    if len(node.binders) != 1 or isinstance(node.binders[0], ast.Pack):
        message = f"{which} takes one index"
        raise CompileError("E0407", message, node.span, hint="flatten the dimensions first: reshape(x, (-1,))")
    frame, body = _reduction(builder, node, scope)
    axis = frame.axes[0]
    dtype = body.dtype
    worst = Const(dtype.least if which == "argmax" else dtype.greatest, dtype)
    if not axis.is_rectangular:
        return _arg_of_range(builder, frame, which, body, worst, scope, node.span)
    builder.bounds.require_nonnegative(axis.axis.extent, f"the extent of {axis.name}", node.binders[0].span)
    if not builder.bounds.may_be_nonnegative(axis.axis.extent - 1, f"{which} over no elements", node.span):
        raise CompileError("E0207", f"{which} over no elements: {axis.name} has an empty range", node.span)
    values, indices = _over_outer_axes(builder, frame, (), body, worst, None, dtype, node.span)
    found = builder.add(ArgReduce(values, which, len(indices), span=node.span)).value
    if scope.frame is None and axis.axis.lower == ZERO:
        return found
    element = builder.load(found, indices)
    return element if axis.axis.lower == ZERO else Apply("add", (element, Index(axis.axis.lower)))


def _arg_of_range(
    builder: Builder, frame: Frame, which: str, body: Expr, worst: Const, scope: Scope, span: Span
) -> Expr:
    """Over a range that depends on other indices or on data: the least index of an element that is the best one, or
    NaN; an empty range gives the upper bound of all."""
    best = hoisted(builder, frame, which[3:], body, scope, span)
    here = Index(Size.of(frame.axes[0].name))
    wins: Expr = Apply("eq", (body, best))
    if body.dtype.is_float:
        wins = Apply("or", (wins, Apply("isnan", (body,))))
    position = where(wins, here, Const(I64.greatest, I64))
    return hoisted(builder, frame, "min", position, scope, span)


# ---------------------------------------------------------------------- conditions


def guards_of(builder: Builder, condition: Item, frame: Frame) -> tuple[list[Guard], list[Guard]]:
    """What holds where a condition does, and where it does not: comparisons of integers that it joins by `and`."""
    if not isinstance(condition, EXPRESSIONS):
        return [], []
    holds: list[Guard] = []
    stack: list[Expr] = [condition]
    while stack:
        match stack.pop():
            case Apply("and", (left, right)):
                stack += [right, left]
            case other:
                if facts := _facts(builder, other, False, frame):
                    holds.append(Guard(other, facts))
    fails = _facts(builder, condition, True, frame)
    return holds, [Guard(Apply("not", (condition,)), fails)] if fails else []


_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


def _facts(builder: Builder, condition: Expr, negated: bool, frame: Frame) -> tuple[Size, ...]:
    """Sizes that are at least 0 where a comparison of integers holds (or does not)."""
    match condition:
        case Apply("not", (inner,)):
            return _facts(builder, inner, not negated, frame)
        case Apply(name, (left, right)) if name in _OPPOSITE and left.dtype.is_integer:
            a, b = to_size(left), to_size(right)
            match _OPPOSITE[name] if negated else name:
                case "lt":
                    return (b - a - 1,)
                case "le":
                    return (b - a,)
                case "gt":
                    return (a - b - 1,)
                case "ge":
                    return (a - b,)
                case "eq":
                    return (a - b, b - a)
                case "ne":  # at the end of a range, different is less or greater
                    return next(((d - 1,) for d in (a - b, b - a) if builder.bounds.proves(d, frame)), ())
    return ()

"""How far an index runs where its binder does not say: as far as the dimension that it subscripts alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intarsia.dsl import ast
from intarsia.dsl.evaluation.operators import sharing_hint
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import (
    FormatTensor,
    Item,
    ListElement,
    Poisoned,
    Struct,
    StructList,
    is_weak,
    shape_of,
)
from intarsia.ir.dtypes import dtype
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.sizes import ZERO, Size

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


@dataclass
class Extents:
    """The extent of each index, and those of each pack of indices. Those in `stated` have a range of their own."""

    stated: frozenset[str] = frozenset()
    sizes: dict[str, Size] = field(default_factory=dict)
    packs: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    poisoned: bool = False  # a tensor that they subscript is known to be wrong
    mismatch: CompileError | None = None  # a subscript of an index with too few or too many others
    origins: dict[str, Span] = field(default_factory=dict)


def find_extents(
    builder: Builder,
    binders: Sequence[ast.BinderItem],
    bodies: Sequence[ast.Node],
    scope: Scope,
    targets: Sequence[tuple[Value, Sequence[ast.Node]]] = (),
) -> Extents:
    """Look for the dimensions that indices subscript alone. Raises E0402 where two of them differ, unless the index has
    a range of its own: then it is one of these."""
    found = Extents(frozenset(binder_name(b) for b in binders if isinstance(b, ast.Binder) and b.upper is not None))
    wanted = {binder_name(b) for b in binders}
    for value, items in targets:
        _note(builder, found, wanted, value.tensor.shape, items)
    for body in bodies:
        for node in ast.walk(body):
            if isinstance(node, ast.Subscript) and _mentions(node.items, wanted):
                try:
                    shape = _shape(builder, node.value, scope, wanted)
                except Poisoned:
                    found.poisoned = True
                    continue
                if shape is not None:
                    _note(builder, found, wanted, shape, node.items)
                    found.mismatch = found.mismatch or _mismatch(node, shape)
    return found


def binder_name(binder: ast.BinderItem) -> str:
    """The name that a binder binds, that of a pack without its points."""
    return binder.name if isinstance(binder, ast.Pack) else binder.name.text


def _mentions(items: Sequence[ast.Node], wanted: set[str]) -> bool:
    return any(isinstance(item, (ast.Name, ast.Pack)) and item.name in wanted for item in items)


def _note(
    builder: Builder, found: Extents, wanted: set[str], shape: tuple[Size, ...], items: Sequence[ast.Node]
) -> None:
    """Note the dimensions that bare indices among subscripts stand for."""
    packs = sum(isinstance(item, ast.Pack) for item in items)
    plain = len(items) - packs
    for position, extents in _dimensions(items, shape, found):
        item = items[position]
        if isinstance(item, ast.Pack) and item.name in wanted:
            first = found.packs.setdefault(item.name, extents)
            if len(first) != len(extents) or any(builder.bounds.compare(a, b) is False for a, b in zip(first, extents)):
                message = f"..{item.name} stands for [{_list(first)}] and for [{_list(extents)}]"
                raise CompileError("E0402", message, item.span)
        elif isinstance(item, ast.Name) and item.name in wanted and (packs or plain == len(shape)):
            _note_size(builder, found, item, extents[0])


def _mismatch(node: ast.Subscript, shape: tuple[Size, ...]) -> CompileError | None:
    """What is wrong with the number of subscripts, in case nothing else says how far an index runs."""
    if len(node.items) == len(shape) or any(isinstance(i, (ast.Pack, ast.Slice, ast.Ellipsis)) for i in node.items):
        return None
    return wrong_count(node, len(node.items), shape)


def wrong_count(node: ast.Subscript, count: int, shape: tuple[Size, ...]) -> CompileError:
    """An element with too few or too many subscripts."""
    text = node.span.source.text[node.span.start : node.span.end]
    dims = "1 dimension" if len(shape) == 1 else f"{len(shape)} dimensions"
    given = "1 subscript" if count == 1 else f"{count} subscripts"
    hint = "in index notation every dimension has a subscript; a row is x[i, j] with j bound as well"
    message = f"`{text}` has {given}, and the tensor has {dims}: [{_list(shape)}]"
    return CompileError("E0406", message, node.span, hint=hint)


def _note_size(builder: Builder, found: Extents, item: ast.Name, extent: Size) -> None:
    first = found.sizes.setdefault(item.name, extent)
    origin = found.origins.setdefault(item.name, item.span)
    if item.name not in found.stated and builder.bounds.compare(first, extent) is False:
        show = builder.bounds.show
        message = f"the index `{item.name}` runs over dimensions {show(first)} and {show(extent)}, which differ"
        hint = sharing_hint(first, extent) or f"state its range, as in [{item.name} < {first}]"
        notes = [(f"{item.name} runs to {show(first)} here", origin)]
        raise CompileError("E0402", message, item.span, hint=hint, notes=notes)


def _dimensions(
    items: Sequence[ast.Node], shape: tuple[Size, ...], found: Extents
) -> Iterator[tuple[int, tuple[Size, ...]]]:
    """The dimensions of each subscript: one, or what is left for a pack. Of several packs, all but one are known."""
    unknown = [p for p, item in enumerate(items) if isinstance(item, ast.Pack) and item.name not in found.packs]
    known = sum(len(found.packs[i.name]) if isinstance(i, ast.Pack) else 1 for i in items if not _in(i, items, unknown))
    if len(unknown) > 1 or known > len(shape):
        return
    start = 0
    for position, item in enumerate(items):
        if position in unknown:
            count = len(shape) - known
        else:
            count = len(found.packs[item.name]) if isinstance(item, ast.Pack) else 1
        if start + count > len(shape):
            return
        yield position, shape[start : start + count]
        start += count


def _in(item: ast.Node, items: Sequence[ast.Node], positions: list[int]) -> bool:
    return any(items[p] is item for p in positions)


def _list(sizes: tuple[Size, ...]) -> str:
    return ", ".join(map(str, sizes))


def _shape(builder: Builder, node: ast.Expression, scope: Scope, wanted: set[str]) -> tuple[Size, ...] | None:
    """The shape of what is subscripted, or None where it cannot be said here; a list has its length."""
    item = _path(node, scope)
    if item is None and not isinstance(node, ast.Field) and _is_closed(node, scope, wanted):
        item = evaluate_base(builder, node, scope)
    if isinstance(item, StructList):
        return (item.length,)
    if is_weak(item):
        return ()
    return shape_of(item) if isinstance(item, (Value, ListElement, FormatTensor)) else None


def _path(node: ast.Expression, scope: Scope) -> Item:
    """What a name with fields and list subscripts is, whatever the subscripts are; None for other expressions."""
    match node:
        case ast.Name(name):
            binding = scope.lookup(name)
            return None if binding is None else binding.item
        case ast.Field(value, name):
            inner = _path(value, scope)
            return inner.fields.get(name.text) if isinstance(inner, (Struct, FormatTensor)) else None
        case ast.Subscript(value, (_,)):
            inner = _path(value, scope)
            return inner.element.at(ZERO) if isinstance(inner, StructList) else None
    return None


def _is_closed(node: ast.Expression, scope: Scope, wanted: set[str]) -> bool:
    """Does an expression use no index, neither of those that are being bound nor one bound further in?"""
    inside = {
        (b.name if isinstance(b, ast.Pack) else b.name.text)
        for n in ast.walk(node)
        if isinstance(n, ast.Comprehension)
        for b in n.binders
    }
    if isinstance(node, ast.Name):
        return node.name not in wanted  # a name that is not bound: its evaluation says so
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and n.name not in inside:
            binding = scope.find(n.name)
            if n.name in wanted or (binding is not None and binding.kind == "index"):
                return False
            if binding is None and scope.file.constant(n.name) is None and not _is_type(n.name):
                return False
    return True


def _is_type(name: str) -> bool:
    return dtype(name) is not None


def evaluate_base(builder: Builder, node: ast.Expression, scope: Scope) -> Item:
    """The value of an expression that is subscripted in index notation; it is evaluated once if it uses no index."""
    if isinstance(node, (ast.Name, ast.Field, ast.Subscript)):
        return builder.evaluate(node, scope)
    if node not in scope.memo:
        item = builder.evaluate(node, scope)
        if not isinstance(item, (Value, ListElement)):
            return item
        scope.memo[node] = item
    return scope.memo[node]

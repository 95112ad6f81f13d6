"""Operators and scalar functions on whatever mixture of literals, sizes, elements and tensors they are given."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intarsia.dsl.semantics.bounds import Bounds
from intarsia.dsl.semantics.literals import adapt, default_dtype
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import (
    EXPRESSIONS,
    FormatElement,
    FormatTensor,
    Item,
    ListElement,
    Struct,
    StructList,
    describe,
    tensor_of,
)
from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Value
from intarsia.ir.ops import Elementwise
from intarsia.ir.scalar import Apply, Expr, loads
from intarsia.ir.sizes import ONE, Size, maximum, minimum, product

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder

SYMBOLS = {
    "+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "**": "pow",
    "==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge",
    "and": "and", "or": "or",
}  # fmt: skip
"""The scalar function of each binary operator but `@`."""

_SYMBOL_OF = {name: symbol for symbol, name in SYMBOLS.items()} | {"neg": "-", "not": "not"}

_ON_SIZES: dict[str, Callable[..., Size]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "neg": operator.neg,
    "minimum": minimum,
    "maximum": maximum,
}

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}

_ON_INTEGERS: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "abs": abs,
    "minimum": min,
    "maximum": max,
    "sign": lambda a: (a > 0) - (a < 0),
    "bit_and": operator.and_,
    "bit_or": operator.or_,
    "bit_xor": operator.xor,
    "bit_not": operator.invert,
}

_FOR_TRUTH = "`and`, `or` and `not` are for truth values: compare first, or use bit_and, bit_or, bit_not"

Part = tuple[Item, Span]


def apply_function(builder: Builder, scope: Scope, name: str, parts: Sequence[Part], span: Span) -> Item:
    """The scalar function `name` of items, each with its span.

    Literals give a literal, sizes a size, elements an element; as soon as one is a tensor the result is one.
    """
    items = [item for item, _ in parts]
    if (folded := _fold(name, items)) is not None:
        return folded
    parts = [(_resolved(item, name, own), own) for item, own in parts]
    dtype = _common_dtype(name, parts, span)
    flags = (0,) if name == "where" else ()
    dtypes = [BOOL if position in flags else dtype for position in range(len(parts))]
    _require_accepted(name, dtype, parts, span)
    if _is_elementwise(scope, parts, span):
        return Apply(name, tuple(_as_element(builder, part, d) for part, d in zip(parts, dtypes)))
    values = [builder.as_value(item, own, d) for (item, own), d in zip(parts, dtypes)]
    aligned = broadcast(builder, values, span, _shown(name))
    return builder.add(Elementwise(name, tuple(aligned), span=span)).value


# ---------------------------------------------------------------------- what needs no tensor


def _fold(name: str, items: list[Item]) -> Item:
    """The result where every item is a literal or a size, or None."""
    if any(item is None for item in items) and name in ("eq", "ne") and len(items) == 2:
        return (items[0] is items[1]) == (name == "eq")
    if name in ("eq", "ne") and all(isinstance(item, (DType, str)) for item in items):
        return (items[0] == items[1]) == (name == "eq")
    if items and all(isinstance(item, bool) for item in items):
        return _fold_truth(name, items)
    if items and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        return _fold_numbers(name, items)
    if all(isinstance(item, (int, Size)) and not isinstance(item, bool) for item in items):
        return _fold_sizes(name, items)
    return None


def _fold_truth(name: str, items: list[Any]) -> Item:
    match name:
        case "not":
            return not items[0]
        case "and":
            return bool(items[0] and items[1])
        case "or":
            return bool(items[0] or items[1])
        case "eq" | "ne":
            return _COMPARE[name](*items)
    return None


def _fold_numbers(name: str, items: list[Any]) -> Item:
    if name in _COMPARE:
        return _COMPARE[name](*items)
    if all(isinstance(item, int) for item in items):
        if name in _ON_INTEGERS:
            return _ON_INTEGERS[name](*items)
        if name == "pow" and 0 <= items[1] <= 1024:
            return int(items[0] ** items[1])
    function = FUNCTIONS[name]
    if function.domain == "float" or name in ("pow", *_ON_INTEGERS):
        if name.startswith("bit_"):
            return None
        with np.errstate(all="ignore"):
            result = function.reference(*(np.float64(item) for item in items))
        return bool(result) if function.result_dtype == BOOL else float(result)
    return None


def _fold_sizes(name: str, items: list[Any]) -> Item:
    sizes = [Size.of(item) for item in items]
    if name in _ON_SIZES:
        return _ON_SIZES[name](*sizes)
    if name == "pow" and (exponent := sizes[1].constant) is not None and 0 <= exponent <= 64:
        return product([sizes[0]] * exponent)
    if name in _COMPARE and (difference := (sizes[0] - sizes[1]).constant) is not None:
        return _COMPARE[name](difference, 0)
    return None


# ---------------------------------------------------------------------- dtypes


def _resolved(item: Item, name: str, span: Span) -> Item:
    if isinstance(item, (int, float, Size, Value, ListElement, *EXPRESSIONS)):
        return item
    if isinstance(item, (FormatTensor, FormatElement)):
        hint = "a format is storage: dequantize(…) gives its values as f32"
        raise CompileError("E0202", f"{_shown(name)} of {item}", span, hint=hint)
    hint = "a tuple is taken apart first: a, b = …" if isinstance(item, tuple) else ""
    if isinstance(item, (Struct, StructList)):
        hint = "map(f)(p, q) is f of each tensor of p with the one of q"
    raise CompileError("E0202", f"{_shown(name)} of {describe(item)}", span, hint=hint)


def _common_dtype(name: str, parts: Sequence[Part], span: Span) -> DType:
    """The dtype of the arguments: that of those which have one, else the default of the literals."""
    if name == "where":
        found = tensor_of(parts[0][0])
        condition = found.dtype if found is not None else default_dtype(parts[0][0])
        if condition != BOOL:
            message = f"the condition of where is {describe(parts[0][0])}, not bool"
            raise CompileError("E0202", message, parts[0][1], hint="compare: where(x != 0, …, …)")
        parts = parts[1:]
    typed = [(found.dtype, item, own) for item, own in parts if (found := tensor_of(item)) is not None]
    if typed:
        first, _, first_span = typed[0]
        for other, _, own in typed[1:]:
            if other != first:
                raise _differ(name, parts, (first, first_span), (other, own), span)
        return first
    defaults = {default_dtype(item) for item, _ in parts}
    if len(defaults) == 1:
        return defaults.pop()
    floating = next((d for d in defaults if d.is_float), None)
    return floating if floating is not None else default_dtype(parts[0][0])


def _differ(
    name: str, parts: Sequence[Part], first: tuple[DType, Span], other: tuple[DType, Span], span: Span
) -> CompileError:
    """E0202: two arguments have different dtypes. The hint casts the one of fewer digits."""
    texts = " and ".join(describe(item) for item, _ in parts)
    if (other[0].is_float, other[0].bits) <= (first[0].is_float, first[0].bits):
        first, other = other, first
    source = first[1].source.text[first[1].start : first[1].end]
    shown = source if len(source) <= 30 and "\n" not in source else "…"
    hint = f"nothing is converted unasked: cast one of them, as in {other[0]}({shown})"
    if FUNCTIONS[name].domain == "boolean":
        hint = _FOR_TRUTH
    return CompileError("E0202", f"{_shown(name)} of {texts}: the dtypes differ", span, hint=hint)


def _require_accepted(name: str, dtype: DType, parts: Sequence[Part], span: Span) -> None:
    """Raise E0202 where the function is not defined for a dtype."""
    function = FUNCTIONS[name]
    narrow = dtype.is_narrow and name != "where"
    if function.accepts(dtype) and not narrow:
        return
    if narrow:
        hint = f"{dtype} is storage: cast it up first, as in f32(x)"
    elif name == "div" and dtype.is_integer:
        hint = "`//` divides integers, rounding down; or cast them: f32(a) / f32(b)"
    elif function.domain == "boolean":
        hint = _FOR_TRUTH
    elif dtype == BOOL:
        hint = "cast it first, as in f32(x) or i32(x)"
    elif function.domain == "float":
        hint = f"{name} is for floats: cast it first, as in f32(x)"
    else:
        hint = f"{name} is for integers"
    texts = " and ".join(describe(item) for item, _ in parts)
    raise CompileError("E0202", f"{_shown(name)} is not defined for {dtype}: it is given {texts}", span, hint=hint)


def _shown(name: str) -> str:
    symbol = _SYMBOL_OF.get(name)
    return f"`{symbol}`" if symbol else name


# ---------------------------------------------------------------------- tensors or elements


def _is_elementwise(scope: Scope, parts: Sequence[Part], span: Span) -> bool:
    """Is the result an element? It is where none is a tensor, or all tensors are scalars beside an element."""
    values = [(item, own) for item, own in parts if isinstance(item, (Value, ListElement))]
    if not values:
        return True
    elements = [item for item, _ in parts if isinstance(item, EXPRESSIONS)]
    if scope.frame is None or not (elements or any(_is_index(item, scope) for item, _ in parts)):
        return False
    ranked = [(item, own) for item, own in values if item.tensor.rank]
    if not ranked:
        return True
    if any(is_open(e, scope) for e in elements) or any(_is_index(item, scope) for item, _ in parts):
        item, own = ranked[0]
        text = own.source.text[own.start : own.end]
        name = text if text.isidentifier() else ""
        letters = ", ".join("ijklmn"[d % 6] for d in range(item.tensor.rank))
        hint = f"write {name or '(…)'}[{letters}]: every tensor has one subscript for each dimension"
        what = f"`{name}`" if name else "this"
        raise CompileError("E0404", f"{what} is {item.tensor}, beside elements of index notation", own, hint=hint)
    return False


def is_open(element: Expr, scope: Scope) -> bool:
    """Does an element depend on an index or load something?"""
    names = scope.frame.names() if scope.frame is not None else set()
    return not element.symbols.isdisjoint(names) or any(True for _ in loads(element))


def _is_index(item: Item, scope: Scope) -> bool:
    return isinstance(item, Size) and scope.frame is not None and not item.symbols.isdisjoint(scope.frame.names())


def _as_element(builder: Builder, part: Part, dtype: DType) -> Expr:
    item, span = part
    if isinstance(item, (int, float, Size)):
        return adapt(item, dtype, span)
    return builder.element(item, span)


def common_shape(
    bounds: Bounds, shapes: Sequence[tuple[Size, ...]], complain: Callable[[Size, Size], CompileError]
) -> list[Size]:
    """The shape to which all broadcast by NumPy's rule: extents that are the number 1 stretch."""
    rank = max(map(len, shapes))
    common: list[Size] = [ONE] * rank
    for shape in shapes:
        for position, extent in enumerate(shape, rank - len(shape)):
            if common[position] == ONE:
                common[position] = extent
            elif extent != ONE and bounds.compare(common[position], extent) is False:
                raise complain(common[position], extent)
    return common


def _written_alike(shape: tuple[Size, ...], common: Sequence[Size]) -> list[Size]:
    """A shape with the sizes of the common one where it does not stretch."""
    own = common[len(common) - len(shape) :]
    return [e if e == ONE else c for e, c in zip(shape, own)]


def broadcast(builder: Builder, values: Sequence[Value], span: Span, what: str) -> list[Value]:
    """Tensors whose sizes are written alike wherever they are equal. Raises E0204 if they do not broadcast."""

    def complain(left: Size, right: Size) -> CompileError:
        types = " and ".join(str(v.type) for v in values)
        show = builder.bounds.show
        message = f"{what} of {types}: dimensions {show(left)} and {show(right)} differ"
        return CompileError("E0204", message, span, hint=sharing_hint(left, right))

    shapes = [v.tensor.shape for v in values]
    common = common_shape(builder.bounds, shapes, complain)
    return [builder.reshaped(v, _written_alike(s, common), span) for v, s in zip(values, shapes)]


def align_batches(builder: Builder, left: Value, right: Value, span: Span, what: str) -> tuple[Value, Value]:
    """Operands of a matrix product whose leading dimensions are written alike wherever they are equal."""

    def complain(a: Size, b: Size) -> CompileError:
        show = builder.bounds.show
        return CompileError(
            "E0204", f"{what}: leading dimensions {show(a)} and {show(b)} differ", span, hint=sharing_hint(a, b)
        )

    batches = [v.tensor.shape[:-2] for v in (left, right)]
    common = common_shape(builder.bounds, batches, complain)
    aligned = [
        builder.reshaped(v, (*_written_alike(b, common), *v.tensor.shape[len(b) :]), span)
        for v, b in zip((left, right), batches)
    ]
    return aligned[0], aligned[1]


def sharing_hint(left: Size, right: Size) -> str:
    """What to do about two dimensions that differ."""
    if not left.symbols.isdisjoint(right.symbols):
        return ""
    a, b = left.as_name, right.as_name
    if a is not None and b is not None:
        return f"different names never match: if they are always equal, name both {a} where they are declared"
    if a is not None or b is not None:
        name, size = (a, right) if a is not None else (b, left)
        return f"{name} may be any size: declare it as {size} if it is always that"
    return ""

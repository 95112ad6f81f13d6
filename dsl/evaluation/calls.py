"""Calls: casts, built-in functions, and functions of the program, whose bodies are evaluated in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from intarsia.dsl import ast
from intarsia.dsl.evaluation import structs
from intarsia.dsl.evaluation.fitting import fit_parameter
from intarsia.dsl.evaluation.index import guards_of
from intarsia.dsl.evaluation.operators import is_open
from intarsia.dsl.primitives import PRIMITIVES
from intarsia.dsl.primitives.arguments import Argument, bind_arguments
from intarsia.dsl.semantics.literals import adapt, default_dtype
from intarsia.dsl.semantics.scope import File, Scope, suggest
from intarsia.dsl.semantics.signature import ParameterInfo, Signature
from intarsia.dsl.semantics.types import GenericDType, TensorPattern, accepts
from intarsia.dsl.semantics.unify import Unifier, unknown
from intarsia.dsl.semantics.values import (
    EXPRESSIONS,
    Format,
    FormatElement,
    FormatTensor,
    Item,
    ListElement,
    PackDims,
    describe,
)
from intarsia.ir.dtypes import ALL_NAMES, BOOL, F32, I64, DType, dtype
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Value
from intarsia.ir.ops import Cast
from intarsia.ir.scalar import Apply, Const, Expr, Index, cast, loads
from intarsia.ir.scalar import Cast as CastExpr
from intarsia.ir.sizes import Size
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def call(builder: Builder, node: ast.Call, scope: Scope) -> Item:
    """The value of `f(…)`: a name in scope, a dtype, a function of the file, a built-in one, in this order."""
    name = node.function.text
    if (bound := scope.lookup(name)) is not None:
        if isinstance(bound.item, DType):
            return _cast_call(builder, bound.item, node, scope)
        hint = (
            f"`{name}` names a value since {bound.span}; give that value another name"
            if _is_callable(builder, name, scope)
            else "a product is written with `*`"
        )
        raise CompileError("E0317", f"`{name}` is {describe(bound.item)}, which cannot be called", node.span, hint=hint)
    if (found := scope.file.function(name)) is not None:
        return call_function(builder, *found, node, scope)
    if (struct := scope.file.struct(name)) is not None:
        return structs.construct(builder, *struct, *_arguments(builder, node, scope), node.span)
    if (element := dtype(name)) is not None:
        return _cast_call(builder, element, node, scope)
    if name in PRIMITIVES:
        if name == "where" and scope.frame is not None:
            return _guarded_where(builder, node, scope)
        return call_primitive(builder, name, *_arguments(builder, node, scope), node.span, scope)
    if (found := _in_prelude(builder, name)) is not None:
        return call_function(builder, *found, node, scope)
    if name in ast.TRANSFORMS:
        hint = f"call what it gives where it is made: {name}(…)(x, w)"
        raise CompileError("E0322", f"{name} gives a function, and a function is no value", node.span, hint=hint)
    candidates = [*scope.file.names(), *PRIMITIVES, *ALL_NAMES[:12]]
    if builder.prelude is not None:
        candidates += [n for n in builder.prelude.names() if not n.startswith("_")]
    raise CompileError("E0316", f"no function is named `{name}`", node.function.span, hint=suggest(name, candidates))


def call_primitive(
    builder: Builder,
    name: str,
    positional: Sequence[Argument],
    keywords: Mapping[str, Argument],
    span: Span,
    scope: Scope,
) -> Item:
    """A built-in function that is no text of the library, on arguments. Raises E0315."""
    primitive = PRIMITIVES[name]
    return primitive.build(builder, scope, bind_arguments(primitive, positional, keywords, span), span)


def is_built_in(builder: Builder, name: str) -> bool:
    """Is there a built-in function of that name?"""
    return name in PRIMITIVES or _in_prelude(builder, name) is not None


def _in_prelude(builder: Builder, name: str) -> tuple[ast.Function, File] | None:
    """A function of the standard library. Those that begin with `_` are its own."""
    if builder.prelude is None or name.startswith("_"):
        return None
    return builder.prelude.function(name)


def _is_callable(builder: Builder, name: str, scope: Scope) -> bool:
    """Would a name that stands for a value be a function without it?"""
    return is_built_in(builder, name) or scope.file.function(name) is not None


def _arguments(builder: Builder, node: ast.Call, scope: Scope) -> tuple[Sequence[Argument], Mapping[str, Argument]]:
    return positional_arguments(builder, node, scope), keyword_arguments(builder, node, scope)


def positional_arguments(builder: Builder, node: ast.Call | ast.Derived, scope: Scope) -> list[Argument]:
    """The arguments before the first keyword."""
    return [Argument(builder.evaluate(a, scope), a.span) for a in node.positional]


def keyword_arguments(builder: Builder, node: ast.Call | ast.Derived, scope: Scope) -> dict[str, Argument]:
    """The arguments that are given by name. Raises E0315 for one that is given twice."""
    found: dict[str, Argument] = {}
    for keyword in node.keywords:
        if keyword.name.text in found:
            raise CompileError("E0315", f"`{keyword.name}` is given twice", keyword.span)
        found[keyword.name.text] = Argument(builder.evaluate(keyword.value, scope), keyword.value.span)
    return found


# ---------------------------------------------------------------------- casts


def _cast_call(builder: Builder, element: DType, node: ast.Call, scope: Scope) -> Item:
    if len(node.positional) != 1 or node.keywords:
        hint = f"a cast takes one value: {element}(x)"
        raise CompileError("E0315", f"{element} is given {len(node.positional)} arguments", node.span, hint=hint)
    return cast_item(builder, element, builder.evaluate(node.positional[0], scope), node.span, scope)


def cast_item(builder: Builder, element: DType, item: Item, span: Span, scope: Scope) -> Item:
    """A conversion. A literal is converted when the program is compiled."""
    match item:
        case bool() | int() | float():
            return _cast_literal(element, item, span)
        case Size():
            return CastExpr(element, Index(item)) if element != I64 else Index(item)
        case Value() | ListElement():
            if scope.frame is not None and not item.tensor.rank:
                return cast(element, builder.element(item, span))
            value = builder.as_value(item, span)
            return value if value.dtype == element else builder.add(Cast(value, element, span=span)).value
        case FormatTensor() | FormatElement():
            hint = "dequantize(w) gives its values as f32"
            raise CompileError("E0202", f"{element} of {item}", span, hint=hint)
    if isinstance(item, EXPRESSIONS):
        return cast(element, item)
    raise CompileError("E0202", f"{element} of {describe(item)}", span)


def _cast_literal(element: DType, number: bool | int | float, span: Span) -> Expr:
    plain = element.is_float and not element.is_narrow
    if isinstance(number, bool) and element == BOOL:
        return Const(number, BOOL)
    if not isinstance(number, bool) and (plain or (element.is_integer and isinstance(number, int))):
        try:
            return adapt(number, element, span)
        except CompileError:
            pass  # it does not fit: the cast says what becomes of it
    return CastExpr(element, adapt(number, default_dtype(number), span))


# ---------------------------------------------------------------------- where


def _guarded_where(builder: Builder, node: ast.Call, scope: Scope) -> Item:
    """`where` within index notation: its condition holds while the second and third arguments are evaluated."""
    if len(node.positional) != 3 or node.keywords:
        return call_primitive(builder, "where", *_arguments(builder, node, scope), node.span, scope)
    frame = scope.frame
    assert frame is not None
    condition = builder.evaluate(node.positional[0], scope)
    holds, fails = guards_of(builder, condition, frame)
    items = [condition]
    for branch, guards in zip(node.positional[1:], (holds, fails)):
        count = len(frame.guards)
        frame.guards += guards
        try:
            items.append(builder.evaluate(branch, scope))
        finally:
            del frame.guards[count:]
    arguments = [Argument(i, a.span) for i, a in zip(items, node.positional)]
    return call_primitive(builder, "where", arguments, {}, node.span, scope)


# ---------------------------------------------------------------------- functions of the program


@dataclass(frozen=True)
class Given:
    """An argument together with its parameter."""

    parameter: ParameterInfo
    argument: Argument
    where: str


def call_function(builder: Builder, function: ast.Function, file: File, node: ast.Call, scope: Scope) -> Item:
    """Evaluate the body of a function on the arguments of a call."""
    require_no_recursion(builder, function, node.span)
    positional, keywords = positional_arguments(builder, node, scope), keyword_arguments(builder, node, scope)
    return call_on(builder, function, file, positional, keywords, node.span, scope)


def require_no_recursion(builder: Builder, function: ast.Function, span: Span) -> None:
    """Raise E0318 if a function is being evaluated already."""
    if any(site.function is function for site in builder.calls):
        first = next(i for i, site in enumerate(builder.calls) if site.function is function)
        names = [str(site.function.name) for site in builder.calls[first:]] + [str(function.name)]
        hint = "calls are put in place of themselves; repeat with loop or scan"
        raise CompileError("E0318", f"recursion: {' calls '.join(names)}", span, hint=hint)


def call_on(
    builder: Builder,
    function: ast.Function,
    file: File,
    positional: Sequence[Argument],
    keywords: Mapping[str, Argument],
    span: Span,
    scope: Scope,
) -> Item:
    """Evaluate the body of a function on arguments; `span` is that of the call."""
    signature = builder.signature(function, file)
    keywords = dict(keywords)
    sizes = {name: keywords.pop(name) for name in signature.explicit if name in keywords}
    given = assign_parameters(signature, positional, keywords, span)
    sizes |= _static_sizes(builder, signature, given)
    unifier = _unify(builder, signature, given, sizes, span)
    opened = scope.frame if any(_is_open(a.argument.item, scope) for a in given) else None
    body = Scope(file, frame=opened)
    bind_signature(signature, unifier, body)
    for entry in given:
        item = entry.argument.item
        if entry.parameter.pattern is not None:
            item = fit_parameter(builder, item, entry.parameter.pattern, unifier, entry.where, entry.argument.span)
        body.bind(entry.parameter.name, item, entry.parameter.declaration.name.span)
    return builder.function_body(signature, unifier, body, span)


def _is_open(item: Item, scope: Scope) -> bool:
    if scope.frame is None:
        return False
    if isinstance(item, Size):
        return not item.symbols.isdisjoint(scope.frame.names())
    return isinstance(item, EXPRESSIONS) and is_open(item, scope)


def assign_parameters(
    signature: Signature, positional: Sequence[Argument], keywords: Mapping[str, Argument], span: Span
) -> list[Given]:
    """The argument of each parameter that has one. Raises E0315."""
    name = signature.name
    wanted = ", ".join(p.name for p in signature.parameters)
    if len(positional) > len(signature.parameters):
        message = f"{name} takes {len(signature.parameters)} arguments, and {len(positional)} are given"
        raise CompileError("E0315", message, positional[len(signature.parameters)].span, hint=f"{name}({wanted})")
    known = {p.name for p in signature.parameters}
    for keyword, argument in keywords.items():
        if keyword not in known:
            hint = suggest(keyword, [*known, *signature.explicit]) or f"{name}({wanted})"
            raise CompileError("E0315", f"{name} has no parameter `{keyword}`", argument.span, hint=hint)
    given: list[Given] = []
    for position, parameter in enumerate(signature.parameters):
        where = f"`{parameter.name}` of {name}"
        if position < len(positional):
            if parameter.name in keywords:
                raise CompileError("E0315", f"{where} is given twice", keywords[parameter.name].span)
            given.append(Given(parameter, positional[position], where))
        elif parameter.name in keywords:
            given.append(Given(parameter, keywords[parameter.name], where))
        elif parameter.declaration.default is None:
            raise CompileError("E0315", f"{where} is not given", span, hint=f"{name}({wanted})")
    return given


def _unify(
    builder: Builder, signature: Signature, given: list[Given], sizes: Mapping[str, Argument], span: Span
) -> Unifier:
    unifier = Unifier(builder.bounds, signature.classes)
    for name, argument in sizes.items():
        unifier.sizes[unknown(name)] = builder.integer(argument.item, argument.span, f"the dimension {name}")
    weak: list[Given] = []
    for entry in given:
        pattern, argument = entry.parameter.pattern, entry.argument
        if pattern is None:
            continue
        if isinstance(argument.item, (int, float, Size)):
            weak.append(entry)
        else:
            unifier.match(pattern, argument.item, _named(entry), argument.span)
    for entry in weak:
        _match_weak(unifier, entry, weak)
    unifier.solve()
    for name in signature.explicit:
        if unknown(name) not in unifier.sizes:
            hint = f"give it by name: {signature.name}(…, {name}=64)"
            raise CompileError(
                "E0309", f"no argument decides the dimension {name} of {signature.name}", span, hint=hint
            )
    return unifier


def _static_sizes(builder: Builder, signature: Signature, given: list[Given]) -> dict[str, Argument]:
    """The static parameters that stand in types."""
    found = {e.parameter.name: e.argument for e in given if e.parameter.name in signature.static_sizes}
    for parameter in signature.parameters:
        default = parameter.declaration.default
        if parameter.name in signature.static_sizes and parameter.name not in found and default is not None:
            item = builder.evaluate(default, Scope(signature.file))
            found[parameter.name] = Argument(item, default.span)
    return found


def _named(entry: Given) -> str:
    """The argument as it is written where that is short, for messages."""
    span = entry.argument.span
    text = span.source.text[span.start : span.end]
    is_name = text.replace("_", "").replace(".", "").isalnum() and text not in ("none", "true", "false")
    return f"`{text}`" if is_name else entry.where


def _match_weak(unifier: Unifier, entry: Given, weak: list[Given]) -> None:
    """A literal takes the dtype that the other arguments give, else its default."""
    pattern, item, span = entry.parameter.pattern, entry.argument.item, entry.argument.span
    if not isinstance(pattern, TensorPattern) or isinstance(pattern.element, Format):
        raise CompileError("E0304", f"{entry.where} is {describe(item)}, and {pattern} is wanted", span)
    element = pattern.element
    if isinstance(element, GenericDType):
        if element.name not in unifier.elements:
            same = [e for e in weak if isinstance(e.parameter.pattern, TensorPattern)]
            items = [e.argument.item for e in same if e.parameter.pattern.element == element]  # type: ignore[union-attr]
            floating = any(isinstance(i, float) for i in items) or unifier.classes[element.name] == "float"
            unifier.elements[element.name] = F32 if floating else default_dtype(item)
        found = unifier.elements[element.name]
        assert isinstance(found, DType)
        if not accepts(unifier.classes[element.name], found):
            message = (
                f"{entry.where} is {describe(item)}, and {element.name} is any {unifier.classes[element.name]} type"
            )
            raise CompileError("E0305", message, span)
        element = found
    unifier.match_tensor(pattern, TensorType(element), entry.where, span)


def bind_signature(signature: Signature, unifier: Unifier, scope: Scope) -> None:
    """Bind the dimensions, packs and generics of a signature in the scope of the body."""
    span = signature.function.name.span
    for name, place in signature.dimensions.items():
        if (size := unifier.sizes.get(unknown(name))) is not None:
            scope.bind(name, size, place, "dimension")
    for name, dims in unifier.packs.items():
        scope.bind(name, PackDims(tuple(unifier.size(d) for d in dims)), span, "dimension")
    for name, element in unifier.elements.items():
        scope.bind(name, element, span, "generic")


# ---------------------------------------------------------------------- static conditions


def is_static(builder: Builder, item: Item) -> bool:
    """Does an item depend on nothing but dimension names?"""
    if isinstance(item, Size):
        return not item.opaques and all(n in builder.bounds.dimensions for n in item.symbols)
    return (
        isinstance(item, EXPRESSIONS)
        and not any(True for _ in loads(item))
        and all(n in builder.bounds.dimensions for n in item.symbols)
    )


def static_truth(builder: Builder, item: Item) -> bool | None:
    """The truth of a condition on dimensions, for the sizes at hand; None where they do not decide it."""
    if not isinstance(item, EXPRESSIONS) or item.dtype != BOOL or not is_static(builder, item):
        return None
    found = _static_number(builder, item)
    return None if found is None else bool(found)


def _static_number(builder: Builder, expression: Expr) -> object:
    match expression:
        case Const(value):
            return value
        case Index(size):
            return builder.bounds.value(size)
        case CastExpr(element, value):
            inner = _static_number(builder, value)
            return None if inner is None else np.asarray(inner).astype(element.numpy)
        case Apply(function, arguments):
            values = [_static_number(builder, a) for a in arguments]
            if any(v is None for v in values):
                return None
            return FUNCTIONS[function].reference(*(np.asarray(v) for v in values))
    return None

"""Functions made of functions: `grad(loss, wrt=w)(x, w)` evaluates the loss, and then its gradient, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING

from intarsia.dsl import ast
from intarsia.dsl.evaluation import calls, fitting
from intarsia.dsl.evaluation.mapping import folded, mapped
from intarsia.dsl.evaluation.partials import differentiated, element_of, stands_for_element
from intarsia.dsl.evaluation.structs import put_together, same_struct, stacked, tensors_of
from intarsia.dsl.evaluation.wanted import Wanted, changing_parameter, no_parameter, parts_of
from intarsia.dsl.primitives import PRIMITIVES
from intarsia.dsl.primitives.arguments import Argument
from intarsia.dsl.semantics.scope import File, Scope, suggest
from intarsia.dsl.semantics.signature import Signature
from intarsia.dsl.semantics.types import TensorPattern
from intarsia.dsl.semantics.values import (
    EXPRESSIONS,
    FormatTensor,
    Item,
    ListElement,
    Struct,
    StructList,
    changed,
    describe,
    leaves_of,
    tensor_of,
)
from intarsia.ir.dtypes import F32, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.gradients import gradients, push_forward
from intarsia.ir.gradients.spaces import CustomRule
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import Cast, Reshape
from intarsia.ir.scalar import Expr, Load, apply
from intarsia.ir.sizes import Size

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


@dataclass(frozen=True)
class Given:
    """The arguments of a derived function, and the call that they come from."""

    positional: tuple[Argument, ...]
    keywords: dict[str, Argument]
    span: Span
    scope: Scope

    def argument(self, signature: Signature, name: str) -> Argument | None:
        """The argument of a parameter, if it has one."""
        position = [p.name for p in signature.parameters].index(name)
        return self.positional[position] if position < len(self.positional) else self.keywords.get(name)

    def is_of_elements(self, builder: Builder) -> bool:
        """Is an argument an element that an index selects, or stands for one?"""
        frame = self.scope.frame
        every = (a.item for a in (*self.positional, *self.keywords.values()))
        return frame is not None and any(
            not item.symbols.isdisjoint(frame.names()) or stands_for_element(builder, item)
            for item in every
            if isinstance(item, (Size, *EXPRESSIONS))
        )

    def with_argument(self, signature: Signature, name: str, argument: Argument) -> Given:
        """The same with another argument for a parameter that has one."""
        position = [p.name for p in signature.parameters].index(name)
        if position >= len(self.positional):
            return replace(self, keywords={**self.keywords, name: argument})
        positional = list(self.positional)
        positional[position] = argument
        return replace(self, positional=tuple(positional))


def derived(builder: Builder, node: ast.Derived, scope: Scope) -> Item:
    """The value of `grad(f, wrt=x)(…)` and its like."""
    positional = tuple(calls.positional_arguments(builder, node, scope))
    given = Given(positional, calls.keyword_arguments(builder, node, scope), node.span, scope)
    return _evaluate(builder, node.transform, given)


def _evaluate(builder: Builder, function: ast.Expression, given: Given) -> Item:
    """A function, or one made of it by transforms, on arguments."""
    match function:
        case ast.Call(head) if head.text in ast.TRANSFORMS:
            match head.text:
                case "jvp":
                    return _tangents(builder, function, given)
                case "custom_grad":
                    return _custom(builder, function, given)
                case "map" | "fold":
                    return _through_structs(builder, function, given)
            return _gradient(builder, function, given)
        case ast.Name(name) if name in PRIMITIVES and given.scope.file.function(name) is None:
            return calls.call_primitive(builder, name, given.positional, given.keywords, given.span, given.scope)
    found, file = _function(function, given.scope.file, builder.prelude)
    calls.require_no_recursion(builder, found, given.span)
    return calls.call_on(builder, found, file, given.positional, given.keywords, given.span, given.scope)


def derived_function(transform: ast.Expression, file: File, prelude: File | None) -> tuple[ast.Function, File]:
    """A function with the parameters of the one that a transform is of, which calls that transform: an entry point.

    That of `jvp` has a parameter `d_w` more for each `w` of `wrt`, `d_p_head` for a field.
    """
    inner, home = _function(transform, file, prelude)
    span = transform.span
    assert isinstance(transform, ast.Call)
    parameters = list(inner.parameters)
    if transform.function.text == "jvp":
        known = {p.name.text: p for p in inner.parameters}
        for changing in parts_of(transform)[1]:
            if (change := changing_parameter(changing, known, home)) is None:
                raise no_parameter(inner.name.text, changing, known)
            parameters.append(change)
    arguments = tuple(ast.Name(p.name.text, span=span) for p in parameters)
    dims = tuple(ast.Keyword(g.name, ast.Name(g.name.text, span=span), span=span) for g in inner.generics if _is_dim(g))
    body = ast.Return((ast.Derived(transform, arguments, dims, span=span),), span=span)
    name = ast.Identifier(f"{transform.function}_{inner.name}", span=inner.name.span)
    return replace(inner, name=name, parameters=tuple(parameters), result=None, body=(body,)), home


def _is_dim(generic: ast.Generic) -> bool:
    return generic.kind.text == "dim"


def _function(expression: ast.Expression, file: File, prelude: File | None) -> tuple[ast.Function, File]:
    """The function that is meant, under all transforms. Raises E0316 and E0322."""
    match expression:
        case ast.Call(head, (inner, *_)) if head.text in ast.DERIVATIVES:
            return _function(inner, file, prelude)
        case ast.Name(name):
            found = file.function(name)
            if found is None and prelude is not None and not name.startswith("_"):
                found = prelude.function(name)
            if found is not None:
                return found
            if name in PRIMITIVES:
                hint = f"write a function that calls it: fn f(x: f32[N]) -> f32 {{ return {name}(…) }}"
                raise CompileError("E0322", f"`{name}` is built in", expression.span, hint=hint)
            hint = suggest(name, file.names())
            raise CompileError("E0316", f"no function is named `{name}`", expression.span, hint=hint)
    hint = "name a function that is declared with `fn`: grad(loss, wrt=w)(x, w)"
    raise CompileError("E0322", "a derivative is of a function", expression.span, hint=hint)


# ---------------------------------------------------------------------- gradients


def _gradient(builder: Builder, transform: ast.Call, given: Given) -> Item:
    """`grad` and `value_and_grad`: a gradient for each of `wrt`, after the value."""
    target, every = parts_of(transform)
    signature = builder.signature(*_function(target, given.scope.file, builder.prelude))
    if given.is_of_elements(builder):
        value, partials = _partials(builder, signature, target, every, given)
        return (value, *partials) if transform.function.text == "value_and_grad" else _alone(partials)
    leaves: list[Value] = []
    copies: list[Item] = []
    for wanted in every:
        copy, own, given = _with_copy(builder, signature, wanted, given)
        copies.append(copy)
        leaves += own
    with builder.saving_states():
        loss = _loss(builder, _evaluate(builder, target, given), target)
    found = iter(_reverse(builder, loss, leaves, given.span))
    results = tuple(put_together(copy, found) for copy in copies)
    return (loss, *results) if transform.function.text == "value_and_grad" else _alone(results)


def _alone(results: Sequence[Item]) -> Item:
    """One value is no tuple."""
    return results[0] if len(results) == 1 else tuple(results)


def _argument(signature: Signature, wanted: Wanted, given: Given) -> Argument:
    """The argument for which a derivative is wanted. Raises E0322 where there is none."""
    known = [p.name for p in signature.parameters]
    if wanted.parameter not in known:
        raise no_parameter(signature.name, wanted, known)
    argument = given.argument(signature, wanted.parameter)
    if argument is None:
        raise CompileError("E0322", f"`{wanted.parameter}` of {signature.name} is not given", given.span)
    return argument


def _with_copy(builder: Builder, signature: Signature, wanted: Wanted, given: Given) -> tuple[Item, list[Value], Given]:
    """A copy of what is to be varied, its tensors, and the arguments with it in place: a derivative is with respect to
    this parameter even where another one has the same argument.

    Raises E0322 where there is no such argument, E0324 where it is not made of tensors of floats.
    """
    argument = _argument(signature, wanted, given)
    leaves: list[Value] = []

    def copy(leaf: Item, label: str) -> Item:
        value = _differentiable(builder, leaf, dtype, label, wanted.span, argument.span)
        leaves.append(builder.add(Reshape(value, value.tensor.shape, span=argument.span)).value)
        return leaves[-1]

    dtype = _declared_dtype(signature, wanted.parameter)
    part = wanted.of(argument.item)
    if isinstance(part, FormatTensor):
        raise _not_differentiable(str(wanted), describe(part), wanted.span)
    copied = changed(part, copy, str(wanted))
    item = wanted.replaced(argument.item, copied)
    return copied, leaves, given.with_argument(signature, wanted.parameter, replace(argument, item=item))


def _differentiable(builder: Builder, item: Item, dtype: DType | None, label: str, span: Span, place: Span) -> Value:
    """A tensor of floats that an item is; the tensors of a list are one. Raises E0324."""
    match item:
        case bool() | None | str() | DType() | tuple():
            raise _not_differentiable(label, describe(item), span)
    value = builder.as_value(item, place, dtype)
    found = value.type.tensor
    if not found.dtype.is_float or found.dtype.is_narrow:
        raise _not_differentiable(label.replace(".*", ""), str(found), span)
    return stacked(builder, value, place)


def _not_differentiable(label: str, what: str, span: Span) -> CompileError:
    hint = "gradients are of tensors of f64, f32, f16 and bf16, and of structs of these"
    return CompileError("E0324", f"`{label}` is {what}, which has no gradient", span, hint=hint)


def _partials(
    builder: Builder, signature: Signature, target: ast.Expression, every: Sequence[Wanted], given: Given
) -> tuple[Expr, list[Expr]]:
    """Within index notation, a function of elements and its derivatives. Raises E0324 where one is with respect to
    something else."""
    arguments = [_argument(signature, wanted, given) for wanted in every]
    elements: list[Expr] = []
    for wanted, argument in zip(every, arguments):
        dtype = _declared_dtype(signature, wanted.parameter) or F32
        element = element_of(builder, argument.item, dtype, argument.span)
        if wanted.fields or not element.dtype.is_float or element.dtype.is_narrow:
            raise _not_differentiable(str(wanted), describe(argument.item), wanted.span)
        elements.append(element)

    def evaluate(items: Sequence[Load]) -> Item:
        own = given
        for wanted, argument, item in zip(every, arguments, items):
            own = own.with_argument(signature, wanted.parameter, replace(argument, item=item))
        return _evaluate(builder, target, own)

    with _noting(given.span):
        return differentiated(builder, elements, evaluate, given.span)


def _declared_dtype(signature: Signature, name: str) -> DType | None:
    """The dtype that a parameter is declared with, if it is no generic one."""
    pattern = next(p.pattern for p in signature.parameters if p.name == name)
    return pattern.element if isinstance(pattern, TensorPattern) and isinstance(pattern.element, DType) else None


def _loss(builder: Builder, item: Item, target: ast.Expression) -> Value:
    """What is differentiated: one number. Raises E0323."""
    found = tensor_of(item)
    if found is None or found.rank or not found.dtype.is_float:
        hint = "sum(…) or mean(…) of a tensor is one number"
        what = "several results" if isinstance(item, tuple) else describe(item)
        raise CompileError("E0323", f"a gradient is of one float, and this gives {what}", target.span, hint=hint)
    return builder.as_value(item, target.span)


def _reverse(builder: Builder, loss: Value, leaves: Sequence[Value], span: Span) -> list[Value]:
    """The gradients as nodes. Raises E0325, with the place where they are taken."""
    fresh = partial(builder.counter_symbol, used=builder.counters_used)
    with _noting(span):
        return gradients(loss, leaves, _maker(builder, span), fresh, builder.custom, builder.bounds.counters)


@contextmanager
def _noting(span: Span) -> Iterator[None]:
    """Say of what has no derivative where one was wanted."""
    try:
        yield
    except CompileError as error:
        first = error.diagnostics[0]
        if first.span == span:
            raise
        notes = (*first.notes, ("in the derivative that is taken here", span))
        raise CompileError(first.code, first.message, first.span or span, hint=first.hint, notes=notes) from None


# ---------------------------------------------------------------------- derivatives that the user gives


def _custom(builder: Builder, transform: ast.Call, given: Given) -> Item:
    """`custom_grad(f, backward)`: f, whose derivative is said by backward, which takes the arguments and the cotangent
    of the result, and gives a cotangent for each argument that is a tensor of floats."""
    usage = "custom_grad(f, backward)(x, y), with fn backward(x, y, g) that gives what changes x, and what changes y"
    if len(transform.positional) != 2 or transform.keywords or given.keywords:
        raise CompileError(
            "E0322", "custom_grad takes two functions, and arguments by position", given.span, hint=usage
        )
    forward, backward = transform.positional
    sources: list[Value] = []
    arguments = [replace(a, item=_held(builder, a, sources)) for a in given.positional]
    held = tuple(v for a in arguments for _, v in leaves_of(a.item) if isinstance(v, Value))
    item = _evaluate(builder, forward, replace(given, positional=tuple(arguments)))
    found = tensor_of(item)
    if found is None or not found.dtype.is_float:
        raise CompileError("E0323", f"custom_grad is of one tensor of floats, not {describe(item)}", forward.span)
    result = builder.as_value(item, forward.span)

    def evaluate(values: Sequence[Value], cotangent: Value, make: Callable[[Node], Node]) -> Sequence[Value]:
        known = dict(zip(held, values))
        own = [
            replace(a, item=changed(a.item, lambda v, _: known.get(v, v) if isinstance(v, Value) else v))
            for a in arguments
        ]
        arriving = cotangent
        if arriving.dtype != result.dtype:
            arriving = make(Cast(arriving, result.dtype, span=given.span)).value
        with builder.region() as nodes:
            call = replace(given, positional=(*own, Argument(arriving, transform.span)))
            back = _evaluate(builder, backward, call)
            parts = back if isinstance(back, tuple) else (back,)
            wanted = [a.item for a in arguments if any(v in sources for _, v in leaves_of(a.item))]
            if len(parts) != len(wanted):
                message = f"{len(parts)} results for {len(wanted)} arguments with tensors of floats"
                raise CompileError("E0505", message, backward.span, hint=usage)
            fitted = [
                value
                for form, part in zip(wanted, parts)
                for value in _alike(builder, form, Argument(part, backward.span), "a cotangent", sources)
            ]
        for node in nodes:
            make(node)
        return fitted

    out = builder.add(Reshape(result, result.tensor.shape, span=given.span))
    builder.custom[out] = CustomRule(tuple(sources), held, evaluate)
    return out.value


def _held(builder: Builder, argument: Argument, sources: list[Value]) -> Item:
    """An argument in which all that may differ from step to step of a loop is a value of the graph; `sources` takes its
    tensors of floats, which are copies."""

    def hold(leaf: Item, label: str) -> Item:
        if isinstance(leaf, Size) and leaf.symbols <= builder.bounds.dimensions.keys() and not leaf.opaques:
            return leaf
        if not isinstance(leaf, (Value, ListElement, Size, *EXPRESSIONS)):
            return leaf
        value = stacked(builder, builder.as_value(leaf, argument.span), argument.span)
        if value.dtype.is_float and not value.dtype.is_narrow:
            value = builder.add(Reshape(value, value.tensor.shape, span=argument.span)).value
            sources.append(value)
        return value

    return changed(argument.item, hold)


# ---------------------------------------------------------------------- tangents


def _tangents(builder: Builder, transform: ast.Call, given: Given) -> Item:
    """`jvp`: the results, and how they change where the arguments of `wrt` change as the last arguments say."""
    target, every = parts_of(transform)
    signature = builder.signature(*_function(target, given.scope.file, builder.prelude))
    count = len(given.positional) - len(every)
    if count < 0 or count + len(given.keywords) > len(signature.parameters):
        hint = (
            f"{transform.function}({signature.name}, wrt=w)(x, w, dw): after the arguments, a change for each of `wrt`"
        )
        raise CompileError("E0322", f"jvp takes {len(every)} changes after the arguments", given.span, hint=hint)
    changes = given.positional[count:]
    whole, given = given, replace(given, positional=given.positional[:count])
    if whole.is_of_elements(builder):
        value, partials = _partials(builder, signature, target, every, given)
        terms = [
            apply("mul", p, element_of(builder, change.item, p.dtype, change.span))
            for p, change in zip(partials, changes)
        ]
        return value, reduce(partial(apply, "add"), terms)
    seeds: dict[Value, Value] = {}
    for wanted, change in zip(every, changes):
        copy, leaves, given = _with_copy(builder, signature, wanted, given)
        seeds |= zip(leaves, _alike(builder, copy, change, f"the change of `{wanted}`", leaves))
    item = _evaluate(builder, target, given)
    forms = item if isinstance(item, tuple) else (item,)
    results = [value for form in forms for value in tensors_of(builder, form, target.span)]
    if not all(r.dtype.is_float for r in results):
        raise CompileError("E0323", "jvp is of results that are floats", target.span)
    fresh = partial(builder.counter_symbol, used=builder.counters_used)
    with _noting(given.span):
        around = builder.bounds.counters
        found = push_forward(results, seeds, _maker(builder, given.span), fresh, builder.custom, around)
    values = iter((*results, *found))
    return tuple(put_together(form, values) for form in (*forms, *forms))


def _alike(builder: Builder, form: Item, other: Argument, what: str, leaves: Sequence[Value]) -> list[Value]:
    """The tensors of an item that must have the form of another one, in the places of `leaves`. Raises E0304."""
    is_struct = isinstance(form, (Struct, StructList))
    if is_struct and not same_struct(builder, form, other.item):
        raise CompileError("E0304", f"{what} is {form}, and this is {describe(other.item)}", other.span)
    values: list[Value] = []
    for (_, leaf), part in zip(leaves_of(form), [p for _, p in leaves_of(other.item)] if is_struct else [other.item]):
        if leaf in leaves:
            assert isinstance(leaf, Value)
            own = stacked(builder, builder.as_value(part, other.span), other.span) if is_struct else part
            values.append(builder.as_value(fitting.fit(builder, own, leaf.tensor, what, other.span), other.span))
    return values


def _maker(builder: Builder, span: Span) -> Callable[[Node], Node]:
    return lambda node: builder.add(node if node.span is not None else replace(node, span=span))


# ---------------------------------------------------------------------- structs tensor by tensor


def _through_structs(builder: Builder, transform: ast.Call, given: Given) -> Item:
    """`map(f)(p, x)` and `fold(f)(start, p)`."""
    name = transform.function.text
    if len(transform.positional) != 1 or transform.keywords:
        usage = "map(f)(p, x)" if name == "map" else "fold(f)(0.0, p)"
        raise CompileError("E0322", f"{name} takes one function", transform.span, hint=usage)
    function = transform.positional[0]
    arguments = [*given.positional, *given.keywords.values()]
    count = len(given.positional)

    def apply(own: Sequence[Argument]) -> Item:
        keywords = dict(zip(given.keywords, own[count:]))
        return _evaluate(builder, function, replace(given, positional=tuple(own[:count]), keywords=keywords))

    return (mapped if name == "map" else folded)(builder, apply, arguments, given.span)

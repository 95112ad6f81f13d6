"""Functions made of functions: `grad(loss, wrt=w)(x, w)` evaluates the loss, and then its gradient, in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from intarsia.dsl import ast
from intarsia.dsl.evaluation import calls
from intarsia.dsl.primitives import PRIMITIVES
from intarsia.dsl.primitives.arguments import Argument
from intarsia.dsl.semantics.scope import File, Scope, suggest
from intarsia.dsl.semantics.signature import Signature
from intarsia.dsl.semantics.types import TensorPattern
from intarsia.dsl.semantics.values import FormatTensor, Item, Struct, StructList, describe, tensor_of
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.gradients import gradients, push_forward
from intarsia.ir.gradients.spaces import CustomRule
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import Cast, Reshape

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

    def with_item(self, signature: Signature, name: str, item: Item) -> Given:
        """The same with another argument for a parameter that has one."""
        position = [p.name for p in signature.parameters].index(name)
        if position >= len(self.positional):
            keywords = {**self.keywords, name: replace(self.keywords[name], item=item)}
            return replace(self, keywords=keywords)
        positional = list(self.positional)
        positional[position] = replace(positional[position], item=item)
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
            return _gradient(builder, function, given)
    found, file = _function(function, given.scope.file, builder.prelude)
    calls.require_no_recursion(builder, found, given.span)
    return calls.call_on(builder, found, file, given.positional, given.keywords, given.span, given.scope)


def derived_function(transform: ast.Expression, file: File, prelude: File | None) -> tuple[ast.Function, File]:
    """A function with the parameters of the one that a transform is of, which calls that transform: an entry point.

    That of `jvp` has a parameter `d_w` more for each `w` of `wrt`.
    """
    inner, home = _function(transform, file, prelude)
    span = transform.span
    assert isinstance(transform, ast.Call)
    parameters = list(inner.parameters)
    if transform.function.text == "jvp":
        known = {p.name.text: p for p in inner.parameters}
        for changing in _parts(transform)[1]:
            if changing.name not in known:
                raise _no_parameter(inner.name.text, changing, known)
            label = ast.Identifier(f"d_{changing.name}", span=changing.span)
            parameters.append(replace(known[changing.name], name=label, default=None, const=False))
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
        case ast.Call(head, (inner, *_)) if head.text in ast.TRANSFORMS:
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
    """`grad` and `value_and_grad`: a gradient for each parameter of `wrt`, after the value."""
    target, names = _parts(transform)
    signature = builder.signature(*_function(target, given.scope.file, builder.prelude))
    leaves = _Leaves(builder)
    copies: list[Item] = []
    for name in names:
        copies.append(leaves.of(_argument(signature, name, given), signature, name))
        given = given.with_item(signature, name.name, copies[-1])
    with builder.saving_states():
        loss = _loss(builder, _evaluate(builder, target, given), target)
    found = iter(_reverse(builder, loss, leaves.values, given.span))
    results = tuple(_like(copy, found) for copy in copies)
    if transform.function.text == "value_and_grad":
        return (loss, *results)
    return results[0] if len(results) == 1 else results


def _parts(transform: ast.Call) -> tuple[ast.Expression, tuple[ast.Name, ...]]:
    """The function that a transform is of, and the parameters that its `wrt` names. Raises E0322."""
    if len(transform.positional) != 1 or [k.name.text for k in transform.keywords] != ["wrt"]:
        usage = f"{transform.function}(loss, wrt=(w, b))(x, w, b)"
        raise CompileError("E0322", f"{transform.function} takes a function and `wrt`", transform.span, hint=usage)
    return transform.positional[0], _names(transform.keywords[0].value)


def _names(wrt: ast.Expression) -> tuple[ast.Name, ...]:
    """The parameters that `wrt` names. Raises E0322."""
    items = wrt.items if isinstance(wrt, ast.TupleExpr) else (wrt,)
    names = tuple(item for item in items if isinstance(item, ast.Name))
    if not names or len(names) < len(items) or len({n.name for n in names}) < len(names):
        hint = "wrt=w, or wrt=(w, b) for several"
        raise CompileError("E0322", "`wrt` names parameters of the function, each once", wrt.span, hint=hint)
    return names


def _argument(signature: Signature, name: ast.Name, given: Given) -> Argument:
    """The argument for which a gradient is wanted. Raises E0322."""
    known = [p.name for p in signature.parameters]
    if name.name not in known:
        raise _no_parameter(signature.name, name, known)
    argument = given.argument(signature, name.name)
    if argument is None:
        raise CompileError("E0322", f"`{name.name}` of {signature.name} is not given", given.span)
    return argument


def _no_parameter(function: str, name: ast.Name, known: Collection[str]) -> CompileError:
    hint = suggest(name.name, known) or f"its parameters are {', '.join(known)}"
    return CompileError("E0322", f"{function} has no parameter `{name.name}`", name.span, hint=hint)


@dataclass
class _Leaves:
    """Copies of arguments, so that a gradient is of this parameter even where another one has the same argument."""

    builder: Builder

    def __post_init__(self) -> None:
        self.values: list[Value] = []

    def of(self, argument: Argument, signature: Signature, name: ast.Name) -> Item:
        """A copy of an argument. Raises E0324 where it is no tensor of floats."""
        pattern = next(p.pattern for p in signature.parameters if p.name == name.name)
        element = pattern.element if isinstance(pattern, TensorPattern) else None
        wanted = element if isinstance(element, DType) else None
        return self._copy(argument.item, wanted, name.name, name.span, argument.span)

    def _copy(self, item: Item, wanted: DType | None, label: str, span: Span, place: Span) -> Item:
        match item:
            case Struct():
                fields = {n: self._copy(f, None, f"{label}.{n}", span, place) for n, f in item.fields.items()}
                return replace(item, fields=fields)
            case bool() | None | str() | DType() | tuple() | FormatTensor() | StructList():
                raise _not_differentiable(label, describe(item), span)
        found = tensor_of(item)
        if isinstance(item, Value) and found is None:
            raise _not_differentiable(label, f"a list of tensors, {item.type}", span)
        if found is not None and (not found.dtype.is_float or found.dtype.is_narrow):
            raise _not_differentiable(label, describe(item), span)
        value = self.builder.as_value(item, place, wanted)
        if not value.dtype.is_float:
            raise _not_differentiable(label, describe(item), span)
        leaf = self.builder.add(Reshape(value, value.tensor.shape, span=place)).value
        self.values.append(leaf)
        return leaf


def _not_differentiable(label: str, what: str, span: Span) -> CompileError:
    hint = "gradients are of tensors of f64, f32, f16 and bf16, and of structs of these"
    return CompileError("E0324", f"`{label}` is {what}, which has no gradient", span, hint=hint)


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
        return gradients(loss, leaves, _maker(builder, span), fresh, builder.custom)


@contextmanager
def _noting(span: Span) -> Iterator[None]:
    """Say of what has no derivative where one was wanted."""
    try:
        yield
    except CompileError as error:
        first = error.diagnostics[0]
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
    copies: list[Item] = [_copied(builder, a) for a in given.positional]
    sources = tuple(c for c, a in zip(copies, given.positional) if isinstance(c, Value) and c is not a.item)
    arguments = tuple(replace(a, item=c) for a, c in zip(given.positional, copies))
    item = _evaluate(builder, forward, replace(given, positional=arguments))
    found = tensor_of(item)
    if found is None or not found.dtype.is_float:
        raise CompileError("E0323", f"custom_grad is of one tensor of floats, not {describe(item)}", forward.span)
    result = builder.as_value(item, forward.span)

    def evaluate(items: tuple[object, ...], cotangent: Value, make: Callable[[Node], Node]) -> Sequence[Value]:
        own = [replace(a, item=cast(Item, i)) for a, i in zip(arguments, items)]
        arriving = cotangent
        if arriving.dtype != result.dtype:
            arriving = make(Cast(arriving, result.dtype, span=given.span)).value
        with builder.region() as nodes:
            call = replace(given, positional=(*own, Argument(arriving, transform.span)))
            back = _evaluate(builder, backward, call)
            parts = back if isinstance(back, tuple) else (back,)
            if len(parts) != len(sources):
                message = f"{len(parts)} results for {len(sources)} arguments that are tensors of floats"
                raise CompileError("E0505", message, backward.span, hint=usage)
            fitted = [
                builder.as_value(calls.fit(builder, p, s.tensor, "a cotangent", backward.span), backward.span)
                for p, s in zip(parts, sources)
            ]
        for node in nodes:
            make(node)
        return fitted

    out = builder.add(Reshape(result, result.tensor.shape, span=given.span))
    builder.custom[out] = CustomRule(sources, tuple(copies), evaluate)
    return out.value


def _copied(builder: Builder, argument: Argument) -> Item:
    """A copy of a tensor of floats; anything else as it is."""
    found = tensor_of(argument.item)
    if found is None or not found.dtype.is_float or found.dtype.is_narrow:
        return argument.item
    value = builder.as_value(argument.item, argument.span)
    return builder.add(Reshape(value, value.tensor.shape, span=argument.span)).value


# ---------------------------------------------------------------------- tangents


def _tangents(builder: Builder, transform: ast.Call, given: Given) -> Item:
    """`jvp`: the results, and how they change where the arguments of `wrt` change as the last arguments say."""
    target, names = _parts(transform)
    signature = builder.signature(*_function(target, given.scope.file, builder.prelude))
    count = len(given.positional) - len(names)
    if count < 0 or count + len(given.keywords) > len(signature.parameters):
        hint = (
            f"{transform.function}({signature.name}, wrt=w)(x, w, dw): after the arguments, a change for each of `wrt`"
        )
        raise CompileError("E0322", f"jvp takes {len(names)} changes after the arguments", given.span, hint=hint)
    changes = given.positional[count:]
    given = replace(given, positional=given.positional[:count])
    seeds: dict[Value, Value] = {}
    for name, change in zip(names, changes):
        leaves = _Leaves(builder)
        copy = leaves.of(_argument(signature, name, given), signature, name)
        seeds |= zip(leaves.values, _changes(builder, copy, change, name.name))
        given = given.with_item(signature, name.name, copy)
    item = _evaluate(builder, target, given)
    results = [builder.as_value(r, target.span) for r in (item if isinstance(item, tuple) else (item,))]
    if not all(r.dtype.is_float for r in results):
        raise CompileError("E0323", "jvp is of results that are floats", target.span)
    fresh = partial(builder.counter_symbol, used=builder.counters_used)
    with _noting(given.span):
        return (*results, *push_forward(results, seeds, _maker(builder, given.span), fresh, builder.custom))


def _changes(builder: Builder, copy: Item, change: Argument, label: str) -> list[Value]:
    """The tensors of a change, which has the type of what changes. Raises E0304."""
    if isinstance(copy, Struct):
        if not isinstance(change.item, Struct) or change.item.declaration is not copy.declaration:
            message = f"the change of `{label}` is {copy}, and this is {describe(change.item)}"
            raise CompileError("E0304", message, change.span)
        parts = [(copy.fields[n], Argument(f, change.span), f"{label}.{n}") for n, f in change.item.fields.items()]
        return [value for part in parts for value in _changes(builder, *part)]
    wanted = tensor_of(copy)
    assert wanted is not None
    item = calls.fit(builder, change.item, wanted, f"the change of `{label}`", change.span)
    return [builder.as_value(item, change.span)]


def _maker(builder: Builder, span: Span) -> Callable[[Node], Node]:
    return lambda node: builder.add(node if node.span is not None else replace(node, span=span))


def _like(copy: Item, found: Iterator[Value]) -> Item:
    """The gradients of an argument in its form: a struct of gradients for a struct."""
    if isinstance(copy, Struct):
        return replace(copy, fields={name: _like(field, found) for name, field in copy.fields.items()})
    return next(found)

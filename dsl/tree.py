"""Builds the syntax tree: one method for each alternative of the grammar, called when it is complete.

The grammar accepts a little more than the language, so that what is left out here can be named: `x[0] = 1`, a call of a
value, a range among ordinary subscripts. A method gets the span of its alternative and then its children; it reports
what is wrong and returns a node all the same, so that the rest of the file is read too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, TypeVar, cast, get_args

from intarsia.dsl import ast, lexical_errors
from intarsia.dsl.lexer import Token
from intarsia.ir.errors import Diagnostic, Source, Span

NodeT = TypeVar("NodeT", bound=ast.Node)
Argument = ast.Expression | ast.Keyword
Item = ast.Expression | ast.Slice | ast.Ellipsis | ast.Binder | ast.Pack

LARGEST_INTEGER = 2**64 - 1
LONGEST_NUMBER = 100  # in characters; Python refuses to convert many thousands


class TreeBuilder:
    """Builds nodes of one source; `diagnostics` collects what is wrong with them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.diagnostics: list[Diagnostic] = []
        # Subscripts that hold a range, which only those of tensor[…](…) and reductions may: gone when they become one.
        self.ranges: dict[ast.Subscript, Span] = {}

    def report(self, code: str, message: str, span: Span, hint: str = "") -> None:
        self.diagnostics.append(Diagnostic(code, message, span, hint))

    def finish(self) -> None:
        """Report what can only be known when the whole text is read."""
        for span in self.ranges.values():
            hint = "an index is bound in tensor[…](…), a reduction such as sum[…](…), a definition or an update; "
            self.report("E0114", "a range among the subscripts of a value", span, hint + "part of a tensor is x[a:b]")

    def text(self, span: Span) -> str:
        return self.source.text[span.start : span.end]

    def span(self, token: Token) -> Span:
        return Span(self.source, token.start, token.end)

    def identifier(self, token: Token) -> ast.Identifier:
        return ast.Identifier(token.text, span=self.span(token))

    # Declarations

    def program(self, span: Span, declarations: tuple[ast.Declaration, ...] | None) -> ast.Program:
        return ast.Program(self.source, declarations or (), span=span)

    def import_(self, span: Span, path: Token) -> ast.Import:
        return ast.Import(self.string(self.span(path), path), span=span)

    def const(self, span: Span, name: Token, value: ast.Expression) -> ast.Const:
        return ast.Const(self.identifier(name), value, span=span)

    def mesh(self, span: Span, name: Token, axes: tuple[ast.Keyword, ...]) -> ast.Mesh:
        return ast.Mesh(self.identifier(name), axes, span=span)

    def format_(self, span: Span, name: Token, function: Token, arguments: tuple[Argument, ...] | None) -> ast.Format:
        positional, keywords = self.arguments(arguments or ())
        call_span = Span(self.source, function.start, span.end)
        call = ast.Call(self.identifier(function), positional, keywords, span=call_span)
        return ast.Format(self.identifier(name), call, span=span)

    def struct(
        self,
        span: Span,
        name: Token,
        dims: tuple[ast.Identifier, ...] | None,
        fields: tuple[ast.StructField, ...] | None,
    ) -> ast.Struct:
        return ast.Struct(self.identifier(name), dims or (), fields or (), span=span)

    def field(self, span: Span, name: Token, type: ast.TypeExpression) -> ast.StructField:
        return ast.StructField(self.identifier(name), type, span=span)

    def function(
        self,
        span: Span,
        name: Token,
        generics: tuple[ast.Generic, ...] | None,
        parameters: tuple[ast.Parameter, ...] | None,
        result: ast.TypeExpression | None,
        body: tuple[ast.Statement, ...],
    ) -> ast.Function:
        return ast.Function(self.identifier(name), generics or (), parameters or (), result, body, span=span)

    def test(self, span: Span, name: Token, body: tuple[ast.Statement, ...]) -> ast.Test:
        return ast.Test(self.string(self.span(name), name), body, span=span)

    def name(self, span: Span, token: Token) -> ast.Identifier:
        return self.identifier(token)

    def generic(self, span: Span, name: Token, kind: Token) -> ast.Generic:
        return ast.Generic(self.identifier(name), self.identifier(kind), span=span)

    def parameter(
        self,
        span: Span,
        const: Token | None,
        name: Token,
        type: ast.TypeExpression,
        default: ast.Expression | None,
    ) -> ast.Parameter:
        return ast.Parameter(self.identifier(name), type, default, const is not None, span=span)

    def static_parameter(self, span: Span, name: Token, default: ast.Expression | None) -> ast.Parameter:
        return ast.Parameter(self.identifier(name), None, default, span=span)

    # Types

    def tensor_type(
        self,
        span: Span,
        name: Token,
        dims: tuple[ast.TypeDim, ...] | None,
        along: ast.Along | None,
    ) -> ast.TensorTypeExpr:
        return ast.TensorTypeExpr(self.identifier(name), dims or (), along, span=span)

    def along(self, span: Span, word: Token, axes: ast.Identifier | tuple[ast.Identifier, ...]) -> ast.Along:
        return ast.Along(word.text.strip("{ \t:"), axes if isinstance(axes, tuple) else (axes,), span=span)

    def struct_type(
        self, span: Span, name: Token, dims: tuple[ast.TypeDim, ...] | None, length: ast.DimExpression | None
    ) -> ast.StructTypeExpr:
        return ast.StructTypeExpr(self.identifier(name), dims or (), length, span=span)

    def tuple_type(
        self, span: Span, first: ast.TypeExpression, rest: tuple[ast.TypeExpression, ...] | None
    ) -> ast.TypeExpression:
        if rest is None:
            self.report("E0100", "one result is no tuple", span, f"write {self.text(first.span)}")
            return first
        return ast.TupleTypeExpr((first, *rest), span=span)

    def dim(self, span: Span, size: ast.DimExpression, sharding: ast.Sharding | None = None) -> ast.Dim:
        return ast.Dim(size, sharding, span=span)

    def pack(self, span: Span, name: Token) -> ast.Pack:
        return ast.Pack(name.text, span=span)

    def axis(self, span: Span, name: Token) -> ast.Identifier:
        return self.identifier(name)

    def open_axis(self, span: Span) -> ast.Identifier:
        return ast.Identifier("?", span=span)

    def sharding(
        self, span: Span, axes: ast.Identifier | tuple[ast.Identifier, ...], priority: Token | None
    ) -> ast.Sharding:
        listed = axes if isinstance(axes, tuple) else (axes,)
        is_open = listed[-1].text == "?"
        named = listed[:-1] if is_open or [axis.text for axis in listed] == ["_"] else listed
        for axis in named:
            if axis.text == "?":
                self.report(
                    "E0120", "`?` is not the last axis", axis.span, "write (data, ?): split over data, or further"
                )
            elif axis.text == "_":
                self.report("E0120", "`_` stands alone: it says that the dimension is not split", axis.span)
        return ast.Sharding(named, is_open, self.priority(priority), span=span)

    def priority(self, token: Token | None) -> int | None:
        if token is None:
            return None
        if not token.text.isdecimal() or len(token.text) > 4:
            hint = "0 is the strongest priority, then 1, 2, …"
            self.report("E0120", f"`{token.text}` is not a priority", self.span(token), hint)
            return None
        return int(token.text)

    def dim_name(self, span: Span, name: Token) -> ast.DimName:
        return ast.DimName(name.text, span=span)

    def dim_number(self, span: Span, number: Token) -> ast.DimNumber:
        value = self.number(span, number).value
        if isinstance(value, float):
            self.report("E0120", "a dimension is an integer", span)
            return ast.DimNumber(1, span=span)
        return ast.DimNumber(value, span=span)

    def dim_binary(
        self, span: Span, left: ast.DimExpression, operator: Token, right: ast.DimExpression
    ) -> ast.DimBinary:
        return ast.DimBinary(cast(ast.DimOperator, operator.text), left, right, span=span)

    def parentheses(self, span: Span, inner: NodeT) -> NodeT:
        """The same node, whose span takes in the parentheses."""
        return replace(inner, span=span)

    # Statements

    def block(self, span: Span, statements: tuple[ast.Statement, ...] | None) -> tuple[ast.Statement, ...]:
        return statements or ()

    def return_(self, span: Span, values: tuple[ast.Expression, ...]) -> ast.Return:
        return ast.Return(values, span=span)

    def yield_(self, span: Span, values: tuple[ast.Expression, ...]) -> ast.Yield:
        return ast.Yield(values, span=span)

    def emit(self, span: Span, values: tuple[ast.Expression, ...]) -> ast.Emit:
        return ast.Emit(values, span=span)

    def assert_(self, span: Span, condition: ast.Expression) -> ast.Assert:
        return ast.Assert(condition, span=span)

    def if_(
        self,
        span: Span,
        condition: ast.Expression,
        then: tuple[ast.Statement, ...],
        otherwise: tuple[ast.Statement, ...] | ast.If | None,
    ) -> ast.If:
        chained = (otherwise,) if isinstance(otherwise, ast.If) else otherwise or ()
        return ast.If(condition, then, chained, span=span)

    def target(self, span: Span, name: Token, type: ast.TypeExpression | None) -> ast.Target:
        return ast.Target(self.identifier(name), type, span=span)

    def assign(self, span: Span, targets: tuple[ast.Target, ...], values: tuple[ast.Expression, ...]) -> ast.Assign:
        return ast.Assign(targets, values, span=span)

    def define(self, span: Span, name: Token, items: tuple[Item, ...] | None, value: ast.Expression) -> ast.Define:
        target = self.identifier(name)
        binders = tuple(self.binder(item) for item in items or ())
        if not binders or None in binders:
            start, end = name.start, value.span.start
            self.report(
                "E0112",
                f"an element of `{name.text}` cannot be assigned: values do not change",
                Span(self.source, start, self.source.text.rindex("]", start, end) + 1),
                f"make a new value: {name.text} = update {self.text(span)}",
            )
        return ast.Define(target, tuple(b for b in binders if b is not None), value, span=span)

    def in_place(self, span: Span, operator: Token) -> Token:
        return operator

    def assign_in_place(self, span: Span, name: Token, *rest: object) -> ast.Assign:
        operator, value = rest[-2:]
        assert isinstance(operator, Token)
        assigned = self.text(Span(self.source, name.start, operator.start)).rstrip()
        new = f"update {self.text(span)}"
        if len(rest) == 2:
            new = f"{name.text} {operator.text[0]} {self.text(Span(self.source, operator.end, span.end)).lstrip()}"
        self.report(
            "E0112",
            f"`{operator.text}` cannot change `{assigned}`: values do not change",
            self.span(operator),
            f"make a new value: {name.text} = {new}",
        )
        target = ast.Target(self.identifier(name), span=self.span(name))
        return ast.Assign((target,), (cast(ast.Expression, value),), span=span)

    # Expressions

    def update(
        self,
        span: Span,
        name: Token,
        items: tuple[Item, ...] | None,
        operator: ast.UpdateOperator,
        value: ast.Expression,
    ) -> ast.Update:
        if items is None:
            self.report("E0114", f"nothing of `{name.text}` is selected", span, f"update {name.text}[…] names a region")
        bound = tuple(self.bounded(item) or item for item in items or ())
        return ast.Update(self.identifier(name), bound, operator, value, span=span)

    def update_operator(self, span: Span, *tokens: Token) -> ast.UpdateOperator:
        text = "".join(token.text for token in tokens)
        if text not in get_args(ast.UpdateOperator):
            self.report("E0100", f"`{text}` does not accumulate", span, "an update has = += -= *= max= or min=")
            return "="
        return cast(ast.UpdateOperator, text)

    def loop(
        self,
        span: Span,
        kind: Token,
        states: tuple[ast.State, ...],
        range: ast.Binder,
        condition: ast.Expression | None,
        body: tuple[ast.Statement, ...],
    ) -> ast.LoopExpr:
        assert range.upper is not None
        name = cast(Literal["loop", "scan"], kind.text)
        return ast.LoopExpr(name, states, range.name, range.lower, range.upper, condition, body, span=span)

    def state(self, span: Span, name: Token, type: ast.TypeExpression | None, value: ast.Expression) -> ast.State:
        return ast.State(self.identifier(name), type, value, span=span)

    def range_below(self, span: Span, name: Token, upper: ast.Expression) -> ast.Binder:
        return ast.Binder(self.identifier(name), None, upper, span=span)

    def range_between(self, span: Span, name: Token, lower: ast.Expression, upper: ast.Expression) -> ast.Binder:
        return ast.Binder(self.identifier(name), lower, upper, span=span)

    def binary(self, span: Span, left: ast.Expression, operator: Token, right: ast.Expression) -> ast.Binary:
        name = cast(ast.BinaryOperator, operator.text)
        return ast.Binary(name, left, right, self.span(operator), span=span)

    def unary(self, span: Span, operator: Token, operand: ast.Expression) -> ast.Unary:
        return ast.Unary(cast(ast.UnaryOperator, operator.text), operand, span=span)

    def comparator(self, span: Span, operator: Token) -> Token:
        return operator

    def compare(self, span: Span, left: ast.Expression, operator: Token, right: ast.Expression) -> ast.Compare:
        name = cast(ast.CompareOperator, operator.text)
        return ast.Compare(name, left, right, self.span(operator), span=span)

    def call(
        self, span: Span, callee: ast.Expression, arguments: tuple[Argument, ...] | None
    ) -> ast.Call | ast.Derived | ast.Comprehension:
        positional, keywords = self.arguments(arguments or ())
        function = ast.Identifier(self.text(callee.span), span=callee.span)
        match callee:
            case ast.Name(name):
                function = ast.Identifier(name, span=callee.span)
            case ast.Subscript(ast.Name(head), items):
                self.ranges.pop(callee, None)
                if head in ast.COMPREHENSIONS:
                    return self.comprehension(
                        span, ast.Identifier(head, span=callee.value.span), items, arguments or ()
                    )
                names = ", ".join(ast.COMPREHENSIONS)
                self.report("E0113", f"`{head}` does not bind indices", callee.span, f"only {names} take […](…)")
            case ast.Call(head) if head.text in ast.TRANSFORMS:
                return ast.Derived(callee, positional, keywords, span=span)
            case ast.Field(value, name):
                arguments_text = "x" if isinstance(value, ast.LoopExpr) else self.text(value.span)
                hint = f"functions are called by name: {name}({arguments_text}{', …' if arguments else ''})"
                self.report("E0113", "a value has no methods", name.span, hint)
            case _:
                hint = "only a function can be called, by its name; a product is written with *"
                self.report("E0113", "a value cannot be called", callee.span, hint)
        return ast.Call(function, positional, keywords, span=span)

    def comprehension(
        self,
        span: Span,
        head: ast.Identifier,
        items: tuple[ast.SubscriptItem, ...],
        arguments: tuple[Argument, ...],
    ) -> ast.Comprehension:
        binders = []
        for item in items:
            if binder := self.binder(item):
                binders.append(binder)
            else:
                hint = "an index is a name, with its extent where needed: i, i < N, i in a..b or ..i"
                self.report("E0114", f"`{self.text(item.span)}` is not an index", item.span, hint)
        if not items:
            self.report("E0114", f"`{head}[]` binds no index", head.span, f"name one: {head}[i](…)")
        if len(arguments) == 1 and not isinstance(arguments[0], ast.Keyword):
            return ast.Comprehension(head, tuple(binders), arguments[0], span=span)
        hint = f"over whole axes: {head}(x, axis=…)" if head.text != "tensor" else ""
        self.report("E0113", f"`{head}[…]` takes one expression", span, hint)
        return ast.Comprehension(head, tuple(binders), ast.NoneLiteral(span=span), span=span)

    def bounded(self, item: Item) -> ast.Binder | None:
        """`i < n` as a binder."""
        match item:
            case ast.Compare("<", ast.Name(name) as index, upper):
                return ast.Binder(ast.Identifier(name, span=index.span), None, upper, span=item.span)
        return None

    def binder(self, item: Item) -> ast.BinderItem | None:
        """A subscript as an index that it binds, or None."""
        match item:
            case ast.Name(name):
                return ast.Binder(ast.Identifier(name, span=item.span), span=item.span)
            case ast.Binder() | ast.Pack():
                return item
        return self.bounded(item)

    def subscript(self, span: Span, value: ast.Expression, items: tuple[Item, ...] | None) -> ast.Subscript:
        node = ast.Subscript(value, cast(tuple[ast.SubscriptItem, ...], items or ()), span=span)
        for item in items or ():
            if isinstance(item, ast.Binder):
                self.ranges[node] = item.span
        return node

    def field_of(self, span: Span, value: ast.Expression, name: Token) -> ast.Field:
        return ast.Field(value, self.identifier(name), span=span)

    def value_name(self, span: Span, name: Token) -> ast.Name:
        return ast.Name(name.text, span=span)

    def number(self, span: Span, token: Token) -> ast.Number:
        text = token.text
        if token.kind != "NUMBER":  # inf or nan
            return ast.Number(text, float(text), span=span)
        is_float = text[:2].lower() != "0x" and any(character in text for character in ".eE")
        value: int | float = 0
        if len(text) > LONGEST_NUMBER:
            self.diagnostics.append(lexical_errors.number_out_of_range(span))
        elif not is_float and text[0] == "0" and text[1:2].isdecimal() and text.strip("0_"):
            self.diagnostics.append(lexical_errors.bad_number(span))
        else:
            value = float(text) if is_float else int(text, 0)
            if value > LARGEST_INTEGER and (not is_float or math.isinf(value)):
                self.diagnostics.append(lexical_errors.number_out_of_range(span))
        return ast.Number(text, value, span=span)

    def string(self, span: Span, token: Token) -> ast.String:
        return ast.String(token.text[1:-1], span=span)

    def truth(self, span: Span, token: Token) -> ast.Bool:
        return ast.Bool(token.text == "true", span=span)

    def none(self, span: Span) -> ast.NoneLiteral:
        return ast.NoneLiteral(span=span)

    def empty_tuple(self, span: Span) -> ast.TupleExpr:
        return ast.TupleExpr((), span=span)

    def tuple_of(self, span: Span, first: ast.Expression, rest: tuple[ast.Expression, ...] | None) -> ast.TupleExpr:
        return ast.TupleExpr((first, *(rest or ())), span=span)

    def slice(
        self, span: Span, start: ast.Expression | None, stop: ast.Expression | None, step: ast.Expression | None
    ) -> ast.Slice:
        return ast.Slice(start, stop, step, span=span)

    def ellipsis(self, span: Span) -> ast.Ellipsis:
        return ast.Ellipsis(span=span)

    def keyword(self, span: Span, name: Token, value: ast.Expression) -> ast.Keyword:
        return ast.Keyword(self.identifier(name), value, span=span)

    def arguments(self, arguments: Iterable[Argument]) -> tuple[tuple[ast.Expression, ...], tuple[ast.Keyword, ...]]:
        """Arguments by position and by name, the latter last and each once."""
        positional: list[ast.Expression] = []
        keywords: dict[str, ast.Keyword] = {}
        for argument in arguments:
            if not isinstance(argument, ast.Keyword):
                positional.append(argument)
                if keywords:
                    hint = "arguments by position come first; equality is written =="
                    self.report("E0116", "an argument by position after one by name", argument.span, hint)
            elif argument.name.text in keywords:
                self.report("E0116", f"the argument `{argument.name}` is given twice", argument.name.span)
            else:
                keywords[argument.name.text] = argument
        return tuple(positional), tuple(keywords.values())

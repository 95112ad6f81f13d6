"""Random syntax trees, printed and read back: the printer writes what the parser reads, parentheses included."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from intarsia.dsl import ast
from intarsia.dsl.format import format_program, print_node
from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import Source, Span

T = TypeVar("T")
NOWHERE = Span(Source("random", ""), 0, 0)


class Trees:
    """Random trees, of those that the parser gives: `i < n` in an update is a binder, for one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def choice(self, options: Sequence[Any]) -> Any:
        return self.random.choice(options)

    def name(self) -> str:
        return self.choice(["x", "y", "N", "sum", "tensor", "test", "mesh", "struct", "const", "_", "replicated"])

    def identifier(self) -> ast.Identifier:
        return ast.Identifier(self.name(), span=NOWHERE)

    def maybe(self, make: Callable[..., T], *arguments: int) -> T | None:
        return make(*arguments) if self.random.random() < 0.5 else None

    def some(self, make: Callable[..., T], *arguments: int, least: int = 0) -> tuple[T, ...]:
        return tuple(make(*arguments) for _ in range(self.random.randint(least, 2)))

    def leaf(self) -> ast.Expression:
        integer, real = self.choice([0, 7, 2**64 - 1]), self.choice([0.5, 1e-30, 2e30])
        return self.choice(
            [
                ast.Name(self.name(), span=NOWHERE),
                ast.Number(str(integer), integer, span=NOWHERE),
                ast.Number(repr(real), real, span=NOWHERE),
                ast.Number("inf", float("inf"), span=NOWHERE),
                ast.String("# (", span=NOWHERE),
                ast.Bool(self.random.random() < 0.5, span=NOWHERE),
                ast.NoneLiteral(span=NOWHERE),
            ]
        )

    def expression(self, depth: int) -> ast.Expression:
        if depth == 0:
            return self.leaf()
        operators = [self.unary, self.binary, self.binary, self.compare, self.field]
        brackets = [self.tuple_of, self.call, self.comprehension, self.subscript, self.update, self.loop]
        return self.choice([self.expression, *operators, *brackets])(depth - 1)

    def tuple_of(self, depth: int) -> ast.Expression:
        return ast.TupleExpr(self.some(self.expression, depth), span=NOWHERE)

    def unary(self, depth: int) -> ast.Expression:
        return ast.Unary(self.choice(["-", "not"]), self.expression(depth), span=NOWHERE)

    def binary(self, depth: int) -> ast.Expression:
        operator = self.choice(["or", "and", "+", "-", "*", "/", "//", "%", "@", "**"])
        return ast.Binary(operator, self.expression(depth), self.expression(depth), NOWHERE, span=NOWHERE)

    def compare(self, depth: int) -> ast.Expression:
        operator = self.choice(["==", "!=", "<", "<=", ">", ">="])
        return ast.Compare(operator, self.expression(depth), self.expression(depth), NOWHERE, span=NOWHERE)

    def keywords(self, depth: int, least: int = 0) -> tuple[ast.Keyword, ...]:
        names = {name.text: name for name in self.some(self.identifier, least=least)}
        return tuple(ast.Keyword(name, self.expression(depth), span=NOWHERE) for name in names.values())

    def call(self, depth: int) -> ast.Call:
        positional = self.some(self.expression, depth)
        return ast.Call(self.identifier(), positional, self.keywords(depth), span=NOWHERE)

    def bounded(self, depth: int) -> ast.Binder:
        return ast.Binder(self.identifier(), self.maybe(self.expression, depth), self.expression(depth), span=NOWHERE)

    def binder(self, depth: int) -> ast.BinderItem:
        pack, index = ast.Pack(self.name(), span=NOWHERE), ast.Binder(self.identifier(), span=NOWHERE)
        return self.choice([pack, index, self.bounded(depth)])

    def comprehension(self, depth: int) -> ast.Expression:
        head = ast.Identifier(self.choice(ast.COMPREHENSIONS), span=NOWHERE)
        binders = self.some(self.binder, depth, least=1)
        return ast.Comprehension(head, binders, self.expression(depth), span=NOWHERE)

    def item(self, depth: int) -> ast.SubscriptItem:
        ends = [self.maybe(self.expression, depth) for _ in range(3)]
        pack, whole = ast.Pack(self.name(), span=NOWHERE), ast.Ellipsis(span=NOWHERE)
        return self.choice([pack, whole, ast.Slice(*ends, span=NOWHERE), self.expression(depth)])

    def subscript(self, depth: int) -> ast.Expression:
        return ast.Subscript(self.expression(depth), self.some(self.item, depth), span=NOWHERE)

    def field(self, depth: int) -> ast.Expression:
        return ast.Field(self.expression(depth), self.identifier(), span=NOWHERE)

    def update_item(self, depth: int) -> ast.UpdateItem:
        item = self.choice([self.item, self.bounded])(depth)
        return self.update_item(depth) if isinstance(item, ast.Compare) else item

    def update(self, depth: int) -> ast.Expression:
        operator = self.choice(["=", "+=", "-=", "*=", "max=", "min="])
        items = self.some(self.update_item, depth, least=1)
        return ast.Update(self.identifier(), items, operator, self.expression(depth), span=NOWHERE)

    def state(self, depth: int) -> ast.State:
        return ast.State(self.identifier(), self.maybe(self.type), self.expression(depth), span=NOWHERE)

    def loop(self, depth: int) -> ast.Expression:
        kind = self.choice(["loop", "scan"])
        states = self.some(self.state, depth, least=1)
        lower, condition = self.maybe(self.expression, depth), self.maybe(self.expression, depth)
        body = self.some(self.statement, depth)
        return ast.LoopExpr(
            kind, states, self.identifier(), lower, self.expression(depth), condition, body, span=NOWHERE
        )

    def size(self, depth: int = 2) -> ast.DimExpression:
        leaf = self.choice([ast.DimName(self.name(), span=NOWHERE), ast.DimNumber(7, span=NOWHERE)])
        if depth == 0 or self.random.random() < 0.4:
            return leaf
        operator = self.choice(["+", "-", "*", "//", "%"])
        return ast.DimBinary(operator, self.size(depth - 1), self.size(depth - 1), span=NOWHERE)

    def sharding(self) -> ast.Sharding:
        axes = self.some(lambda: ast.Identifier(self.choice(["data", "model"]), span=NOWHERE))
        return ast.Sharding(axes, self.random.random() < 0.5, self.choice([None, 0, 12]), span=NOWHERE)

    def dim(self) -> ast.Dim:
        return ast.Dim(self.size(), self.maybe(self.sharding), span=NOWHERE)

    def pack(self) -> ast.Pack:
        return ast.Pack("S", span=NOWHERE)

    def type(self) -> ast.TypeExpression:
        if self.random.random() < 0.4:
            return ast.StructTypeExpr(self.identifier(), self.some(self.dim), self.maybe(self.size), span=NOWHERE)
        dims: tuple[ast.TypeDim, ...] = (*self.some(self.dim), *self.some(self.pack))
        return ast.TensorTypeExpr(self.identifier(), dims, self.maybe(self.along), span=NOWHERE)

    def along(self) -> ast.Along:
        word = self.choice(["replicated", "sum", "prod", "max", "min"])
        return ast.Along(word, self.some(self.identifier, least=1), span=NOWHERE)

    def target(self) -> ast.Target:
        return ast.Target(self.identifier(), self.maybe(self.type), span=NOWHERE)

    def statement(self, depth: int) -> ast.Statement:
        values = self.some(self.expression, depth, least=1)
        kind = self.choice([ast.Return, ast.Yield, ast.Emit, ast.Assert, ast.Assign, ast.Define, ast.If])
        if kind is ast.Assign:
            return ast.Assign(self.some(self.target, least=1), values, span=NOWHERE)
        if kind is ast.Assert:
            return ast.Assert(values[0], span=NOWHERE)
        if kind is ast.Define:
            return ast.Define(self.identifier(), self.some(self.binder, depth, least=1), values[0], span=NOWHERE)
        if kind is ast.If and depth:
            sides = [self.some(self.statement, depth - 1) for _ in range(2)]
            return ast.If(values[0], *sides, span=NOWHERE)
        return self.choice([ast.Return, ast.Yield, ast.Emit])(values, span=NOWHERE)

    def parameter(self) -> ast.Parameter:
        type = self.maybe(self.type)
        const = type is not None and self.random.random() < 0.5
        name = ast.Identifier("mode", span=NOWHERE)
        return ast.Parameter(name, type, self.maybe(self.leaf), const, span=NOWHERE)

    def generic(self) -> ast.Generic:
        return ast.Generic(self.identifier(), self.identifier(), span=NOWHERE)

    def result(self) -> ast.TypeExpression:
        return (
            ast.TupleTypeExpr((self.type(), self.type()), span=NOWHERE) if self.random.random() < 0.5 else self.type()
        )

    def function(self) -> ast.Function:
        generics, parameters, result = self.some(self.generic), self.some(self.parameter), self.maybe(self.result)
        return ast.Function(self.identifier(), generics, parameters, result, self.some(self.statement, 3), span=NOWHERE)

    def declaration(self) -> ast.Declaration:
        name, text = self.identifier(), ast.String("a.ita", span=NOWHERE)
        fields = self.some(lambda: ast.StructField(self.identifier(), self.type(), span=NOWHERE))
        return self.choice(
            [
                ast.Import(text, span=NOWHERE),
                ast.Const(name, self.expression(1), span=NOWHERE),
                ast.Mesh(name, self.keywords(1, least=1), span=NOWHERE),
                ast.Format(name, self.call(1), span=NOWHERE),
                ast.Struct(name, self.some(self.identifier), fields, span=NOWHERE),
                ast.Test(text, self.some(self.statement, 2), span=NOWHERE),
                self.function(),
            ]
        )

    def program(self) -> ast.Program:
        declarations = tuple(self.declaration() for _ in range(3))
        return ast.Program(NOWHERE.source, declarations, span=NOWHERE)


@pytest.mark.parametrize("seed", range(40))
def test_random_trees_read_back(seed: int) -> None:
    tree = Trees(seed).program()
    text = print_node(tree)
    assert ast.same(parse_program(Source("random", text)), tree)
    assert format_program(Source("random", text)) == text

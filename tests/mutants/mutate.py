"""Mutants of a Python module: one small change each, made on its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
}  # fmt: skip
WORDS = {
    "add": "sub", "sub": "add", "mul": "add", "neg": "abs", "lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne",
    "ne": "eq", "and": "or", "or": "and", "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum",
    "sum": "prod", "=": "+=", "+=": "=", "any": "all", "all": "any",
}  # fmt: skip
"""Names of scalar functions, combiners and writes, each with one that types let in its place."""

Change = Callable[[], None]


@dataclass(frozen=True)
class Mutant:
    """One change of one module: its number in the order of the syntax tree, where it is, and what it does.

    statement: the first line of the innermost statement around it, or 0 for one that runs at the import; a dropped call
    is a statement itself.
    """

    path: str
    source: str = field(repr=False)
    number: int
    line: int
    statement: int
    change: str

    @property
    def places(self) -> list[tuple[str, int]]:
        """The lines of which one runs where the change matters: what runs of a long condition begins below its `if`."""
        return [(self.path, line) for line in range(self.statement, max(self.statement, self.line) + 1)]

    @property
    def text(self) -> str:
        """The line that it changes."""
        return self.source.splitlines()[self.line - 1].strip()

    def tree(self) -> ast.Module:
        """The syntax tree of the changed module."""
        tree = ast.parse(self.source)
        for number, (_, _, _, change) in enumerate(_changes(tree)):
            if number == self.number:
                change()
                return ast.fix_missing_locations(tree)
        raise AssertionError(f"{self} is not in its module")

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"


def mutants(path: str, source: str) -> list[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source)
    return [Mutant(path, source, n, line, first, text) for n, (line, first, text, _) in enumerate(_changes(tree))]


def _changes(tree: ast.Module) -> Iterator[tuple[int, int, str, Change]]:
    for node, statement in list(_walk(tree)):
        line = getattr(node, "lineno", 0)
        for text, change in _changes_of(node):
            yield line, statement, text, change
        for name in ("body", "orelse"):
            statements = getattr(node, name, None)
            for n, call in enumerate(statements if isinstance(statements, list) else ()):
                if isinstance(call, ast.Expr) and isinstance(call.value, ast.Call):
                    first = call.lineno if statement or isinstance(node, ast.FunctionDef) else 0
                    yield call.lineno, first, "call dropped", lambda s=statements, n=n: s.__setitem__(n, ast.Pass())


def _walk(node: ast.AST, statement: int = 0, called: bool = False) -> Iterator[tuple[ast.AST, int]]:
    """Nodes that run: not annotations, decorators, documentation, assertions, nor what is raised.

    Each with the first line of the innermost statement around it where that runs when a function is `called`, else 0.
    """
    if isinstance(node, ast.stmt) and called:
        statement = node.lineno
    yield node, statement
    called = called or isinstance(node, ast.FunctionDef)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_ignores", "type_params", "bases", "keywords_"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, (ast.Assert, ast.Raise, ast.Import, ast.ImportFrom)) or _is_text(child):
                continue
            if isinstance(child, ast.AST):
                yield from _walk(child, statement, called)


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes_of(node: ast.AST) -> Iterator[tuple[str, Change]]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            other = COMPARISONS[type(op)]
            yield f"{type(op).__name__} becomes {other.__name__}", lambda: _set(node, "ops", [other()])
        case ast.BoolOp(values=values):
            for n in range(len(values)):
                yield f"condition {n + 1} of {len(values)} dropped", lambda n=n: _drop(node, "values", n)
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            other_op = OPERATORS[type(op)]
            yield f"{type(op).__name__} becomes {other_op.__name__}", lambda: _set(node, "op", other_op())
        case ast.UnaryOp(op=ast.Not()):
            yield "not dropped", lambda: _set(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield "condition negated", lambda: _set(node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.Constant(value=bool() as value):
            yield f"{value} becomes {not value}", lambda: _set(node, "value", not value)
        case ast.Constant(value=int() as value):
            yield f"{value} becomes {value + 1}", lambda: _set(node, "value", value + 1)
        case ast.Constant(value=str() as word) if word in WORDS:
            yield f"{word!r} becomes {WORDS[word]!r}", lambda: _set(node, "value", WORDS[word])
        case ast.Call(func=ast.Name("reversed"), args=[_]):
            yield "reversed dropped", lambda: _set(node, "func", ast.Name("iter", ast.Load()))
        case ast.Call(func=ast.Name("isinstance")):
            pass  # with its arguments swapped it fails at once
        case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred) and not _same(first, second):
            yield "first two arguments swapped", lambda: _swap(node, "args")
        case ast.Tuple(elts=elements, ctx=ast.Load()) | ast.List(elts=elements, ctx=ast.Load()) if len(elements) > 1:
            yield "last element dropped", lambda: _drop(node, "elts", len(elements) - 1)
            yield "first two elements swapped", lambda: _swap(node, "elts")


def _same(a: ast.AST, b: ast.AST) -> bool:
    return ast.dump(a) == ast.dump(b)


def _set(node: ast.AST, name: str, value: object) -> None:
    setattr(node, name, value)


def _drop(node: ast.AST, name: str, position: int) -> None:
    values = getattr(node, name)
    if isinstance(node, ast.BoolOp) and len(values) == 2:
        values.append(values[1 - position])  # a BoolOp has at least two
    del values[position]


def _swap(node: ast.AST, name: str) -> None:
    values = getattr(node, name)
    values[0], values[1] = values[1], values[0]

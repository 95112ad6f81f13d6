"""The smallest program that still shows a failure, by cutting pieces out of its text.

Delta debugging on the syntax tree: drop declarations and statements, put a part of an expression in place of the whole,
as long as the failure stays; repeated until nothing more can go. After Zeller and Hildebrandt, "Simplifying and
Isolating Failure-Inducing Input", 2002, with the candidates of Perses (Sun et al., 2018) in place of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from intarsia.dsl import ast
from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import CompileError, Source

Predicate = Callable[[Source], bool]
Edit = tuple[tuple[int, int, str], ...]
"""Pieces of the text, each with what takes its place; they do not overlap."""


def reduce_program(source: Source, fails: Predicate, progress: Callable[[int], None] = lambda length: None) -> Source:
    """A program with the same failure from which no single piece can be taken.

    `fails` says whether a program still shows the failure; it must hold for `source`. `progress` is told the length of
    each smaller program found.
    """
    changed = True
    while changed:
        changed = False
        position = 0
        while True:
            edits = list(_edits(source))
            step = next((i for i in range(position, len(edits)) if _holds(source, edits[i], fails)), None)
            if step is None:
                break
            source = _edited(source, edits[step])
            progress(len(source.text))
            changed, position = True, step
    return source


def _holds(source: Source, edit: Edit, fails: Predicate) -> bool:
    candidate = _edited(source, edit)
    try:
        parse_program(candidate)
    except CompileError:
        return False
    return fails(candidate)


def _edited(source: Source, edit: Edit) -> Source:
    text = source.text
    for start, end, replacement in sorted(edit, reverse=True):
        text = text[:start] + replacement + text[end:]
    return Source(source.name, text.lstrip("\n"))


def _edits(source: Source) -> Iterator[Edit]:
    """Ways to make the program smaller, the largest cuts first."""
    program = parse_program(source)
    nodes = [n for d in program.declarations for n in ast.walk(d)]
    for declaration in program.declarations:
        yield ((*_with_newline(source, declaration), ""),)
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.Define, ast.If, ast.Assert)):
            yield ((*_with_newline(source, node), ""),)
    for node in nodes:
        if isinstance(node, ast.Function):
            yield from _fewer_parameters(source, node)
            yield from _fewer_results(source, node)
            yield from _inlined(source, node)
    for node in nodes:
        if isinstance(node, _EXPRESSIONS):
            whole = (node.span.start, node.span.end)
            for child in ast.children(node):
                if isinstance(child, _EXPRESSIONS) and child.span.end - child.span.start < whole[1] - whole[0]:
                    yield ((*whole, _text(source, child)),)
        if isinstance(node, ast.Yield) and len(node.values) > 1:
            for kept in node.values:
                yield ((node.values[0].span.start, node.values[-1].span.end, _text(source, kept)),)


def _fewer_parameters(source: Source, function: ast.Function) -> Iterator[Edit]:
    """Leave out one parameter."""
    for edit in _without_each(source, function.parameters):
        yield (edit,)


def _fewer_results(source: Source, function: ast.Function) -> Iterator[Edit]:
    """Leave out one of several results, and its type."""
    last = function.body[-1] if function.body else None
    if not isinstance(last, ast.Return) or len(last.values) < 2:
        return
    types = function.result.items if isinstance(function.result, ast.TupleTypeExpr) else ()
    if len(types) == len(last.values):
        yield from zip(_without_each(source, last.values), _without_each(source, types))


def _without_each(source: Source, items: Sequence[ast.Node]) -> Iterator[tuple[int, int, str]]:
    """The list of items without one of them."""
    for left_out in items:
        kept = ", ".join(_text(source, item) for item in items if item is not left_out)
        yield items[0].span.start, items[-1].span.end, kept


def _inlined(source: Source, function: ast.Function) -> Iterator[Edit]:
    """Put a value in place of its name, where it is short or the name is used once."""
    names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
    for node in ast.walk(function):
        match node:
            case ast.Assign((ast.Target(name),), (value,)):
                uses = [n for n in names if n.name == name.text]
                is_atom = isinstance(value, (ast.Name, ast.Number))
                if uses and (is_atom or len(uses) == 1):
                    text = _text(source, value) if is_atom else f"({_text(source, value)})"
                    replaced = ((n.span.start, n.span.end, text) for n in uses)
                    yield ((*_with_newline(source, node), ""), *replaced)


_EXPRESSIONS = (ast.Unary, ast.Binary, ast.Compare, ast.Call, ast.Subscript, ast.Comprehension, ast.LoopExpr, ast.Name,
                ast.Number, ast.Update, ast.Field, ast.TupleExpr)  # fmt: skip


def _text(source: Source, node: ast.Node) -> str:
    return source.text[node.span.start : node.span.end]


def _with_newline(source: Source, node: ast.Node) -> tuple[int, int]:
    """The range of a statement with the blanks before it and the newline after it."""
    start, end = node.span.start, node.span.end
    while end < len(source.text) and source.text[end] in " \t":
        end += 1
    if end < len(source.text) and source.text[end] == "\n":
        end += 1
        while start and source.text[start - 1] in " \t":
            start -= 1
    return start, end

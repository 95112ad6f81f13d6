"""The smallest program that still shows a failure, by cutting pieces out of its text.

Delta debugging on the syntax tree: drop declarations and statements, put a part of an expression in place of the whole,
as long as the failure stays; repeated until nothing more can go. After Zeller and Hildebrandt, "Simplifying and
Isolating Failure-Inducing Input", 2002, with the candidates of Perses (Sun et al., 2018) in place of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from intarsia.dsl import ast
from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import CompileError, Source

Predicate = Callable[[Source], bool]
Edit = tuple[int, int, str]


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
    start, end, text = edit
    return Source(source.name, source.text[:start] + text + source.text[end:])


def _edits(source: Source) -> Iterator[Edit]:
    """Ways to make the program smaller, the largest cuts first."""
    program = parse_program(source)
    for declaration in program.declarations:
        yield (*_with_newline(source, declaration), "")
    nodes = [n for d in program.declarations for n in ast.walk(d)]
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.Define, ast.If, ast.Assert)):
            yield (*_with_newline(source, node), "")
    for node in nodes:
        if not isinstance(node, _EXPRESSIONS):
            continue
        whole = (node.span.start, node.span.end)
        for child in ast.children(node):
            if isinstance(child, _EXPRESSIONS) and child.span.end - child.span.start < whole[1] - whole[0]:
                text = source.text[child.span.start : child.span.end]
                yield (*whole, text)
    for node in nodes:
        if isinstance(node, (ast.Return, ast.Yield)) and len(node.values) > 1:
            for kept in node.values:
                text = source.text[kept.span.start : kept.span.end]
                yield (node.values[0].span.start, node.values[-1].span.end, text)


_EXPRESSIONS = (ast.Unary, ast.Binary, ast.Compare, ast.Call, ast.Subscript, ast.Comprehension, ast.LoopExpr, ast.Name,
                ast.Number, ast.Update, ast.Field, ast.TupleExpr)  # fmt: skip


def _with_newline(source: Source, node: ast.Node) -> tuple[int, int]:
    """The range of a piece and the blank up to the next line."""
    end = node.span.end
    while end < len(source.text) and source.text[end] in " \t":
        end += 1
    if end < len(source.text) and source.text[end] == "\n":
        end += 1
    return node.span.start, end

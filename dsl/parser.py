"""Text to syntax tree.

A file is read declaration by declaration: a line that begins one cannot stand inside another. So what is wrong with one
does not hide what is wrong with the next, and single functions of a library can be read alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import cast

from intarsia.dsl import ast, lexical_errors
from intarsia.dsl.automaton import Automaton
from intarsia.dsl.lexer import Lexer
from intarsia.dsl.tables import Tables, load_tables
from intarsia.dsl.tree import TreeBuilder
from intarsia.ir.errors import CompileError, Diagnostic, Source, Span

MAX_DIAGNOSTICS = 20

# What this matches cannot stand within a declaration, where `mesh` and such are names: two names in a row, or a name
# and a string. A `const` parameter differs from a declaration by its type.
_DECLARATION = re.compile(
    r"""^[ \t]*(?P<start>
        (?: (?:fn|struct|mesh|format) [ \t]+ (?!(?:and|or|in|while)\b) (?P<name>[A-Za-z_]\w*)
          | (?:test|import) [ \t]* "
          | const [ \t]+ (?P<const>[A-Za-z_]\w*) [ \t]* =(?!=)))""",
    re.ASCII | re.MULTILINE | re.VERBOSE,
)


_WORD = re.compile(r"\w+")


def parse_program(source: Source) -> ast.Program:
    """Parse a file.

    Raises:
        CompileError: all that is wrong with the syntax, at most one error a line and MAX_DIAGNOSTICS in all.
    """
    declarations: list[ast.Declaration] = []
    diagnostics = lexical_errors.check_text(source)
    _raise(diagnostics)
    chunks = _chunks(source)
    for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
        node, found = _parse(source, chunk, "program", following)
        diagnostics += found
        if isinstance(node, ast.Program):
            declarations += node.declarations
    _raise(diagnostics)
    return ast.Program(source, tuple(declarations), span=Span(source, 0, len(source.text)))


def parse_expression(source: Source) -> ast.Expression:
    """Parse a text that is one expression. Raises CompileError."""
    _raise(lexical_errors.check_text(source))
    node, diagnostics = _parse(source, _Chunk("", 0, len(source.text)), "expression")
    _raise(diagnostics)
    return cast(ast.Expression, node)


def split_declarations(source: Source) -> dict[str, tuple[int, int]]:
    """Where each named declaration of a file stands, without parsing it: the name to the range of characters from its
    first word to the next declaration. Of declarations on one line, split by `;`, only the first is seen."""
    ranges: dict[str, tuple[int, int]] = {}
    for chunk in _chunks(source):
        if chunk.name:
            ranges.setdefault(chunk.name, (chunk.start, chunk.end))
    return ranges


def parse_declaration(source: Source, start: int, end: int) -> ast.Declaration:
    """Parse one range that `split_declarations` gave; spans are those of the whole source. Raises CompileError."""
    node, diagnostics = _parse(source, _Chunk("", start, end), "program")
    _raise(diagnostics)
    assert isinstance(node, ast.Program)
    return node.declarations[0]


@dataclass(frozen=True)
class _Chunk:
    """A range of a source that begins with a declaration, called `name` where it has one."""

    name: str
    start: int
    end: int


def _chunks(source: Source) -> list[_Chunk]:
    """The whole of a source in chunks; the first is what stands before the first declaration."""
    matches = list(_DECLARATION.finditer(source.text))
    names = ["", *(match["name"] or match["const"] or "" for match in matches)]
    starts = [1 if source.text.startswith("\ufeff") else 0, *(match.start("start") for match in matches)]
    ends = [*starts[1:], len(source.text)]
    return [_Chunk(name, start, end) for name, start, end in zip(names, starts, ends, strict=True)]


@cache
def _language() -> tuple[Tables, Lexer]:
    tables = load_tables()
    return tables, Lexer(tables.terminals)


def _parse(
    source: Source, chunk: _Chunk, start: str, following: _Chunk | None = None
) -> tuple[object, list[Diagnostic]]:
    """The tree of one chunk, or None, and what is wrong with it."""
    tables, lexer = _language()
    next_word = None
    if following is not None:
        word = _WORD.match(source.text, following.start)
        next_word = word and Span(source, *word.span())
    tokens = lexer.tokens(source, chunk.start, chunk.end, next_word)
    if not tokens.balanced:
        return None, list(tokens.diagnostics)
    builder = TreeBuilder(source)
    automaton = Automaton(tables, tokens, builder)
    node = automaton.parse(start)
    builder.finish()
    return node, [*tokens.diagnostics, *automaton.diagnostics, *builder.diagnostics]


def _raise(diagnostics: list[Diagnostic]) -> None:
    """Raise the first error of each line, if there are any: the second is often a consequence."""
    first_of_line: dict[int, Diagnostic] = {}
    for diagnostic in sorted(diagnostics, key=lambda d: d.span.start if d.span else 0):
        first_of_line.setdefault(diagnostic.span.line if diagnostic.span else 0, diagnostic)
    if first_of_line:
        raise CompileError.of(list(first_of_line.values())[:MAX_DIAGNOSTICS])

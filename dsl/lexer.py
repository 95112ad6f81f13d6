"""Text to tokens. The kinds of token are the terminals of the grammar; which line ends count is decided here.

A line end does not count inside `(` or `[`, after a binary operator, `,` `=` `+=` `..` `:` `->` `{` or `not`, nor
before `->`. Brackets are matched here too, so that an open one is reported where it was opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from intarsia.dsl import lexical_errors
from intarsia.dsl.lexical_errors import CLOSERS
from intarsia.dsl.tables import END, Terminal
from intarsia.ir.errors import Diagnostic, Source, Span

NEWLINE = "_NEWLINE"
SEMICOLON = "SEMICOLON"
"""The kind of a `;` inside ( or [, which the grammar does not have."""

DECLARATION_WORDS = frozenset({"import", "const", "mesh", "format", "struct", "test"})
"""Words that are names wherever the grammar does not ask for them. Its other words are reserved."""

BINARY_OPERATORS = frozenset(["or", "and", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "//", "%", "@", "**"])

MAX_NESTING = 200
"""Levels of brackets, and of the syntax tree, that later stages can rely on."""

_CONTINUING = BINARY_OPERATORS | {",", "=", "+=", "-=", "*=", "..", ":", "->", "{", "not"}
_OTHERS = r"""
    (?P<BAD_NUMBER> \.?\d (?: \w | \.(?!\.) )* )
  | (?P<BAD_STRING> "[^"\n]* )
  | (?P<OPERATOR> {operators} )
  | (?P<BAD_CHARACTER> [\s\S] )
"""


class Token(NamedTuple):
    """The text from `start` to `end` of a source; `kind` is the name of a terminal of the grammar."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """The tokens of a part of a source, the last of kind END, and what is wrong with them.

    `partners` maps the index of each bracket to that of the one which closes or opens it. Where the brackets do not
    match, `balanced` is false, and little can be said about what stands between them.
    """

    source: Source
    items: Sequence[Token]
    partners: Mapping[int, int]
    diagnostics: Sequence[Diagnostic]
    balanced: bool

    def span(self, index: int) -> Span:
        token = self.items[index]
        return Span(self.source, token.start, token.end)


class Lexer:
    """Splits text by the terminals of the grammar."""

    def __init__(self, terminals: Sequence[Terminal]) -> None:
        fixed = {t.pattern: t.name for t in terminals if not t.is_regexp}
        self.words = {text: name for text, name in fixed.items() if text.isidentifier()}
        self.operators = {text: name for text, name in fixed.items() if text not in self.words}
        self.reserved = frozenset(self.words) - DECLARATION_WORDS
        operators = "|".join(re.escape(text) for text in sorted(self.operators, key=len, reverse=True))
        alternatives = [r"[ \t]+|\r(?=\n)|\#[^\n]*"]
        # A word that goes on after a number, as in 2x or 1., is no number.
        ends = {"NUMBER": r"(?!\w|\.(?!\.))"}
        alternatives += [f"(?P<{t.name}>(?:{t.pattern}){ends.get(t.name, '')})" for t in terminals if t.is_regexp]
        alternatives += [re.sub(r"\s", "", _OTHERS).replace("{operators}", operators)]
        self.pattern = re.compile("|".join(alternatives), re.ASCII)

    def tokens(self, source: Source, start: int, end: int, next_declaration: Span | None = None) -> Tokens:
        """The tokens of `source.text[start:end]`; `next_declaration` is what follows it, for messages."""
        return _Reader(self, source).read(start, end, next_declaration)


class _Reader:
    """One reading of a text."""

    def __init__(self, lexer: Lexer, source: Source) -> None:
        self.lexer = lexer
        self.source = source
        self.items: list[Token] = []
        self.open: list[int] = []  # indices of brackets
        self.partners: dict[int, int] = {}
        self.diagnostics: list[Diagnostic] = []
        self.balanced = True

    def read(self, start: int, end: int, next_declaration: Span | None) -> Tokens:
        words, operators, items = self.lexer.words, self.lexer.operators, self.items
        for match in self.lexer.pattern.finditer(self.source.text, start, end):
            kind = match.lastgroup
            if kind is None:
                continue
            text = match.group()
            if kind == "NAME":
                items.append(Token(words.get(text, kind), text, match.start(), match.end()))
            elif kind == "OPERATOR":
                self.operator(Token(operators[text], text, match.start(), match.end()))
            elif kind in ("NUMBER", "STRING"):
                items.append(Token(kind, text, match.start(), match.end()))
            else:
                self.rare(Token(kind, text, match.start(), match.end()))
        self.finish(next_declaration)
        last = items[-1].end if items else start
        items.append(Token(END, "", last, last))
        return Tokens(self.source, items, self.partners, self.diagnostics, self.balanced)

    def rare(self, token: Token) -> None:
        """A line end, an annotation's `{sum:`, or something wrong, in whose place a right token is put."""
        span = Span(self.source, token.start, token.end)
        match token.kind:
            case "_NEWLINE":
                self.newline(token)
            case "BAD_NUMBER":
                self.diagnostics.append(lexical_errors.bad_number(span))
                self.items.append(Token("NUMBER", "0", token.start, token.end))
            case "BAD_STRING":
                self.diagnostics.append(lexical_errors.unclosed_string(span))
                self.items.append(Token("STRING", '""', token.start, token.end))
            case "BAD_CHARACTER":
                self.diagnostics.append(lexical_errors.bad_character(span))
            case _:
                self.operator(token)

    def newline(self, token: Token) -> None:
        """A line end or `;`: one token for any number of them, none where they do not count."""
        is_semicolon = token.text == ";"
        if self.open and self.items[self.open[-1]].text in "([":
            if is_semicolon:
                self.items.append(token._replace(kind=SEMICOLON))
            return
        last = self.items[-1] if self.items else None
        if last is None or last.kind == NEWLINE or last.text == "{":
            return
        if is_semicolon or last.text not in _CONTINUING:
            self.items.append(token)

    def operator(self, token: Token) -> None:
        """A punctuation mark; brackets are matched, and what makes the line end before it void is seen."""
        items, index = self.items, len(self.items)
        if token.text == "->" and items and items[-1].text == "\n":
            items.pop()
        elif token.text in ")]}":
            if token.text == "}" and items and items[-1].kind == NEWLINE:
                items.pop()
                index -= 1
            self.close(token, index)
        elif token.text[0] in CLOSERS:
            self.open.append(index)
            if len(self.open) > MAX_NESTING and self.balanced:
                span = Span(self.source, token.start, token.end)
                self.unbalanced(lexical_errors.nested_too_deeply(span, MAX_NESTING))
        items.append(token)

    def close(self, token: Token, index: int) -> None:
        """Match a closing bracket with the innermost open one. Where that is of another kind, it is the open one that
        is wrong, unless nothing in the same block could be meant."""
        closer = Span(self.source, token.start, token.end)
        wanted = {"}"} if token.text == "}" else {"}", token.text}
        found = next((o for o in reversed(self.open) if CLOSERS[self.items[o].text[0]] in wanted), None)
        if found is None or CLOSERS[self.items[found].text[0]] != token.text:
            self.unbalanced(lexical_errors.stray_bracket(closer))
            return
        opener = self.open.pop()
        if opener != found:
            self.unbalanced(lexical_errors.unclosed_bracket(self.bracket(opener), closer))
        self.partners[index] = opener
        self.partners[opener] = index

    def finish(self, next_declaration: Span | None) -> None:
        """Drop a last line end, and report the bracket that is still open."""
        if self.items and self.items[-1].kind == NEWLINE:
            self.items.pop()
        if self.open:
            opener = self.open[-1]
            for index in self.partners:
                if index < self.partners[index] and self.closes_less_indented(index):
                    opener = max(opener, index)
            self.unbalanced(lexical_errors.unclosed_bracket(self.bracket(opener), next_declaration))

    def closes_less_indented(self, opener: int) -> bool:
        """Whether the `}` of a `{` begins a line that is indented less than the line of the `{`: when a `}` is missing,
        it is likely this one's."""
        token, partner = self.items[opener], self.items[self.partners[opener]]
        if token.text != "{":
            return False
        before = self.source.text.rfind("\n", 0, partner.start) + 1
        line = self.source.text.rfind("\n", 0, token.start) + 1
        indent = re.compile(r"[ \t]*")
        opening, closing = indent.match(self.source.text, line), indent.match(self.source.text, before)
        assert opening is not None and closing is not None
        return closing.end() == partner.start and closing.end() - before < opening.end() - line

    def bracket(self, opener: int) -> Span:
        return Span(self.source, self.items[opener].start, self.items[opener].start + 1)

    def unbalanced(self, diagnostic: Diagnostic) -> None:
        """Report a bracket that does not match, the first one only: what follows from it is not known to be wrong."""
        if self.balanced:
            self.diagnostics.append(diagnostic)
        self.balanced = False

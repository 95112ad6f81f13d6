"""What is said about a token that does not fit: the common mistakes by name, the rest by what could stand there.

Each rule is a function that looks at the tokens around the one that does not fit and gives a diagnostic or None; the
first that does is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from intarsia.dsl.lexer import BINARY_OPERATORS, DECLARATION_WORDS, NEWLINE, SEMICOLON, Token, Tokens
from intarsia.dsl.tables import END
from intarsia.ir.errors import Diagnostic, Span
from intarsia.ir.sharding import COMBINERS

_KINDS = {"NAME": "a name", "NUMBER": "a number", "STRING": "a string", NEWLINE: "the end of the line"}
_COMPARISONS = frozenset(["==", "!=", "<", "<=", ">", ">="])
_OPERAND_WORDS = frozenset(["true", "false", "none", "inf", "nan"])
_EXPRESSION_START = frozenset(["NAME", "NUMBER", "STRING", "("])
_EXPRESSION = _EXPRESSION_START | _OPERAND_WORDS | {"-", "not", "update", "loop", "scan"}
_AFTER_OPERAND = BINARY_OPERATORS | {"(", "[", "."}

_LOOP_HINT = "a loop is an expression: x = loop (x = start) for t < n { yield … }; every element at once is y[i] = …"
_FOREIGN_WORDS: Mapping[str, str] = {
    **dict.fromkeys(["let", "var", "val", "auto", "mut"], "a value gets a name by: name = …"),
    **dict.fromkeys(["def", "func", "function", "fun"], "a function is written: fn name(x: f32[N]) -> f32[N] { … }"),
    **dict.fromkeys(["class", "record", "typedef"], "a record of tensors is written: struct Name(N) { … }"),
    **dict.fromkeys(["from", "include", "use", "using"], 'another file is read by: import "file.ita"'),
    **dict.fromkeys(["elif", "elseif", "elsif"], "write: } else if c {"),
    "lambda": "functions have names and stand outside others: fn name(x: f32[N]) -> f32[N] { … }",
}


@dataclass(frozen=True)
class Context:
    """The token at `position`, which does not fit.

    `expected` are the texts of the fixed tokens and the kinds of the others that would; `reserved` are the reserved
    words of the language.
    """

    tokens: Tokens
    position: int
    expected: frozenset[str]
    reserved: frozenset[str]

    @property
    def token(self) -> Token:
        return self.tokens.items[self.position]

    @property
    def previous(self) -> Token | None:
        return self.tokens.items[self.position - 1] if self.position else None

    @property
    def following(self) -> Token | None:
        items = self.tokens.items
        return items[self.position + 1] if self.position + 1 < len(items) else None

    def begins_statement(self, position: int) -> bool:
        """Whether the token at `position` is the first of a statement or declaration."""
        if position == 0:
            return True
        before = self.tokens.items[position - 1]
        return before.kind == NEWLINE or before.text == "{"

    def error(self, code: str, message: str, hint: str = "", *, at: int | None = None) -> Diagnostic:
        span = self.tokens.span(self.position if at is None else at)
        if self.token.kind == END and at is None and self.position:
            last = self.tokens.span(self.position - 1)  # the end has no text of its own
            span = Span(last.source, last.end - 1, last.end)
        return Diagnostic(code, message, span, hint)


def explain(context: Context) -> Diagnostic:
    """The best that can be said about a token that does not fit."""
    for rule in _RULES:
        if diagnostic := rule(context):
            return diagnostic
    return unexpected(context)


def unexpected(context: Context) -> Diagnostic:
    """The token, and what could stand in its place."""
    whole = "declaration" if context.tokens.items[0].text in DECLARATION_WORDS | {"fn"} else "text"
    found = {NEWLINE: "end of the line", END: f"end of the {whole}"}.get(context.token.kind, f"`{context.token.text}`")
    expected = _describe(context.expected)
    return context.error("E0100", f"unexpected {found}" + (f", expected {expected}" if expected else ""))


def _describe(expected: frozenset[str]) -> str:
    """A list of what could come, with the parts of the grammar by their names."""
    if "fn" in expected:
        return "a declaration"
    if "return" in expected:
        return "a statement or `}`"
    rest = set(expected)
    groups = []
    if expected >= _EXPRESSION_START:
        groups.append("an expression")
        rest -= _EXPRESSION
    elif expected >= {"+", "*", "("}:
        groups.append("an operator")
        rest -= _AFTER_OPERAND
    groups += [text for kind, text in _KINDS.items() if kind in rest]
    groups += [f"`{text}`" for text in sorted(rest - set(_KINDS) - {END, "ALONG"})]
    if len(groups) > 5:
        return ""
    return " or ".join(filter(None, [", ".join(groups[:-1]), *groups[-1:]]))


def _line_end(context: Context) -> Diagnostic | None:
    """A line that begins with what belongs to the line above."""
    token, previous, following = context.token, context.previous, context.following
    if token.kind == NEWLINE and following and following.text == "{" and "{" in context.expected:
        hint = "move it to the end of the line above"
        return context.error("E0107", "a line cannot begin with `{`", hint, at=context.position + 1)
    if previous is None or previous.kind != NEWLINE or previous.text != "\n":
        return None
    if token.text == "else":
        return context.error("E0107", "a line cannot begin with `else`", "write `} else {` on one line")
    if token.text in BINARY_OPERATORS | {"=", ".", ",", "..", "?"} and token.text != "//":
        hint = f"move `{token.text}` to the end of the line above"
        return context.error("E0107", f"a line cannot begin with `{token.text}`", hint)
    return None


def _unfinished_line(context: Context) -> Diagnostic | None:
    """A line that ends with an operator and is followed by another statement: `a =`, then `b = 1`."""
    position, items = context.position, context.tokens.items
    if context.token.text != "=" or position < 2 or items[position - 1].kind != "NAME":
        return None
    between = context.tokens.source.text[items[position - 2].end : items[position - 1].start]
    if "\n" not in between or items[position - 2].text in (",", "{") or items[position - 2].kind == NEWLINE:
        return None
    message = f"this line ends with `{items[position - 2].text}`, and the next is a statement of its own"
    return context.error("E0107", message, "complete the line", at=position - 2)


def _foreign(context: Context) -> Diagnostic | None:
    """What other languages write."""
    token, previous, position = context.token, context.previous, context.position
    for index in (position, position - 1):
        word = context.tokens.items[index].text if index >= 0 else ""
        if word in _FOREIGN_WORDS and (context.begins_statement(index) or word == "lambda"):
            return context.error("E0117", f"`{word}` is not a word of the language", _FOREIGN_WORDS[word], at=index)
    if token.text == "//" and context.begins_statement(position):
        return context.error("E0117", "`//` begins no comment", "a comment begins with #")
    if token.text in ("for", "while") and context.begins_statement(position):
        return context.error("E0117", f"there is no `{token.text}` statement", _LOOP_HINT)
    if token.text == "if" and ("NUMBER" in context.expected or "+" in context.expected):
        return context.error("E0117", "`if` is a statement, not an expression", "write where(c, a, b)")
    if token.text == "?" and "+" in context.expected:
        return context.error("E0117", "there is no `? :`", "write where(c, a, b)")
    if token.text == "!":
        return context.error("E0117", "`!` is no operator", "write `not c`, or `a != b`")
    if token.text == ":" and "{" in context.expected:
        return context.error("E0117", "a block does not begin with `:`", "a block stands in braces: { … }")
    if token.text == "=" and previous is not None and previous.text == ":" and previous.end == token.start:
        return context.error("E0117", "`:=` is no operator", "a value gets a name by: name = …", at=position - 1)
    return None


def _reserved(context: Context) -> Diagnostic | None:
    """A reserved word where a name or an operand is needed."""
    word = context.token.text
    if word not in context.reserved or "NAME" not in context.expected:
        return None
    if word in ("loop", "scan", "update") and "return" in context.expected:
        first = "x = update x[i] = …" if word == "update" else f"x = {word} (…) …"
        return context.error(
            "E0119", f"`{word}` makes a value, which gets no name here", f"write {first}, or return it"
        )
    if "NUMBER" in context.expected and word in ("loop", "scan", "update", "not"):
        return context.error("E0121", f"`{word}` as an operand needs parentheses", f"write ({word} …)")
    if "NUMBER" in context.expected and word in ("and", "or", "in"):
        return None
    return context.error(
        "E0108", f"`{word}` is a reserved word and cannot be a name", f"write another, such as {word}_"
    )


def _assignment(context: Context) -> Diagnostic | None:
    """`=` in an expression, or together with another operator."""
    token, following = context.token, context.following
    in_place = following is not None and following.text == "=" and following.start == token.end
    if in_place and token.text in ("/", "//", "%", "@", "**") and context.previous is not None:
        name = context.previous.text
        hint = f"make a new value: {name} = {name} {token.text} …"
        return context.error("E0112", f"`{token.text}=` cannot change a value", hint)
    if token.text == "=" and "==" in context.expected:
        return context.error("E0109", "`=` inside an expression", "equality is ==")
    if token.text == ":" and context.position >= 2 and context.tokens.items[context.position - 2].text == "const":
        return context.error("E0100", "a const declaration has no type", "a const stands for its literal: const N = 4")
    return None


def _expression_statement(context: Context) -> Diagnostic | None:
    """An expression that stands alone, between statements."""
    token, position = context.token, context.position
    hint = "give it a name, as in y = …, or return it"
    if "return" in context.expected and (token.kind in ("NUMBER", "STRING") or token.text in ("(", "-", "not")):
        return context.error("E0119", "an expression is not a statement", hint)
    if "+=" not in context.expected or token.kind == "NAME":
        return None
    # The statement so far is a name, perhaps with subscripts.
    first = position - 1
    if context.tokens.items[first].text == "]":
        first = context.tokens.partners[first] - 1
    if not context.begins_statement(first):
        return None
    return context.error("E0119", "an expression is not a statement", hint, at=first)


def _items(context: Context) -> Diagnostic | None:
    """Two items of a list without a comma, with something else between them, or a range as an item."""
    token, expected = context.token, context.expected
    if token.kind == SEMICOLON:
        return context.error("E0111", "`;` between the items of a list", "items are separated by commas")
    if token.text == "," and NEWLINE in expected and context.tokens.items[0].text == "struct":
        return context.error("E0111", "`,` between the fields of a struct", "each field stands on a line of its own")
    begins_item = token.kind in ("NAME", "NUMBER", "STRING") or token.text in _OPERAND_WORDS | {"not", "const"}
    if begins_item and "," in expected and not expected.isdisjoint({")", "]"}) and context.previous is not None:
        other = "an operator" if "+" in expected else "`:`" if ":" in expected else ""
        missing = f"`,` or {other} is" if other else "`,` is"
        return context.error("E0111", f"{missing} missing between `{context.previous.text}` and `{token.text}`")
    if token.text == ".." and ":" in expected:
        return context.error("E0114", "a range among the subscripts of a value", "part of a tensor is x[a:b]")
    return None


def _comparison(context: Context) -> Diagnostic | None:
    """a < b < c"""
    if context.token.text in _COMPARISONS and "and" in context.expected:
        return context.error("E0115", "comparisons do not chain", "write a < b and b < c")
    return None


def _dimension(context: Context) -> Diagnostic | None:
    """In a type: `N-1@axis`, or `/`."""
    if "//" not in context.expected or "/" in context.expected:
        return None
    if context.token.text == "@":
        hint = "it follows a name, an integer or a dimension in parentheses: (N-1)@axis"
        return context.error("E0120", "`@` after a sum or product", hint)
    if context.token.text == "/":
        return context.error("E0120", "`/` divides floats, and sizes are integers", "write N//2")
    return None


def _parts_of_scalar(context: Context) -> Diagnostic | None:
    """`f32{sum: a}`: a parameter ends before it, a result takes it for the body."""
    items, start = context.tokens.items, context.position
    if context.token.text == "}":
        while start and items[start].text != "{" and items[start].kind != NEWLINE:
            start -= 1
    opened, *words = (i.text for i in items[start : start + 3])
    if start == 0 or opened != "{" or words[1:] != [":"] or words[0] not in COMBINERS:
        return None
    dtype = items[start - 1].text
    return context.error(
        "E0100", f"`{{{words[0]}: …}}` follows `]`", f"a scalar is {dtype}[]{{{words[0]}: …}}", at=start
    )


def _declaration(context: Context) -> Diagnostic | None:
    """Something between declarations."""
    if "fn" not in context.expected:
        return None
    hint = "a file is made of fn, struct, const, format, mesh, test and import; statements stand in a function"
    return context.error("E0118", f"`{context.token.text}` does not begin a declaration", hint)


_RULES: Sequence[Callable[[Context], Diagnostic | None]] = (
    _line_end,
    _unfinished_line,
    _foreign,
    _reserved,
    _assignment,
    _comparison,
    _dimension,
    _parts_of_scalar,
    _expression_statement,
    _items,
    _declaration,
)

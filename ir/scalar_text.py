"""Reading sizes, scalar expressions and masks: the part of the text form that Graph and Kernel share.

The reader is by recursive descent over a list of tokens; what `str` of a `Size`, an expression and `mask_text` print
reads back to the identical object, given the dtypes of the buffers. Lines mean nothing to it; a token knows whether it
begins one. `%` before a letter or digit begins the name of a value, so the remainder is written `a % b`.

    size        = term (("+" | "-") term)*
    term        = ["-"] factor (("*" | "//" | "%") factor)*
    factor      = number | name | "(" size ")" | ("min" | "max") "(" size ("," size)* ")" | load | "{" expression "}"
    mask        = size "<" size ("and" size "<" size)*
    load        = buffer "[" [size ("," size)*] "]"
    expression  = operators of the language over primary
    primary     = literal | load | "(" expression ")" | "(" load "if" mask ["else" literal] ")" | "index" "(" size ")"
                | "let" "(" (name "=" expression ",")* expression ")" | name
                | function "(" expression ("," expression)* ")" | dtype "(" expression ")"
                | "bitcast" "(" expression "," dtype ")"
    literal     = ["-"] number | "true" | "false" | ["-"] "inf" | "nan" | dtype ":" literal
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import BOOL, F32, I64, DType, dtype, have_same_bits
from intarsia.ir.errors import CompileError, Source, Span
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.scalar import INFIX, Apply, Bitcast, Cast, Const, Expr, Index, Load, Mask, constant
from intarsia.ir.sizes import Size, maximum, minimum

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r]+|\#[^\n]*)
  | (?P<newline>\n)
  | (?P<string>"[^"\n]*")
  | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
  | (?P<value>%[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*(?:\#\d+)?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)
  | (?P<symbol>\.\.|->|//|==|!=|<=|>=|\+=|-=|\*=|[-+*/%<>=(){}\[\],:;@!?])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    """A piece of text. `kind` is string, number, value (`%x`), name, symbol or end."""

    kind: str
    text: str
    start: int
    begins_line: bool

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def tokenize(source: Source) -> list[Token]:
    """The tokens of a text, the last of kind `end`. Raises CompileError E1501 at a character that begins none."""
    tokens: list[Token] = []
    position, begins_line = 0, True
    while position < len(source.text):
        found = _TOKEN.match(source.text, position)
        if found is None:
            span = Span(source, position, position + 1)
            raise CompileError("E1501", f"no token begins with {source.text[position]!r}", span)
        match found.lastgroup:
            case "space":
                pass
            case "newline":
                begins_line = True
            case kind:
                assert kind is not None
                tokens.append(Token(kind, found[0], position, begins_line))
                begins_line = False
        position = found.end()
    tokens.append(Token("end", "", position, True))
    return tokens


class ScalarReader:
    """Reads sizes, masks and expressions from the tokens of one source, from `position` on.

    `buffers` gives the dtype of each buffer or value by the name that it has in the text; a reader of graphs or kernels
    extends this class and fills it as it meets declarations.
    """

    def __init__(self, source: Source, buffers: dict[str, DType] | None = None) -> None:
        self.source = source
        self.tokens = tokenize(source)
        self.position = 0
        self.buffers: dict[str, DType] = dict(buffers or {})
        self.parts: dict[str, Expr] = {}  # that `let` names

    # ------------------------------------------------------------------ tokens

    @property
    def token(self) -> Token:
        """The next token."""
        return self.tokens[self.position]

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)]

    def next(self) -> Token:
        """Take the next token."""
        token = self.token
        if token.kind != "end":
            self.position += 1
        return token

    def at(self, *texts: str) -> bool:
        """Is the next token one of these symbols or words?"""
        return self.token.kind in ("symbol", "name") and self.token.text in texts

    def accept(self, text: str) -> bool:
        """Take the next token if it is this symbol or word."""
        if self.at(text):
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> Token:
        """Take this symbol or word. Raises E1502 if another comes."""
        if not self.at(text):
            raise self.unexpected(f"'{text}'")
        return self.next()

    def expect_kind(self, kind: str, what: str) -> Token:
        if self.token.kind != kind:
            raise self.unexpected(what)
        return self.next()

    def name(self, what: str = "a name") -> str:
        return self.expect_kind("name", what).text

    def integer(self, what: str = "an integer") -> int:
        """A literal integer, perhaps negative."""
        sign = -1 if self.accept("-") else 1
        token = self.expect_kind("number", what)
        if not token.text.isdigit():
            raise self.error("E1502", f"{token.text} is not an integer", token)
        return sign * int(token.text)

    def span(self, start: Token, end: Token | None = None) -> Span:
        """From the start of one token to the end of another, or to that of the last token taken."""
        last = end or self.tokens[max(self.position - 1, 0)]
        return Span(self.source, start.start, max(last.end, start.end))

    def error(self, code: str, message: str, start: Token | None = None, hint: str = "") -> CompileError:
        """An error at `start` (to the last token taken), by default at the next token."""
        token = start or self.token
        return CompileError(code, message, self.span(token, None if start else token), hint=hint)

    def unexpected(self, wanted: str) -> CompileError:
        found = f"'{self.token.text}'" if self.token.kind != "end" else "the end of the text"
        return self.error("E1502", f"expected {wanted}, found {found}")

    # ------------------------------------------------------------------ sizes

    def size(self) -> Size:
        total = self._term()
        while self.at("+", "-"):
            total = total + self._term() if self.next().text == "+" else total - self._term()
        return total

    def sizes(self, closing: str) -> tuple[Size, ...]:
        """Sizes with commas up to a closing bracket, which is taken."""
        found: list[Size] = []
        while not self.at(closing):
            found.append(self.size())
            if not self.accept(","):
                break
        self.expect(closing)
        return tuple(found)

    def mask(self) -> Mask:
        conditions = [self._condition()]
        while self.accept("and"):
            conditions.append(self._condition())
        return tuple(conditions)

    def _condition(self) -> Size:
        left = self.size()
        self.expect("<")
        return self.size() - left

    def _term(self) -> Size:
        sign = -1 if self.accept("-") else 1
        product = self._factor()
        while self.at("*", "//", "%"):
            match self.next().text:
                case "*":
                    product = product * self._factor()
                case "//":
                    product = product // self._factor()
                case _:
                    product = product % self._factor()
        return product * sign

    def _factor(self) -> Size:
        token = self.token
        if token.kind == "number":
            return Size.of(self.integer())
        if token.kind in ("name", "value") and self.peek().text == "[":
            return Size.opaque(self._integer_valued(self._load()))
        if self.accept("("):
            inner = self.size()
            self.expect(")")
            return inner
        if self.accept("{"):
            value = self._integer_valued(self.expression())
            self.expect("}")
            return Size.opaque(value)
        if self.at("min", "max") and self.peek().text == "(":
            pick = minimum if self.next().text == "min" else maximum
            self.next()
            return pick(*self.sizes(")"))
        if token.kind == "name":
            return Size.of(self.next().text)
        raise self.unexpected("an integer expression")

    def _integer_valued(self, value: Expr) -> Expr:
        if not value.dtype.is_integer:
            raise self.error("E1504", f"{value} is {value.dtype}: a subscript or bound is an integer")
        return value

    # ------------------------------------------------------------------ expressions

    def expression(self, level: int = 1) -> Expr:
        """A scalar expression of operators that bind at least as tightly as `level` (see `INFIX`)."""
        left = self._primary()
        while (found := _OPERATORS.get(self.token.text)) and self.token.kind in ("symbol", "name"):
            function, own = found
            if own < level:
                break
            operator = self.next()
            right = self.expression(own + 1)
            left = self._apply(function, (left, right), operator)
            if own == _COMPARISON and _OPERATORS.get(self.token.text, ("", 0))[1] == _COMPARISON:
                raise self.error("E1502", "comparisons do not chain: join them by `and`")
        return left

    def literal(self) -> Const:
        """A number, perhaps with its dtype before it: `1.5`, `-3`, `inf`, `f16:0.5`, `true`."""
        start = self.token
        if start.kind == "name" and self.peek().text == ":":
            return self._literal_of(self.dtype(), start)
        if self.at("true", "false"):
            return Const(self.next().text == "true", BOOL)
        number = self._number()
        return constant(number, I64 if isinstance(number, int) else F32)

    def _literal_of(self, dtype: DType, start: Token) -> Const:
        self.expect(":")
        number = self._number()
        if isinstance(number, float) and not dtype.is_float:
            raise self.error("E1504", f"{number} is not a literal of {dtype}", start)
        return constant(number, dtype)

    def _number(self) -> int | float:
        sign = -1 if self.accept("-") else 1
        if self.at("inf", "nan"):
            return sign * float(self.next().text)
        text = self.expect_kind("number", "a literal").text
        return sign * (int(text) if text.isdigit() else float(text))

    def dtype(self) -> DType:
        token = self.expect_kind("name", "an element type")
        found = dtype(token.text)
        if found is None:
            raise self.error("E1503", f"no element type is named '{token.text}'", token)
        return found

    def _primary(self) -> Expr:
        token, following = self.token, self.peek().text
        if token.kind in ("name", "value") and following == "[":
            return self._load()
        if self.accept("("):
            inner = self.expression()
            if self.at("if") and isinstance(inner, Load):
                inner = self._masked(inner)
            self.expect(")")
            return inner
        if token.kind == "name" and following == "(":
            return self._let() if token.text == "let" else self._call()
        if token.kind == "name" and token.text in self.parts:
            return self.parts[self.next().text]
        return self.literal()

    def _let(self) -> Expr:
        """`let(t0 = …, t1 = …, …)`: the names are known up to the closing bracket."""
        outer, self.parts = self.parts, dict(self.parts)
        self.next()
        self.expect("(")
        while self.token.kind == "name" and self.peek().text == "=":
            name = self.name()
            self.expect("=")
            self.parts[name] = self.expression()
            self.expect(",")
        value = self.expression()
        self.expect(")")
        self.parts = outer
        return value

    def _load(self) -> Load:
        buffer, dtype = self.buffer(self.next())
        self.expect("[")
        return Load(buffer, self.sizes("]"), dtype)

    def buffer(self, token: Token) -> tuple[str, DType]:
        """The buffer that a name in a load stands for, and its dtype. Raises E1503 if there is none."""
        dtype = self.buffers.get(token.text)
        if dtype is None:
            raise self.unknown(token, self.buffers)
        return token.text, dtype

    def unknown(self, token: Token, known: Iterable[str]) -> CompileError:
        """The error that nothing has this name; the hint names what is alike, or all if that is little."""
        names = sorted(known)
        close = difflib.get_close_matches(token.text, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else ""
        if not close and 0 < len(names) <= 12:
            hint = f"known here: {', '.join(names)}"
        return self.error("E1503", f"nothing is named '{token.text}' here", token, hint)

    def _masked(self, load: Load) -> Load:
        self.expect("if")
        mask = self.mask()
        other = self.literal() if self.accept("else") else None
        return replace(load, mask=mask, other=other)

    def _call(self) -> Expr:
        """`function(…)`, `dtype(…)`, `bitcast(…, dtype)` or `index(…)`."""
        token = self.next()
        self.expect("(")
        result: Expr
        if token.text == "index":
            result = Index(self.size())
        elif token.text == "bitcast":
            value = self.expression()
            self.expect(",")
            result = self._bitcast(value, self.dtype(), token)
        elif (target := dtype(token.text)) is not None:
            result = Cast(target, self.expression())
        elif token.text in FUNCTIONS:
            arguments = [self.expression()]
            while self.accept(","):
                arguments.append(self.expression())
            result = self._apply(token.text, tuple(arguments), token)
        else:
            raise self.error("E1503", f"no function is named '{token.text}'", token)
        self.expect(")")
        return result

    def _bitcast(self, value: Expr, target: DType, token: Token) -> Bitcast:
        if not have_same_bits(target, value.dtype):
            raise self.error("E1504", f"bitcast of {value.dtype} to {target}: the widths differ", token)
        return Bitcast(target, value)

    def _apply(self, function: str, arguments: tuple[Expr, ...], token: Token) -> Apply:
        try:
            return Apply(function, arguments)
        except TypeError as error:
            raise self.error("E1504", str(error), token) from None


_OPERATORS = {symbol: (function, level) for function, (symbol, level) in INFIX.items()}
_COMPARISON = INFIX["eq"][1]

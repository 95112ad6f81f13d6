"""What is said about characters, numbers, strings and brackets that are wrong."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from intarsia.ir.errors import Diagnostic, Source, Span

_CHARACTER_HINTS: Mapping[str, str] = {
    **dict.fromkeys("'`“”‘’", 'strings are in straight double quotes: "..."'),
    **dict.fromkeys("−–—", "the minus sign is -"),
    **dict.fromkeys("×·∗", "the product is *, the matrix product @"),
    "&": "`and` joins two conditions; on integers use bit_and(a, b)",
    "|": "`or` joins two conditions; on integers use bit_or(a, b)",
    "~": "`not` negates a condition; on integers use bit_not(a)",
    "^": "a power is a ** b; on integers bit_xor(a, b) is the exclusive or",
    "\\": "inside brackets and after a binary operator or a comma a line goes on by itself",
    "÷": "the quotient is /",
    "≤": "write <=",
    "≥": "write >=",
    "≠": "write !=",
    "→": "write ->",
    "√": "write sqrt(x)",
    "∑": "write sum[k](…)",
    "∞": "write inf",
    "…": "write ...",
    "\r": "a line ends with a line feed, or with a carriage return and a line feed",
}


def bad_character(span: Span) -> Diagnostic:
    """A character that begins no token."""
    character = span.source.text[span.start]
    name = f"U+{ord(character):04X} ({unicodedata.name(character, 'a control character')})"
    if character.isprintable() and not character.isspace():
        name = f"`{character}`" if character.isascii() else f"`{character}`, {name}"
    hint = _CHARACTER_HINTS.get(character, "")
    if not hint and character.isalpha():
        hint = "names are made of the letters a to z and A to Z, digits and _"
    elif not hint and (character.isspace() or unicodedata.category(character) == "Cf"):
        hint = "delete it, or put a space in its place"
    return Diagnostic("E0101", f"unexpected character {name}", span, hint)


def bad_number(span: Span) -> Diagnostic:
    """A word that begins like a number and is none."""
    text = span.source.text[span.start : span.end]
    hint = "numbers are written as in Python: 12, 1_000, 0x1F, 0.5, 1e-5"
    if re.fullmatch(r"\d[\d_]*\.", text):
        hint = f"a digit stands on both sides of the point: {text}0"
    elif re.fullmatch(r"\.\d[\d_]*", text):
        hint = f"a digit stands on both sides of the point: 0{text}"
    elif re.fullmatch(r"0[\d_]+", text):
        hint = f"a number does not begin with 0: {text.lstrip('0_') or '0'}"
    elif match := re.fullmatch(r"(\d+)([A-Za-z_]\w*)", text):
        hint = f"a name does not begin with a digit; a product is written with *: {match[1]} * {match[2]}"
    return Diagnostic("E0104", f"`{text}` is not a number", span, hint)


def number_out_of_range(span: Span) -> Diagnostic:
    """A number that no dtype holds."""
    text = span.source.text[span.start : span.end]
    shown = text if len(text) < 40 else f"{text[:20]}…"
    return Diagnostic(
        "E0104", f"the number {shown} is out of the range of every dtype", span, "infinity is written inf"
    )


def unclosed_string(span: Span) -> Diagnostic:
    """A double quote without a second one on its line."""
    return Diagnostic("E0103", "this string is not closed", span, "a string ends with a double quote on the same line")


def unclosed_bracket(opener: Span, closer: Span | None) -> Diagnostic:
    """A bracket that nothing closes, or that `closer`, of another kind or the next declaration, cuts off."""
    bracket = opener.source.text[opener.start]
    notes: tuple[tuple[str, Span], ...] = ()
    if closer is not None:
        found = closer.source.text[closer.start : closer.end]
        notes = ((f"`{found}` stands here, before it is closed", closer),)
    return Diagnostic(
        "E0105", f"`{bracket}` is never closed", opener, f"add `{CLOSERS[bracket]}`", notes, "opened here"
    )


def stray_bracket(closer: Span) -> Diagnostic:
    """A closing bracket without an open one."""
    bracket = closer.source.text[closer.start]
    return Diagnostic("E0106", f"`{bracket}` closes nothing", closer, "delete it, or open the bracket before it")


def nested_too_deeply(span: Span, limit: int) -> Diagnostic:
    """More levels than the compiler walks."""
    message = f"this is nested more than {limit} levels deep"
    return Diagnostic("E0110", message, span, "give a part of it a name in a line of its own")


CLOSERS: Mapping[str, str] = {"(": ")", "[": "]", "{": "}"}


def check_text(source: Source) -> list[Diagnostic]:
    """A character that no text file has."""
    position = source.text.find("\0")
    if position < 0:
        return []
    hint = "a program is a text file; was a weights or object file named by mistake?"
    return [Diagnostic("E0102", f"{source.name} is not a text file", Span(source, position, position + 1), hint)]

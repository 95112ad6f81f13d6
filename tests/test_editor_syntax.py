"""The syntax file for editors names the words of the grammar, and colours a program as it should."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from intarsia.dsl.ast import COMPREHENSIONS
from intarsia.dsl.lexer import DECLARATION_WORDS, Lexer
from intarsia.dsl.tables import load_tables

FOLDER = Path(__file__).parent.parent / "docs" / "vscode"
GRAMMAR: dict[str, Any] = json.loads((FOLDER / "syntaxes" / "intarsia.tmLanguage.json").read_text("utf-8"))


def patterns(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The patterns of an entry, in order, with those that it includes."""
    if "include" in entry:
        return patterns(GRAMMAR["repository"][entry["include"].removeprefix("#")])
    if "match" in entry:
        return [entry]
    return [pattern for part in entry["patterns"] for pattern in patterns(part)]


def scopes(line: str) -> dict[str, str]:
    """The scope of each piece of a line: the first pattern that matches soonest wins, as in an editor."""
    found: dict[str, str] = {}
    position = 0
    while position < len(line):
        matches = [(re.compile(p["match"]).search(line, position), p) for p in patterns(GRAMMAR)]
        best = min(((m.start(), i, m) for i, (m, _) in enumerate(matches) if m and m.group()), default=None)
        if best is None:
            break
        _, index, match = best
        pattern = matches[index][1]
        if "name" in pattern:
            found[match.group()] = pattern["name"]
        for group, capture in pattern.get("captures", {}).items():
            if match.group(int(group)):
                found[match.group(int(group))] = capture["name"]
        position = match.end()
    return {text: name.removesuffix(".intarsia") for text, name in found.items()}


def test_the_words_of_the_grammar_are_all_there() -> None:
    text = json.dumps(GRAMMAR["repository"])
    words = Lexer(load_tables().terminals).reserved | DECLARATION_WORDS | set(COMPREHENSIONS)
    assert [word for word in sorted(words) if not re.search(rf"\b{word}\b|\\b{word}\\b", text)] == []


def test_the_files_that_are_named_are_there() -> None:
    package = json.loads((FOLDER / "package.json").read_text("utf-8"))
    contributes = package["contributes"]
    paths = [contributes["languages"][0]["configuration"], contributes["grammars"][0]["path"]]
    assert all((FOLDER / path).is_file() for path in paths)
    json.loads((FOLDER / "language-configuration.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fn mlp(x: f32[B@data, K]) -> bf16[N] {  # note", {
            "fn": "storage.type.function", "mlp": "entity.name.function", "f32": "support.type",
            "B": "variable.other.constant.dimension", "@": "keyword.operator.sharding",
            "data": "storage.modifier.sharding", "bf16": "support.type", "# note": "comment.line.number-sign",
        }),
        ("    y[i] = sum[k](x[i, k] @ 1e-5) + softmax(z, axis=-1)", {
            "sum": "support.function.reduction", "1e-5": "constant.numeric", "axis": "variable.parameter",
            "softmax": "entity.name.function.call", "@": "keyword.operator.arithmetic",
        }),
        ("format w4 = quant(i4, scale=f8e4m3)", {
            "format": "storage.type", "w4": "entity.name.type", "i4": "support.type", "f8e4m3": "support.type",
        }),
        ("    return loop (h = x) for t < n while not none {", {
            "return": "keyword.control", "while": "keyword.control", "not": "keyword.operator.logical",
            "none": "constant.language",
        }),
        ('import "a # b.ita"', {"import": "keyword.other", '"a # b.ita"': "string.quoted.double"}),
        ("    x = update x[i in 0..3] max= 1", {"max=": "keyword.operator.assignment", "..": "keyword.operator.range"}),
    ],
)  # fmt: skip
def test_colours(line: str, expected: dict[str, str]) -> None:
    found = scopes(line)
    assert {text: found.get(text) for text in expected} == expected

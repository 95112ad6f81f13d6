"""The page about the language keeps its word: what it shows parses, type-checks and becomes a Graph."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from intarsia.dsl import ast
from intarsia.dsl.format import format_program
from intarsia.dsl.library import Library, load
from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import CompileError, Source

PAGE = Path(__file__).parent.parent / "docs" / "language.md"


def code_blocks() -> list[Source]:
    """The blocks of the page that are programs, with line ends before them so that errors name lines of the page."""
    text = PAGE.read_text("utf-8")
    blocks = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Source(PAGE.name, "\n" * text.count("\n", 0, block.start(2)) + block[2])
        for block in blocks
        if block[1] != "text"
    ]


def inline_statements() -> list[str]:
    """What stands between backquotes in the text and is an assignment, a `return`, a `yield` or an `emit`."""
    text = re.sub(r"^```.*?^```$", "", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    statement = r"(?!update )\w+(, \w+)*(\[[^\]]*\])? (=|\+=) [^…]+|(return|yield|emit) [^…]+"
    return [code for code in re.findall(r"`([^`\n]+)`", text) if re.fullmatch(statement, code)]


@pytest.mark.parametrize("source", code_blocks(), ids=lambda source: f"line{source.text.count(chr(10))}")
def test_every_program_of_the_page_parses(source: Source) -> None:
    assert parse_program(source).declarations


def loaded(source: Source, tmp_path: Path) -> Library:
    """The program in a folder of its own, with the file that one of them imports."""
    (tmp_path / "layers.ita").write_text("")
    return load(Source(str(tmp_path / source.name), source.text))


@pytest.mark.parametrize("source", code_blocks(), ids=lambda source: f"line{source.text.count(chr(10))}")
def test_every_program_of_the_page_type_checks(source: Source, tmp_path: Path) -> None:
    assert loaded(source, tmp_path).check() == []


@pytest.mark.parametrize("source", code_blocks(), ids=lambda source: f"line{source.text.count(chr(10))}")
def test_every_program_of_the_page_is_built(source: Source, tmp_path: Path) -> None:
    library = loaded(source, tmp_path)
    for name in library.functions:
        signature = library.signature(name)
        if not signature.generics and not any(".." in (p.type or "") for p in signature.parameters):
            assert library.build(name).graph.results  # the others are in their callers
    for index in range(len(library.tests)):
        assert library.build_test(index).graph.results


def test_formatting_keeps_the_programs_of_the_page() -> None:
    for source in code_blocks():
        formatted = Source(PAGE.name, format_program(source))
        assert ast.same(parse_program(formatted), parse_program(source))


def test_statements_in_the_text_parse_or_are_the_errors_it_names() -> None:
    wrong = {"x[0] = 1": "E0112", "x += 1": "E0112", "bound = program.bind(w=w)": "E0113"}  # the last is Python
    found = inline_statements()
    assert len(found) > 10 and wrong.keys() <= set(found)
    for statement in found:
        source = Source(PAGE.name, f"fn f() {{ {statement} }}")
        if statement not in wrong:
            assert parse_program(source).declarations
        else:
            with pytest.raises(CompileError) as caught:
                parse_program(source)
            assert caught.value.code == wrong[statement]

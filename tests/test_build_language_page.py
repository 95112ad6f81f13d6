"""The page about the language keeps its word: every program on it type-checks and becomes a Graph."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from intarsia.dsl.library import Library, load
from intarsia.ir.errors import Source

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

"""Every way to be wrong in syntax that we know: the whole message in a golden file each, and a page for each code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import CompileError, Source

ROOT = Path(__file__).parent.parent
CASES = sorted((ROOT / "tests" / "errors" / "syntax").glob("*.ita"))
PAGES = sorted((ROOT / "docs" / "errors").glob("E01*.md"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_syntax_error(path: Path, golden: Any) -> None:
    with pytest.raises(CompileError) as caught:
        parse_program(Source(path.name, golden.input(path)))
    golden.check(path, str(caught.value))


def test_every_code_has_a_page_and_an_example() -> None:
    files = ["automaton", "lexer", "lexical_errors", "parser", "syntax_errors", "tree"]
    code = "\n".join((ROOT / "dsl" / f"{name}.py").read_text("utf-8") for name in files)
    used = set(re.findall(r"\bE\d{4}\b", code))
    assert sorted(used) == [page.stem for page in PAGES]
    shown = set(re.findall(r"^error\[(E\d+)\]", "\n".join(case.read_text("utf-8") for case in CASES), re.MULTILINE))
    assert used - shown == {"E0102"}  # whose file is not text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_of_a_code_shows_what_happens(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.startswith(f"# {page.stem}: ")
    example, mended = text.split("## How to mend it\n")
    output = re.search(r"^```text\n(.*?)^```$", example, re.MULTILINE | re.DOTALL)
    assert output is not None and f"error[{page.stem}]" in output[1]
    for program in re.findall(r"^```\n(.*?)^```$", example, re.MULTILINE | re.DOTALL):
        with pytest.raises(CompileError) as caught:
            parse_program(Source("example.ita", program))
        assert f"{caught.value}\n" == output[1]
    for program in re.findall(r"^```\n(.*?)^```$", mended, re.MULTILINE | re.DOTALL):
        parse_program(Source("example.ita", program))

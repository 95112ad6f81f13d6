"""Every way to be wrong that the checker knows: the whole output of `check`, in a golden file for each.

A file that begins with `# --dim N=4` is built with these sizes instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from intarsia.dsl.library import load
from intarsia.ir.errors import CompileError, Source

FOLDER = Path(__file__).parent / "errors"
CASES = sorted(p for p in FOLDER.glob("*/*.ita") if p.parent.name != "syntax")


def messages(source: Source) -> str:
    """What is said about a program."""
    try:
        library = load(source)
        if source.text.startswith("# --dim"):
            head = source.text.partition("\n")[0]
            library.build(dims={name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", head)})
            return ""
    except CompileError as error:
        return str(error)
    return "\n\n".join(d.render() for d in library.check())


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_errors(path: Path, golden: Any) -> None:
    actual = messages(Source(path.name, golden.input(path)))
    assert actual, "nothing is wrong with it"
    golden.check(path, actual)


ROOT = FOLDER.parent.parent
PAGES = sorted(p for p in (ROOT / "docs" / "errors").glob("E0*.md") if p.stem[2] in "23459")
SOURCES = [
    *(ROOT / "dsl").rglob("*.py"),
    *(ROOT / "ir" / "ops").glob("*.py"),
    *(ROOT / "ir" / "gradients").glob("*.py"),
]


def test_every_code_has_a_page() -> None:
    code = "\n".join(path.read_text("utf-8") for path in SOURCES)
    used = {c for c in re.findall(r"\"(E0\d{3})\"", code) if c[2] in "23459"}
    assert sorted(used) == [page.stem for page in PAGES]


def programs(text: str) -> list[str]:
    """The blocks of a page that are programs."""
    return re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_of_a_code_shows_what_happens(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.startswith(f"# {page.stem}: ")
    example, mended = text.split("## How to mend it\n")
    output = re.search(r"^```text\n(.*?)^```$", example, re.MULTILINE | re.DOTALL)
    assert output is not None and f"error[{page.stem}]" in output[1]
    for program in programs(example):
        assert f"{messages(Source('example.ita', program))}\n" == output[1]
    for program in programs(mended):
        assert messages(Source("example.ita", program)) == ""

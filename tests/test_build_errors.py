"""Every way to be wrong that the checker knows: the whole output of `check`, in a golden file for each.

A file that begins with `# build N=4` is built with these sizes instead.
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
        if source.text.startswith("# build"):
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

"""Every way to be wrong in syntax that we know: the whole message, in a golden file for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import CompileError, Source

CASES = sorted((Path(__file__).parent / "errors" / "syntax").glob("*.ita"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_syntax_error(path: Path, golden: Any) -> None:
    with pytest.raises(CompileError) as caught:
        parse_program(Source(path.name, golden.input(path)))
    golden.check(path, str(caught.value))

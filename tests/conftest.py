"""What all tests share: golden files, rewritten by `pytest --update-golden`.

A golden file is an input, a line `# ===== expected`, and the output it must give, whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

EXPECTED = "# ===== expected\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files with what the tests give now")


def check_golden(path: Path, actual: str, update: bool) -> None:
    """Compare `actual` with what the golden file `path` expects below its input, or rewrite that part of the file."""
    text, _, expected = path.read_text("utf-8").partition(EXPECTED)
    actual = actual.rstrip("\n") + "\n"
    if update and actual != expected:
        path.write_text(f"{text}{EXPECTED}{actual}", "utf-8")
    elif not update:
        assert actual == expected, f"{path} expects another output; if the new one is right, run pytest --update-golden"


@dataclass(frozen=True)
class Golden:
    """Reads and checks golden files."""

    update: bool

    def input(self, path: Path) -> str:
        """What stands above the line `# ===== expected`."""
        return path.read_text("utf-8").partition(EXPECTED)[0]

    def check(self, path: Path, actual: str) -> None:
        """Fail unless `actual` is what the file expects; see `check_golden`."""
        check_golden(path, actual, self.update)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(update=bool(request.config.getoption("--update-golden")))

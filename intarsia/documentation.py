"""The pages of docs/errors, from an installed package or a checkout."""

from __future__ import annotations

import difflib
from pathlib import Path

from intarsia.ir.errors import CompileError

_HERE = Path(__file__).parent


def error_pages() -> dict[str, Path]:
    """Each error code with its page, in order."""
    folders = (_HERE / "error_pages", _HERE.parent / "docs" / "errors")
    folder = next((f for f in folders if f.is_dir()), folders[0])
    return {p.stem: p for p in sorted(folder.glob("E*.md"))}


def error_page(code: str) -> str:
    """The page of one code. Raises CompileError E0001 where there is no such code."""
    pages = error_pages()
    found = pages.get(code.upper())
    if found is None:
        near = difflib.get_close_matches(code.upper(), pages, 3, 0.5)
        raise CompileError(
            "E0001", f"there is no error code {code}", hint=f"near it: {', '.join(near)}" if near else ""
        )
    return found.read_text(encoding="utf-8")


def error_title(page: Path) -> str:
    """The first heading of a page, without its code."""
    first = page.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").removeprefix(page.stem).lstrip(": —-")

"""The layout of generated Python: that of `black`, with no more brackets than Python needs."""

from __future__ import annotations

import ast


def laid_out(text: str) -> str:
    """A module as `black` formats it, with lines of up to 88 columns. Comments stay as they are."""
    import black  # takes a quarter of a second to import

    return black.format_str(text, mode=black.Mode())


def tidy(text: str) -> str:
    """An expression on one line, without the brackets that Python does not need."""
    return ast.unparse(ast.parse(text, mode="eval"))

"""Pictures, where matplotlib is there."""

from __future__ import annotations

from typing import Any

from intarsia.ir.errors import CompileError


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files. Raises CompileError E1801 where it is not installed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        message = "matplotlib draws plots, and is not installed"
        raise CompileError("E1801", message, hint="pip install 'intarsia[plots]'") from None
    pyplot.switch_backend("agg")
    return pyplot


def save(figure: Any, file: str) -> None:
    """Write a picture and close it. Raises CompileError E0709 where the file cannot be written."""
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise CompileError("E0709", f"cannot write {file}: {error}") from None
    finally:
        pyplot().close(figure)

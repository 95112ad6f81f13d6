"""How far a long piece of work is, on a terminal."""

from __future__ import annotations

import sys

import click


class ProgressLine:
    """A line on standard error that each text writes over. Where that is no terminal, nothing is shown."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._length = 0

    def show(self, text: str = "") -> None:
        """Show a text in place of the one before; none before something else is printed."""
        if self._shows:
            click.echo(f"\r{' ' * self._length}\r{text}", nl=False, err=True)
            self._length = len(text)

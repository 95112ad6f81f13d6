"""`intarsia cache info|clear`."""

from __future__ import annotations

import click

from intarsia.cache import Cache


@click.command("cache")
@click.argument("action", type=click.Choice(["info", "clear"]))
def command(action: str) -> None:
    """Show what the cache of compiled programs holds, or empty it."""
    cache = Cache()
    if action == "clear":
        cache.clear()
        return
    for name, value in cache.info().items():
        click.echo(f"{name:>12}  {value}")

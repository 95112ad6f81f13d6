"""`intarsia cache info|clear`."""

from __future__ import annotations

import click

from intarsia.cache import Cache
from intarsia.measurement import size_text


@click.command("cache")
@click.argument("action", type=click.Choice(["info", "clear"]))
def command(action: str) -> None:
    """Show what the cache of compiled programs holds, or empty it."""
    cache = Cache()
    if action == "clear":
        count = cache.clear()
        click.echo(f"removed {count} entr{'y' if count == 1 else 'ies'} from {cache.directory}", err=True)
        return
    for name, value in cache.info().items():
        shown = size_text(value) if name in ("limit", "bytes") and isinstance(value, int) else value
        click.echo(f"{'size' if name == 'bytes' else name:>10}  {shown}")

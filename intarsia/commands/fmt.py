"""`intarsia fmt`."""

from __future__ import annotations

import difflib

import click

from intarsia.commands.options import read_text, write_output


@click.command("fmt")
@click.argument("files", nargs=-1, required=True)
@click.option("--check", is_flag=True, help="Change nothing; show what would change and exit 1.")
def command(files: tuple[str, ...], check: bool) -> int:
    """Rewrite programs in the canonical format. `-` formats standard input to standard output."""
    from intarsia.dsl.format import format_program

    status = 0
    for name in files:
        source = read_text(name)
        formatted = format_program(source)
        if name == "-":
            click.echo(formatted, nl=False)
        elif formatted != source.text:
            if check:
                status = 1
                lines = (source.text.splitlines(keepends=True), formatted.splitlines(keepends=True))
                click.echo("".join(difflib.unified_diff(*lines, name, f"{name} formatted")), nl=False)
            else:
                write_output(name, formatted)
                click.echo(f"formatted {name}", err=True)
    return status

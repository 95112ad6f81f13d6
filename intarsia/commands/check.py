"""`intarsia check`."""

from __future__ import annotations

import click

from intarsia.commands.options import open_program, program_argument
from intarsia.deep_stack import with_deep_stack
from intarsia.ir.errors import CompileError


@click.command("check")
@program_argument
def command(file: str | None, text: str | None) -> None:
    """Check syntax, names, types, shapes and bounds of every function; run nothing."""
    from intarsia.program import Program

    source, _ = open_program(file, text)
    program = Program(source)
    mistakes = with_deep_stack(program.library.check)
    if mistakes:
        raise CompileError.of(mistakes)
    count = len(program.functions)
    click.echo(f"{source.name}: {count} function{'s' if count != 1 else ''}, no mistakes", err=True)

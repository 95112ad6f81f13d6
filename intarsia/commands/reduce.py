"""`intarsia reduce`."""

from __future__ import annotations

from typing import Any

import click

from intarsia.commands.binding import Bound, argument_options, bind
from intarsia.commands.comparison import first_mismatch
from intarsia.commands.interpreting import interpret
from intarsia.commands.interruption import interruptible
from intarsia.commands.options import (
    INTERPRETERS,
    compile_options,
    on_devices,
    open_program,
    options_of,
    program_argument,
    simulated_options,
    write_output,
)
from intarsia.commands.progress import ProgressLine
from intarsia.deep_stack import with_deep_stack
from intarsia.ir.errors import CompileError, Source
from intarsia.program import Program


@click.command("reduce")
@program_argument
@click.option(
    "--while", "condition", required=True, metavar="wrong|CODE",
    help="What must stay: `wrong` for a result that differs from the reference, or an error code.",
)  # fmt: skip
@argument_options
@compile_options
@simulated_options
@click.option("-o", "output", default="-", metavar="FILE", help="Where the reduced program goes.")
def command(
    file: str | None,
    text: str | None,
    condition: str,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    fill: bool,
    output: str,
    **settings: Any,
) -> int:
    """Find the smallest program that still shows a failure.

    Arguments that the reduced program no longer has are left out; those that are not given are random.
    """
    from intarsia.reduction import reduce_program

    source, name = open_program(file, text)
    options, _, target = options_of(settings)

    def outcome(candidate: Source) -> str:
        """`wrong`, the code of the error, or `right`."""
        try:
            program = Program(candidate, options, use_cache=False)
            if mistakes := program.library.check():
                return mistakes[0].code
            function = on_devices(program.entry(name), target)
            known = {t.label for t in function.form.tensors} | {p.name for p in function.form.parameters}
            own = [a for a in arguments if a.partition("=")[0] in known]
            dims = [d for d in settings["dims"] if d.partition("=")[0] in function.form.dimensions]
            bound = bind(function, own, weights, dims, True)
            return "wrong" if _is_wrong(bound, target) else "right"
        except CompileError as error:
            return error.code

    found = with_deep_stack(lambda: outcome(source))
    if found != condition:
        click.echo(f"{source.name}: the outcome is {found}, not {condition}: nothing to reduce", err=True)
        return 1
    line = ProgressLine()

    def progress(length: int) -> None:
        line.show(f"{length} characters")

    reduced = with_deep_stack(lambda: reduce_program(source, lambda s: outcome(s) == condition, progress))
    line.show()
    write_output(output, reduced.text if reduced.text.endswith("\n") else reduced.text + "\n")
    return 0


def _is_wrong(bound: Bound, target: str | None) -> bool:
    results = interpret(bound, target) if target in INTERPRETERS else interruptible(bound.call())
    return first_mismatch(bound, results) is not None

"""`intarsia test`."""

from __future__ import annotations

from typing import Any

import click

from intarsia.commands.options import open_program, program_argument
from intarsia.deep_stack import with_deep_stack
from intarsia.dsl import ast
from intarsia.ir.errors import CompileError, Span
from intarsia.program import Program


@click.command("test")
@program_argument
@click.option("--target", default="cpu", metavar="TARGET", help="cpu, or reference for the interpreter.")
@click.option("-k", "pattern", default="", metavar="TEXT", help="Only tests whose name contains TEXT.")
def command(file: str | None, text: str | None, target: str, pattern: str) -> int:
    """Run the `test` blocks of a program. Exit 1 if an assertion fails."""
    source, _ = open_program(file, text)
    program = Program(source)
    tests = [(i, t) for i, t in enumerate(program.library.tests) if pattern in t.name.value]
    failures = 0
    for index, block in tests:
        module = with_deep_stack(lambda index=index: program.library.build_test(index))  # type: ignore[misc]
        results = _run(module, program, target)
        wrong = [span for span, holds in zip(_assertions(block), results) if not bool(holds)]
        failures += bool(wrong)
        click.echo(f"{click.style('FAIL', fg='red') if wrong else click.style('ok', fg='green')}  {block.name.value}")
        for span in wrong:
            click.echo(
                str(CompileError("E0805", f"an assertion of the test {block.name.value!r} is false", span)), err=True
            )
    click.echo(f"{len(tests) - failures} passed, {failures} failed")
    return 1 if failures else 0


def _assertions(block: ast.Test) -> list[Span]:
    """The places of the assertions of a test, in the order of its results."""
    return [s.condition.span for s in ast.walk(block) if isinstance(s, ast.Assert)]


def _run(module: Any, program: Program, target: str) -> list[Any]:
    from intarsia.driver import Compilation

    if target == "reference":
        from intarsia.ir.interpreter import evaluate

        return list(with_deep_stack(lambda: evaluate(module, [], checks=True)))
    compilation = Compilation(module, {}, program.options)
    return with_deep_stack(compilation.executable).run([], {})

"""`intarsia test`."""

from __future__ import annotations

import click

from intarsia.commands.options import INTERPRETERS, compiled_target, open_program, program_argument
from intarsia.deep_stack import with_deep_stack
from intarsia.dsl import ast
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Diagnostic
from intarsia.ir.graph import Module
from intarsia.options import Options, require_host
from intarsia.program import Program


@click.command("test")
@program_argument
@click.option(
    "--target",
    default=None,
    metavar="TARGET",
    help="cpu, gpu:sm_90, …, or an interpreter such as reference  [default: cpu]",
)
@click.option("-k", "pattern", default="", metavar="TEXT", help="Only tests whose name contains TEXT.")
def command(file: str | None, text: str | None, target: str | None, pattern: str) -> int:
    """Run the `test` blocks of a program. Exit 1 if an assertion fails."""
    source, _ = open_program(file, text)
    program = Program(source, Options(target=compiled_target(target)))
    blocks = [(i, t) for i, t in enumerate(program.library.tests) if pattern in t.name.value]
    failed = 0
    for index, block in blocks:
        mistakes = _failures(program, index, block, target)
        failed += bool(mistakes)
        click.echo(
            f"{click.style('FAIL', fg='red') if mistakes else click.style('ok', fg='green')}  {block.name.value}"
        )
        if mistakes:
            click.echo(str(CompileError.of(mistakes)), err=True)
    click.echo(f"{len(blocks) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _failures(program: Program, index: int, block: ast.Test, target: str | None) -> list[Diagnostic]:
    """What is wrong with a test: assertions that are false, or whatever keeps it from running."""
    try:
        results = with_deep_stack(lambda: _run(program.library.build_test(index), program, target))
    except CompileError as error:
        return list(error.diagnostics)
    spans = [s.condition.span for s in ast.walk(block) if isinstance(s, ast.Assert)]
    message = f"an assertion of the test {block.name.value!r} is false"
    return [Diagnostic("E0805", message, span) for span, holds in zip(spans, results) if not bool(holds)]


def _run(module: Module, program: Program, target: str | None) -> list[Array]:
    from intarsia.driver import Compilation
    from intarsia.ir.interpreter import evaluate
    from intarsia.ir.plan_interpreter import run_plan

    compilation = Compilation(module, {}, program.options)
    if target == "triton-interpret":
        return list(run_plan(compilation.plan, [], {}, compilation.interpret_launches))
    if target in INTERPRETERS:
        return list(evaluate(module if target == "reference" else compilation.scheduled, [], checks=True))
    if compilation.target.kind == "gpu":
        from intarsia.gpu_calls import as_arrays
        from intarsia.gpu_program import GpuPlace, GpuProgram

        call = GpuProgram(compilation, GpuPlace.current(compilation.target)).call({})
        return as_arrays(call.launch, call(call.addresses([])))
    require_host(compilation.target)
    return compilation.executable().run([], {})

"""`intarsia run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from intarsia.arguments import format_array
from intarsia.commands.binding import Bound, argument_options, bind
from intarsia.commands.options import INTERPRETERS, compile_options, open_program, options_of, program_argument
from intarsia.files import write_results
from intarsia.ir.dtypes import Array
from intarsia.program import Function, Program, adapted


@click.command("run")
@program_argument
@argument_options
@compile_options
@click.option("--out", default=None, metavar="FILE", help="Write the results: .npy, .npz or .safetensors.")
@click.option("--compare", is_flag=True, help="Also run the reference; exit 3 where a result is beyond the tolerance.")
@click.option("--time", "timing", is_flag=True, help="Compile time, run time, and rates against the machine's limits.")
@click.option("--profile", is_flag=True, help="Time, bytes and line of each kernel.")
@click.option(
    "--trace", default=None, metavar="NAME", help="Show the value that this name gets, wherever it is assigned."
)
@click.option("--nan", "find_nan", is_flag=True, help="Name the first operation that makes a NaN.")
def command(
    file: str | None,
    text: str | None,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    fill: bool,
    out: str | None,
    compare: bool,
    timing: bool,
    profile: bool,
    trace: str | None,
    find_nan: bool,
    **compile_settings: Any,
) -> int:
    """Compile a function and run it on arguments from files, numbers or generators.

    Prints shape, dtype and values of the results, or writes them with --out.
    """
    source, name = open_program(file, text)
    options, use_cache, target = options_of(compile_settings)
    program = Program(source, options, use_cache=use_cache)
    function = program.entry(name)
    bound = bind(function, arguments, weights, compile_settings["dims"], fill)
    if trace or find_nan:
        from intarsia.commands.inspection import report_nan, report_trace

        return report_trace(function, bound, trace) if trace else report_nan(function, bound)
    started = time.perf_counter()
    results, call = _run(function, bound, target)
    seconds = time.perf_counter() - started
    if out is not None:
        write_results(
            out, {f"result{i}": r for i, r in enumerate(results)} if len(results) > 1 else {"result": results[0]}
        )
    else:
        _print(results)
    if timing:
        from intarsia.commands.inspection import report_time

        report_time(function, bound, call, seconds)
    if profile:
        from intarsia.commands.inspection import report_profile

        report_profile(function, bound)
    if compare:
        from intarsia.commands.inspection import report_comparison

        return report_comparison(function, bound, results)
    return 0


def _run(function: Function, bound: Bound, target: str | None) -> tuple[list[Array], Callable[[], object]]:
    """The results, and a callable that runs the program again."""
    if target in INTERPRETERS:
        from intarsia.commands.inspection import interpret

        results = interpret(function, bound, target)
        return results, lambda: interpret(function, bound, target)
    executable, sizes = function.compiled(bound.tensors, bound.statics, bound.dims)
    inputs = adapted(executable, bound.tensors, sizes)

    def call() -> list[Array]:
        return executable.run(inputs, sizes)

    return call(), call


def _print(results: Sequence[Array]) -> None:
    for index, result in enumerate(results):
        name = "result" if len(results) == 1 else f"result{index}"
        click.echo(format_array(name, result))

"""`intarsia bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from intarsia.commands.binding import argument_options, bind
from intarsia.commands.options import compile_options, open_program, options_of, program_argument
from intarsia.deep_stack import with_deep_stack
from intarsia.measurement import measure, median_and_spread
from intarsia.program import Program, adapted


@click.command("bench")
@program_argument
@argument_options
@compile_options
@click.option("--against", default="", metavar="numpy", help="Time the graph op by op in NumPy beside it.")
@click.option("--seconds", default=2.0, show_default=True, help="How long to measure each.")
@click.option("--json", "output", default=None, metavar="FILE", help="Write every sample.")
def command(
    file: str | None,
    text: str | None,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    fill: bool,
    against: str,
    seconds: float,
    output: str | None,
    **settings: Any,
) -> int:
    """Time a program: medians of runs interleaved with those of the peer, after checking the result.

    Arguments that are not given are random.
    """
    from intarsia.commands.inspection import compilation_of, inputs_of
    from intarsia.ir.interpreter import evaluate
    from intarsia.ir.tolerance import expected

    peers = [p for p in against.split(",") if p]
    if unknown := [p for p in peers if p != "numpy"]:
        raise click.BadParameter(
            f"{', '.join(unknown)}: only numpy can be timed beside a program", param_hint="--against"
        )
    source, name = open_program(file, text)
    options, use_cache, _ = options_of(settings)
    function = Program(source, options, use_cache=use_cache).entry(name)
    bound = bind(function, arguments, weights, settings["dims"], True)
    executable, sizes = function.compiled(bound.tensors, bound.statics, bound.dims)
    inputs = adapted(executable, bound.tensors, sizes)
    compilation = compilation_of(function, bound)
    given = inputs_of(compilation, bound)
    results = executable.run(inputs, sizes)
    wanted = with_deep_stack(lambda: expected(compilation.source_module, given, compilation.sizes))
    for reference, result in zip(wanted, results):
        if (wrong := reference.mismatch(result)) is not None:
            click.echo(f"WRONG: {wrong}", err=True)
            return 3
    calls = {"intarsia": lambda: executable.run(inputs, sizes)}
    if peers:
        calls["numpy"] = lambda: list(evaluate(compilation.source_module, given, compilation.sizes))
    samples: dict[str, list[float]] = {label: [] for label in calls}
    rounds = 3
    for _ in range(rounds):
        for label, call in calls.items():
            samples[label] += measure(call, seconds / rounds / len(calls), most=100)
    for label, own in samples.items():
        median, spread = median_and_spread(own)
        ratio = f"  {median / np.median(samples['intarsia']):6.2f} x" if label != "intarsia" else ""
        click.echo(f"{label:10} {median * 1e3:10.4f} ms  +- {spread * 1e3:.4f}{ratio}")
    if output:
        Path(output).write_text(json.dumps({"program": source.name, "seconds": samples}, indent=1) + "\n")
    return 0

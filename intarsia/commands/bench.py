"""`intarsia bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np

from intarsia.commands.binding import Bound, argument_options, bind, to_host
from intarsia.commands.comparison import first_mismatch
from intarsia.commands.interruption import interruptible
from intarsia.commands.options import (
    INTERPRETERS,
    WRONG,
    compile_options,
    open_program,
    options_of,
    program_argument,
    simulated_options,
    write_output,
)
from intarsia.deep_stack import with_deep_stack
from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import Array
from intarsia.ir.interpreter import evaluate_with
from intarsia.measurement import elapsed, median_and_spread, samples
from intarsia.program import Program
from intarsia.torch_arithmetic import TorchArithmetic

PEERS: dict[str, Callable[[], Arithmetic]] = {"numpy": Arithmetic, "torch": TorchArithmetic}
"""What carries out the graph op by op beside the program."""

ROUNDS = 3
"""The program and its peers take turns this often, so that a slow spell of the machine hits all."""


@click.command("bench")
@program_argument
@argument_options
@compile_options
@simulated_options
@click.option("--against", default="", metavar="numpy,torch", help="Time the graph op by op in these too.")
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
    peers = [p for p in against.split(",") if p]
    if unknown := [p for p in peers if p not in PEERS]:
        raise click.BadParameter(
            f"{', '.join(unknown)}: {' and '.join(PEERS)} can be timed beside a program", param_hint="--against"
        )
    arithmetics = {peer: PEERS[peer]() for peer in peers}
    source, name = open_program(file, text)
    options, use_cache, target = options_of(settings)
    if target in INTERPRETERS:
        raise click.UsageError(f"--target {target} runs no machine code")
    function = Program(source, options, use_cache=use_cache).entry(name)
    bound = bind(function, arguments, weights, settings["dims"], True)
    call, timed = _prepared(bound)
    if (wrong := first_mismatch(bound, interruptible(call))) is not None:
        click.echo(f"WRONG: {wrong}", err=True)
        return WRONG
    calls: dict[str, Callable[[], float]] = {"intarsia": timed}
    if peers:
        compilation = with_deep_stack(bound.compilation)
        inputs = bound.inputs(compilation)
        module, sizes = compilation.source_module, compilation.sizes
        runs = {peer: partial(evaluate_with, a, module, inputs, sizes) for peer, a in arithmetics.items()}
        calls |= {peer: partial(elapsed, run) for peer, run in runs.items()}
    found: dict[str, list[float]] = {label: [] for label in calls}

    def take_turns() -> None:
        for _ in range(ROUNDS):
            for label, peer in calls.items():
                found[label] += samples(peer, seconds / ROUNDS / len(calls), most=100)

    interruptible(take_turns)
    for label, own in found.items():
        median, spread = median_and_spread(own)
        ratio = f"  {median / np.median(found['intarsia']):6.2f} x" if label != "intarsia" else ""
        click.echo(f"{label:10} {median * 1e3:10.4f} ms  +- {spread * 1e3:.4f}{ratio}")
    if output:
        write_output(output, json.dumps({"program": source.name, "seconds": found}, indent=1) + "\n")
    return 0


def _prepared(bound: Bound) -> tuple[Callable[[], list[Array]], Callable[[], float]]:
    """What runs the program, and what runs it and says how long that took: on a GPU, by the GPU's own clock."""
    if not bound.function.runs_on_gpu:
        call = bound.call()
        return call, partial(elapsed, call)
    placed = bound.placed()
    return to_host(placed), placed.seconds

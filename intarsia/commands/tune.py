"""`intarsia tune`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from intarsia.commands.binding import Bound, bind, bind_types, type_options
from intarsia.commands.interruption import interruptible
from intarsia.commands.options import (
    WRONG,
    compile_options,
    open_program,
    options_of,
    program_argument,
    read_text,
    simulated_options,
    write_output,
)
from intarsia.commands.progress import ProgressLine
from intarsia.commands.schedules import differences
from intarsia.costmodel.estimating import estimate
from intarsia.costmodel.predictor import predict
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation
from intarsia.ir.errors import CompileError, Remarks
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.measurement import duration_text
from intarsia.options import measured_target
from intarsia.plotting import pyplot
from intarsia.program import Program
from intarsia.tensors import adapted
from intarsia.tuning.benches import on_one_core
from intarsia.tuning.calls import Calls, calls_of
from intarsia.tuning.database import Database, Entry, machine_name
from intarsia.tuning.database_text import print_entries, read_entries
from intarsia.tuning.isolation import is_measurable, problem_key
from intarsia.tuning.known import database_path
from intarsia.tuning.measuring import WrongResult
from intarsia.tuning.ranking import rank
from intarsia.tuning.search import Budget, Result, search
from intarsia.tuning.whole import check_program

SMALL = 0.02
"""The part of a program's time below which a kernel is left as it is."""

CHECK = 0.5
"""Seconds that the check of the whole program takes for each one of the searches."""


@click.command("tune")
@program_argument
@type_options
@compile_options
@simulated_options
@click.option("--seconds", default=30.0, show_default=True, help="How long to search, for all kernels together.")
@click.option("--trials", default=1000, show_default=True, help="How many schedules of a kernel to measure at most.")
@click.option("--db", "database", default=None, metavar="FILE", help="Where to keep them  [default: in the cache]")
@click.option("--predict-only", is_flag=True, help="Run nothing: rank schedules by prediction, and count their code.")
@click.option("--plot", default=None, metavar="FILE", help="Draw the best time so far (.svg, .png).")
@click.option("--export", "exported", default=None, metavar="FILE", help="Write what was measured as text, and end.")
@click.option("--import", "imported", default=None, metavar="FILE", help="Add what such a text says, and end.")
def command(
    file: str | None,
    text: str | None,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    seconds: float,
    trials: int,
    database: str | None,
    predict_only: bool,
    plot: str | None,
    exported: str | None,
    imported: str | None,
    **settings: Any,
) -> int:
    """Measure schedules of each kernel of a program on this machine, and keep what is found.

    Every compilation after it takes the fastest schedule that was measured for a kernel, unless the program with it,
    which is timed at the end on random arguments, was slower. What is measured stays in the database when a search is
    ended by Ctrl-C, and the next one goes on from there.

    With --predict-only nothing is run or kept, so that it needs no GPU, and no machine of the target's kind.
    """
    path = Path(database) if database else database_path()
    if exported is not None or imported is not None:
        if (file, text) != (None, None) or None not in (exported, imported):
            raise click.UsageError("--export and --import go without a program, and without each other")
        both = Database(path)
        _import(both, imported) if imported is not None else _export(both, exported or "")
        return 0
    source, name = open_program(file, text)
    options, use_cache, _ = options_of(settings)
    if not predict_only:
        options = dataclasses.replace(options, target=measured_target(options.target))
    kept = Database(path, options.resolve_target().kind)
    if plot is not None:
        pyplot()  # an error now, not after the search
    function = Program(source, options, use_cache=use_cache).entry(name)
    bound = bind_types(function, arguments, weights, settings["dims"], required=True)
    compilation = function.compilation_of_types(bound.types, bound.statics, bound.dims)
    kernels = with_deep_stack(lambda: compilation.kernels.kernels)
    calls = defaultdict(Calls, calls_of(compilation.kernels))
    times = {
        k.name: estimate(k, compilation.target).seconds * calls[k.name].count for k in compilation.scheduled.kernels
    }
    shares = {k: times[k.name] / sum(times.values()) for k in kernels}
    results: list[Result] = []
    for kernel in sorted(kernels, key=lambda k: -shares[k]):
        if not is_measurable(kernel, calls[kernel.name].runs):
            click.echo(f"kernel {kernel.name}: left as it is, since some of its sizes are open")
        elif shares[kernel] < SMALL:
            click.echo(f"kernel {kernel.name}: left as it is, {shares[kernel]:.1%} of the time")
        else:
            own = Budget(seconds * shares[kernel], trials)
            if predict_only:
                _rank(kernel, compilation.target, own, calls[kernel.name])
                continue
            try:
                results.append(_tune(kernel, compilation.target, own, kept, source.text, calls[kernel.name]))
            except WrongResult as error:
                click.echo(f"a schedule of {kernel.name} computes something else; please report it:\n{error}", err=True)
                return WRONG
    if predict_only:
        return 0
    if options.dynamic:
        click.echo("the program: not timed, since some of its sizes are open")
    else:
        _check(bind(function, arguments, weights, settings["dims"], True), kept, seconds * CHECK)
    if plot is not None:
        _draw(results, plot)
    return 0


def _export(database: Database, output: str) -> None:
    """Write everything in a database as text."""
    entries = database.entries()
    write_output(output, print_entries(entries))
    click.echo(f"{output}: {_size(entries)}", err=output == "-")


def _import(database: Database, name: str) -> None:
    """Add to a database what a text says."""
    entries = read_entries(read_text(name))
    changed = database.merge(entries)
    click.echo(f"{database.path}: {changed} of {_size(entries)} new or faster")


def _size(entries: Sequence[Entry]) -> str:
    count = sum(known.timing is not None for entry in entries for known in entry.known)
    return f"{count} measurements of {len(entries)} kernels"


def _tune(kernel: Kernel, target: Target, budget: Budget, database: Database, source: str, calls: Calls) -> Result:
    """Search one kernel, with a line for each better schedule."""
    best, line = math.inf, ProgressLine()

    def show(result: Result) -> None:
        nonlocal best
        count, after = len(result.trials), result.trials[-1].after
        clock = f"  {after:5.1f} s {count:4} measured"
        if result.best.timing.seconds < best:
            first, best = best == math.inf, result.best.timing.seconds
            what = f"about {result.size} schedules" if first else str(result.best.candidate)
            line.show()
            click.echo(f"{clock}: {duration_text(best)}  {what}")
        line.show(clock)

    click.echo(f"kernel {kernel.name}, for {budget.seconds:.3g} s:")
    predictor = partial(predict, target=target)
    try:
        result = interruptible(lambda: search(kernel, target, predictor, budget, database, source, show, calls=calls))
    finally:
        line.show()
    click.echo(f"  {result.gain:.2f} times as fast as before, {len(result.trials)} of about {result.size} measured")
    return result


def _rank(kernel: Kernel, target: Target, budget: Budget, calls: Calls) -> None:
    """Show the schedules of one kernel that are predicted to be the fastest, beside the default one."""
    found = interruptible(lambda: rank(kernel, target, partial(predict, target=target), budget, calls))
    click.echo(f"kernel {kernel.name}: about {found.size} schedules, {found.predicted} predicted")
    for place, own in enumerate((found.default, *found.best)):
        name = f"{place}." if place else "default:"
        click.echo(f"  {name} predicted {duration_text(own.seconds)}; {own.code or 'refused by the tools'}")
        for line in differences(own.candidate, found.default.candidate):
            click.echo(f"  {line}")


def _check(bound: Bound, database: Database, seconds: float) -> None:
    """Time the whole program, and let the kernels whose schedules make it slower keep the default ones."""
    compilation = with_deep_stack(bound.compilation)
    target = compilation.target
    keys = {k.name: problem_key(k, target) for k in with_deep_stack(lambda: compilation.kernels.kernels)}
    fastest = database.fastest(machine_name(target))
    names = [name for name, key in keys.items() if key in fastest]
    if not names:
        click.echo("the program: as before")
        return

    def version(way: frozenset[str]) -> Callable[[], object]:
        schedules = {keys[name]: fastest[keys[name]].schedule for name in way}
        return _version(bound, compilation, lambda kernel: schedules.get(problem_key(kernel, target)), gpu)

    line, gpu = ProgressLine(), GpuClock()
    clock = time.perf_counter if target.kind == "cpu" else gpu
    try:
        with on_one_core(target):
            verdict = interruptible(
                lambda: check_program(names, version, seconds, lambda n: line.show(f"  the program: {n} rounds"), clock)
            )
    finally:
        line.show()
    database.keep_default(machine_name(target), {keys[name]: name in verdict.kept for name in names})
    click.echo(f"the program: {duration_text(verdict.before)} before, {duration_text(verdict.after)} tuned")
    for name in sorted(verdict.kept):
        gain = 100 * (fastest[keys[name]].gain - 1)
        click.echo(f"  kept the default schedule of {name}: by itself {gain:.0f} % slower, in the program no slower")


def _version(
    bound: Bound, compilation: Compilation, measured: Callable[[Kernel], str | None], gpu: GpuClock
) -> Callable[[], object]:
    """A program that takes these schedules for its kernels, on its arguments."""
    own = dataclasses.replace(compilation, remarks=Remarks(), seconds={}, measured=measured)
    if bound.function.runs_on_gpu:
        placed = bound.placed(compilation=own)
        return lambda: gpu.add(placed.seconds())
    executable = with_deep_stack(lambda: own.executable(bound.function.program.kernel_store))
    inputs = adapted(executable.inputs, bound.tensors, {})
    prepared = executable.prepared(inputs, {})
    return lambda: executable.run(inputs, {}, prepared)


class GpuClock:
    """The time that a GPU has worked on a program, by its own clock."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._seconds += seconds

    def __call__(self) -> float:
        return self._seconds


def _draw(results: Sequence[Result], path: str) -> None:
    """The best time of each kernel so far, over the seconds of its search, as a part of the default one."""
    figure, axes = pyplot().subplots(figsize=(7, 4))
    for result in results:
        points = list(result.best_so_far())
        default = points[0][1]
        x, y = [p[0] for p in points], [p[1] / default for p in points]
        axes.step(x, y, where="post", label=f"{result.kernel}: {result.gain:.2f}x")
    axes.set_xlabel("seconds of search")
    axes.set_ylabel("best time so far / default")
    axes.legend()
    try:
        figure.savefig(path, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise CompileError("E0709", f"cannot write {path}: {error}") from None

"""`intarsia costmodel collect`, `count`, `export`, `train`, `evaluate` and `show`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from intarsia.commands.options import WRONG
from intarsia.costmodel.dataset import Dataset, load_file
from intarsia.costmodel.features import FEATURES
from intarsia.costmodel.launch_features import LAUNCH_FEATURES
from intarsia.costmodel.problems import KINDS, problems
from intarsia.ir.errors import CompileError
from intarsia.ir.target import TARGETS, Target
from intarsia.measurement import size_text
from intarsia.options import measured_target, resolve_target
from intarsia.runtime.threads import THREADS
from intarsia.tuning.collecting import Collected, collect
from intarsia.tuning.database import Database, machine_name
from intarsia.tuning.exporting import dataset_of

_TARGET = click.option("--target", default=None, help="The machine: cpu, gpu, or gpu:sm_90, …  [default: cpu]")


@click.group("costmodel")
def command() -> None:
    """Collect measurements of schedules, fit the learned cost model to them, and look at both."""


@command.command("collect")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--problems", "count", default=400, show_default=True, help="How many programs to draw.")
@click.option("--samples", default=24, show_default=True, help="Schedules of a kernel that has many.")
@click.option("--exhaustive", default=60, show_default=True, help="Time all schedules where there are so few.")
@click.option("--seed", default=0, show_default=True, help="Another one draws other programs.")
@click.option("--threads", default=1, show_default=True, help="Cores that the kernels use; not of a GPU.")
@_TARGET
def collect_command(
    file: Path, count: int, samples: int, exhaustive: int, seed: int, threads: int, target: str | None
) -> int:
    """Time schedules of many kernels, and keep them in the database FILE.

    Each is checked against the default schedule. What is finished stays when this is ended by Ctrl-C, and is left out
    when it is started again.
    """
    from intarsia.tuning.measuring import WrongResult

    machine = resolve_target(measured_target(target))
    machine = replace(machine, cores=threads) if machine.kind == "cpu" else machine
    database = Database(file, machine.kind)
    rows, start = 0, time.monotonic()
    THREADS.set(threads)
    try:
        for n, found in enumerate(collect(problems(seed, count), database, machine, samples, exhaustive), start=1):
            rows += found.kept
            click.echo(f"{time.monotonic() - start:7.0f} s {n:5} kernels {rows:6} rows  {_text(found)}")
    except WrongResult as error:
        click.echo(f"a schedule computes something else; please report it:\n{error}", err=True)
        return WRONG
    finally:
        THREADS.set(None)
    return 0


def _text(found: Collected) -> str:
    every = "all" if found.problem.whole else "some"
    left = f", {found.dropped} dropped" if found.dropped else ""
    return f"{found.problem.kind}: {every} {found.kept} schedules{left}, the best {found.gain:.2f} times the default"


@command.command("count")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@_TARGET
def count_command(file: Path, target: str | None) -> None:
    """Count instructions, spills and live registers of what the database FILE holds of a kind of machine.

    Schedules are compiled and not run. What is counted stays when this is ended by Ctrl-C, and is left out when it is
    started again.
    """
    from intarsia.tuning.counting import count_all

    machine = _measured_machine(Database(file), target)
    rows, start = 0, time.monotonic()
    for n, found in enumerate(count_all(Database(file, machine.kind), machine), start=1):
        rows += found.counted
        left = f", {found.left} no longer legal" if found.left else ""
        clock = f"{time.monotonic() - start:7.0f} s"
        click.echo(f"{clock} {n:5} kernels {rows:6} rows  {found.kind}: {found.counted} schedules{left}")


def _measured_machine(database: Database, target: str | None) -> Target:
    """The machine that a target is, of which a database holds something; for a kind of GPU the only one in it. Raises
    CompileError E1803 where a database holds nothing of it."""
    there = database.machines()
    if target in TARGETS and TARGETS[target].kind == "gpu":
        machine = TARGETS[target]
        models = [name.removesuffix(f" {machine.cpu}") for name in there if name.endswith(f" {machine.cpu}")]
        machine = replace(machine, model=models[0]) if len(models) == 1 else machine
    else:
        machine = resolve_target(target)
    if (name := machine_name(machine)) not in there:
        others = ", ".join(there) or "none"
        raise CompileError(
            "E1803", f"{database.path} holds nothing of this machine, {name}", hint=f"machines in it: {others}"
        )
    return machine


@command.command("export")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .npz file.")
@_TARGET
def export_command(file: Path, output: Path, target: str | None) -> None:
    """Write what the database FILE holds of a kind of machine as columns, with features made anew."""
    database = Database(file)
    machine = _measured_machine(database, target)

    def progress(done: int, total: int) -> None:
        click.echo(f"  {done} of {total} problems", err=True)

    data = dataset_of(database, machine_name(machine), machine, progress)
    data.save(output)
    click.echo(f"{output}: {_size(data)}, {size_text(output.stat().st_size)}")


@command.command("train")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .npz file.")
@click.option("--seed", default=0, show_default=True)
def train_command(file: Path, output: Path, seed: int) -> None:
    """Fit the model to exported columns."""
    from intarsia.costmodel.training import train

    data = load_file(file)
    train(data, seed).save(output)
    click.echo(f"{output}: fitted to {_size(data)}, {size_text(output.stat().st_size)}")


@command.command("evaluate")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="A folder.")
@click.option("--seeds", default=3, show_default=True, help="How often the main models are fitted anew.")
def evaluate_command(file: Path, output: Path, seeds: int) -> None:
    """Judge models on kernels and kinds of kernels that they were not fitted to; write a report with pictures."""
    from intarsia.costmodel.experiments import run
    from intarsia.plotting import pyplot
    from intarsia.tuning.report import write_report

    pyplot()  # an error now, not after the experiments
    data = load_file(file)
    found = run(data, seeds, lambda what: click.echo(f"  {what}", err=True))
    write_report(data, found, output)
    click.echo(f"{output / 'report.md'}: {_size(data)}")


@command.command("show")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path), required=False)
@_TARGET
def show_command(file: Path | None, target: str | None) -> None:
    """The features with their meaning, for a CPU or with --target gpu for GPUs; with FILE, what columns hold."""
    if file is None:
        shown = LAUNCH_FEATURES if (target or "").startswith("gpu") else FEATURES
        width = max(map(len, shown))
        for name, meaning in shown.items():
            click.echo(f"{name:{width}}  {meaning}")
        return
    data = load_file(file)
    click.echo(f"{data.machine}: {_size(data)}")
    for kind in KINDS:
        own = [n for n, k in enumerate(data.kind.tolist()) if k == kind]
        if own:
            whole = int(data.whole[own].sum())
            click.echo(f"  {kind:20} {len(own):4} problems, {whole:4} of them whole, {len(data.rows_of(own)):6} rows")


def _size(data: Dataset) -> str:
    return f"{len(data)} rows of {data.problems} problems"

"""`intarsia explain`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from intarsia.commands.binding import bind_types, type_options
from intarsia.commands.layouts import layout_report
from intarsia.commands.lowbit import lowbit_report
from intarsia.commands.memory import draw_memory, peak_table
from intarsia.commands.options import (
    compile_options,
    device_options,
    donated_names,
    on_devices,
    open_program,
    options_of,
    program_argument,
)
from intarsia.deep_stack import with_deep_stack
from intarsia.documentation import error_page
from intarsia.driver import MESH_HINT, Compilation
from intarsia.ir.errors import CompileError, Remark
from intarsia.ir.kernel_scratch import scratch
from intarsia.measurement import duration_text, size_text
from intarsia.plotting import pyplot
from intarsia.program import Program

if TYPE_CHECKING:
    from intarsia.backends.gpu.toolchain import CompiledKernel
    from intarsia.backends.gpu.triton_kernel import TritonKernel
    from intarsia.ir.cluster import Cluster
    from intarsia.ir.kernel import Kernel

REPORTED = ("fusion", "memory", "schedule", "layout", "lowbit")
"""Topics with a report below the decisions."""

ON_DEVICES = ("sharding", "timeline")
"""Topics of programs for several devices."""

TOPICS = (*REPORTED, *ON_DEVICES)


@click.command("explain")
@program_argument
@click.option("--about", type=click.Choice(TOPICS), default=None, help="Which decisions of the compiler to show.")
@click.option("--plot", metavar="FILE", help="With --about memory, sharding or timeline: draw it (.png, .svg).")
@click.option("--donate", metavar="NAME,…", default="", help="Arguments whose memory results may take.")
@type_options
@compile_options
@device_options
def command(
    file: str | None,
    text: str | None,
    about: str | None,
    plot: str | None,
    donate: str,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    **settings: Any,
) -> None:
    """Show the page of an error code (`explain E0203`), or why the compiler did what it did to a program."""
    if about is None:
        if file is None or not re.fullmatch(r"[Ee]\d{4}", file):
            raise click.UsageError("give an error code such as E0203, or FILE and --about TOPIC")
        click.echo(error_page(file), nl=False)
        return
    if plot and about not in ("memory", *ON_DEVICES):
        raise click.UsageError("--plot goes with --about memory, sharding or timeline")
    if donate and about not in ("memory", "sharding"):
        raise click.UsageError("--donate goes with --about memory and sharding")
    if plot is not None:
        pyplot()  # an error now, not after the work
    source, name = open_program(file, text)
    options, use_cache, target = options_of(settings)
    program = Program(source, options, use_cache=use_cache)
    options = replace(options, donated=donated_names(donate, program.entry(name).form))
    function = on_devices(program.with_options(options).entry(name), target)
    required = about in ("memory", "schedule") or function.options.devices is not None
    bound = bind_types(function, arguments, weights, settings["dims"], required=required)
    compilation = function.compilation_of_types(bound.types, bound.statics, bound.dims)
    if about == "fusion":
        from intarsia.memory_passes import MemoryPasses
        from intarsia.passes.fuse.report import pass_report

        with_deep_stack(lambda: compilation.fused)
        _show(compilation.remarks.items, about)
        click.echo(with_deep_stack(lambda: pass_report(compilation.fused, MemoryPasses(compilation))), nl=False)
    elif about == "memory":
        from intarsia.ir.plan_liveness import plan_report

        plan = with_deep_stack(lambda: compilation.plan)
        _show(compilation.remarks.items, about)
        click.echo(peak_table(plan), nl=False)
        click.echo(plan_report(plan))
        if plot is not None:
            draw_memory(plan, plot)
    elif about == "layout":
        report = with_deep_stack(lambda: layout_report(compilation))
        _show(compilation.remarks.items, about)
        click.echo(report)
    elif about == "lowbit":
        report = with_deep_stack(lambda: lowbit_report(compilation))
        _show(compilation.remarks.items, about)
        click.echo(report, nl=bool(report))
    elif about in ON_DEVICES and function.options.devices is not None:
        from intarsia.ir.cluster import Cluster

        _explain_devices(compilation, about, Cluster.read(compilation.options.cluster), plot)
    elif about == "timeline" or (about == "sharding" and plot is not None):
        raise CompileError("E1901", "the program is for one device", hint=MESH_HINT)
    else:
        with_deep_stack(lambda: compilation.scheduled)
        _show(compilation.remarks.items, about)
        if about == "schedule":
            _show_schedules(compilation)


def _explain_devices(compilation: Compilation, about: str, cluster: Cluster, plot: str | None) -> None:
    """What the program of a device sends and holds, or when it does what."""
    if about == "sharding":
        from intarsia.commands.lying import draw_lying, lying_lines
        from intarsia.commands.shard import memory_text, table
        from intarsia.passes.shard.memory import device_memory
        from intarsia.passes.shard.report import sent_by

        sent = with_deep_stack(lambda: sent_by(compilation.partitioned, cluster))
        memory = with_deep_stack(lambda: device_memory(compilation.fused, compilation.options.donated))
        _show(compilation.remarks.items, about)
        click.echo("\n".join((*lying_lines(compilation.partitioned), "", *table(sent), memory_text(memory))))
        if plot is not None:
            draw_lying(compilation.partitioned, plot)
        return
    from intarsia.commands.timeline import draw_timeline, timeline_lines
    from intarsia.passes.collectives.timeline import timeline

    found = with_deep_stack(lambda: timeline(compilation.fused, cluster))
    click.echo("\n".join(timeline_lines(found, cluster.name)))
    if plot is not None:
        draw_timeline(found, plot)


def _show_schedules(compilation: Compilation) -> None:
    """What the analytic model says of each kernel, its schedule beside others that there are, and its steps; for a GPU,
    what its launches take of the chip, too."""
    from intarsia.commands.schedules import comparisons
    from intarsia.costmodel.estimating import estimate

    on_gpu = compilation.target.kind == "gpu"
    codes = with_deep_stack(lambda: compilation.counted_code) if on_gpu else {}
    compared = with_deep_stack(lambda: comparisons(compilation))
    for kernel in _scheduled_kernels(compilation):
        steps = compilation.schedules.get(kernel.name, "")
        found = estimate(kernel, compilation.target)
        parts = sorted(((s, n) for n, s in found.resources.items() if s > found.seconds / 100), reverse=True)
        shown = ", ".join(f"{name} {duration_text(seconds)}" for seconds, name in parts)
        click.echo(f"kernel {kernel.name}: by the roofline {duration_text(found.seconds)} a run ({shown})")
        for line in compared.get(kernel.name, ()):
            click.echo(f"  {line}")
        for step in filter(None, steps.split("; ")):
            click.echo(f"  {step}")
        for one in scratch(kernel) if not on_gpu else ():
            click.echo(f"  scratch {one}")
        _show_launches(compilation, kernel.name, codes.get(kernel.name, ()))


def _scheduled_kernels(compilation: Compilation) -> list[Kernel]:
    """All scheduled kernels; for a GPU, as the plan has them, with those that prepare constants."""
    if compilation.target.kind == "cpu":
        return list(compilation.scheduled.kernels)
    return list({k.name: k for part in compilation.plan.whole for k in part.kernels}.values())


def _show_launches(compilation: Compilation, name: str, codes: Sequence[CompiledKernel]) -> None:
    """What was counted in the code of each launch of a kernel."""
    from intarsia.commands.resources import resource_text

    for launch, code in zip(compilation.launches[name] if codes else (), codes):
        grid = " x ".join(map(str, launch.grid))
        blocks = "".join(f", {block} = {size}" for block, size in launch.constants)
        click.echo(f"  launch {launch.name}: {grid} programs{blocks}")
        click.echo(f"    {resource_text(code)}")
        click.echo(f"    {_traffic_text(compilation, name, launch)}")


def _traffic_text(compilation: Compilation, name: str, launch: TritonKernel) -> str:
    """What the programs of a launch load and store, beside the bytes of the buffers that they touch."""
    from intarsia.backends.gpu.traffic import bytes_moved, bytes_touched

    kernel = next(k for part in compilation.plan.whole for k in part.kernels if k.name == name)
    sizes = compilation.sizes
    if not set(kernel.sizes) <= set(sizes):
        return "moves what depends on counters of loops"
    words = []
    for writes, word in ((False, "loads"), (True, "stores")):
        moved = {key: n for key, n in bytes_moved(launch, sizes).items() if key[1] == writes}
        least = bytes_touched(moved, kernel, sizes)
        words.append(f"{word} {size_text(sum(moved.values()))}, {size_text(least)} at least")
    return "; ".join(words)


def _show(remarks: list[Remark], about: str) -> None:
    """What was done, then what was not and why, each with the user's line."""
    own = [r for r in remarks if r.about == about]
    for title, done in (("done", True), ("not done", False)):
        rows = list(dict.fromkeys((str(r.span or ""), r.message) for r in own if r.done == done))
        if not rows:
            continue
        click.echo(f"{about}, {title}:")
        for place, message in rows:
            click.echo(f"  {place + ': ' if place else ''}{message}")
    if not own and about not in REPORTED:
        click.echo(f"{about}: nothing to decide")

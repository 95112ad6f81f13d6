"""`intarsia shard`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from intarsia.commands.binding import bind_types, type_options
from intarsia.commands.options import (
    ByteCount,
    compile_options,
    donated_names,
    mesh_options,
    open_program,
    options_of,
    pipeline_options,
    program_argument,
    require_pipeline,
)
from intarsia.commands.pipeline import draw_schedule, pipeline_lines
from intarsia.deep_stack import with_deep_stack
from intarsia.ir.errors import CompileError
from intarsia.measurement import columns, duration_text, size_text
from intarsia.pipeline_calls import pipeline_of
from intarsia.program import Program

if TYPE_CHECKING:
    from intarsia.ir.errors import Span
    from intarsia.passes.shard.memory import DeviceMemory
    from intarsia.passes.shard.report import Sent
    from intarsia.passes.shard.search.proposal import Proposal


@click.command("shard")
@program_argument
@mesh_options
@click.option("--search", "is_search", is_flag=True, help="Propose shardings of the parameters.")
@click.option(
    "--device-memory",
    type=ByteCount(),
    metavar="16GB",
    help="What each device may hold, for --search  [default: that of the cluster]",
)
@pipeline_options
@click.option("--plot", metavar="FILE", help="With --pipeline: draw the schedule (.png, .svg).")
@click.option("--donate", metavar="NAME,…", default="", help="Parameters whose memory results may take.")
@type_options
@compile_options
def command(
    file: str | None,
    text: str | None,
    is_search: bool,
    device_memory: int | None,
    plot: str | None,
    donate: str,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    **settings: Any,
) -> None:
    """Show what the program of each device sends, with the time that a model of the cluster gives it, and holds.

    With --search, parameters that have no sharding get the one for which the whole takes least time of those that fit
    in memory; with --preset those of a known plan of training. With --pipeline, show the stages of a training step, and
    who works on what when.
    """
    from intarsia.driver import laying_passes, on_mesh, parting_passes
    from intarsia.ir.cluster import Cluster
    from intarsia.ir.spmd import mesh_of
    from intarsia.passes.pipeline import Pipeline, default_pipeline
    from intarsia.passes.shard.memory import device_memory as memory_of
    from intarsia.passes.shard.presets import presets_of
    from intarsia.passes.shard.report import sent_by
    from intarsia.passes.shard.search import search
    from intarsia.passes.shard.search.proposal import Proposal, propose
    from intarsia.passes.stages.schedules import run

    require_pipeline(settings["pipeline"], {"plot"}, {"is_search", "device_memory", "donate"})
    source, name = open_program(file, text)
    options, use_cache, _ = options_of(settings)
    function = Program(source, options, use_cache=use_cache).entry(name)
    bound = bind_types(function, arguments, weights, settings["dims"], required=True)
    compilation = function.compilation_of_types(bound.types, bound.statics, bound.dims)
    found = Cluster.read(options.cluster)

    donated = donated_names(donate, function.form)
    if options.pipeline is not None:
        program = with_deep_stack(lambda: pipeline_of(compilation, found))
        for line in pipeline_lines(program, found):
            click.echo(line)
        if plot is not None:
            draw_schedule(run(program.schedule), plot)
        return

    def work() -> tuple[Proposal, Sequence[Sent], DeviceMemory, float | None]:
        module = Pipeline.parse("canonicalize,cse,dce").run(compilation.graph, compilation.context)
        module = on_mesh(module, options)
        on = mesh_of(module)
        if on is None:
            hint = "declare one, mesh pod(data=2), or give --mesh data=2"
            raise CompileError("E1901", "the program has no mesh of devices", hint=hint)
        seconds = None
        if options.preset is not None:
            module = Pipeline(presets_of(options.preset)).run(module, compilation.context)
        proposal = Proposal(module, ())
        if is_search:
            best = search(module, on, found, device_memory or found.memory_bytes, donated)
            seconds = best.seconds
            proposal = propose(module, found, best, compilation.context)
        passes = (*laying_passes(replace(options, preset=None)), *parting_passes(options))
        local = Pipeline(passes).run(proposal.module, compilation.context)
        fused = default_pipeline({}, options.memory_budget).before("lower").run(local, compilation.context)
        return proposal, sent_by(local, found), memory_of(fused, donated), seconds

    proposal, sent, memory, seconds = with_deep_stack(work)
    for remark in compilation.context.remarks.items:
        if remark.pass_name == "preset" and not remark.done:
            click.echo(remark.message)
    if is_search or options.preset is not None:
        for parameter in proposal.module.graph.parameters:
            click.echo(f"{parameter.label}: {parameter.type}")
        for value in proposal.within:
            place = f"the {value.node.name} at {line_text(value.node.span)}" if value.node.span else value.node.name
            click.echo(f"{place}: {value.type}")
        click.echo(f"each device takes about {duration_text(seconds)} on {found.name}\n" if seconds is not None else "")
    for line in table(sent):
        click.echo(line)
    click.echo(memory_text(memory))
    if memory.peak > (limit := device_memory or found.memory_bytes):
        click.echo(f"that is more than the {size_text(limit)} of a device")


def memory_text(memory: DeviceMemory) -> str:
    """What each device holds, and the line of the program at which that is most: of the results, those made by then."""
    place = f", at {line_text(memory.span)}" if memory.span is not None else ""
    results = memory.peak - memory.parameters - memory.between
    named = (("parameters", memory.parameters), ("results", results), ("others", memory.between))
    parts = ", ".join(f"{name} {size_text(count)}" for name, count in named)
    return f"each device holds {size_text(memory.peak)} at most{place}: {parts}"


def line_text(span: Span) -> str:
    return f"{span.source.name}:{span.line}"


def table(sent: Sequence[Sent]) -> Iterable[str]:
    """A row for each collective and the sum, in columns."""
    if not sent:
        return ["nothing is sent"]
    rows = [("collective", "axes", "each device", "times", "takes", "line")]
    for one in sent:
        place = line_text(one.span) if one.span is not None else ""
        rows.append(
            (one.kind, ", ".join(one.axes), size_text(one.bytes), str(one.times), duration_text(one.seconds), place)
        )
    total = sum(one.bytes * one.times for one in sent)
    rows.append(("in all", "", size_text(total), "", duration_text(sum(one.seconds for one in sent)), ""))
    return columns(rows)

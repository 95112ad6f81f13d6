"""What `intarsia shard --pipeline` tells, the stages of a program and who works on which micro-batch when, and what
`intarsia run --pipeline --profile` has measured of it."""

from __future__ import annotations

from collections.abc import Iterator

import click
import numpy as np

from intarsia.commands.mesh_timing import is_first, runs
from intarsia.ir.cluster import Cluster
from intarsia.measurement import columns, duration_text, size_text
from intarsia.passes.shard.memory import bytes_of
from intarsia.passes.stages.program import PipelineProgram
from intarsia.passes.stages.running import measured
from intarsia.passes.stages.schedules import Action, Kind, Run, run
from intarsia.pipeline_calls import PipelineProcess, SimulatedPipeline
from intarsia.plotting import pyplot, save

COLOURS = {"F": "tab:blue", "B": "tab:orange", "W": "tab:green"}
NAMES = {"F": "forwards", "B": "backwards", "W": "weights"}

_MOST = 20


def pipeline_lines(program: PipelineProgram, cluster: Cluster) -> Iterator[str]:
    """The stages, what the schedule takes, and a picture of it."""
    cut, schedule = program.cut, program.schedule
    seconds = program.seconds(cluster)
    each = program.inner.devices
    rows = [
        ("stage", "device", "begins", "forwards", "backwards", "sends on", "back", "weights", "keeps of a micro-batch")
    ]
    for stage, first in enumerate(cut.bounds[:-1]):
        span = cut.parts.forward[first].span
        backwards = duration_text(seconds.backward[stage] + seconds.weights[stage])
        first_device = stage % schedule.devices * each
        on, back = (sum(bytes_of(v.type) for v in program.sent(Action(kind, stage, 0))) for kind in ("F", "B"))
        rows.append(
            (
                str(stage),
                str(first_device) if each == 1 else f"{first_device}-{first_device + each - 1}",
                f"{span.source.name}:{span.line}" if span is not None else "",
                duration_text(seconds.forward[stage]),
                backwards,
                size_text(on),
                size_text(back),
                size_text(sum(bytes_of(v.type) for v in cut.weights(stage))),
                size_text(cut.kept(stage)),
            )
        )
    yield from columns(rows)
    units, found = run(schedule), run(schedule, seconds)
    yield ""
    yield f"{schedule.name}: devices wait {units.bubble:.1%} of the time, if all actions of a kind take as long"
    total = duration_text(found.seconds)
    yield f"on {cluster.name} a step takes {total} without its update, {found.bubble:.1%} of it waiting"
    yield f"micro-batches in memory at most: {', '.join(map(str, units.held))}"
    yield f"between stages {size_text(program.bytes_sent)} are sent in a step"
    yield ""
    yield from schedule_lines(units, round(units.seconds))


def schedule_lines(found: Run, cells: int) -> Iterator[str]:
    """A line for each device, with so many cells for the whole time; each action has one at least."""
    ends = dict(zip(found.actions, found.timeline.ends))
    longest = max(len(str(action)) for action in found.actions)
    unit = found.seconds / cells
    for device, actions in enumerate(found.schedule.actions):
        row: list[str] = []
        for action in actions:
            row += ["." * longest] * (round(found.starts[action] / unit) - len(row))
            row += [str(action).ljust(longest)] * max(1, round(ends[action] / unit) - len(row))
        row += ["." * longest] * (cells - len(row))
        yield f"device {device}  {' '.join(row)}".rstrip()


def report_profile(call: PipelineProcess | SimulatedPipeline, plot: str | None) -> None:
    """What each device did when, in the run that took the median time of several. Of devices that work on one stage it
    is the first."""
    samples = [call.watch() for _ in range(min(runs(call, call.watch), _MOST))]
    if not is_first(call):
        return
    script = call.program.script
    every = sorted(samples, key=lambda watches: max(w.end for w in watches))[len(samples) // 2]
    schedule, watches = script.schedule, every[:: script.devices]
    found = measured(schedule, [w.times for w in watches])
    rows = [
        ("device", *(NAMES[k] for k in schedule.kinds), "update", "waits", "micro-batches", "holds of them", "sends")
    ]
    for device, (actions, watch) in enumerate(zip(schedule.actions, watches)):
        taken: dict[Kind, list[float]] = {kind: [] for kind in schedule.kinds}
        for action, (start, end) in zip(actions, watch.times):
            taken[action.kind].append(end - start)
        last, busy = watch.times[-1][1], sum(sum(own) for own in taken.values())
        rows.append(
            (
                str(device * script.devices),
                *(duration_text(float(np.median(own))) for own in taken.values()),
                duration_text(watch.end - last),
                f"{1 - busy / last:.1%}",
                str(watch.live),
                size_text(watch.held),
                size_text(watch.sent),
            )
        )
    units = run(schedule)
    lines = [
        *columns(rows),
        "",
        f"{schedule.name}: a step took {duration_text(max(w.end for w in every))}, its actions "
        f"{duration_text(found.seconds)}; of these devices waited {found.bubble:.1%}, and {units.bubble:.1%} if all "
        "actions of a kind took as long",
        f"between stages {size_text(sum(w.sent for w in every))} were sent",
        "",
        *schedule_lines(found, round(units.seconds)),
    ]
    for line in lines:
        click.echo(line, err=True)
    if plot is not None:
        draw_schedule(found, plot)


def draw_schedule(found: Run, file: str) -> None:
    """Draw a row for each device, a box for each action with the number of its micro-batch. Raises CompileError E0709
    where the file cannot be written, E1801 without matplotlib."""
    plt = pyplot()
    devices = found.schedule.devices
    figure, axes = plt.subplots(figsize=(12, 1 + 0.5 * devices), layout="constrained")
    for action, task, start in zip(found.actions, found.timeline.tasks, found.timeline.starts):
        row, shade = action.stage % devices, 1.0 - 0.5 * (action.stage // devices) * devices / found.schedule.stages
        colour = COLOURS[action.kind]
        axes.barh(row, task.seconds, left=start, color=colour, alpha=shade, edgecolor="white", lw=0.5)
        if len(found.actions) <= 400:
            axes.text(start + task.seconds / 2, row, str(action.microbatch), ha="center", va="center", fontsize=7)
    for kind in found.schedule.kinds:
        axes.barh(0, 0, color=COLOURS[kind], label=NAMES[kind])
    axes.set_yticks(range(devices), [f"device {d}" for d in range(devices)])
    axes.invert_yaxis()
    axes.set_xlim(0, found.seconds)
    axes.set_xlabel("time")
    axes.set_title(f"{found.schedule.name}: {found.bubble:.1%} waiting")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
    save(figure, file)

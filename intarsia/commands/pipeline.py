"""What `intarsia shard --pipeline` tells: the stages of a program, and who works on which micro-batch when."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.measurement import duration_text, size_text
from intarsia.passes.pipeline import Context
from intarsia.passes.shard.memory import bytes_of
from intarsia.passes.stages.cut import cut_in_stages, with_microbatches
from intarsia.passes.stages.program import PipelineProgram
from intarsia.passes.stages.schedules import SCHEDULES, Interleaved, Run, Schedule, run
from intarsia.plotting import pyplot, save

COLOURS = {"F": "tab:blue", "B": "tab:orange", "W": "tab:green"}


def schedule_of(name: str, stages: int, microbatches: int, chunks: int) -> Schedule:
    """A schedule by its name, with so many stages. Raises CompileError E1913 where there is none."""
    try:
        if name == Interleaved.name:
            if stages % chunks:
                raise ValueError(f"{stages} stages are not {chunks} for each device")
            return Interleaved(stages // chunks, microbatches, chunks)
        return SCHEDULES[name](stages, microbatches)
    except ValueError as error:
        raise CompileError("E1913", str(error)) from None


def pipeline_of(module: Module, schedule: Schedule, cluster: Cluster, context: Context) -> PipelineProgram:
    """A training step, made simple, as a pipeline. Raises CompileError E1910 and E1913."""
    micro = with_microbatches(module, schedule.microbatches, context)
    return PipelineProgram(cut_in_stages(micro, schedule.stages, cluster), schedule)


def pipeline_lines(program: PipelineProgram, cluster: Cluster) -> Iterator[str]:
    """The stages, what the schedule takes, and a picture of it."""
    cut, schedule = program.cut, program.schedule
    seconds = program.seconds(cluster)
    rows = [("stage", "device", "begins", "forwards", "backwards", "sends", "weights", "keeps of a micro-batch")]
    for stage, first in enumerate(cut.bounds[:-1]):
        span = cut.parts.forward[first].span
        backwards = duration_text(seconds.backward[stage] + seconds.weights[stage])
        rows.append(
            (
                str(stage),
                str(stage % schedule.devices),
                f"{span.source.name}:{span.line}" if span is not None else "",
                duration_text(seconds.forward[stage]),
                backwards,
                duration_text(seconds.sending[stage]),
                size_text(sum(bytes_of(v.type) for v in cut.weights(stage))),
                size_text(cut.kept(stage)),
            )
        )
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
    units, found = run(schedule), run(schedule, seconds)
    yield ""
    yield f"{schedule.name}: devices wait {units.bubble:.1%} of the time, if all actions of a kind take as long"
    total = duration_text(found.seconds)
    yield f"on {cluster.name} a step takes {total} without its update, {found.bubble:.1%} of it waiting"
    yield f"micro-batches in memory at most: {', '.join(map(str, units.held))}"
    yield ""
    yield from schedule_lines(units)


def schedule_lines(found: Run) -> Iterator[str]:
    """A line for each device, with a cell for each unit of time."""
    tasks = dict(zip(found.actions, found.timeline.tasks))
    longest = max(len(str(action)) for action in found.actions)
    steps = round(found.seconds)
    for device, actions in enumerate(found.schedule.actions):
        cells = ["." * longest] * steps
        for action in actions:
            start = found.starts[action]
            end = start + tasks[action].seconds
            cells[int(start) : int(end)] = [str(action).ljust(longest)] * (int(end) - int(start))
        yield f"device {device}  {' '.join(cells)}".rstrip()


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
        axes.barh(0, 0, color=COLOURS[kind], label={"F": "forwards", "B": "backwards", "W": "weights"}[kind])
    axes.set_yticks(range(devices), [f"device {d}" for d in range(devices)])
    axes.invert_yaxis()
    axes.set_xlim(0, found.seconds)
    axes.set_xlabel("time")
    axes.set_title(f"{found.schedule.name}: {found.bubble:.1%} waiting")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
    save(figure, file)

"""What `intarsia explain --about timeline` tells: when devices compute and send, as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.measurement import duration_text
from intarsia.passes.collectives.timeline import Report
from intarsia.plotting import pyplot, save

ROWS = 60
"""Lines of the table."""

WIDTH = 80
"""Characters for all of the time."""


def timeline_lines(report: Report, cluster: str) -> Iterator[str]:
    """The sums, a line of characters for each stream, and the tasks in the order of the program."""
    total, sending = report.seconds, report.sending
    computing = duration_text(report.computing)
    yield f"a device takes {duration_text(total)} on {cluster}, and computes for {computing} of it"
    if sending:
        hidden, exposed = duration_text(report.hidden), duration_text(report.exposed)
        share = f"{report.hidden / sending:.0%}"
        yield f"it sends for {duration_text(sending)}: {hidden} ({share}) while it computes, {exposed} while it waits"
    else:
        yield "it sends nothing"
    if not total:
        return
    yield ""
    wide = max(map(len, report.timeline.resources))
    for resource in report.timeline.resources:
        busy = report.timeline.busy([resource])
        ticks = ((n + 0.5) * total / WIDTH for n in range(WIDTH))
        strip = "".join("#" if any(a <= t < b for a, b in busy) else "." for t in ticks)
        yield f"{resource.ljust(wide)}  {strip}"
    yield ""
    timeline = report.timeline
    rows = [("begins", "takes", "stream", "what", "line")]
    for task, start, span in zip(timeline.tasks[:ROWS], timeline.starts, report.spans):
        place = f"{span.source.name}:{span.line}" if span is not None else ""
        rows.append((duration_text(start), duration_text(task.seconds), task.resource, task.name, place))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
    if len(timeline.tasks) > ROWS:
        yield f"and {len(timeline.tasks) - ROWS} more"


def draw_timeline(report: Report, file: str) -> None:
    """Draw a row of boxes for each stream. Raises CompileError E0709 where the file cannot be written, E1801 without
    matplotlib."""
    plt = pyplot()
    timeline = report.timeline
    resources = timeline.resources
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.7 * len(resources)), layout="constrained")
    names = list(dict.fromkeys(task.name for task in timeline.tasks))
    colours = plt.get_cmap("tab20")
    labelled: set[str] = set()
    for task, start in zip(timeline.tasks, timeline.starts):
        row, colour = resources.index(task.resource), colours(names.index(task.name) % 20)
        label = None if task.name in labelled else task.name
        labelled.add(task.name)
        axes.barh(row, task.seconds * 1e3, left=start * 1e3, color=colour, edgecolor="white", lw=0.5, label=label)
    axes.set_yticks(range(len(resources)), resources)
    axes.invert_yaxis()
    axes.set_xlim(0, report.seconds * 1e3 or 1)
    axes.set_xlabel("milliseconds")
    if len(names) <= 20:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
    save(figure, file)

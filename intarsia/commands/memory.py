"""What `intarsia explain --about memory` tells of a plan: who is in memory when most is, and a picture of all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from intarsia.ir.errors import Span
from intarsia.ir.plan import Copy, Invoke, Plan, PlanStatement, Slot
from intarsia.ir.plan_liveness import Moment, moments, slot_bytes
from intarsia.measurement import size_text
from intarsia.plotting import pyplot, save

ROWS = 20
"""Lines of the table."""


@dataclass(frozen=True)
class Life:
    """A slot of the workspace, and the numbers of the moments at which it holds something that is needed."""

    slot: Slot
    bytes: int
    at: tuple[int, ...]
    made: Span | None
    read: Span | None

    @property
    def runs(self) -> Iterator[tuple[int, int]]:
        """The first and last moment of each time without a gap."""
        start = 0
        for n, here in enumerate(self.at):
            if n + 1 == len(self.at) or self.at[n + 1] != here + 1:
                yield self.at[start], here
                start = n + 1


def lives(plan: Plan, found: tuple[Moment, ...]) -> list[Life]:
    """The workspace slots of known size, in order of size."""
    made: list[Life] = []
    for slot in plan.slots:
        size = slot_bytes(slot).constant
        at = tuple(n for n, m in enumerate(found) if slot in m.live)
        if slot.place != "workspace" or not size or not at:
            continue
        spans = [s for n in at if (s := _span(found[n].statement, slot)) is not None]
        made.append(Life(slot, size, at, spans[0] if spans else None, spans[-1] if spans else None))
    return sorted(made, key=lambda life: -life.bytes)


def _span(statement: PlanStatement, slot: Slot) -> Span | None:
    """The user's text behind a statement that names a slot."""
    match statement:
        case Invoke(_, arguments, _, span) if any(r.name == slot.name for r in arguments):
            return span
    return None


def peak_table(plan: Plan) -> str:
    """The tensors in the workspace when they take the most, with the lines that make and read them; nothing where none
    has a known size."""
    found = moments(plan)
    all_lives = lives(plan, found)
    if not all_lives:
        return ""
    sums = [sum(life.bytes for life in all_lives if n in life.at) for n in range(len(found))]
    peak = sums.index(max(sums))
    there = [life for life in all_lives if peak in life.at]
    total = sum(life.bytes for life in all_lives)
    lines = [f"workspace: {size_text(max(sums))} at most at once; each of {len(all_lives)} in memory of its own: "]
    lines[0] += size_text(total)
    lines.append(f"when it is, at {_title(found[peak].statement)}:")
    for life in there[:ROWS]:
        lines.append(
            f"{size_text(life.bytes):>12}  {life.slot.name:<20}  made {life.made or '-'}, read {life.read or '-'}"
        )
    if len(there) > ROWS:
        rest = sum(life.bytes for life in there[ROWS:])
        lines.append(f"{size_text(rest):>12}  {len(there) - ROWS} others")
    return "\n".join(lines) + "\n"


def _title(statement: PlanStatement) -> str:
    match statement:
        case Invoke(kernel):
            return kernel
        case Copy():
            return "a copy"
    return "a loop"


def draw_memory(plan: Plan, file: str) -> None:
    """Draw the workspace: a box for each tensor, from the statement that makes it to the last that reads it, where it
    lies. Raises CompileError E0709 where the file cannot be written, E1801 without matplotlib."""
    plt = pyplot()
    found = moments(plan)
    everything = lives(plan, found)
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    most = max((life.bytes for life in everything), default=0)
    colours = plt.get_cmap("tab20")
    for number, life in enumerate(everything):
        offset = life.slot.offset.constant
        if offset is None:
            continue
        for first, last in life.runs:
            box = plt.Rectangle((first, offset / 1e6), last - first + 1, life.bytes / 1e6, ec="white", lw=0.5)
            box.set_facecolor(colours(number % 20))
            axes.add_patch(box)
            if life.bytes * 12 >= most and last - first >= len(found) / 12:
                axes.text(first + 0.2, (offset + life.bytes / 2) / 1e6, life.slot.name, va="center", fontsize=7)
    axes.set_xlim(0, len(found))
    axes.set_ylim(0, max(1, plan.workspace_bytes.constant or 0) / 1e6)
    axes.set_xlabel("statements of the plan, in order")
    axes.set_ylabel("workspace, MB")
    axes.set_title(f"{plan.name}: {size_text(plan.workspace_bytes.constant or 0)} of workspace")
    save(figure, file)

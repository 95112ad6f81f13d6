"""A sound schedule for any naive kernel, by looking at it: no measuring, no search.

Stages that share rows are merged, what passes between them shrinks to a row, loops over neighbouring elements become
vectors, outer loops go to threads. A step that is refused is left out; what was not done is told in remarks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from intarsia.ir.kernel import For, Kernel
from intarsia.ir.kernel_access import trips
from intarsia.ir.kernel_effort import loop_effort
from intarsia.ir.schedule import Parallel, Reorder, Schedule, Version
from intarsia.ir.target import Target
from intarsia.passes.schedule.arrange import (
    accumulate_rows,
    cut_rows,
    localize_all,
    make_parts,
    merge_rows,
    share_passes,
)
from intarsia.passes.schedule.both_ways import schedule_in_one
from intarsia.passes.schedule.builder import SHARES, SMALL, Applied, Builder
from intarsia.passes.schedule.codes import lay_out_codes
from intarsia.passes.schedule.columns import copy_columns
from intarsia.passes.schedule.contraction import schedule_contraction
from intarsia.passes.schedule.convolution import find_convolution, schedule_convolution
from intarsia.passes.schedule.diagonals import walk_diagonals
from intarsia.passes.schedule.grids import block_stages
from intarsia.passes.schedule.long_rows import share_long_rows, sweep_long_rows
from intarsia.passes.schedule.nests import find_contraction
from intarsia.passes.schedule.one_pass import go_through_once
from intarsia.passes.schedule.reductions import merge_column_sums, reduce_in_parts, sum_columns
from intarsia.passes.schedule.shape import count, effort
from intarsia.passes.schedule.streams import bypass_caches, fetch_early
from intarsia.passes.schedule.tree import loops_in
from intarsia.passes.schedule.vectors import vectorize_region
from intarsia.passes.schedule.windows import find_windows, schedule_windows


def schedule_kernel(kernel: Kernel, target: Target) -> tuple[Schedule, Kernel]:
    """The default schedule of a kernel for a target, and the kernel after it."""
    b = build_schedule(kernel, target)
    return b.schedule, b.kernel


def build_schedule(
    kernel: Kernel,
    target: Target,
    repeated: bool = False,
    choices: Mapping[str, int] | None = None,
    applied: Applied | None = None,
) -> Builder:
    """The same, with the remarks. `repeated`: the kernel runs in a loop, whose next step may want what it writes.
    `choices`: the place of an option, by the name of the decision, where it is not the likeliest one. `applied`: steps
    that other schedules of this kernel share."""
    b = Builder(kernel, target, choices, applied)
    if schedule_in_one(b):
        return b
    if not block_stages(b):
        go_through_once(b)
    if (apart := share_long_rows(b)) is None:
        sweep_long_rows(b)
    for loop in b.outermost():
        if loop in b.outermost():
            schedule_product(b, loop)
    make_parts(b)
    copy_columns(b)
    merge_column_sums(b)
    for loop in b.waiting():
        sum_columns(b, reduce_in_parts(b, loop.axis))
    blocks = arrange_stages(b, apart or ())
    localize_all(b)
    accumulate_rows(b)
    for loop in b.waiting():
        walk_diagonals(b, loop.axis)
    for loop in b.waiting():
        vectorize_region(b, loop.axis)
    lay_out_codes(b)
    fetch_early(b)
    if blocks:
        b.attempt(Version(blocks))
    for loop in b.outermost():
        parallelize(b, loop.axis)
    bypass_caches(b, repeated)
    return b


def arrange_stages(b: Builder, apart: Collection[str]) -> str:
    """Let stages share rows, or blocks of short ones. Returns the axis of the blocks, "" if there are none."""
    if len(b.waiting()) < 2:
        merge_rows(b, apart=apart)
        return ""
    ways = ("together", "apart")
    blocks, rows = ("", ()) if apart else cut_rows(b)
    way = b.choose("stages", ("in blocks", *ways) if blocks else ways, looks=1)
    if blocks and way != "in blocks":
        for _ in rows:
            b.undo()
        blocks, rows = "", ()
    if way != "apart":
        merge_rows(b, apart=(*apart, *rows))
        share_passes(b, rows)
    return blocks


def schedule_product(b: Builder, loop: For) -> bool:
    """Schedule a nest that sums products, in one of the forms that it has. Returns whether it has one, and every step
    was legal."""
    forms = {
        "lanes along channels": (find_convolution, schedule_convolution),
        "tiles": (find_contraction, schedule_contraction),
        "windows": (find_windows, schedule_windows),
    }
    usable = [name for name, (find, _) in forms.items() if find(b, loop)]
    first = b.choose(f"form of {loop.axis}", usable or [""])
    place = b.outermost().index(loop) - len(b.outermost())  # from the end, as what is before it may be inlined
    order = sorted(forms, key=lambda name: name != first)
    return any(forms[name][1](b, b.outermost()[place]) for name in order)


def parallelize(b: Builder, top: str) -> None:
    """Give the iterations of an outer loop to threads, if there is enough to do."""
    loop = b.loop(top)
    if _is_short(loop) or any(inner.kind == "parallel" for inner in loops_in((loop,))):
        return
    wanted = SHARES * max(b.target.cores, 2)
    candidates = [loop]
    while len(inner := [s for s in candidates[-1].body if isinstance(s, For)]) == 1:
        candidates.append(inner[0])
    usable = [c for c in candidates if c.kind == "seq" and count(trips(c)) > 1 and not _is_short(c)]
    enough = [c for c in usable if count(trips(c)) >= wanted]
    order = enough or sorted(usable, key=lambda c: -count(trips(c)))
    rivals = order[: None if b.target.cores > 1 else 1]
    first = b.choose(f"threads of {top}", rivals or [loop], lambda candidate: candidate.axis)
    for candidate in sorted(order, key=lambda c: c is not first):
        if b.attempt(Parallel((candidate.axis,)), silent=False):
            return
    for candidate in candidates[1:]:
        if candidate.kind == "seq" and count(trips(candidate)) >= wanted and _share_across(b, loop, candidate):
            return


def _is_short(loop: For) -> bool:
    """Is there too little to do for several threads? Where open sizes decide that, it is decided when it runs."""
    work = loop_effort(loop)
    return effort((loop,)) < SMALL and (work is None or work.constant is not None)


def _share_across(b: Builder, loop: For, inner: For) -> bool:
    """Share the iterations of a loop inside one whose own depend on each other, by making blocks of it outermost."""

    def share() -> None:
        blocks, _ = b.split(inner.axis, max(1, count(trips(inner)) // (SHARES * max(b.target.cores, 2))), "min")
        b.take(Reorder((blocks, loop.axis)))
        b.take(Parallel((blocks,)))

    return b.together(f"sharing of {inner.axis}", share)

"""Default schedules for GPUs: loops become the programs of launches and the dimensions of the blocks these work on.

Stages that share rows are merged as for a CPU, and what passes between them becomes a block of a program. Then every
loop nest gets a grid and blocks (`blocks.py`). Whether a back end can write the result is asked of it; where it cannot,
a simpler schedule is taken, down to loops inside one program, which any kernel allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.arrange import accumulate_rows, localize_all, merge_rows
from intarsia.passes.schedule.blocks import block_region, split_sums
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.programs_of_chains import schedule_chain_of_blocks
from intarsia.passes.schedule.reductions import reduce_in_parts

Writable: TypeAlias = Callable[[Kernel], "str | None"]
"""Why a back end cannot write a scheduled kernel; None if it can."""


def chain_of_programs(kernel: Kernel, target: Target, writable: Writable) -> Builder | None:
    """The schedule of a kernel that is one chain of reductions, as attention is; None if it is none."""
    b = Builder(kernel, target)
    try:
        _chain(b, writable)
    except ScheduleError:
        return None
    return b if writable(b.kernel) is None else None


def build_programs(kernel: Kernel, target: Target, writable: Writable) -> Builder:
    """The default schedule of a kernel for a GPU, with its remarks."""
    problems: list[str] = []
    for arrange in (_chain, _merged, _stages):
        b = Builder(kernel, target)
        try:
            arrange(b, writable)
        except ScheduleError as error:
            problems.append(str(error))
            continue
        if (problem := writable(b.kernel)) is None:
            return b
        problems.append(problem)
    b = Builder(kernel, target)
    for problem in problems:
        b.remark(f"no blocks: {problem}", done=False)
    return b


def _chain(b: Builder, writable: Writable) -> None:
    """Chained reductions, such as attention, in one sweep."""
    if not schedule_chain_of_blocks(b):
        raise ScheduleError("it is no chain of reductions")
    _block_all(b, writable)


def _merged(b: Builder, writable: Writable) -> None:
    """Stages that share rows in one launch."""
    for loop in b.waiting():
        reduce_in_parts(b, loop.axis)
    for loop in b.waiting():
        split_sums(b, loop.axis)
    merge_rows(b)
    localize_all(b)
    accumulate_rows(b)
    _block_all(b, writable)


def _stages(b: Builder, writable: Writable) -> None:
    """A launch for each stage; what passes between them lies in memory."""
    for loop in b.waiting():
        reduce_in_parts(b, loop.axis)
    for loop in b.waiting():
        split_sums(b, loop.axis)
    accumulate_rows(b)
    _block_all(b, writable)


def _block_all(b: Builder, writable: Writable) -> None:
    for loop in b.waiting():
        block_region(b, loop.axis, writable)

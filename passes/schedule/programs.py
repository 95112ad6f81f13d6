"""Default schedules for GPUs: loops become the programs of launches and the dimensions of the blocks these work on.

Stages that share rows are merged as for a CPU, and what passes between them becomes a block of a program. Then every
loop nest gets a grid and blocks (`blocks.py`). Whether a back end can write the result is asked of it; where it cannot,
a simpler schedule is taken, down to loops inside one program, which any kernel allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Check, Kernel, Put
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.kernel_launch import launch_problem
from intarsia.ir.schedule import Inline
from intarsia.ir.target import Target
from intarsia.passes.schedule.arrange import accumulate_rows, localize_all, merge_rows
from intarsia.passes.schedule.block_lanes import ROW
from intarsia.passes.schedule.block_options import choose_launch
from intarsia.passes.schedule.blocks import block_region, split_sums
from intarsia.passes.schedule.builder import Applied, Builder
from intarsia.passes.schedule.contraction import is_made
from intarsia.passes.schedule.long_rows import share_long_rows
from intarsia.passes.schedule.prefixes import share_scans, walk_outside
from intarsia.passes.schedule.programs_of_chains import (
    prepared_chain,
    schedule_chain_in_parts,
    schedule_chain_of_blocks,
    width_of_parts,
)
from intarsia.passes.schedule.programs_of_loops import schedule_steps
from intarsia.passes.schedule.reductions import reduce_in_parts
from intarsia.passes.schedule.shape import count, points
from intarsia.passes.schedule.tree import allocated_in, perfect_nest

LONG = 1 << 16
"""Elements of a row from which on several programs work on it, although it is read again."""

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


def build_programs(
    kernel: Kernel,
    target: Target,
    writable: Writable,
    choices: Mapping[str, int] | None = None,
    applied: Applied | None = None,
) -> Builder:
    """The default schedule of a kernel for a GPU, with its remarks; with `choices`, which see `Builder`, another one.
    Raises ScheduleError where these lead to none: they are not replaced by something else."""
    problems: list[str] = []
    # Minima over everything come before a check; merged with them, what follows would be left to one program.
    has_checks = any(isinstance(s, Check) for s in kernel.body)
    for arrange in (_stages,) if has_checks else (partial(_steps, in_registers=True), _steps, _chain, _merged, _stages):
        b = Builder(kernel, target, choices, applied)
        mark = b.mark()
        try:
            arrange(b, writable)
            choose_launch(b)
            problem = writable(b.kernel)
            if problem is None and b.takes_others():
                problem = launch_problem(b.kernel, target)
        except ScheduleError as error:
            problem = str(error)
        if problem is None:
            return b
        b.withdraw(mark, problem)
        problems.append(problem)
    b = Builder(kernel, target)
    for problem in problems:
        b.remark(f"no blocks: {problem}", done=False)
    return b


def _steps(b: Builder, writable: Writable, in_registers: bool = False) -> None:
    """All steps of a loop in one launch."""
    schedule_steps(b, in_registers)


def _chain(b: Builder, writable: Writable) -> None:
    """Chained reductions, such as attention, in one sweep; in parts, side by side, where there are few rows."""
    start = b.mark()
    chain = prepared_chain(b)
    if chain is None:
        raise ScheduleError("it is no chain of reductions")
    if b.choose("reductions", ("in one sweep", "one after the other")) != "in one sweep":
        while len(b.steps) > start[0]:
            b.undo()
        _merged(b, writable)
        return
    mark = b.mark()
    if width := width_of_parts(b, chain):
        problem: str | None = "parts of the keys cannot be swept"
        if b.together("parts of a chain", partial(schedule_chain_in_parts, b, chain, width)):
            _block_all(b, writable)
            problem = writable(b.kernel)
        if problem is None:
            return
        b.withdraw(mark, problem)
    schedule_chain_of_blocks(b, chain)
    _block_all(b, writable)


def _merged(b: Builder, writable: Writable) -> None:
    """Stages that share rows in one launch."""
    if len(b.waiting()) > 1 and b.choose("stages", ("together", "apart")) == "apart":
        _stages(b, writable)
        return
    _decode(b)
    if (apart := share_long_rows(b)) is None:
        _share_reductions(b, writable)
        for loop in b.waiting():
            split_sums(b, loop.axis)
    _compute_again(b)
    walk_outside(b)
    merge_rows(b, apart=apart or ())
    localize_all(b)
    _attempt(b, share_scans, writable)
    accumulate_rows(b)
    _block_all(b, writable)


def _stages(b: Builder, writable: Writable) -> None:
    """A launch for each stage; what passes between them lies in memory."""
    _decode(b)
    _share_reductions(b, writable)
    for loop in b.waiting():
        split_sums(b, loop.axis)
    walk_outside(b)
    merge_rows(b, outermost=False)
    localize_all(b)
    _attempt(b, share_scans, writable)
    accumulate_rows(b)
    _block_all(b, writable)


def _decode(b: Builder) -> None:
    """What is made element by element of what is stored, as of codes, and only multiplied, is made by the blocks that
    multiply it."""
    for name in allocated_in(b.kernel.body):
        uses = [a.statement for a in accesses(b.kernel.body) if a.buffer == name and a.reads]
        if is_made(b, name) and all(isinstance(s, Put) and s.operator == "+=" for s in uses):
            b.attempt(Inline(name))


def _compute_again(b: Builder) -> None:
    """Elements of rows that no block holds are computed again where they are used, not kept in memory."""
    for name, buffer in allocated_in(b.kernel.body).items():
        if buffer.shape and count(buffer.shape[-1]) > ROW:
            b.attempt(Inline(name))


def _share_reductions(b: Builder, writable: Writable) -> None:
    """Share reductions with few results among all cores, where there is memory for what the parts give. Rows that are
    used again stay with one program, unless they are long."""
    nests = [perfect_nest(loop)[0] for loop in b.waiting()]
    most = max(map(points, nests), default=0)
    is_used_again = sum(points(nest) == most for nest in nests) > 1
    for loop, *inner in nests:
        if is_used_again and count(trips((loop, *inner)[-1])) < LONG:
            continue
        _attempt(b, partial(reduce_in_parts, axis=loop.axis), writable)


def _attempt(b: Builder, change: Callable[[Builder], object], writable: Writable) -> None:
    """Take steps unless the result could not be written."""
    mark = b.mark()
    change(b)
    if len(b.steps) > mark[0] and (problem := writable(b.kernel)) is not None:
        b.withdraw(mark, problem)


def _block_all(b: Builder, writable: Writable) -> None:
    """Blocks for every nest, those too that blocks of others have copied constants with."""
    done: set[str] = set()
    while rest := [x.axis for x in b.waiting() if x.axis not in done]:
        done.add(rest[0])
        block_region(b, rest[0], writable)

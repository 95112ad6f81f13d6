"""Recognizing chains of reductions: a product whose rows are reduced, with what else runs along the same axis."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Factor, Inline
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.domains import conditions_in
from intarsia.passes.schedule.shape import count, points
from intarsia.passes.schedule.stages import Stage, definitions_in, expand, spread, stages_in
from intarsia.passes.schedule.sweeps import Sweep, find_sweep
from intarsia.passes.schedule.tree import allocated_in

WIDEST = 512
"""Elements of a row of sums, beyond which a block of them does not stay in the nearest cache."""

SHORT = 128
"""Elements of a reduction that a program on a GPU makes at once, whatever it sweeps over."""


@dataclass(frozen=True)
class Chain:
    """A sweep in a naive kernel, with the axes of its stages: for each stage those of the `batch`, the `row` that is
    made blocks of. `stages` are all, in the order of the text; `products` are those that the sweep begins with, if it
    does with any; on a GPU there may be several. `is_shared`: rows read what others read; on a GPU they need not, and
    there may be none."""

    sweep: Sweep
    stages: tuple[Stage, ...]
    products: tuple[Stage, ...]
    batch: tuple[dict[Stage, str], ...]
    row: dict[Stage, str]
    is_shared: bool

    @property
    def scores(self) -> Stage | None:
        """The product, if there is one."""
        return self.products[0] if self.products else None

    @property
    def has_masked_sums(self) -> bool:
        """Do choices by rows and keys make 0 what several sums add, so that `skip` may bound the sweep?"""
        if self.sweep.ratios or self.sweep.masked is not None or not self.row:
            return False
        choices = ((self.row[s], axis, c) for s, axis in self.sweep.axes.items() for c in conditions_in(s.put.value))
        return any({row, axis} <= condition.symbols for row, axis, condition in choices)

    @property
    def sums(self) -> tuple[Stage, ...]:
        """What the sweep reduces."""
        return tuple(s for s, axis in self.sweep.axes.items() if axis in {loop.axis for loop in s.reduced})


def is_chain(b: Builder, rescaled: bool = False) -> bool:
    """Is a naive kernel one chain of reductions; with `rescaled`, one that could be no single loop without that?"""
    return state_of_chain(b, rescaled) is not None


def state_of_chain(b: Builder, rescaled: bool = False) -> str | None:
    """The reduction with which a sweep of the kernel is found."""
    for name in _states(b):
        trial = Builder(b.kernel, b.target)
        try:
            prepare(trial, name)
            chain = find_chain(trial, name)
        except ScheduleError:
            continue
        if chain.sweep.ratios or not rescaled:
            return name
    return None


def _states(b: Builder) -> list[str]:
    """The reductions that a sweep could be about: maxima, which others may need, first."""
    stages = stages_in(b.kernel.body)
    if not isinstance(stages, tuple):
        return []
    reductions = [s for s in stages if s.put.operator != "=" and s.reduced]
    return [s.put.buffer for s in sorted(reductions, key=lambda s: s.put.operator != "max=")]


def chain_of(b: Builder) -> Chain | None:
    """The chain that a kernel is, brought into the form that `online` wants; None if it is none."""
    name = state_of_chain(b)
    if name is None:
        return None
    prepare(b, name)
    return find_chain(b, name)


def prepare(b: Builder, name: str) -> None:
    """Bring sums into the form that `online` wants: what depends on finished sums is taken out of other sums."""
    stages = _stages(b)
    definitions = definitions_in(stages, allocated_in(b.kernel.body))
    needing = (s for s in stages if any(x.buffer == name for x in loads(expand(s, definitions))))
    take_out(b, {s.put.buffer for s in needing if s.put.operator == "+="})


def take_out(b: Builder, sums: Collection[str]) -> None:
    """Take what depends on some sums out of other sums. Raises ScheduleError where it is no factor of these."""
    stages = _stages(b)
    definitions = definitions_in(stages, allocated_in(b.kernel.body))
    for buffer, stage in definitions.items():
        users = [s for s in stages if s is not stage and any(x.buffer == buffer for x in s.reads)]
        if any(x.buffer in sums for x in stage.reads) and any(u.put.operator == "+=" for u in users):
            b.take(Inline(buffer))
    for stage in _stages(b):
        if stage.put.operator == "+=" and any(x.buffer in sums for x in stage.reads):
            b.take(Factor(stage.put.buffer))


def _stages(b: Builder) -> tuple[Stage, ...]:
    stages = stages_in(b.kernel.body)
    if not isinstance(stages, tuple):
        raise ScheduleError("it is not made of stages")
    return stages


def find_chain(b: Builder, name: str, alone: bool = False) -> Chain:
    """The chain of which one reduction is `name`; `alone`, with no stages around it but those that read its sums.
    Raises ScheduleError where there is none."""
    sweep = find_sweep(b.kernel, name, b.kernel.body, ())
    if alone:
        own = {s.put.buffer for s, axis in sweep.axes.items() if axis in {loop.axis for loop in s.reduced}}
        sweep = replace(sweep, before=(), after=tuple(s for s in sweep.after if own & s.touched))
    kept = {s: axis in {loop.axis for loop in s.kept} for s, axis in sweep.axes.items()}
    if sweep.shifts:
        raise ScheduleError("what follows a mean is no part of a chain")
    products = [s for s in sweep.axes if s.put.operator == "+=" and kept[s] and s.reduced]
    sums = [s for s in sweep.axes if not kept[s]]
    if len(products) > 1 and b.target.kind == "cpu":
        raise ScheduleError("there are several products")
    if not sweep.ratios and any(b.kernel.buffers()[s.put.buffer].role == "out" for s in sweep.axes if kept[s]):
        raise ScheduleError("what it is about is stored as a whole anyway")
    length = max(points(sweep.state.reduced), SHORT + 1 if b.target.kind == "gpu" else 0)
    if longer := [s.put.buffer for s in (*sweep.before, *sweep.after) if s.reduced and points(s.reduced) >= length]:
        raise ScheduleError(f"{longer[0]} goes through rows as long as those of the sweep, and is no part of it")
    passing = allocated_in(b.kernel.body).keys() & {s.put.buffer for s in sweep.axes} - {s.put.buffer for s in sums}
    if used := sorted(x for s in (*sweep.before, *sweep.after) for x in s.touched & passing):
        raise ScheduleError(f"{used[0]} is used outside the sweep")
    rows = _rows_of(b, sweep)
    shared = [
        (s, x)
        for s, axis in sweep.axes.items()
        for x in s.reads
        if axis in x.symbols and b.kernel.buffers()[x.buffer].role == "in"
    ]
    usable = [r for r in rows if any(r[s] not in x.symbols for s, x in shared)]
    reusing = {*products, *(sweep.ratios or sums)}
    usable = [r for r in usable if all(r[s] not in x.symbols for s, x in shared if s in reusing)]
    is_shared = bool(usable)
    if b.target.kind == "gpu" and sweep.ratios:
        usable = usable or rows[-1:] or [{}]
    if not usable or not (products or any(r.rest.factors for r in sweep.ratios.values())):
        raise ScheduleError("no row reads what others read")
    for stage in sums:
        wide = [loop for loop in stage.kept if not any(r[stage] == loop.axis for r in rows)]
        if points(wide) > WIDEST:
            raise ScheduleError(f"the rows of {stage.put.buffer} are too wide to be kept for a block")
    row = max(usable, key=lambda r: count(trips(b.loop(r[sweep.state]))) if r else 1)
    stages = tuple(s for x in b.kernel.body for s in sweep.stages if s.statement is x)
    batch = tuple(r for r in rows if r is not row)
    return Chain(sweep, stages, tuple(products), batch, row, is_shared)


def _rows_of(b: Builder, sweep: Sweep) -> list[dict[Stage, str]]:
    """The axes that number the rows, each by its names in the stages."""
    written = {x.name for x in b.kernel.buffers().values() if x.role != "in"}
    rows = []
    for loop in sweep.state.kept:
        axes = {sweep.state: loop.axis}
        spread(sweep.stages, axes, written)
        if len(axes) == len(sweep.stages):
            rows.append(axes)
    return rows

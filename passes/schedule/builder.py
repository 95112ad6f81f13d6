"""A kernel under construction: steps are tried one by one, and kept if they are legal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias, TypeVar

from intarsia.ir.errors import Remark, ScheduleError
from intarsia.ir.kernel import LANES, For, Kernel, Memory
from intarsia.ir.scalar import Load
from intarsia.ir.schedule import ROOT, Schedule, Step, parse_step
from intarsia.ir.target import Target
from intarsia.passes.schedule.apply import apply_step
from intarsia.passes.schedule.tree import NameSource, find_loop, loops_in

T = TypeVar("T")

SMALL = 20_000
"""Nanoseconds of work, about, below which waking other threads does not pay."""

SHARES = 4
"""Iterations of a parallel loop that are wanted for each core, so that unequal ones even out."""


Mark: TypeAlias = "tuple[int, frozenset[str]]"
"""A state of a builder: how many steps it has taken, and the decisions it has met."""

Applied: TypeAlias = dict[tuple[int, Step], tuple[Kernel, Kernel]]
"""Kernels before and after steps, by the identity of the former: builders that share them do what they have in common
once."""


class Builder:
    """Applies steps to a kernel and remembers them.

    `take` wants a step, `attempt` may do without it and leaves a remark that says why not. `choose` takes the first of
    some options, unless `choices` names another by its place; `decisions` tells what options each choice had. Builders
    of one kernel may share what they have `applied`.
    """

    def __init__(
        self, kernel: Kernel, target: Target, choices: Mapping[str, int] | None = None, applied: Applied | None = None
    ) -> None:
        self.kernel = kernel
        self.target = target
        self.choices = choices or {}
        self._applied: Applied = {} if applied is None else applied
        self.decisions: dict[str, tuple[str, ...]] = {}
        self.looks: dict[str, int] = {}
        self.steps: list[Step] = []
        self._before: list[Kernel] = []
        self.remarks: list[Remark] = []

    @property
    def schedule(self) -> Schedule:
        return Schedule(tuple(self.steps))

    def take(self, step: Step | str) -> None:
        """Apply a step. Raises ScheduleError where it is not legal."""
        step = parse_step(step) if isinstance(step, str) else step
        key = (id(self.kernel), step)
        if key not in self._applied:
            self._applied[key] = self.kernel, apply_step(self.kernel, step)
        _, new = self._applied[key]
        self._before.append(self.kernel)
        self.steps.append(step)
        self.kernel = new

    def undo(self) -> None:
        """Take the last step back."""
        self.kernel = self._before.pop()
        self.steps.pop()

    def mark(self) -> Mark:
        """The state that `withdraw` brings back."""
        return len(self.steps), frozenset(self.decisions)

    def withdraw(self, mark: Mark, problem: str) -> None:
        """Take back all steps and decisions since a mark, as they lead to a problem. Raises ScheduleError where one of
        them was not the likeliest option: what is chosen is not replaced by something else."""
        count, known = mark
        made = [name for name in self.decisions if name not in known]
        if self.takes_others(made):
            raise ScheduleError(problem)
        while len(self.steps) > count:
            self.undo()
        for name in made:
            del self.decisions[name], self.looks[name]

    def takes_others(self, names: Collection[str] | None = None) -> bool:
        """Does any decision, or one of these, take another option than the likeliest?"""
        found = self.decisions if names is None else names
        return any(0 < self.choices.get(name, 0) < len(self.decisions[name]) for name in found)

    def attempt(self, step: Step | str, *, silent: bool = True) -> bool:
        """Apply a step if it is legal; if not, say so in a remark unless `silent`."""
        try:
            self.take(step)
        except ScheduleError as error:
            if not silent:
                self.remark(str(error), done=False)
            return False
        return True

    def choose(self, name: str, options: Iterable[T], label: Callable[[T], object] = str, looks: int = 0) -> T:
        """One of several options, the likeliest first: all of them give sound schedules. A choice of what is not there
        takes the likeliest. `label` names an option. `looks`: how many of the others every compilation looks at; the
        rest is for tuning."""
        distinct = list(dict.fromkeys(options))
        if len(distinct) > 1:
            self.decisions[name] = tuple(str(label(option)) for option in distinct)
            self.looks[name] = min(looks, len(distinct) - 1)
        place = self.choices.get(name, 0)
        return distinct[place if place < len(distinct) else 0]

    def split(self, axis: str, factor: int, tail: str = "mask") -> tuple[str, str]:
        """Split an axis; the names of the two that replace it."""
        before = set(self.axes())
        self.take(f"split {axis} {factor} {tail}")
        outer = next(a for a in self.axes() if a not in before)
        return outer, find_loop(self.kernel, outer)[0].body[0].axis  # type: ignore[union-attr]

    def remark(self, message: str, *, done: bool = True) -> None:
        self.remarks.append(Remark("schedule", "schedule", message, done=done))

    def together(self, what: str, change: Callable[[], object]) -> bool:
        """Take steps that belong together: where one is not legal, all are undone, and a remark says so."""
        count = len(self.steps)
        try:
            change()
        except ScheduleError as error:
            while len(self.steps) > count:
                self.undo()
            self.remark(f"no {what}: {error}", done=False)
            return False
        return True

    # ------------------------------------------------------------------ looking

    def fresh(self, name: str) -> str:
        """A name for something new, derived from that of something old."""
        return NameSource(self.kernel).derived(name)

    def copy_memory(self, load: Load, at: str) -> Memory:
        """Where a copy of what a load reads, made at an axis, should be: what does not change between calls is copied
        once for all of them, if no loop is around the copy."""
        depends = any(size.opaques for size in (*load.indices, *load.mask))
        is_constant = self.kernel.buffers()[load.buffer].constant and not depends
        return "prepared" if is_constant and at == ROOT else "cache"

    def loop(self, axis: str) -> For:
        return find_loop(self.kernel, axis)[0]

    def outermost(self) -> tuple[For, ...]:
        """The loops that stand in no other."""
        return tuple(s for s in self.kernel.body if isinstance(s, For))

    def waiting(self) -> tuple[For, ...]:
        """Those of them in which nothing is vectorized yet."""
        return tuple(s for s in self.outermost() if not any(loop.kind in LANES for loop in loops_in((s,))))

    def axes(self) -> list[str]:
        """All axes, outer ones before inner ones."""
        return [loop.axis for loop in loops_in(self.kernel.body)]

"""The schedules of a kernel that there are to choose from: what the default schedule becomes with other decisions.

The default schedule is a program that decides wherever it has a choice (`Builder.choose`). Every run of it with other
choices is a candidate; all of its steps were legal. Which decisions there are depends on those before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import prod
from random import Random
from typing import TypeAlias

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import Target
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.default import build_schedule
from intarsia.passes.schedule.programs import Writable, build_programs

Choices: TypeAlias = Mapping[str, int]
"""The place of an option by the name of its decision; the first one where a decision is not named."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule, the kernel after it, and the decisions that lead there.

    decisions: the options of every decision on the way, in order. choices: which of them are not the first ones.
    """

    schedule: Schedule
    kernel: Kernel
    decisions: Mapping[str, tuple[str, ...]]
    choices: Choices

    @staticmethod
    def of(builder: Builder) -> Candidate:
        made = {name: n for name in builder.decisions if (n := builder.choices.get(name, 0))}
        return Candidate(builder.schedule, builder.kernel, dict(builder.decisions), made)

    def taken(self, name: str) -> str:
        """The option that a decision took; the first one where the choice names none of them, as `Builder.choose`."""
        options, place = self.decisions[name], self.choices.get(name, 0)
        return options[place if place < len(options) else 0]

    def __str__(self) -> str:
        return "; ".join(f"{name}: {self.taken(name)}" for name in self.choices) or "default"


class Space:
    """The candidates of one kernel for a target. `repeated`: the kernel runs in a loop. `writable`: why the back end of
    a GPU cannot write a scheduled kernel; None if it can."""

    def __init__(
        self, kernel: Kernel, target: Target, repeated: bool = False, writable: Writable = lambda kernel: None
    ) -> None:
        self._build: Callable[[Choices], Builder] = (
            (lambda choices: build_programs(kernel, target, writable, choices))
            if target.kind == "gpu"
            else (lambda choices: build_schedule(kernel, target, repeated, choices))
        )
        self.default = self.candidate({})

    def candidate(self, choices: Choices) -> Candidate:
        """The one that these choices lead to. Raises ScheduleError where they lead to none, as blocks that are no
        larger than a chip allows each by itself may be too large together."""
        return Candidate.of(self._build(choices))

    def neighbours(self) -> Iterator[Candidate]:
        """Those that differ from the default one in one decision."""
        for name, options in self.default.decisions.items():
            for option in range(1, len(options)):
                with suppress(ScheduleError):
                    yield self.candidate({name: option})

    @property
    def size(self) -> int:
        """About how many combinations of choices there are: those of the decisions that the default one meets."""
        return prod(len(options) for options in self.default.decisions.values())

    def all(self) -> Iterator[Candidate]:
        """Every candidate once, the default one first."""
        return _distinct(self._every({}, self.default))

    def _every(self, fixed: Choices, here: Candidate) -> Iterator[Candidate]:
        """Those that share the choices in `fixed`, of which `here` takes the first option of everything else."""
        yield here
        before = dict(fixed)
        for name, options in here.decisions.items():
            if name in fixed:
                continue
            for option in range(1, len(options)):
                chosen = {**before, name: option}
                try:
                    there = self.candidate(chosen)
                except ScheduleError:
                    continue
                yield from self._every(chosen, there)
            before[name] = 0

    def sample(self, count: int, random: Random) -> list[Candidate]:
        """So many different ones, the default one among them, or all where there are about as many."""
        if self.size <= count:
            return list(islice(self.all(), count))

        def drawn() -> Iterator[Candidate]:
            yield self.default
            for _ in range(3 * count):
                yield self.draw(random)

        return list(islice(_distinct(drawn()), count))

    def draw(self, random: Random) -> Candidate:
        """One at random: one decision after the other takes an option."""
        return self._complete({}, random)

    def mutate(self, candidate: Candidate, random: Random) -> Candidate:
        """One that differs in one decision, and in those that only then come up."""
        if not candidate.decisions:
            return candidate
        name = random.choice(list(candidate.decisions))
        taken = candidate.choices.get(name, 0)
        option = random.choice([n for n in range(len(candidate.decisions[name])) if n != taken])
        kept = {other: candidate.choices.get(other, 0) for other in candidate.decisions}
        return self._complete({**kept, name: option}, random)

    def cross(self, one: Candidate, other: Candidate, random: Random) -> Candidate:
        """One with each choice from one of two others."""
        return self._legal({n: random.choice((one, other)).choices.get(n, 0) for n in one.decisions}, random)

    def _legal(self, choices: Choices, random: Random) -> Candidate:
        """The one that choices lead to; where that is none, half of them are given up, until the rest leads to one."""
        while True:
            try:
                return self.candidate(choices)
            except ScheduleError:
                others = [name for name, option in choices.items() if option]
                given_up = random.sample(others, -(-len(others) // 2))
                choices = {**choices, **dict.fromkeys(given_up, 0)}

    def _complete(self, choices: Choices, random: Random) -> Candidate:
        while True:
            candidate = self._legal(choices, random)
            choices = {**choices, **{n: candidate.choices.get(n, 0) for n in choices if n in candidate.decisions}}
            new = {n: random.randrange(len(o)) for n, o in candidate.decisions.items() if n not in choices}
            if not any(new.values()):
                return candidate
            choices = {**choices, **new}


def _distinct(candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    """Candidates with the same steps are one."""
    seen: set[str] = set()
    for candidate in candidates:
        if (text := str(candidate.schedule)) not in seen:
            seen.add(text)
            yield candidate

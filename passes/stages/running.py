"""What each device of a pipeline does in a step, as plain data, and the loop that does it.

An action of the schedule takes what the neighbour of its stage has sent, runs its part of the program, and sends what
the next one needs. Sending never waits, and a device waits for what its next action needs and for nothing else, so
that what the schedule allows never hangs. After the last action each device makes its part of the update. What runs
parts of the program, and what carries values between devices, is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias

from intarsia.ir.dtypes import Array
from intarsia.ir.events import Task, Timeline
from intarsia.ir.graph import Value
from intarsia.ir.spmd import Total
from intarsia.ir.types import TensorType
from intarsia.passes.stages.cut import is_data
from intarsia.passes.stages.program import Fragment, PipelineProgram
from intarsia.passes.stages.schedules import Action, Kind, Run, Schedule

Place: TypeAlias = tuple[int, Kind]
"""A stage, and a kind of its actions."""


@dataclass(frozen=True)
class Piece:
    """A part of the program, by the number of its code: it makes some values of others."""

    code: int
    takes: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class Script:
    """A pipeline as plain data, whose values are numbers; those of the parameters come first, in order.

    devices: those that work on one stage together. data: the parameters of which each micro-batch has a part.
    actions, sent: what an action of a stage runs, and sends to its neighbour. sums: what is summed over micro-batches,
    the sum, and what merges it. shared: what one device makes for the update, that device, and those that read it.
    last: what each device does then. results: the values, and the devices that have them. types: those of values that
    are sent.
    """

    schedule: Schedule
    devices: int
    data: frozenset[int]
    actions: Mapping[Place, Piece]
    sent: Mapping[Place, tuple[int, ...]]
    sums: tuple[tuple[int, int, str], ...]
    shared: tuple[tuple[Piece, int, tuple[int, ...]], ...]
    last: tuple[Piece, ...]
    results: tuple[tuple[int, int], ...]
    types: Mapping[int, TensorType]

    @staticmethod
    def of(program: PipelineProgram) -> tuple[Script, list[Fragment]]:
        """The script, and the fragments whose code its pieces are; those that are alike are one."""
        numbers: dict[Value, int] = {p.value: n for n, p in enumerate(program.body.parameters)}
        fragments: dict[str, tuple[int, Fragment]] = {}

        def number(value: Value) -> int:
            return numbers.setdefault(value, len(numbers))

        def piece(fragment: Fragment) -> Piece:
            code, _ = fragments.setdefault(fragment.text, (len(fragments), fragment))
            return Piece(code, tuple(map(number, fragment.inputs)), tuple(map(number, fragment.outputs)))

        schedule, update = program.schedule, program.update
        places = [(stage, kind) for stage in range(schedule.stages) for kind in schedule.kinds]
        sent = {(s, k): program.sent(Action(k, s, 0)) for s, k in places}
        types = {number(v): v.tensor for own in sent.values() for v in own}
        types |= {number(v): v.tensor for one in update.shared for v in one.fragment.outputs}
        owner = {v: d for d, fragment in reversed([*enumerate(update.results)]) for v in fragment.outputs}
        script = Script(
            schedule,
            program.inner.devices,
            frozenset(n for n, type_ in enumerate(program.placement.parameters) if is_data(type_)),
            {place: piece(program.fragments[place]) for place in places if program.fragments[place].outputs},
            {place: tuple(map(number, own)) for place, own in sent.items()},
            tuple((number(n.x), number(n.value), n.combiner) for n in program.cut.parts.sums),
            tuple((piece(one.fragment), one.owner, one.readers) for one in update.shared),
            tuple(map(piece, update.results)),
            tuple((number(v), owner[v]) for v in program.body.results),
            types,
        )
        return script, [fragment for _, fragment in fragments.values()]

    def device(self, stage: int, like: int) -> int:
        """The number of the device of a stage that is at the same place in it as another one in its."""
        return stage % self.schedule.devices * self.devices + like % self.devices

    def pieces(self, device: int) -> list[Piece]:
        """What one device runs."""
        own = device // self.devices
        found = [piece for (stage, _), piece in self.actions.items() if stage % self.schedule.devices == own]
        return [*found, *(piece for piece, owner, _ in self.shared if owner == own), self.last[own]]

    def reads(self, device: int) -> frozenset[int]:
        """The values that one device takes, among them the parameters that it needs."""
        return frozenset(n for piece in self.pieces(device) for n in piece.takes)

    def received(self, action: Action) -> tuple[int, tuple[int, ...]]:
        """The stage before an action, and what that has sent for it."""
        before = {"F": action.stage - 1, "B": action.stage + 1}.get(action.kind, -1)
        return before, self.sent.get((before, action.kind), ())

    @cached_property
    def kept(self) -> Mapping[Place, frozenset[int]]:
        """What a stage still needs of a micro-batch after an action."""
        found: dict[Place, frozenset[int]] = {}
        for stage in range(self.schedule.stages):
            needed = frozenset[int]()
            for kind in reversed(self.schedule.kinds):
                found[stage, kind] = needed
                piece = self.actions.get((stage, kind))
                needed |= frozenset(piece.takes if piece is not None else ())
        return found

    @cached_property
    def tags(self) -> Mapping[int, int]:
        """A number for each value that is sent."""
        return {value: n for n, value in enumerate(self.types)}


class Link(Protocol):
    """What carries values from and to one device. Devices are those of the whole mesh."""

    def send(self, array: Array, to: int, tag: int) -> None:
        """Begin to send an array, which does not change any more. Does not wait."""

    def receive(self, type_: TensorType, origin: int, tag: int) -> Array:
        """What another device sends under a tag, when it is there."""

    def finish(self) -> None:
        """Wait until what was sent need not be kept."""


Call: TypeAlias = Callable[[Piece, Sequence[Array], int], Sequence[Array]]
"""Runs a piece on what it takes, for a micro-batch; for the update that is 0."""

Given: TypeAlias = "Array | Sequence[Array]"
"""A parameter on a device, of data one for each micro-batch. Of what the device does not read, nothing is looked at."""


@dataclass
class Watch:
    """What a device did in a step.

    begin: the time of its start, in seconds since some moment. times: when each action began and ended, since then.
    end: when the step ended. live: the most micro-batches at a time; held: the most bytes kept of them between actions.
    sent: bytes given to devices of other stages.
    """

    begin: float = field(default_factory=time.perf_counter)
    times: list[tuple[float, float]] = field(default_factory=list)
    end: float = 0.0
    live: int = 0
    held: int = 0
    sent: int = 0

    @property
    def now(self) -> float:
        return time.perf_counter() - self.begin


@dataclass
class StageDevice:
    """One device of a pipeline, in one step. `number` is that in the whole mesh.

    values: what there is of each micro-batch of a stage. totals: what has been summed over micro-batches.
    """

    script: Script
    number: int
    given: Sequence[Given]
    call: Call
    link: Link
    values: dict[tuple[int, int], dict[int, Array]] = field(default_factory=dict)
    totals: dict[int, Total] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)

    @property
    def actions(self) -> tuple[Action, ...]:
        return self.script.schedule.actions[self.number // self.script.devices]

    def step(self) -> dict[int, Array]:
        """The results of the step that this device has."""
        self.totals = {value: Total(combiner) for value, _, combiner in self.script.sums}
        for action in self.actions:
            self._act(action)
        results = self._update()
        self.link.finish()
        self.watch.end = self.watch.now
        return results

    def _act(self, action: Action) -> None:
        script, place = self.script, (action.stage, action.kind)
        own = self.values.setdefault((action.stage, action.microbatch), {})
        before, received = script.received(action)
        for value in received:
            own[value] = self._receive(value, script.device(before, self.number), action.microbatch)
        start = self.watch.now
        if (piece := script.actions.get(place)) is not None:
            made = self._made(piece, own, action.microbatch)
            for value, total in self.totals.items():
                if value in made:
                    total.add(made[value])
            own.update(made)
        self.watch.times.append((start, self.watch.now))
        self.watch.live = max(self.watch.live, len(self.values))
        after = action.stage + (1 if action.kind == "F" else -1)
        for value in script.sent[place]:
            self._send(value, own[value], script.device(after, self.number), action.microbatch)
        kept = script.kept[place]
        if action.kind == script.schedule.kinds[-1]:
            del self.values[action.stage, action.microbatch]
        else:
            self.values[action.stage, action.microbatch] = {n: a for n, a in own.items() if n in kept}
        self.watch.held = max(self.watch.held, sum(a.nbytes for one in self.values.values() for a in one.values()))

    def _update(self) -> dict[int, Array]:
        script, own = self.script, self.number // self.script.devices
        known = {total: self.totals[x].value for x, total, _ in script.sums if self.totals[x].is_begun}
        for piece, owner, readers in script.shared:
            (value,) = piece.gives
            if owner == own:
                known.update(self._made(piece, known, 0))
                for reader in readers:
                    self._send(value, known[value], script.device(reader, self.number), 0)
            elif own in readers:
                known[value] = self._receive(value, script.device(owner, self.number), 0)
        return self._made(script.last[own], known, 0)

    def _made(self, piece: Piece, known: Mapping[int, Array], microbatch: int) -> dict[int, Array]:
        taken = [known[n] if n in known else self._parameter(n, microbatch) for n in piece.takes]
        return dict(zip(piece.gives, self.call(piece, taken, microbatch)))

    def _parameter(self, number: int, microbatch: int) -> Array:
        found = self.given[number]
        return found[microbatch] if number in self.script.data else found  # type: ignore[return-value]

    def _send(self, value: int, array: Array, to: int, microbatch: int) -> None:
        self.watch.sent += array.nbytes if to != self.number else 0
        self.link.send(array, to, self._tag(value, microbatch))

    def _receive(self, value: int, origin: int, microbatch: int) -> Array:
        return self.link.receive(self.script.types[value], origin, self._tag(value, microbatch))

    def _tag(self, value: int, microbatch: int) -> int:
        return microbatch * len(self.script.tags) + self.script.tags[value]


def measured(schedule: Schedule, times: Sequence[Sequence[tuple[float, float]]]) -> Run:
    """When actions were done, from the times of each device of the schedule."""
    actions = tuple(action for own in schedule.actions for action in own)
    spans = [span for own in times for span in own]
    devices = (f"device {d}" for d, own in enumerate(schedule.actions) for _ in own)
    tasks = (Task(str(a), device, end - start) for a, device, (start, end) in zip(actions, devices, spans))
    return Run(schedule, actions, Timeline(tuple(tasks), tuple(start for start, _ in spans)))

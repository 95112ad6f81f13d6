"""Schedules of pipelines as data: which device does what in which order, and what that takes.

A program is cut into stages, of which each device has one or several, and a batch into micro-batches. Of each stage and
micro-batch there is a forward action F and a backward one B, or, where the backward one is in two parts, B for the
gradient of what the stage was given, on which the stage before it waits, and W for those of its weights, on which
nothing waits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from intarsia.ir.events import Task, Timeline, length, simulate_tasks

Kind = Literal["F", "B", "W"]


@dataclass(frozen=True)
class Action:
    """One stage on one micro-batch, forwards or backwards."""

    kind: Kind
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}"


@dataclass(frozen=True)
class Schedule:
    """What each device does, in order. Stage s belongs to device s modulo the number of devices.

    Raises ValueError where there is no schedule of this kind for so many devices and micro-batches.
    """

    devices: int
    microbatches: int

    name: ClassVar[str]
    splits_backward: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.devices < 1 or self.microbatches < 1:
            raise ValueError("a pipeline has at least one stage and one micro-batch")

    @property
    def stages(self) -> int:
        return self.devices

    @cached_property
    def actions(self) -> tuple[tuple[Action, ...], ...]:
        """The actions of each device, in order."""
        return tuple(tuple(self.actions_of(device)) for device in range(self.devices))

    @abstractmethod
    def actions_of(self, device: int) -> Sequence[Action]:
        """The actions of one device, in order."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("F", "B", "W") if self.splits_backward else ("F", "B")

    def before(self, action: Action) -> tuple[Action, ...]:
        """The actions that one waits for, but for the order on its device."""
        kind, stage, microbatch = action.kind, action.stage, action.microbatch
        match kind:
            case "F":
                return (Action("F", stage - 1, microbatch),) if stage else ()
            case "B":
                after = (Action("B", stage + 1, microbatch),) if stage + 1 < self.stages else ()
                return (Action("F", stage, microbatch), *after)
        return (Action("B", stage, microbatch),)

    def validate(self) -> None:
        """Raise ValueError unless each action is done once, on the device of its stage, and none waits for ever."""
        wanted = Counter(
            Action(kind, stage, microbatch)
            for kind in self.kinds
            for stage in range(self.stages)
            for microbatch in range(self.microbatches)
        )
        found = Counter(action for actions in self.actions for action in actions)
        if found != wanted:
            odd = next(iter((wanted - found) + (found - wanted)))
            raise ValueError(f"{odd} of stage {odd.stage} is done {found[odd]} times, not {wanted[odd]}")
        for device, actions in enumerate(self.actions):
            for action in actions:
                if action.stage % self.devices != device:
                    raise ValueError(f"{action} of stage {action.stage} is done by device {device}")
        run(self)


def _in_turns(forward: Sequence[Action], backward: Sequence[Action], ahead: int) -> list[Action]:
    """`ahead` forward actions, then one forward and one backward in turns, then what is left."""
    turns = [a for pair in zip(forward[ahead:], backward) for a in pair]
    return [*forward[:ahead], *turns, *backward[len(forward) - ahead :]]


@dataclass(frozen=True)
class GPipe(Schedule):
    """All micro-batches forwards, then all of them backwards (Huang and others, "GPipe", 2019)."""

    name: ClassVar[str] = "gpipe"

    def actions_of(self, device: int) -> Sequence[Action]:
        forward = [Action("F", device, m) for m in range(self.microbatches)]
        return [*forward, *(Action("B", device, a.microbatch) for a in forward)]


@dataclass(frozen=True)
class OneForwardOneBackward(Schedule):
    """Backwards as soon as can be: device d has at most `devices - d` micro-batches in memory (PipeDream-flush:
    Narayanan and others, "Memory-Efficient Pipeline-Parallel DNN Training", 2021)."""

    name: ClassVar[str] = "1f1b"

    def actions_of(self, device: int) -> Sequence[Action]:
        forward = [Action("F", device, m) for m in range(self.microbatches)]
        backward = [Action("B", device, m) for m in range(self.microbatches)]
        return _in_turns(forward, backward, min(self.devices - device - 1, self.microbatches))


@dataclass(frozen=True)
class Interleaved(Schedule):
    """1F1B where each device has several stages, `chunks`, that are not neighbours, so that the pipeline fills sooner
    (Narayanan and others, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", 2021)."""

    chunks: int = 2

    name: ClassVar[str] = "interleaved"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunks < 1:
            raise ValueError("a device has at least one stage")
        if self.microbatches % self.devices:
            raise ValueError(f"{self.devices} devices do not divide {self.microbatches} micro-batches")

    @property
    def stages(self) -> int:
        return self.devices * self.chunks

    def actions_of(self, device: int) -> Sequence[Action]:
        rounds = range(0, self.microbatches, self.devices)
        places = [(r + m, c) for r in rounds for c in range(self.chunks) for m in range(self.devices)]
        forward = [Action("F", c * self.devices + device, m) for m, c in places]
        backward = [Action("B", (self.chunks - 1 - c) * self.devices + device, m) for m, c in places]
        ahead = (self.devices - device - 1) * 2 + (self.chunks - 1) * self.devices
        return _in_turns(forward, backward, min(ahead, len(forward)))


@dataclass(frozen=True)
class ZeroBubble(Schedule):
    """1F1B in which the gradients of weights wait, on device d for d micro-batches, and fill what would be idle at the
    end: a third of the bubble, with as many micro-batches in memory as 1F1B has at most (ZB-H1: Qi and others, "Zero
    Bubble Pipeline Parallelism", 2023, section 2)."""

    name: ClassVar[str] = "zero-bubble"
    splits_backward: ClassVar[bool] = True

    def actions_of(self, device: int) -> Sequence[Action]:
        forward, backward, weights = (
            [Action(kind, device, m) for m in range(self.microbatches)] for kind in self.kinds
        )
        found = forward[: self.devices - device]
        for done, action in enumerate(backward):
            found.append(action)
            found += weights[max(0, done - device) : max(0, done - device + 1)]
            found += forward[self.devices - device + done : self.devices - device + done + 1]
        return [*found, *weights[max(0, self.microbatches - device) :]]


SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (GPipe, OneForwardOneBackward, Interleaved, ZeroBubble)}
"""Every schedule by its name."""


@dataclass(frozen=True)
class Seconds:
    """What the actions of each stage take, and to send what a stage gives to its neighbour."""

    forward: Sequence[float]
    backward: Sequence[float]
    weights: Sequence[float]
    sending: Sequence[float]

    @staticmethod
    def units(schedule: Schedule) -> Seconds:
        """All of a stage as long: 1 for each of F, B and W, of which a whole backward action is two."""
        one = (1.0,) * schedule.stages
        return Seconds(
            one, one if schedule.splits_backward else (2.0,) * schedule.stages, one, (0.0,) * schedule.stages
        )

    def of(self, action: Action) -> float:
        return {"F": self.forward, "B": self.backward, "W": self.weights}[action.kind][action.stage]


@dataclass(frozen=True)
class Run:
    """When the actions of a schedule are done."""

    schedule: Schedule
    actions: tuple[Action, ...]
    timeline: Timeline

    @property
    def seconds(self) -> float:
        return self.timeline.seconds

    @cached_property
    def bubble(self) -> float:
        """The part of the time in which devices wait, of all of them."""
        busy = sum(length(self.timeline.busy((_device(d),))) for d in range(self.schedule.devices))
        return 1.0 - busy / (self.schedule.devices * self.seconds)

    @cached_property
    def held(self) -> tuple[int, ...]:
        """For each device, the most micro-batches of its stages that wait in memory for their backward action: from the
        beginning of F to the end of the last action that reads what it left."""
        last = self.schedule.kinds[-1]
        found: list[int] = []
        for actions in self.schedule.actions:
            now = most = 0
            for action in actions:
                now += action.kind == "F"
                most = max(most, now)
                now -= action.kind == last
            found.append(most)
        return tuple(found)

    @cached_property
    def starts(self) -> dict[Action, float]:
        return dict(zip(self.actions, self.timeline.starts))


def run(schedule: Schedule, seconds: Seconds | None = None) -> Run:
    """Simulate a schedule. Raises ValueError where actions wait for each other."""
    seconds = seconds or Seconds.units(schedule)
    actions = tuple(action for own in schedule.actions for action in own)
    numbers = {action: n for n, action in enumerate(actions)}
    tasks: list[Task] = []
    sent: list[Task] = []
    for action in actions:
        after: list[int] = []
        for other in schedule.before(action):
            if other not in numbers:
                raise ValueError(f"{action} of stage {action.stage} waits for {other}, which is never done")
            number = numbers[other]
            taken = seconds.sending[min(action.stage, other.stage)] if other.stage != action.stage else 0.0
            if taken:
                link = f"{other.stage} to {action.stage}"
                sent.append(Task(f"{action} {link}", link, taken, (number,)))
                number = len(actions) + len(sent) - 1
            after.append(number)
        device = _device(action.stage % schedule.devices)
        tasks.append(Task(f"{action} of stage {action.stage}", device, seconds.of(action), tuple(after)))
    return Run(schedule, actions, simulate_tasks([*tasks, *sent]))


def _device(number: int) -> str:
    return f"device {number}"

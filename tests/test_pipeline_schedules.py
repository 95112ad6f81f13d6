"""Schedules of pipelines against what their papers say of bubbles and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from intarsia.passes.stages.schedules import (
    SCHEDULES,
    Action,
    GPipe,
    Interleaved,
    OneForwardOneBackward,
    Schedule,
    Seconds,
    ZeroBubble,
    run,
)

SIZES = [(1, 1), (2, 2), (3, 7), (4, 4), (4, 8), (4, 16), (8, 8), (8, 9), (8, 32)]


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 2), (8, 3)])
@pytest.mark.parametrize("schedule", [GPipe, OneForwardOneBackward])
def test_a_pipeline_waits_while_it_fills_and_empties(schedule: type[Schedule], p: int, m: int) -> None:
    """(p - 1) / (m + p - 1) of the time, whichever comes first."""
    found = schedule(p, m)
    found.validate()
    assert run(found).bubble == pytest.approx((p - 1) / (m + p - 1))


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_what_is_in_memory(p: int, m: int) -> None:
    assert run(GPipe(p, m)).held == (m,) * p
    assert run(OneForwardOneBackward(p, m)).held == tuple(min(p - d, m) for d in range(p))
    assert max(run(ZeroBubble(p, m)).held) == min(p, m)


@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize(("p", "m"), [s for s in SIZES if s[1] % s[0] == 0])
def test_interleaved_stages_make_the_bubble_smaller(p: int, m: int, v: int) -> None:
    """The time that a device waits is (p - 1) / v actions; memory grows by (p - 1) / p v of 1F1B's."""
    found = Interleaved(p, m, v)
    found.validate()
    assert run(found).bubble == pytest.approx((p - 1) / v / (m + (p - 1) / v))
    if m >= 2 * p and v > 1:
        assert run(found).held[0] == (p - 1) * 2 + (v - 1) * p + 1


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_zero_bubble_waits_a_third_of_the_time(p: int, m: int) -> None:
    """p - 1 actions in place of the 3 (p - 1) of 1F1B, where a whole backward action is two."""
    found = ZeroBubble(p, m)
    found.validate()
    waits = [run(s).bubble * run(s).seconds for s in (found, OneForwardOneBackward(p, m))]
    assert waits == pytest.approx([p - 1, 3 * (p - 1)])
    assert run(found).bubble == pytest.approx((p - 1) / (3 * m + p - 1))


def test_stages_that_differ_wait_for_the_slowest_one() -> None:
    """And for what is sent, which no device computes."""
    two = GPipe(2, 3)
    assert run(two, Seconds((1, 2), (1, 2), (), (0, 0))).seconds == 1 + 3 * 2 + 3 * 2 + 1
    assert run(two, Seconds((1, 2), (1, 2), (), (5, 5))).seconds == 1 + 5 + 5 + 5 + 2 + 2 + 5 + 5 + 5 + 1


def test_a_schedule_is_for_some_numbers_only() -> None:
    with pytest.raises(ValueError, match="3 devices do not divide 4 micro-batches"):
        Interleaved(3, 4)
    with pytest.raises(ValueError, match="at least one"):
        GPipe(0, 4)
    assert all(SCHEDULES[name].name == name for name in SCHEDULES)


@dataclass(frozen=True)
class _Wrong(Schedule):
    """What each device does, as given."""

    given: tuple[tuple[Action, ...], ...] = ()
    name: ClassVar[str] = "wrong"

    def actions_of(self, device: int) -> Sequence[Action]:
        return self.given[device]


def test_mistakes_of_schedules_are_found() -> None:
    f, b = ([Action(kind, stage, 0) for stage in range(2)] for kind in ("F", "B"))
    _Wrong(2, 1, ((f[0], b[0]), (f[1], b[1]))).validate()
    with pytest.raises(ValueError, match="wait for each other"):
        _Wrong(2, 1, ((b[0], f[0]), (f[1], b[1]))).validate()
    with pytest.raises(ValueError, match="B0 of stage 1 is done 0 times"):
        _Wrong(2, 1, ((f[0], b[0]), (f[1],))).validate()
    with pytest.raises(ValueError, match="done by device 0"):
        _Wrong(2, 1, ((f[0], f[1], b[1], b[0]), ())).validate()

"""Tasks on resources that do one at a time, in order."""

from __future__ import annotations

import pytest

from intarsia.ir.events import Task, common, length, simulate_tasks


def test_a_task_waits_for_its_resource_and_for_others() -> None:
    tasks = [
        Task("a", "compute", 2.0),
        Task("send a", "link", 3.0, (0,)),
        Task("b", "compute", 2.0),
        Task("c", "compute", 1.0, (1,)),
    ]
    timeline = simulate_tasks(tasks)
    assert timeline.starts == (0.0, 2.0, 2.0, 5.0)
    assert timeline.seconds == 6.0
    assert timeline.resources == ("compute", "link")
    assert timeline.busy(["compute"]) == ((0.0, 4.0), (5.0, 6.0))
    assert common(timeline.busy(["compute"]), timeline.busy(["link"])) == 2.0
    assert length(timeline.busy(["compute", "link"])) == 6.0


def test_a_task_may_wait_for_a_later_one_of_another_resource() -> None:
    """Two stages of a pipeline: the first waits for the second before it goes back."""
    tasks = [Task("forward", "0", 1.0), Task("backward", "0", 2.0, (2,)), Task("both", "1", 3.0, (0,))]
    assert simulate_tasks(tasks).starts == (0.0, 4.0, 1.0)


def test_tasks_that_wait_for_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match="b never begins"):
        simulate_tasks([Task("a", "x", 1.0), Task("b", "x", 1.0, (2,)), Task("c", "y", 1.0, (1,))])

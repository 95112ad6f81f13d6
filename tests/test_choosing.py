"""Choosing among the decisions of the default schedule by a predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import pytest
from schedule_samples import assert_same_meaning

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.kernel_verifier import verify_kernel
from intarsia.ir.target import TARGETS
from intarsia.passes.pipeline import Context, default_pipeline
from intarsia.passes.schedule.builder import Applied
from intarsia.passes.schedule.candidates import Space
from intarsia.passes.schedule.choosing import LONG_ENOUGH, Predictor, best_schedule
from intarsia.passes.schedule.default import build_schedule

TARGET = TARGETS["cpu:x86-avx512"]


def product(m: int, k: int, n: int) -> Kernel:
    text = "fn f(a: f32[M, K], b: f32[K, N], c: f32[N]) -> f32[M, N] { return maximum(a @ b + c, 0.0) }"
    module = load(Source("p", text)).build(None)
    (found,) = default_pipeline({"M": m, "K": k, "N": n}).before("schedule").run(module, Context(TARGET)).kernels
    return found


def test_every_option_is_a_sound_schedule() -> None:
    kernel = product(37, 19, 70)
    decisions = build_schedule(kernel, TARGET).decisions
    assert decisions
    seen = set()
    for name, options in decisions.items():
        for option in range(len(options)):
            scheduled = build_schedule(kernel, TARGET, choices={name: option}).kernel
            verify_kernel(scheduled)
            assert_same_meaning(kernel, scheduled, {})
            seen.add(print_kernel(scheduled))
        assert len(options) == len(set(options)) > 1
    assert len(seen) > len(decisions)


def seconds_of(times: Mapping[str, float], otherwise: float) -> Predictor:
    """A predictor that knows the times of some kernels, by their texts."""
    return lambda kernels: [times.get(print_kernel(k), otherwise) for k in kernels]


def test_the_predictor_decides() -> None:
    kernel = product(256, 1024, 512)
    looks = {name: n for name, n in build_schedule(kernel, TARGET).looks.items() if n}
    assert len(looks) > 1

    def text(choices: Mapping[str, int]) -> str:
        return print_kernel(build_schedule(kernel, TARGET, choices=choices).kernel)

    name, most = next(iter(looks.items()))
    best = best_schedule(kernel, TARGET, seconds_of({text({name: most}): 1.0}, 2.0))
    assert best.choices == {name: most}
    assert best.remarks[-1].message.startswith(
        f"{name}: {best.decisions[name][most]}: predicted 1e+06 us against 2e+06"
    )
    one, other = list(looks)[:2]
    singles = {text({one: 1}): 1.5, text({other: 1}): 1.2}
    assert best_schedule(kernel, TARGET, seconds_of(singles, 2.0)).choices == {other: 1}
    both = singles | {text({one: 1, other: 1}): 1.0}
    assert best_schedule(kernel, TARGET, seconds_of(both, 2.0)).choices == {one: 1, other: 1}


@pytest.mark.parametrize("seconds", (LONG_ENOUGH / 2, 1.0))
def test_nothing_changes_for_no_gain_or_in_short_kernels(seconds: float) -> None:
    kernel = product(256, 64, 512)
    asked: list[Kernel] = []

    def predict(found: Sequence[Kernel]) -> list[float]:
        asked.extend(found)
        return [seconds, *(0.99 * seconds for _ in found[1:])]

    assert best_schedule(kernel, TARGET, predict).choices == {}
    assert (len(asked) == 1) == (seconds < LONG_ENOUGH)


def test_steps_that_schedules_share_are_taken_once() -> None:
    kernel = product(256, 64, 512)
    applied: Applied = {}
    first = build_schedule(kernel, TARGET, applied=applied)
    count = len(applied)
    again = build_schedule(kernel, TARGET, applied=applied)
    assert len(applied) == count and again.kernel is first.kernel
    last = list(first.decisions)[-1]
    other = build_schedule(kernel, TARGET, choices={last: 1}, applied=applied)
    assert count < len(applied) < count + len(other.steps)
    assert print_kernel(other.kernel) == print_kernel(build_schedule(kernel, TARGET, choices={last: 1}).kernel)


@pytest.mark.slow
def test_a_space_holds_every_candidate_once() -> None:
    space = Space(product(37, 19, 70), TARGET)
    every = list(space.all())
    assert every[0].choices == {} and str(every[0]) == "default"
    texts = [str(c.schedule) for c in every]
    assert 20 < len(set(texts)) == len(texts)
    assert space.size / 2 < len(texts) < space.size * 2
    random = Random(1)
    found = space.sample(20, random)
    assert {str(c.schedule) for c in found} <= set(texts)
    assert len(found) == 20 and found[0].schedule == every[0].schedule
    for _ in range(5):
        other = space.mutate(random.choice(found), random)
        assert str(other.schedule) in texts
        crossed = space.cross(other, found[-1], random)
        assert str(crossed.schedule) in texts


def test_a_candidate_says_how_it_differs() -> None:
    space = Space(product(256, 64, 512), TARGET)
    name, options = next(iter(space.default.decisions.items()))
    assert str(space.candidate({name: 1})).startswith(f"{name}: {options[1]}")
    assert space.candidate({name: 99}).schedule == space.default.schedule


def test_every_option_is_sound_where_tiles_are_transposed() -> None:
    """A long sum whose lanes run across the result, along a constant: no part of it can be written across."""
    text = "fn f(const w: f32[40, 160], x: f32[160, 36]) -> f32[40, 36] { return w @ x }"
    module = load(Source("p", text)).build(None)
    (kernel,) = default_pipeline({}).before("schedule").run(module, Context(TARGET)).kernels
    decisions = build_schedule(kernel, TARGET).decisions
    assert decisions["lanes of y"]
    for name, options in decisions.items():
        for option in range(len(options)):
            assert_same_meaning(kernel, build_schedule(kernel, TARGET, choices={name: option}).kernel, {})

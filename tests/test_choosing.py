"""Choosing among the decisions of the default schedule by a predictor."""

from __future__ import annotations

from collections.abc import Sequence
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
from intarsia.passes.schedule.candidates import Space
from intarsia.passes.schedule.choosing import LONG_ENOUGH, best_schedule
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


def test_the_predictor_decides() -> None:
    kernel = product(256, 64, 512)
    name, looks = next(iter(build_schedule(kernel, TARGET).looks.items()))
    wanted = print_kernel(build_schedule(kernel, TARGET, choices={name: looks}).kernel)

    def predict(found: Sequence[Kernel]) -> list[float]:
        return [1.0 if print_kernel(kernel) == wanted else 2.0 for kernel in found]

    best = best_schedule(kernel, TARGET, predict)
    assert best.choices == {name: looks}
    assert best.remarks[-1].message.endswith("predicted 1e+06 us against 2e+06 us")


@pytest.mark.parametrize("seconds", (LONG_ENOUGH / 2, 1.0))
def test_nothing_changes_for_no_gain_or_in_short_kernels(seconds: float) -> None:
    kernel = product(256, 64, 512)
    asked: list[Kernel] = []

    def predict(found: Sequence[Kernel]) -> list[float]:
        asked.append(found[-1])
        return [seconds * (1.0 if n == 0 else 0.99) for n in range(len(found))]

    assert best_schedule(kernel, TARGET, predict).choices == {}
    assert (len(asked) == 1) == (seconds < LONG_ENOUGH)


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

"""Choosing among schedules: a predictor of time looks at the decisions of the default schedule one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.default import build_schedule

Predictor: TypeAlias = Callable[[Sequence[Kernel]], Sequence[float]]
"""Seconds that schedules of one kernel take on the target; the first of them is the default one."""

LONG_ENOUGH = 50e-6
"""Seconds from which on other decisions are looked at: each takes the compiler some 10 ms."""

WORTH = 0.95
"""A decision is changed if the kernel is then predicted to take at most this part of the time: predictions are not
sharper."""


def best_schedule(
    kernel: Kernel,
    target: Target,
    predict: Predictor,
    repeated: bool = False,
    look: Callable[[Builder], object] = lambda builder: None,
) -> Builder:
    """The schedule that a predictor likes best: from the default one on, each decision is changed in turn. `look` is
    called with all that are looked at."""
    default = best = build_schedule(kernel, target, repeated)
    look(best)
    likeliest = expected = predict([best.kernel])[0] if any(best.looks.values()) else 0.0
    if expected < LONG_ENOUGH:
        return best
    for name, looks in tuple(best.looks.items()):
        options = [{**best.choices, name: option} for option in range(1, 1 + looks)]
        others = [build_schedule(kernel, target, repeated, choices) for choices in options]
        for other, predicted in zip(others, predict([default.kernel, *(o.kernel for o in others)])[1:]):
            look(other)
            if predicted < WORTH * expected:
                best, expected = other, predicted
    if best.choices:
        chosen = ", ".join(f"{name}, option {option}" for name, option in best.choices.items())
        best.remark(f"{chosen}: predicted {1e6 * expected:.3g} us against {1e6 * likeliest:.3g} us")
    return best

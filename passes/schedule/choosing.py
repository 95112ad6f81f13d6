"""Choosing among schedules: a predictor of time looks at the decisions of the default schedule, each by itself."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.passes.schedule.builder import Applied, Builder
from intarsia.passes.schedule.candidates import Candidate
from intarsia.passes.schedule.default import build_schedule

Predictor: TypeAlias = Callable[[Sequence[Kernel]], Sequence[float]]
"""Seconds that schedules of one kernel take on the target; the first of them is the default one."""

LONG_ENOUGH = 20e-6
"""Seconds from which on other decisions are looked at: each takes the compiler some 10 ms."""

WORTH = 0.9
"""A decision is changed if the kernel is then predicted to take at most this part of the time: predictions are not
sharper. At 0.95, changes lost as much as they gained on kernels that nothing was fitted to."""


def best_schedule(
    kernel: Kernel,
    target: Target,
    predict: Predictor,
    repeated: bool = False,
    look: Callable[[Builder], object] = lambda builder: None,
    applied: Applied | None = None,
) -> Builder:
    """The schedule that a predictor likes best: the default one with another option of one decision, or with all the
    changes that are predicted to gain something by themselves. `look` is called with all that are looked at; `applied`
    are steps that were taken before."""
    applied = {} if applied is None else applied

    def built(choices: Mapping[str, int]) -> Builder:
        builder = build_schedule(kernel, target, repeated, choices, applied)
        look(builder)
        return builder

    default = built({})
    if not any(default.looks.values()) or (likeliest := predict([default.kernel])[0]) < LONG_ENOUGH:
        return default
    others = [built({name: option}) for name, looks in default.looks.items() for option in range(1, 1 + looks)]
    times = dict(zip(others, predict([default.kernel, *(other.kernel for other in others)])[1:]))
    better = sorted((other for other in others if times[other] < WORTH * likeliest), key=lambda other: times[other])
    if not better:
        return default
    best, together = better[0], ChainMap(*(dict(other.choices) for other in better))  # of one decision, the best option
    if len(together) > 1:
        both = built(dict(together))
        times[both] = predict([default.kernel, both.kernel])[1]
        best = min(best, both, key=lambda other: times[other])
    best.remark(f"{Candidate.of(best)}: predicted {1e6 * times[best]:.3g} us against {1e6 * likeliest:.3g} us")
    return best

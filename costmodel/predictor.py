"""The one predictor of times that passes, compilations and searches ask: the learned model that ships, and where it has
seen nothing like a kernel, the analytic one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from intarsia.costmodel.analytic import estimate
from intarsia.costmodel.learned import LearnedModel, load_model
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target

MODEL = Path(__file__).parent / "data" / "cpu.npz"
"""The model that ships."""


@cache
def shipped_model() -> LearnedModel | None:
    """The model that ships; None where the file is missing, or was made for other features."""
    return load_model(MODEL)


def predict(kernels: Sequence[Kernel], target: Target) -> list[float]:
    """Seconds of schedules of one kernel, of which the first is the default one."""
    model = shipped_model() if target.kind == "cpu" else None
    if model is None:
        return [estimate(k, target).seconds for k in kernels]
    return model.seconds(kernels, target)

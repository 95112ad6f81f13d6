"""The one predictor of times that passes, compilations and searches ask: the learned model that ships, and where it has
seen nothing like a kernel, the analytic one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from intarsia.costmodel.estimating import estimate
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
    """Seconds of schedules of one kernel, of which the first is the default one.

    The learned model was fitted to one core, and to vectors of one width: other targets are left to the analytic one,
    which also says by how much several cores are faster than one.
    """
    model = shipped_model() if target.kind == "cpu" else None
    if model is None or f" {target.vector_bits} bits" not in model.machine:
        return [estimate(k, target).seconds for k in kernels]
    alone = replace(target, cores=1)
    found = model.seconds(kernels, alone)
    if target.cores > 1:
        shares = (estimate(k, target).seconds / max(estimate(k, alone).seconds, 1e-12) for k in kernels)
        found = [seconds * share for seconds, share in zip(found, shares)]
    return found

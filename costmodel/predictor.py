"""The one predictor of times that passes, compilations and searches ask: the learned model that ships, and where it has
seen nothing like a kernel, the analytic one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from intarsia.costmodel.estimating import estimate
from intarsia.costmodel.features import NAMES_BY_KIND
from intarsia.costmodel.learned import LearnedModel, load_model
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target

MODELS = Path(__file__).parent / "data"
"""Where the models lie that ship, each named by the kind of target."""


@cache
def shipped_model(kind: str = "cpu") -> LearnedModel | None:
    """The model that ships; None where the file is missing, or was made for other features."""
    model = load_model(MODELS / f"{kind}.npz")
    return model if model is None or model.names == NAMES_BY_KIND[kind] else None


def predict(kernels: Sequence[Kernel], target: Target) -> list[float]:
    """Seconds of schedules of one kernel, of which the first is the default one.

    The learned model for CPUs was fitted to few cores and to vectors of one width, one for GPUs to one architecture:
    other targets are left to the analytic one, which also says by how much more cores are faster.
    """
    model = shipped_model(target.kind)
    if model is None or not _is_of(model, target):
        return [estimate(k, target).seconds for k in kernels]
    if target.kind == "gpu":
        return model.seconds(kernels, target)
    measured = replace(target, cores=min(target.cores, model.cores))
    found = model.seconds(kernels, measured)
    if target.cores > measured.cores:
        shares = (estimate(k, target).seconds / max(estimate(k, measured).seconds, 1e-12) for k in kernels)
        found = [seconds * share for seconds, share in zip(found, shares)]
    return found


def _is_of(model: LearnedModel, target: Target) -> bool:
    """Was a model fitted to such a machine?"""
    if target.kind == "gpu":
        return model.machine.endswith(f" {target.cpu}")
    return f" {target.vector_bits} bits" in model.machine

"""The analytic estimate of a scheduled kernel, for any target."""

from __future__ import annotations

from intarsia.costmodel import analytic
from intarsia.costmodel.analytic import Estimate
from intarsia.costmodel.launches import estimate_launches
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target


def estimate(kernel: Kernel, target: Target) -> Estimate:
    """The time of one run of a scheduled kernel on a whole machine, without what is computed once for all."""
    return estimate_launches(kernel, target) if target.kind == "gpu" else analytic.estimate(kernel, target)

"""The learned model: what the analytic one is wrong by, from features of the kernel.

It says how sure it is, and where it has seen nothing like a kernel it leaves the analytic estimate as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intarsia.costmodel.features import NAMES, features
from intarsia.costmodel.forest import Forest
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target

Floats = npt.NDArray[np.float32]

MARGIN = 0.15
"""How far outside of what was seen a feature may lie, as a part of the range."""

STRANGE = 3
"""Features outside from which on a kernel is unlike anything that was seen."""


@dataclass(frozen=True)
class Prediction:
    """Seconds of a kernel, and between which it is four times out of five. is_known: was something like it measured?
    If not, these are the analytic model's seconds, without bounds."""

    seconds: float
    low: float
    high: float
    is_known: bool


@dataclass(frozen=True, eq=False)
class LearnedModel:
    """Forests for log2(measured / estimate) and for two quantiles of it; least, most: (features,) the range of what
    they were fitted to."""

    middle: Forest
    low: Forest
    high: Forest
    least: Floats
    most: Floats
    names: tuple[str, ...] = NAMES
    machine: str = ""

    def known(self, rows: Floats) -> npt.NDArray[np.bool_]:
        """Which rows are like those that were seen: (n, features) to (n,)."""
        margin = MARGIN * (self.most - self.least) + 1e-6
        outside = (rows < self.least - margin) | (rows > self.most + margin)
        found: npt.NDArray[np.bool_] = outside.sum(axis=1) < STRANGE
        return found

    def log_seconds(self, rows: Floats) -> Floats:
        """log2 seconds for rows of features: (n, features) to (n,)."""
        estimate = rows[:, self.names.index("estimate")]
        return np.where(self.known(rows), estimate + self.middle.predict(rows), estimate)

    def predict(self, kernel: Kernel, target: Target) -> Prediction:
        """The time of one scheduled kernel."""
        return self.predictions(features(kernel, target)[None])[0]

    def predictions(self, rows: Floats) -> list[Prediction]:
        """Times with bounds, for rows of features."""
        estimate = rows[:, self.names.index("estimate")]
        found = (self.log_seconds(rows), estimate + self.low.predict(rows), estimate + self.high.predict(rows))
        middle, low, high = (np.exp2(x.astype(np.float64)) for x in found)
        return [
            Prediction(m, min(a, m), max(b, m), True) if known else Prediction(m, 0.0, float("inf"), False)
            for m, a, b, known in zip(middle.tolist(), low.tolist(), high.tolist(), self.known(rows).tolist())
        ]

    def save(self, path: Path) -> None:
        """Write a file that `load_model` reads."""
        arrays = {**self.middle.arrays("middle"), **self.low.arrays("low"), **self.high.arrays("high")}
        arrays |= {"names": np.array(self.names), "machine": np.array(self.machine)}
        np.savez_compressed(path, least=self.least, most=self.most, **arrays)


def load_model(path: Path) -> LearnedModel | None:
    """The model of a file; None where there is none, or it was made for other features."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    names = tuple(arrays["names"].tolist())
    if names != NAMES:
        return None
    middle, low, high = (Forest.of(arrays, name) for name in ("middle", "low", "high"))
    return LearnedModel(middle, low, high, arrays["least"], arrays["most"], names, str(arrays["machine"]))


def rank(model: LearnedModel, rows: Sequence[Floats]) -> list[int]:
    """The places of candidates, the one that is predicted to be fastest first."""
    order: list[int] = np.argsort(model.log_seconds(np.stack(rows)), kind="stable").tolist()
    return order

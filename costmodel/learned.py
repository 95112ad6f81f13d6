"""The learned model: what the analytic one is wrong by, and how schedules of a kernel compare, from their features.

It says how sure it is, and where it has seen nothing like a kernel it leaves the analytic estimate as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intarsia.costmodel.features import NAMES, NAMES_BY_KIND, features
from intarsia.costmodel.forest import Forest
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target

Floats = npt.NDArray[np.float32]

MARGIN = 0.15
"""How far outside of what was seen a feature may lie, as a part of the range."""

STRANGE = 3
"""Features outside from which on a kernel is unlike anything that was seen."""

SIZES = ("operations", "executions", "parameter bytes")
"""Features that say how large a kernel is. Larger ones than any that was seen behave in other ways, since they leave
another cache; one of these outside is enough."""


FORESTS = ("middle", "low", "high", "ratio")
"""The names under which a file keeps the parts of a model."""


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
    """Forests for log2(measured / estimate), for two quantiles of it, and for log2 of the time of a schedule over that
    of the default one; least, most: (features,) the range of what they were fitted to.

    Two schedules of one kernel have much in common that a time depends on, so their ratio is predicted more sharply
    than either time.
    """

    middle: Forest
    low: Forest
    high: Forest
    ratio: Forest
    least: Floats
    most: Floats
    names: tuple[str, ...] = NAMES
    machine: str = ""

    @property
    def cores(self) -> int:
        """The most cores that anything was measured with; a model for CPUs only."""
        return round(2 ** float(self.most[self.names.index("cores")]))

    def known(self, rows: Floats) -> npt.NDArray[np.bool_]:
        """Which rows are like those that were seen: (n, features) to (n,)."""
        margin = MARGIN * (self.most - self.least) + 1e-6
        outside = (rows < self.least - margin) | (rows > self.most + margin)
        sizes = [self.names.index(name) for name in SIZES]
        too_large = (rows[:, sizes] > self.most[sizes]).any(axis=1)
        found: npt.NDArray[np.bool_] = (outside.sum(axis=1) < STRANGE) & ~too_large
        return found

    def log_seconds(self, rows: Floats) -> Floats:
        """log2 seconds for rows of features: (n, features) to (n,)."""
        estimate = rows[:, self.names.index("estimate")]
        return np.where(self.known(rows), estimate + self.middle.predict(rows), estimate)

    def log_ratios(self, default: Floats, rows: Floats) -> Floats:
        """log2 of the times of schedules over that of the default one: (features,), (n, features) to (n,)."""
        estimate = rows[:, self.names.index("estimate")] - default[self.names.index("estimate")]
        known = self.known(rows) & self.known(default[None])
        return np.where(known, self.ratio.predict(beside(default, rows)), estimate)

    def predictions(self, rows: Floats) -> list[Prediction]:
        """Times with bounds, for rows of features."""
        estimate = rows[:, self.names.index("estimate")]
        found = (self.log_seconds(rows), estimate + self.low.predict(rows), estimate + self.high.predict(rows))
        middle, low, high = (np.exp2(x.astype(np.float64)) for x in found)
        return [
            Prediction(m, min(a, m), max(b, m), True) if known else Prediction(m, 0.0, float("inf"), False)
            for m, a, b, known in zip(middle.tolist(), low.tolist(), high.tolist(), self.known(rows).tolist())
        ]

    def seconds(self, kernels: Sequence[Kernel], target: Target) -> list[float]:
        """The times of schedules of one kernel, of which the first is the default one."""
        rows = np.stack([features(k, target) for k in kernels])
        first = self.log_seconds(rows[:1])
        others = first + self.log_ratios(rows[0], rows[1:]) if len(rows) > 1 else rows[:0, 0]
        found: list[float] = np.exp2(np.concatenate([first, others]).astype(np.float64)).tolist()
        return found

    def save(self, path: Path) -> None:
        """Write a file that `load_model` reads."""
        arrays: dict[str, Any] = {"names": np.array(self.names), "machine": np.array(self.machine)}
        for name in FORESTS:
            arrays |= getattr(self, name).arrays(name)
        np.savez_compressed(path, least=self.least, most=self.most, **arrays)


def load_model(path: Path) -> LearnedModel | None:
    """The model of a file; None where there is none, or it was made for other features."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    names = tuple(arrays["names"].tolist())
    if names not in NAMES_BY_KIND.values():
        return None
    forests = {name: Forest.of(arrays, name) for name in FORESTS}
    return LearnedModel(
        **forests, least=arrays["least"], most=arrays["most"], names=names, machine=str(arrays["machine"])
    )


def beside(default: Floats, rows: Floats) -> Floats:
    """What a ratio is predicted from: the features of the default schedule, and by how much those of others differ.
    default: (features,) or one for each row; rows: (n, features). (n, 2 * features)."""
    return np.concatenate([np.broadcast_to(default, rows.shape), rows - default], axis=1)

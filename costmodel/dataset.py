"""Measurements as columns: what models are fitted to and judged by, and what ships beside them.

A row is one schedule of one problem; rows of a problem follow each other. Files are NumPy's `.npz`, compressed, read
without pickles. Texts of problems and schedules are in it too, so that features can be made anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intarsia.costmodel.features import NAMES

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Texts = npt.NDArray[np.object_]

COUNTS = ("instructions", "spills", "live")
"""What is counted in the code of a schedule: instructions of its LLVM IR, vector registers that are moved to the stack
and back, and vector registers that are live at once."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """n rows of p problems.

    features: (n, number of features), tokens: (n, columns of token counts). seconds: (n,); spread: (n,) how far the
    median of a row was above its least sample. problem: (n,) row to problem. is_default: (n,) is it the default
    schedule? kind, source, kernel: (p,) texts; cores: (p,); whole: (p,) was every candidate timed?
    schedule, choices: (n,) texts. counts: (n, len(COUNTS)), NaN where nothing was counted. names: those of the
    features.
    """

    features: Floats
    tokens: Floats
    seconds: Floats
    spread: Floats
    problem: Integers
    is_default: npt.NDArray[np.bool_]
    schedule: Texts
    choices: Texts
    kind: Texts
    source: Texts
    kernel: Texts
    cores: Integers
    whole: npt.NDArray[np.bool_]
    counts: Floats
    names: tuple[str, ...] = NAMES
    machine: str = ""

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def problems(self) -> int:
        return len(self.kind)

    @property
    def estimate(self) -> Floats:
        """log2 seconds that the analytic model predicts: (n,)."""
        return self.features[:, self.names.index("estimate")]

    @property
    def residual(self) -> Floats:
        """log2 of the measured over the predicted time: what is learned. (n,)."""
        return np.log2(self.seconds) - self.estimate

    def rows_of(self, problems: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
        """The rows of some problems."""
        return np.flatnonzero(np.isin(self.problem, problems))

    def select(self, rows: npt.NDArray[Any]) -> Dataset:
        """Some rows of all problems."""
        n = len(self)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        by_row = {k: v[rows] for k, v in values.items() if isinstance(v, np.ndarray) and k in _BY_ROW and len(v) == n}
        return replace(self, **by_row)

    def save(self, path: Path) -> None:
        """Write a file that `load_file` reads. Texts are one run of UTF-8, which compresses better."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _TEXTS:
                texts = [str(t) for t in ((value,) if isinstance(value, str) else value)]
                arrays[f.name] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
            else:
                arrays[f.name] = value.astype(np.float16) if f.name in _HALF else value
        np.savez_compressed(path, **arrays)


_BY_ROW = ("features", "tokens", "seconds", "spread", "problem", "is_default", "schedule", "choices", "counts")
_HALF = ("tokens", "spread")
_TEXTS = ("schedule", "choices", "kind", "source", "kernel", "names", "machine")


def load_file(path: Path) -> Dataset:
    """The dataset that a file holds."""
    with np.load(path, allow_pickle=False) as found:
        values: dict[str, Any] = {}
        for f in fields(Dataset):
            if f.name == "counts" and f.name not in found:  # a file from before anything was counted
                values[f.name] = np.full((len(found["seconds"]), len(COUNTS)), np.nan, np.float32)
                continue
            array = found[f.name]
            if f.name in _TEXTS:
                texts = json.loads(array.tobytes())
                values[f.name] = np.array(texts, dtype=object) if f.name not in ("names", "machine") else tuple(texts)
            else:
                values[f.name] = array.astype(np.float32) if array.dtype == np.float16 else array
    values["machine"] = values["machine"][0]
    return Dataset(**values)

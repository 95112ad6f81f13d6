"""Regression trees as plain arrays: evaluated by NumPy, all rows and trees at once, and kept without pickles.

What scikit-learn fits becomes one of these (`training.py`), so that compiling needs no scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees whose nodes follow each other in one table. The prediction is `base` plus the sum of all trees' leaves.

    roots: (trees,) the first node of each. feature: (nodes,) the column that a node looks at, -1 in a leaf.
    threshold: (nodes,) rows at or below it go to `left`, others to `right`, both (nodes,). value: (nodes,) of leaves.
    depth: of the deepest tree.
    """

    base: float
    roots: Integers
    feature: Integers
    threshold: Floats
    left: Integers
    right: Integers
    value: Floats
    depth: int

    def predict(self, rows: Floats) -> Floats:
        """The prediction for each row of features: (n, features) to (n,)."""
        total: Floats = self.each(rows).sum(axis=1, dtype=np.float32)
        return total + np.float32(self.base)

    def each(self, rows: Floats) -> Floats:
        """What each tree says of each row: (n, trees)."""
        n, width = rows.shape
        flat, start = np.ascontiguousarray(rows).ravel(), (np.arange(n, dtype=np.int32) * width)[:, None]
        at = np.broadcast_to(self.roots, (n, len(self.roots)))
        feature = np.maximum(self.feature, 0)
        for _ in range(self.depth):
            goes_left = flat.take(start + feature.take(at)) <= self.threshold.take(at)
            at = np.where(goes_left, self.left.take(at), self.right.take(at))  # leaves lead to themselves
        return self.value.take(at)

    def arrays(self, prefix: str) -> dict[str, Any]:
        """What a file keeps, by name."""
        columns = {n: getattr(self, n) for n in ("roots", "feature", "threshold", "left", "right", "value")}
        scalars = np.array([self.base, self.depth], np.float64)
        return {f"{prefix}.{name}": array for name, array in {**columns, "scalars": scalars}.items()}

    @staticmethod
    def of(arrays: Mapping[str, Any], prefix: str) -> Forest:
        """The forest that `arrays` wrote."""
        base, depth = arrays[f"{prefix}.scalars"].tolist()
        columns = {n: arrays[f"{prefix}.{n}"] for n in ("roots", "feature", "threshold", "left", "right", "value")}
        return Forest(float(base), depth=int(depth), **columns)

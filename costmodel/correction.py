"""What measuring some schedules of a kernel says about the others.

By how much a prediction was wrong is taken to be a sum over the choices that lead to a schedule. A ridge regression on
the choices finds the summands, in a millisecond; choices that were never measured count nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RIDGE = 1.0
"""How much evidence a choice needs before it counts."""

Doubles = npt.NDArray[np.float64]


def corrected(
    measured: Sequence[Mapping[str, int]],
    off: npt.NDArray[Any],
    others: Sequence[Mapping[str, int]],
    predicted: npt.NDArray[Any],
) -> Doubles:
    """log2 seconds of other schedules: what was `predicted`, and by how much predictions were `off` for such choices.

    measured, others: the choices of schedules, by decision; the likeliest options are left out. off: log2(measured time
    / predicted time), for each measured one. predicted: log2 seconds of the others. All in the same order: (m,), (n,).
    """
    columns = {choice: n for n, choice in enumerate(dict.fromkeys(c for choices in measured for c in choices.items()))}
    known, new = _one_hot(measured, columns), _one_hot(others, columns)
    middle = float(np.mean(off))
    weights = np.linalg.solve(known.T @ known + RIDGE * np.eye(len(columns)), known.T @ (off - middle))
    found: Doubles = predicted + middle + new @ weights
    return found


def _one_hot(choices: Sequence[Mapping[str, int]], columns: Mapping[tuple[str, int], int]) -> Doubles:
    found = np.zeros((len(choices), len(columns)))
    for row, own in enumerate(choices):
        for choice in own.items():
            if choice in columns:
                found[row, columns[choice]] = 1.0
    return found

"""Parts of arrays whose elements can only be made in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from intarsia.ir.dtypes import Array

PIECE = 1 << 20
"""Elements that are made at once."""


def part_of_stream(
    draw: Callable[[int], Array], shape: Sequence[int], places: Sequence[slice], dtype: np.dtype[Any]
) -> Array:
    """What `places`, slices without a step, select of an array of `shape`: `draw` gives its next so many elements in
    row-major order. No more is in memory than the result and one piece of the array."""
    ranges = [range(extent)[place] for extent, place in zip(shape, places)]
    result = np.empty(tuple(map(len, ranges)), dtype)
    if not result.size:
        return result
    cut = max((d for d, own in enumerate(ranges) if len(own) != shape[d]), default=0)  # below it nothing is cut
    inner, line = prod(shape[cut + 1 :]), prod(shape[cut:])  # of each line one run of elements is wanted, or none
    begin, end = (inner * ranges[cut][0], inner * (ranges[cut][-1] + 1)) if ranges else (0, line)
    wanted = np.zeros(tuple(shape[:cut]), np.bool_)
    wanted[tuple(places[:cut])] = True
    rows, row = result.reshape(-1, end - begin), 0
    step = max(1, PIECE // line)
    for lines in np.split(wanted.reshape(-1), range(step, wanted.size, step)):
        count = int(lines.sum())
        for first in range(0, line, PIECE):
            width = min(line - first, PIECE)
            values = draw(lines.size * width).reshape(lines.size, width)
            low, high = max(begin, first), min(end, first + width)
            if count and low < high:
                rows[row : row + count, low - begin : high - begin] = values[lines, low - first : high - first]
        row += count
    return result

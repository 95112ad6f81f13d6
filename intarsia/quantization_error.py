"""How far a quantized tensor is from the one that it was made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.formats import BlockFormat

_AT_ONCE = 1 << 22
"""Elements that are compared at a time, so that large tensors need little memory beside their own."""


@dataclass(frozen=True)
class QuantizationError:
    """The errors of a tensor. signal, noise: the sums of squares of values and of errors in each channel."""

    most: float
    count: int
    signal: Array
    noise: Array

    @property
    def rms(self) -> float:
        return math.sqrt(float(self.noise.sum()) / self.count)

    @property
    def decibels(self) -> float:
        """The signal-to-noise ratio of the whole tensor."""
        return decibels(float(self.signal.sum()), float(self.noise.sum()))

    @property
    def by_channel(self) -> list[float]:
        """The signal-to-noise ratio of each channel."""
        return [decibels(float(s), float(n)) for s, n in zip(self.signal, self.noise)]


def decibels(signal: float, noise: float) -> float:
    """10 log10 of the ratio; infinite where there is no noise."""
    if noise == 0:
        return math.inf
    return -math.inf if signal == 0 else 10 * math.log10(signal / noise)


def channel_axis(format_: BlockFormat, rank: int) -> int | None:
    """The axis whose slices are the channels: the last one along which elements do not share scales."""
    grouped = None if format_.axis is None else format_.axis % max(rank, 1)
    return next((axis for axis in reversed(range(rank)) if axis != grouped), None)


def measured_error(x: Array, stored: Array, axis: int | None) -> QuantizationError:
    """Values beside what is stored of them. axis: that of the channels, None for one channel."""
    rows, others = _channels(x, axis), _channels(stored, axis)
    step = max(1, _AT_ONCE // max(1, rows.shape[1]))
    most, signal, noise = 0.0, np.zeros(len(rows)), np.zeros(len(rows))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].astype(np.float64)
        error = others[start : start + step].astype(np.float64) - part
        most = max(most, float(np.abs(error).max(initial=0.0)))
        signal[start : start + step] = np.square(part).sum(1)
        noise[start : start + step] = np.square(error).sum(1)
    return QuantizationError(most, x.size, signal, noise)


def error_histogram(x: Array, stored: Array, bins: int = 101) -> tuple[Array, Array]:
    """The share of errors in each of `bins` equal parts of their range, and the middles of these, as parts of the
    tensor's root mean square."""
    error = stored.astype(np.float64) - x
    size = math.sqrt(float(np.square(x.astype(np.float64)).mean())) or 1.0
    most = float(np.abs(error).max(initial=0.0)) / size or 1.0
    counts, edges = np.histogram(error / size, bins, (-most, most))
    return counts / max(1, x.size), (edges[:-1] + edges[1:]) / 2


def _channels(x: Array, axis: int | None) -> Array:
    if axis is None:
        return x.reshape(1, -1)
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)

"""Codes whose errors make up for each other in the products that read them.

A weight is rounded with an error; weights of other inputs that are not rounded yet take over what of it the inputs have
in common. So what is small is not the error of the weights but that of the product, on inputs whose sums of products,
their moments, are known. The inputs that are largest come first, and scales stay as they are ("act-order" with static
groups). Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from intarsia.ir.conversion import convert, from_codes
from intarsia.ir.dtypes import F64, Array
from intarsia.ir.errors import CompileError
from intarsia.ir.formats import BlockFormat

DAMPING = 0.01
"""What is added to the square of every input, as a share of their mean: others will come than those that are known."""

BLOCK = 64
"""Inputs whose errors reach the weights of all later ones together, by one product of matrices."""


def compensated_codes(
    x: Array,
    parts: Mapping[str, Array],
    format: BlockFormat,
    dequantize: Callable[[Mapping[str, Array]], Array],
    moments: Array,
    name: str = "",
) -> Array:
    """Codes of `x`, of which `parts` are the codes to nearest and scales, for products along the axis of its groups.

    dequantize: the values of such parts, in f32. moments: the sums over inputs of `outer(input, input)`, or a multiple
    of them, with a row and a column for each element along that axis. name: what errors call `x`.

    Raises CompileError E0710 where they are not such sums, or scales have no axis.
    """
    if format.axis is None:
        raise CompileError("E0710", f"'{name}' has one scale in all, and moments are along the axis of groups")
    count = x.shape[format.axis]
    codes, levels = _levels(format)
    ends = [dequantize({**parts, "codes": np.full_like(parts["codes"], codes[n])}) for n in (0, -1)]
    low, high = (_rows(end, format.axis) for end in ends)
    steps = (high - low) / (levels[-1] - levels[0])
    middles = (levels[1:] + levels[:-1]) / 2
    order, factor = _factor(moments, count, name)
    rest = _rows(x, format.axis)[:, order]
    found = np.empty(rest.shape, np.intp)
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        errors = np.empty((len(rest), end - begin))
        for n in range(begin, end):
            first, step = low[:, order[n]], steps[:, order[n]]
            wanted = levels[0] + (rest[:, n] - first) / np.where(step, step, 1)
            found[:, order[n]] = nearest = np.searchsorted(middles, wanted)
            errors[:, n - begin] = (rest[:, n] - first - (levels[nearest] - levels[0]) * step) / factor[n, n]
            rest[:, n + 1 : end] -= np.outer(errors[:, n - begin], factor[n, n + 1 : end])
        rest[:, end:] -= errors @ factor[begin:end, end:]
    moved = np.moveaxis(x, format.axis, -1).shape
    return np.ascontiguousarray(np.moveaxis(codes[found].reshape(moved), -1, format.axis))


def _rows(x: Array, axis: int) -> Array:
    """A tensor as rows along an axis, in f64."""
    moved = np.moveaxis(x, axis, -1)
    return np.asarray(moved.reshape(-1, moved.shape[-1]), np.float64)


def _levels(format: BlockFormat) -> tuple[Array, Array]:
    """The codes that rounding gives, in the order of their levels, and these: a value is linear in them."""
    patterns = np.arange(1 << format.codes.bits, dtype=np.uint8)
    codes = from_codes(patterns, format.codes)
    levels = convert(codes, format.codes, F64) if format.table is None else np.array(format.table)
    kept = np.abs(levels) <= format.largest  # no NaN, and no code beyond that of the largest magnitude
    order = np.argsort(levels[kept], kind="stable")
    return codes[kept][order], levels[kept][order]


def _factor(moments: Array, count: int, name: str) -> tuple[Array, Array]:
    """The order of the inputs, and the upper triangular matrix R for which R^T R is the inverse of their moments."""
    sums = np.array(moments, np.float64)
    if sums.shape != (count, count) or not np.isfinite(sums).all():
        shape = "x".join(map(str, sums.shape)) or "scalar"
        raise CompileError("E0710", f"'{name}' has {count} inputs, and moments of {count}x{count} numbers, not {shape}")
    squares = np.diag(sums).copy()
    sums[np.diag_indices(count)] += np.where(squares > 0, DAMPING * squares.mean(), 1)
    order = np.argsort(-squares, kind="stable")
    try:
        factor = np.linalg.cholesky(np.linalg.inv(sums[np.ix_(order, order)])).T
    except np.linalg.LinAlgError:
        raise CompileError("E0710", f"the moments for '{name}' are no sums of products of inputs") from None
    return order, factor

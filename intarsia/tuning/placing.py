"""Where the arrays of a measured kernel lie.

Times depend on addresses: a vector that crosses a cache line takes two loads, a load waits for a store whose address
has the same last twelve bits, and which lines of the second cache are in each other's way is decided by physical pages.
An elementwise kernel on arrays that begin 16 bytes into a line, as NumPy's do, took 1.14 times as long as on whole
lines. So everything lies at the same places in every process and for every candidate: on huge pages, cache lines whole,
each array some lines further into its page than the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.runtime.buffers import HUGE_PAGE, LARGE

PAGE = 4096

STAGGER = 9 * 64
"""Bytes that the place of an array in its page moves on from one array to the next."""


def place(sizes: Sequence[int], first: int = 0) -> list[Array]:
    """Memory for arrays of so many bytes. first: how many arrays there are before these elsewhere."""
    starts: list[int] = []
    end = 0
    for n, size in enumerate(sizes, start=first):
        starts.append(end + n * STAGGER % PAGE)
        end = -(-(starts[-1] + size) // PAGE) * PAGE
    length = max(end, LARGE)  # so much is asked to be on huge pages
    owner = np.empty(length + HUGE_PAGE, np.uint8)
    block = owner[-owner.__array_interface__["data"][0] % HUGE_PAGE :]
    return [block[start : start + size] for start, size in zip(starts, sizes)]


def placed(arrays: Sequence[Array], first: int = 0) -> list[Array]:
    """Copies of arrays in such memory."""
    found = [
        memory.view(array.dtype).reshape(array.shape)
        for memory, array in zip(place([a.nbytes for a in arrays], first), arrays)
    ]
    for copy, array in zip(found, arrays):
        copy[...] = array
    return found

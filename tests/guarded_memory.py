"""Memory that tells of an access beyond an array's end: the next page has no access at all."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from intarsia.ir.dtypes import Array

PAGE = mmap.PAGESIZE


class GuardedMemory:
    """Arrays that end where a page without access begins."""

    def __init__(self) -> None:
        self._regions: list[mmap.mmap] = []

    def array(self, values: Array) -> Array:
        pages = -(-max(1, values.nbytes) // PAGE)
        region = mmap.mmap(-1, (pages + 1) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(region))
        protect = ctypes.CDLL(None).mprotect
        assert protect(ctypes.c_void_p(start + pages * PAGE), ctypes.c_size_t(PAGE), 0) == 0
        self._regions.append(region)
        copy = np.frombuffer(region, values.dtype, values.size, pages * PAGE - values.nbytes).reshape(values.shape)
        copy[...] = values
        return copy

"""Memory for results and workspaces: aligned, on huge pages when large, and used again.

Fresh pages cost more than most kernels: writing to 64 MiB for the first time takes longer than a softmax over it. So
the memory of a result goes back to a pool when its last array or view is gone, and the next result takes it from there.
Alignment is 64 bytes (a cache line, the widest vector), or 2 MiB from 4 MiB up, where NumPy's allocator asks the kernel
for huge pages. Results below 1 KiB come from NumPy's allocator, which keeps these at hand itself.

The pool itself is native code (`extension.py`). Where that is not to be had, all memory is fresh.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from intarsia.ir.dtypes import Array
from intarsia.runtime.control_groups import limits
from intarsia.runtime.extension import HEAD_BYTES, Extension, make_extension

SMALL = 1 << 10  # below, a result is a plain NumPy array
LARGE = 4 << 20  # from here on memory lies on huge pages
CACHE_LINE = 64
HUGE_PAGE = 2 << 20


class BufferPool:
    """Memory that is free to be used again, in blocks: `limit` bytes at most, by default an eighth of the memory that
    this process may use. A block that would be too much makes the pool give everything back to the system first.

    Safe to use from several threads, and in a forked child, which has its own copy of everything.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = usable_memory() // 8 if limit is None else limit

    @cached_property
    def extension(self) -> Extension | None:
        """The native code over this pool; made when it is first wanted, which takes some 5 ms."""
        return make_extension(self._new_block, self.limit)

    @property
    def free_bytes(self) -> int:
        """Bytes that are held without being used."""
        return self.extension.free_bytes if self.extension else 0

    def lease(self, size: int) -> Array:
        """Memory of at least `size` bytes, aligned as the module says, for as long as the array or a view is kept.

        The contents are whatever the previous user left. Raises MemoryError where there is not so much.
        """
        if size >= 1 << 62:  # NumPy knows no such sizes
            raise MemoryError(f"{size} bytes are more than any machine has")
        if self.extension is None:
            return self._new_block(max(1, size))[HEAD_BYTES:]
        return self.extension.allocate(size)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array like `numpy.empty`'s, C-contiguous, whose memory goes back to the pool when it and its views die."""
        element = np.dtype(dtype)
        size = math.prod(shape) * element.itemsize
        if size < SMALL:
            return np.empty(tuple(shape), element)
        return np.ndarray(tuple(shape), element, self.lease(size))

    def release(self) -> None:
        """Give all free memory back to the system."""
        if self.extension is not None:
            self.extension.release()

    def _new_block(self, size: int) -> Array:
        """The head of a block and `size` aligned bytes after it."""
        alignment = HUGE_PAGE if size >= LARGE else CACHE_LINE
        length = HEAD_BYTES + size
        try:
            owner = np.empty(length + alignment, np.uint8)
        except MemoryError:
            self.release()
            owner = np.empty(length + alignment, np.uint8)
        start = -(owner.__array_interface__["data"][0] + HEAD_BYTES) % alignment
        return owner[start : start + length]


def usable_memory() -> int:
    """Bytes of memory of this machine, or of the control group of this process where that is less."""
    if not hasattr(os, "sysconf"):
        return 8 << 30
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = [int(limit) for limit in limits("memory.max") if limit.isdecimal()]
    return min([installed, *allowed])


POOL = BufferPool()
"""The pool of this process, as `malloc` has one."""


def empty(shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """An array of unset values in memory of the process's pool (`BufferPool.empty`)."""
    return POOL.empty(shape, dtype)


def lease(size: int) -> Array:
    """A workspace of `size` bytes from the process's pool (`BufferPool.lease`)."""
    return POOL.lease(size)

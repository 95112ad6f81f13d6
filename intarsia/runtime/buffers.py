"""Memory for results and workspaces: aligned, on huge pages when large, and used again.

Fresh pages cost more than most kernels: writing to 64 MiB for the first time takes longer than a softmax over it. So
the memory of a result goes back to a pool when its last array or view is gone, and the next result takes it from there.
Alignment is 64 bytes (a cache line, the widest vector), or 2 MiB from 4 MiB up, where NumPy's allocator asks the kernel
for huge pages. Results below 64 KiB come from `numpy.empty`, whose own free lists are fast enough.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intarsia.ir.dtypes import Array

SMALL = 64 << 10  # below, a result is a plain NumPy array
LARGE = 4 << 20  # from here on memory lies on huge pages
CACHE_LINE = 64
HUGE_PAGE = 2 << 20


@dataclass(frozen=True, eq=False)
class _Block:
    """One piece of memory; `owner` is the NumPy array that it was cut from."""

    address: int
    size: int
    owner: Array


class Lease:
    """The use of one piece of memory of the pool, until the last reference to this object is gone.

    `address` is aligned as the module says, and `size`, in bytes, is at least what was asked for. The contents are
    whatever the previous user left. NumPy takes the object as an array of bytes that keeps it alive.
    """

    __slots__ = ("__weakref__", "_block", "_pool", "address", "size")

    def __init__(self, block: _Block, pool: BufferPool) -> None:
        self._block = block
        self._pool = pool
        self.address = block.address
        self.size = block.size

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"data": (self.address, False), "shape": (self.size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        self._pool._give_back(self._block)


class BufferPool:
    """Pieces of memory that are free to be used again; `limit` bytes of them at most, oldest dropped first.

    Safe to use from several threads, and in a forked child, which has its own copy of everything.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = _an_eighth_of_memory() if limit is None else limit
        self._free: list[_Block] = []  # oldest first
        self._free_bytes = 0
        # A garbage collection may end a lease while this very thread holds the lock, so giving back never waits for
        # the lock: it leaves the block here, for whoever holds the lock next.
        self._returned: deque[_Block] = deque()
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            pool = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _renew_lock(pool()))

    @property
    def free_bytes(self) -> int:
        """Bytes that are held without being used."""
        with self._lock:
            self._collect()
            return self._free_bytes

    def lease(self, size: int) -> Lease:
        """Memory of at least `size` bytes, for as long as the result is kept."""
        step = max(CACHE_LINE, 1 << max(0, size.bit_length() - 4))  # eight sizes for each power of two
        rounded = max(1, -(-size // step)) * step
        with self._lock:
            self._collect()
            block = self._take(rounded)
        return Lease(block or _allocate(rounded), self)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array like `numpy.empty`'s, C-contiguous, whose memory goes back to the pool when it and its views die."""
        element = np.dtype(dtype)
        size = math.prod(shape) * element.itemsize
        if size < SMALL:
            return np.empty(tuple(shape), element)
        return np.ndarray(tuple(shape), element, np.asarray(self.lease(size)))

    def clear(self) -> None:
        """Give all free memory back to the system."""
        with self._lock:
            self._collect()
            self._free.clear()
            self._free_bytes = 0

    def _give_back(self, block: _Block) -> None:
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        """File the returned blocks and drop the oldest beyond the limit. The lock is held."""
        while self._returned:
            block = self._returned.popleft()
            self._free.append(block)
            self._free_bytes += block.size
        while self._free_bytes > self.limit:
            self._free_bytes -= self._free.pop(0).size

    def _take(self, size: int) -> _Block | None:
        """The block of this size that came back last, whose lines may still be cached. The lock is held."""
        for index in reversed(range(len(self._free))):
            if self._free[index].size == size:
                self._free_bytes -= size
                return self._free.pop(index)
        return None


def _allocate(size: int) -> _Block:
    alignment = HUGE_PAGE if size >= LARGE else CACHE_LINE
    owner = np.empty(size + alignment, np.uint8)
    start: int = owner.__array_interface__["data"][0]
    return _Block(start + -start % alignment, size, owner)


def _an_eighth_of_memory() -> int:
    if not hasattr(os, "sysconf"):
        return 1 << 30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8


def _renew_lock(pool: BufferPool | None) -> None:
    if pool is not None:
        pool._lock = threading.Lock()


POOL = BufferPool()
"""The pool of this process, as `malloc` has one."""


def empty(shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """An array of unset values in memory of the process's pool (`BufferPool.empty`)."""
    return POOL.empty(shape, dtype)


def lease(size: int) -> Lease:
    """A workspace of `size` bytes from the process's pool (`BufferPool.lease`)."""
    return POOL.lease(size)

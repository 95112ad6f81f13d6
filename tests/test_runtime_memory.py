"""Memory of results and workspaces: it is kept, shared out and given back."""

from __future__ import annotations

import gc
import struct
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from test_runtime import in_child

from intarsia.runtime import buffers, extension
from intarsia.runtime.buffers import CACHE_LINE, HUGE_PAGE, SMALL, BufferPool, empty, usable_memory
from intarsia.runtime.control_groups import limits
from intarsia.runtime.native import address_of


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = BufferPool(limit=64 << 20)
    first = pool.empty((1 << 18,), np.float32)
    address, tail = address_of(first), first[1:].reshape(3, -1)[2]
    del first
    assert pool.free_bytes == 0
    other = pool.empty((1 << 18,), np.float32)
    assert address_of(other) != address
    del tail
    assert pool.free_bytes == 1 << 20
    again = pool.empty((1 << 10, 1 << 7), np.int64)
    assert address_of(again) == address
    assert again.flags.c_contiguous and again.flags.writeable
    buffer = memoryview(again)
    del again
    assert pool.free_bytes == 0
    del buffer
    assert pool.free_bytes == 1 << 20


def test_alignment_and_small_results() -> None:
    pool = BufferPool(limit=64 << 20)
    assert address_of(pool.empty((SMALL,), np.uint8)) % CACHE_LINE == 0
    assert address_of(pool.empty((1025, 1024), ml_dtypes.bfloat16)) % CACHE_LINE == 0
    assert address_of(pool.empty((1 << 20,), np.float32)) % HUGE_PAGE == 0
    assert address_of(pool.lease(0)) % CACHE_LINE == 0
    scalar = pool.empty((), np.float64)
    assert scalar.shape == () and scalar.base is None
    assert empty((0, 5), np.float32).shape == (0, 5)


def test_sizes_of_blocks_are_at_most_an_eighth_too_large() -> None:
    pool = BufferPool(limit=1 << 30)
    for size in (*range(1, 3000, 7), *(3 << n for n in range(10, 24)), *((1 << n) + 1 for n in range(10, 24))):
        block = pool.lease(size)
        assert size <= block.size <= max(size + 63, size * 9 // 8), size
        block[:] = 1
        address, held = address_of(block), block.size
        del block
        assert address_of(pool.lease(held)) == address
    assert pool.free_bytes > 0


def test_pool_keeps_no_more_than_its_limit() -> None:
    pool = BufferPool(limit=3 << 20)
    leases = [pool.lease(1 << 20) for _ in range(5)]
    addresses = [address_of(lease) for lease in leases]
    for kept in (1, 2, 3, 1, 2):  # the fourth is too much: it takes the place of all others
        leases.pop(0)
        assert pool.free_bytes == kept << 20
    assert address_of(pool.lease(1 << 20)) == addresses[-1]  # whose lines may still be cached
    large = pool.lease(4 << 20)
    del large
    assert pool.free_bytes == 0
    lease = pool.lease(1 << 20)
    del lease
    pool.release()
    assert pool.free_bytes == 0


def test_memory_is_given_back_when_there_is_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, original = BufferPool(limit=1 << 30), np.empty
    lease = pool.lease(1 << 20)
    del lease

    def scarce(shape: int, dtype: object) -> object:
        if pool.free_bytes:
            raise MemoryError
        return original(shape, dtype)

    monkeypatch.setattr(np, "empty", scarce)
    assert pool.lease(2 << 20).size == 2 << 20
    monkeypatch.setattr(np, "empty", lambda shape, dtype: original(1 << 60, np.uint8))
    with pytest.raises(MemoryError):
        pool.lease(8 << 20)


def test_pool_is_safe_to_use_from_several_threads() -> None:
    pool = BufferPool(limit=1 << 30)
    clashes: list[int] = []

    def work(mark: int) -> None:
        for size in range(200):
            array = pool.empty((SMALL + size % 7 * 4096,), np.uint8)
            array[:] = mark
            array[::4096] += 1
            if (array[1:4096] != mark).any():
                clashes.append(mark)

    workers = [threading.Thread(target=work, args=(m,)) for m in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not clashes


def test_memory_that_dies_in_a_garbage_collection_comes_back() -> None:
    pool = BufferPool(limit=1 << 30)
    cycle: list[object] = [pool.empty((1 << 20,), np.uint8)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert pool.free_bytes == 1 << 20


def test_a_forked_child_has_its_own_pool() -> None:
    pool = BufferPool(limit=1 << 30)
    array = pool.empty((1 << 20,), np.uint8)

    def child() -> bool:
        nonlocal array
        array[:] = 1
        del array
        return pool.free_bytes == 1 << 20 and pool.empty((1 << 20,), np.uint8).size == 1 << 20

    array[:] = 0
    assert in_child(child) == 0
    assert pool.free_bytes == 0 and not array.any()


def test_the_pool_works_without_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_is_supported", lambda: False)
    pool = BufferPool(limit=1 << 30)
    assert pool.extension is None
    array = pool.empty((1 << 20,), np.float32)
    assert array.size == 1 << 20 and address_of(array) % HUGE_PAGE == 0
    assert pool.lease(0).size == 1 and pool.free_bytes == 0
    pool.release()


def test_memory_of_a_control_group_limits_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slice" / "job").mkdir(parents=True)
    (tmp_path / "slice" / "memory.max").write_text("1048576\n")
    (tmp_path / "slice" / "job" / "memory.max").write_text("max\n")
    (tmp_path / "self").write_text("0::/slice/job\n")
    monkeypatch.setattr(buffers, "limits", lambda name: limits(name, tmp_path, tmp_path / "self"))
    assert usable_memory() == 1 << 20
    assert BufferPool().limit == 1 << 17


def test_arrays_that_are_laid_out_otherwise_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extension._is_supported() == (sys.implementation.name == "cpython")
    other = struct.Struct("@nPPi4xPPPiP")
    monkeypatch.setattr(extension, "_ARRAY_FIELDS", other)
    assert not extension._is_supported()

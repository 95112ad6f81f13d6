"""Threads of compiled programs: an OpenMP runtime found on this machine, and how many threads a call may use.

Compiled code opens a parallel region by calling `GOMP_parallel(body, data, threads, 0)` and asks
`omp_get_thread_num()` inside, the entry points that GCC's libgomp and LLVM's libomp (and Intel's libiomp) share. No
runtime is shipped: libgomp is part of every GCC, and scikit-learn brings a copy in its wheel.

Latency, two threads on a 2-core Zen 5 virtual machine (libgomp 12): fork and join 0.45 us back to back, 1.2 us when
the region before it ended within 0.3 ms, 25 us after that (the worker sleeps), up to 0.4 ms after 20 ms. The last two
follow from `SPIN_COUNT`. libgomp's own default spins some 10 ms, and the same measurement then gives 8 ms: after a
sleep the kernel places the woken worker on the core where the first thread spins, for a whole slice. Pinning
(OMP_PROC_BIND=true, honoured if the user sets it) is not done for the user: it would narrow the affinity mask of the
Python thread and of every process that it starts.

The team may be smaller than asked for (OMP_THREAD_LIMIT, a call from inside another parallel region), so a body must
share out its work by `omp_get_num_threads()` or a counter, never by the number that was passed to `GOMP_parallel`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.ir.errors import CompileError
from intarsia.runtime.control_groups import MEMBERSHIP, ROOT, limits

SPIN_COUNT = "10000"
"""Turns that an idle worker spins before it sleeps; some 30 ns each, so 0.3 ms."""


@dataclass(frozen=True)
class ParallelRuntime:
    """Addresses of one OpenMP runtime's entry points, as compiled code calls them.

    `library` is held for the life of the process: LLVM would unload it at exit while its workers still spin in it.
    """

    name: str
    fork: int  # GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags)
    barrier: int  # GOMP_barrier()
    thread_number: int  # int omp_get_thread_num()
    team_size: int  # int omp_get_num_threads()
    library: object

    @property
    def symbols(self) -> dict[str, int]:
        """Names under which compiled code refers to the entry points, for a JIT linker."""
        return {
            "GOMP_parallel": self.fork,
            "GOMP_barrier": self.barrier,
            "omp_get_thread_num": self.thread_number,
            "omp_get_num_threads": self.team_size,
        }


@functools.cache
def parallel_runtime() -> ParallelRuntime | None:
    """The OpenMP runtime of this machine, or None, after one warning, where there is none."""
    for path in _candidates():
        try:
            with _bounded_spinning():
                library = ctypes.CDLL(path)
            found = ParallelRuntime(
                Path(path).name,
                _address(library.GOMP_parallel),
                _address(library.GOMP_barrier),
                _address(library.omp_get_thread_num),
                _address(library.omp_get_num_threads),
                library,
            )
        except (OSError, AttributeError):  # not there, or a runtime without GCC's entry points
            continue
        return found
    warnings.warn("no OpenMP runtime (libgomp, libomp) found: programs run on one thread", RuntimeWarning, stacklevel=2)
    return None


@functools.cache
def sequential_runtime() -> ParallelRuntime:
    """The same entry points for one thread, so that compiled code links on a machine without OpenMP."""
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    def fork(body: Callable[[int | None], None], data: int | None, threads: int, flags: int) -> None:
        body(data)

    entry = ctypes.CFUNCTYPE(None, body_type, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(fork)
    barrier = ctypes.CFUNCTYPE(None)(lambda: None)
    number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    size = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
    functions = (entry, barrier, number, size)
    return ParallelRuntime(
        "sequential", _address(entry), _address(barrier), _address(number), _address(size), functions
    )


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, cut by the CPU quota of its control group."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def default_thread_count() -> int:
    """INTARSIA_NUM_THREADS where it is set, else the cores that this process may use.

    Raises CompileError E0612 where the variable is not a positive number.
    """
    text = os.environ.get("INTARSIA_NUM_THREADS", "").strip()
    if not text:
        return usable_cores()
    if not text.isdecimal() or int(text) == 0:
        raise CompileError(
            "E0612",
            f"INTARSIA_NUM_THREADS is {text!r}, which is not a positive number",
            hint="unset it to use every core that this process may use",
        )
    return int(text)


class ThreadCount:
    """The number of threads of a parallel region: an `i32` at a fixed address that compiled code reads on each call.

    One for the process, as the pool of the OpenMP runtime is. In a forked child it is one for good: the child has the
    runtime's memory but none of its workers, and libgomp would wait for them for ever.
    """

    def __init__(self) -> None:
        self._cell = ctypes.c_int32(0)  # 0: not chosen yet
        self._alone = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._stay_alone)

    @property
    def address(self) -> int:
        """Where compiled code reads the number; valid for the life of the process."""
        self.get()
        return ctypes.addressof(self._cell)

    def get(self) -> int:
        """Threads that a call made now uses."""
        return self._cell.value or self.set(None)

    def set(self, threads: int | None) -> int:
        """Use `threads` from the next call on; None for `default_thread_count()`. Returns what holds now.

        Raises CompileError E0612 where `threads` is not positive.
        """
        if threads is not None and threads < 1:
            raise CompileError("E0612", f"{threads} is not a number of threads", hint="it is 1 or more")
        wanted = default_thread_count() if threads is None else threads
        if self._alone or (wanted > 1 and parallel_runtime() is None):
            wanted = 1
        self._cell.value = wanted
        return wanted

    def _stay_alone(self) -> None:
        self._alone = True
        self._cell.value = 1


THREADS = ThreadCount()


def thread_count() -> int:
    """Threads that a call made now uses (`THREADS.get()`)."""
    return THREADS.get()


def thread_symbols() -> dict[str, int]:
    """What compiled code needs for threads: the OpenMP entry points, and the `i32` `intarsia_thread_count`."""
    runtime = parallel_runtime() or sequential_runtime()
    return {**runtime.symbols, "intarsia_thread_count": THREADS.address}


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _candidates() -> Iterator[str]:
    """Names and paths of OpenMP runtimes, best first. Finds the bundled copies without importing their packages."""
    darwin = sys.platform == "darwin"
    if not darwin:
        yield "libgomp.so.1"
    for package in ("sklearn", "torch"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        home = Path(spec.origin).parent
        for folder in (home / ".dylibs", home / "lib", home.parent / "scikit_learn.libs", home.parent / "torch.libs"):
            for stem in ("libgomp", "libomp"):
                yield from (str(p) for p in sorted(folder.glob(f"{stem}*.dylib" if darwin else f"{stem}*.so*")))
    if darwin:
        yield from ("/opt/homebrew/opt/libomp/lib/libomp.dylib", "/usr/local/opt/libomp/lib/libomp.dylib")
    if found := ctypes.util.find_library("omp"):
        yield found


@contextmanager
def _bounded_spinning() -> Iterator[None]:
    """Ask libgomp, which reads its environment while it is loaded, for `SPIN_COUNT`, unless the user set a policy."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def _quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float:
    """Cores' worth of time that the control groups of this process allow; infinite without a limit."""
    quota = math.inf
    for text in limits("cpu.max", root, membership):
        match text.split():
            case [limit, period] if limit.isdecimal() and period.isdecimal():
                quota = min(quota, int(limit) / int(period))
    return quota

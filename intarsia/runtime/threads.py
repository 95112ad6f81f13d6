"""How many threads a program may use: a number that compiled code reads on each call.

Compiled code opens a parallel region by `GOMP_parallel(body, data, threads, 0)`, which `team.py` provides. The team may
be smaller than asked for, so a body shares out its work by a counter, never by the number of threads.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from pathlib import Path

from intarsia.ir.errors import CompileError
from intarsia.runtime.control_groups import MEMBERSHIP, ROOT, limits
from intarsia.runtime.team import CAN_SHARE, team_entry

PARALLEL = "GOMP_parallel"
"""The symbol by which compiled code opens a parallel region."""


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, cut by the CPU quota of its control group."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def positive_setting(name: str, default: Callable[[], int]) -> int:
    """The number in a variable of the environment where it is set, else the default.

    Raises CompileError E0612 where the variable is not a positive number.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default()
    if not text.isdecimal() or int(text) == 0:
        raise CompileError(
            "E0612",
            f"{name} is {text!r}, which is not a positive number",
            hint="unset it to use every core that this process may use",
        )
    return int(text)


def default_thread_count() -> int:
    """INTARSIA_NUM_THREADS where it is set, else the cores that this process may use.

    Raises CompileError E0612 where the variable is not a positive number.
    """
    return positive_setting("INTARSIA_NUM_THREADS", usable_cores)


class ThreadCount:
    """The number of threads of a parallel region: an `i32` at a fixed address that compiled code reads on each call.

    One for the process, as the team is. In a forked child, which is `alone`, it is 1 for good: it has none of the
    team's helpers.
    """

    def __init__(self) -> None:
        self._cell = ctypes.c_int32(0)  # 0: not chosen yet
        self.alone = False
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
        self._cell.value = wanted if CAN_SHARE and not self.alone else 1
        return self._cell.value

    def _stay_alone(self) -> None:
        self.alone = True
        self._cell.value = 1


THREADS = ThreadCount()


def thread_count() -> int:
    """Threads that a call made now uses (`THREADS.get()`)."""
    return THREADS.get()


def thread_symbols(*, parallel: bool = True) -> dict[str, int]:
    """What compiled code needs for threads: the `i32` `intarsia_thread_count` and, if it has `parallel` loops, the
    function that opens a region."""
    count = {"intarsia_thread_count": THREADS.address}
    return {**count, PARALLEL: team_entry()} if parallel else count


def _quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float:
    """Cores' worth of time that the control groups of this process allow; infinite without a limit."""
    quota = math.inf
    for text in limits("cpu.max", root, membership):
        match text.split():
            case [limit, period] if limit.isdecimal() and period.isdecimal():
                quota = min(quota, int(limit) / int(period))
    return quota

"""Room for programs that are large: a deep stack, since the compiler recurses over expressions, and a collector that
does not look at everything again and again."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

STACK_BYTES = 512 << 20
RECURSION_LIMIT = 200_000
COLLECTIONS = (10_000, 10, 1000)
"""Thresholds of the garbage collector: nearly all that a compiler makes stays or is freed without it, and full
collections take a quarter of the time of a large program."""

_THREAD_NAME = "intarsia-compiler"

T = TypeVar("T")


class _Turn:
    """The lock of the one thread with a deep stack: its size, the recursion limit and the thresholds of the collector
    belong to the whole process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        """A forked child has none of the parent's threads, so nobody would ever release an inherited lock."""
        self.lock = threading.Lock()


_TURN = _Turn()


def with_deep_stack(work: Callable[[], T]) -> T:
    """Run `work` in a thread whose stack is deep enough for programs nested thousands of levels, and give its result.

    One at a time in a process. Exceptions come through. An interrupt of the waiting thread ends the work too.
    """
    if threading.current_thread().name == _THREAD_NAME:
        return work()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    with _TURN.lock:
        old_size, old_limit = threading.stack_size(STACK_BYTES), sys.getrecursionlimit()
        old_thresholds = gc.get_threshold()
        sys.setrecursionlimit(max(old_limit, RECURSION_LIMIT))
        if old_thresholds[0]:  # else it is off
            gc.set_threshold(*COLLECTIONS)
        try:
            thread = threading.Thread(target=target, name=_THREAD_NAME, daemon=True)
            thread.start()
            threading.stack_size(old_size)
            try:
                thread.join()
            except BaseException:
                _interrupt(thread)
                raise
        finally:
            threading.stack_size(old_size)
            sys.setrecursionlimit(old_limit)
            gc.set_threshold(*old_thresholds)
    if failure:
        try:
            raise failure[0]
        finally:
            failure.clear()  # else the error and this frame, which its traceback names, keep each other alive
    return outcome[0]


def runs_alone() -> bool:
    """Does no thread of Python run but the one that asks? One that waits for its deep stack does not.

    Threads that `threading` does not know count too.
    """
    waiting = threading.current_thread().name == _THREAD_NAME
    return len(sys._current_frames()) == 1 + waiting


def _interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in another thread, as soon as it runs Python code."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))

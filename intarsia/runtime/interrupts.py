"""Stopping native code by a signal: Ctrl-C, an alarm, whatever has a handler in Python.

A handler written in Python runs only when the interpreter is back in control, so a long native call could not be
stopped. Here the C part of Python's signal handling raises a flag in memory that compiled plans poll between kernels:
while a call runs on the main thread, `signal.set_wakeup_fd` names a file of one page that is mapped into memory, and
the byte that Python writes into the file is the flag. There is no watching thread, and nothing stays installed between
calls.

A plan that sees the flag returns `INTERRUPTED` after its current kernel. Python then runs the handler. If it raises,
as the one for Ctrl-C does, the call ends with that exception; if it does not, the call is made again from the start,
once, without polling: a plan never writes its inputs, so that gives the same result.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import tempfile
import threading
from collections.abc import Callable

INTERRUPTED = -1
"""The status with which a native entry function says that it saw the flag and stopped."""


class InterruptFlag:
    """One page shared between a file, which signals write to, and memory, which compiled code reads as an `i32`."""

    def __init__(self) -> None:
        self.descriptor = _one_page_file()
        self._memory = mmap.mmap(self.descriptor, mmap.PAGESIZE)
        self._flag = ctypes.c_int32.from_buffer(self._memory)
        self.address = ctypes.addressof(self._flag)

    @property
    def raised(self) -> bool:
        return self._flag.value != 0

    def lower(self) -> bytes:
        """Clear the flag; gives the numbers of the signals that had raised it. No signal may be written meanwhile."""
        count = os.lseek(self.descriptor, 0, os.SEEK_CUR)
        signals = self._memory[: min(count, mmap.PAGESIZE)]
        self._memory[: len(signals)] = bytes(len(signals))
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return signals


@functools.cache
def interrupt_flag() -> InterruptFlag:
    """The flag of this process."""
    return InterruptFlag()


_NEVER = ctypes.c_int32(0)


def complete(call: Callable[[int], int], *, interruptible: bool = True) -> int:
    """Make a native call and give its status.

    `call` is handed the address of the `i32` to poll, and returns `INTERRUPTED` when that was not 0. Threads other than
    the main one receive no signals; a call there polls a word that never changes, and so does one that is not
    `interruptible`, which saves 1 us.
    """
    if interruptible and threading.get_ident() == threading.main_thread().ident:
        flag = interrupt_flag()
        previous = signal.set_wakeup_fd(flag.descriptor, warn_on_full_buffer=False)
        try:
            status = call(flag.address)
        finally:
            signal.set_wakeup_fd(previous)
            if flag.raised:
                received = flag.lower()
                if previous != -1:  # an event loop waits for these bytes
                    os.write(previous, received)
        if status != INTERRUPTED:
            return status
    return call(ctypes.addressof(_NEVER))


def _one_page_file() -> int:
    """A file of one page of zeros, without a name, that a signal handler may write to without blocking."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("intarsia-interrupt", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, mmap.PAGESIZE)
    os.set_blocking(descriptor, False)
    return descriptor


def _part_with_the_parent() -> None:
    """In a forked child: the page is shared with the parent, so forget it; the next call makes the child's own."""
    if interrupt_flag.cache_info().currsize:
        inherited = interrupt_flag().descriptor
        installed = signal.set_wakeup_fd(-1)
        if installed not in (-1, inherited):
            signal.set_wakeup_fd(installed)
        os.close(inherited)
        interrupt_flag.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part_with_the_parent)

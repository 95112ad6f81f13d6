"""Work that forked children share: a pure function on many items, on every core.

Python's interpreter and LLVM's binding each hold a lock, so threads would take turns. A forked child has everything in
memory that the function needs; only results are sent, and what they share with the items by identity stays the same
object. Children run no kernels and leave by `os._exit`. Whatever goes wrong in one, its items are computed here, so
errors are those of `map`.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn, TypeVar

from intarsia.deep_stack import runs_alone
from intarsia.runtime.threads import THREADS, positive_setting, usable_cores

A = TypeVar("A")
B = TypeVar("B")

PATIENCE = 0.01
"""Seconds of work after which children are worth it: starting one and reading its results takes about as long."""

STARTING = 0.1
"""Seconds in which the last child is started: in a process with much memory each takes long."""

_QUEUED = 512
"""Numbers that the queue holds at most: less than the least buffer of a pipe, so that filling it does not block."""

_NUMBER = 4
"""Bytes of a number in the queue."""

_LENGTH = 8
"""Bytes that tell how long the results of a child are, before these."""

_LOOK = 100
"""Milliseconds between two looks at whether somebody interrupts."""

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def map_in_workers(function: Callable[[A], B], items: Sequence[A], /) -> Iterator[B]:
    """What `map(function, items)` gives, where `function` is pure, and items and results can be pickled.

    Items are done here, the last one first, until `PATIENCE` is over. If several are left, and nothing forbids it,
    this process and forked children share them, the first one first.
    """
    return map_with(worker_count(), function, items)


def worker_count() -> int:
    """Processes that may work at once, this one counted: INTARSIA_COMPILE_PROCESSES, else the usable cores; 1 where the
    process cannot be forked safely, which is wherever another thread of Python runs, and in a forked child.

    Raises CompileError E0612 where the variable is not a positive number.
    """
    wanted = positive_setting("INTARSIA_COMPILE_PROCESSES", usable_cores)
    return wanted if sys.platform == "linux" and runs_alone() and not THREADS.alone else 1


def map_with(
    workers: int, function: Callable[[A], B], items: Sequence[A], /, patience: float = PATIENCE
) -> Iterator[B]:
    """`map_in_workers` with so many processes, this one counted."""
    done: dict[int, B] = {}
    if workers > 1:
        backwards = _until(time.monotonic() + patience, reversed(range(len(items))))
        if _work(function, items, backwards, done) and (left := len(items) - len(done)) > 1:
            _share(min(workers, left) - 1, function, items[:left], done)
    for index, item in enumerate(items):
        yield done.pop(index) if index in done else function(item)


def _until(end: float, indices: Iterator[int]) -> Iterator[int]:
    """The indices that are begun before a point of time."""
    while time.monotonic() < end and (index := next(indices, None)) is not None:
        yield index


def _work(function: Callable[[A], B], items: Sequence[A], indices: Iterator[int], done: dict[int, B]) -> bool:
    """Do some items; False as soon as one fails, whose exception the caller gets when its turn comes."""
    try:
        for index in indices:
            done[index] = function(items[index])
    except Exception:
        return False
    return True


def _share(children: int, function: Callable[[A], B], items: Sequence[A], done: dict[int, B]) -> None:
    """Do items in this process and in children; what fails anywhere is left out."""
    try:
        own = _identities(items)
    except RecursionError:  # too deep to be sent
        return
    step = -(-len(items) // _QUEUED)
    queue, end = os.pipe()
    os.write(end, b"".join(i.to_bytes(_NUMBER, "little") for i in range(0, len(items), step)))
    os.close(end)
    indices = _taken(queue, step, len(items))
    started: list[_Child] = []
    try:
        for _ in _until(time.monotonic() + STARTING, iter(range(children))):
            with suppress(OSError):  # no memory or no process is left: those that there are do it
                started.append(_fork(function, items, indices, own))
        _work(function, items, indices, done)
        for child in started:
            done.update(child.results(own))
    finally:
        os.close(queue)
        for child in started:
            child.end()


def _taken(queue: int, step: int, length: int) -> Iterator[int]:
    """Indices from a queue that several processes read, `step` at a time. Linux reads a pipe under a lock."""
    while number := os.read(queue, _NUMBER):
        first = int.from_bytes(number, "little")
        yield from range(first, min(first + step, length))


@dataclass(frozen=True)
class _Child:
    """A forked child and the pipe that it writes to."""

    process: int
    pipe: int

    def results(self, own: Sequence[object]) -> dict[int, Any]:
        """What it has done by index, when it is finished; nothing if it was not."""
        poll = select.poll()
        poll.register(self.pipe)
        data = bytearray()
        while True:
            if poll.poll(_LOOK):  # else this thread may have to raise KeyboardInterrupt
                piece = os.read(self.pipe, 1 << 20)
                if not piece:
                    break
                data += piece
        if len(data) < _LENGTH or len(data) - _LENGTH != int.from_bytes(data[:_LENGTH], "little"):
            return {}
        found: dict[int, Any] = _Reader(io.BytesIO(data[_LENGTH:]), own).load()
        return found

    def end(self) -> None:
        """Stop it if it still runs."""
        os.close(self.pipe)
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        with suppress(ChildProcessError):  # somebody else has waited for it
            os.waitpid(self.process, 0)


def _fork(function: Callable[[A], B], items: Sequence[A], indices: Iterator[int], own: Sequence[object]) -> _Child:
    """Start a child that does what it takes from `indices`."""
    pipe, end = os.pipe()
    try:
        with warnings.catch_warnings():  # the threads that there are, such as those of BLAS, wait and hold no lock
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
    except OSError:
        os.close(pipe)
        os.close(end)
        raise
    if not process:
        _be_child(end, function, items, indices, own)
    os.close(end)
    return _Child(process, pipe)


def _be_child(
    pipe: int, function: Callable[[A], B], items: Sequence[A], indices: Iterator[int], own: Sequence[object]
) -> NoReturn:
    """Work, write the results and end, whatever happens: nothing of the parent's is flushed, closed or reported."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        gc.freeze()  # else a collection would write to, and so copy, the parent's whole memory
        done: dict[int, B] = {}
        if _work(function, items, indices, done):
            data = io.BytesIO()
            _Writer(data, own).dump(done)
            with open(pipe, "wb") as file:
                file.write(data.tell().to_bytes(_LENGTH, "little"))
                file.write(data.getbuffer())
    finally:
        os._exit(0)


# ---------------------------------------------------------------------- identity


class _Finder(pickle.Pickler):
    """Finds what compares by identity among all that a value is made of."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), pickle.HIGHEST_PROTOCOL)
        self.found: list[object] = []

    def persistent_id(self, value: object) -> int | None:
        if type(value).__eq__ is not object.__eq__:
            return None
        self.found.append(value)
        return len(self.found)


def _identities(items: Sequence[object]) -> list[object]:
    """Objects that the items are made of and that would not equal a copy, such as the source of a span."""
    finder = _Finder()
    finder.dump(items)
    return list({id(value): value for value in finder.found}.values())


class _Writer(pickle.Pickler):
    """Writes the place of an object of the parent's, which is at the same address in a forked child."""

    def __init__(self, file: io.BytesIO, own: Sequence[object]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._places = dict(zip(map(id, own), count()))

    def persistent_id(self, value: object) -> int | None:
        return self._places.get(id(value))


class _Reader(pickle.Unpickler):
    """Reads what `_Writer` has written, with the objects of the parent's in their places."""

    def __init__(self, file: io.BytesIO, own: Sequence[object]) -> None:
        super().__init__(file)
        self._own = own

    def persistent_load(self, place: int) -> object:
        return self._own[place]

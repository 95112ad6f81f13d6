"""Room for programs that nest deeply: the compiler recurses over expressions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

STACK_BYTES = 512 << 20
RECURSION_LIMIT = 200_000
_THREAD_NAME = "intarsia-compiler"

T = TypeVar("T")


def with_deep_stack(work: Callable[[], T]) -> T:
    """Run `work` in a thread whose stack is deep enough for programs nested thousands of levels, and give its result.

    Exceptions come through. An interrupt of the waiting thread ends the wait.
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

    old_size, old_limit = threading.stack_size(STACK_BYTES), sys.getrecursionlimit()
    sys.setrecursionlimit(max(old_limit, RECURSION_LIMIT))
    try:
        thread = threading.Thread(target=target, name=_THREAD_NAME, daemon=True)
        thread.start()
        threading.stack_size(old_size)
        thread.join()
    finally:
        threading.stack_size(old_size)
        sys.setrecursionlimit(old_limit)
    if failure:
        raise failure[0]
    return outcome[0]

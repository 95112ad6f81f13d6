"""What tuning found, for compilations to come: which schedule was the fastest for a kernel on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from intarsia.cache import cache_directory
from intarsia.ir.errors import CompileError
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target


def database_path() -> Path:
    """Where `intarsia tune` keeps what it measures if it is not told otherwise, and where compilations look."""
    return cache_directory() / "schedules.sqlite"


def state_of_knowledge() -> int:
    """A number that changes when something was measured; 0 where nothing ever was. What is compiled depends on it."""
    try:
        return database_path().stat().st_mtime_ns
    except OSError:
        return 0


def known_schedules(target: Target) -> Callable[[Kernel], str | None]:
    """A function from a naive kernel to the text of the fastest schedule that was measured for it on this machine; None
    where nothing was."""
    if target.kind != "cpu" or not state_of_knowledge():
        return lambda kernel: None
    return partial(_best, target=target)


def _best(kernel: Kernel, target: Target) -> str | None:
    from intarsia.tuning.database import Database, machine_name  # SQLite, only where there is a file
    from intarsia.tuning.isolation import problem_key

    try:
        return Database(database_path()).best(problem_key(kernel, target), machine_name(target))
    except CompileError as error:  # a program compiles without what was measured, too
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        return None

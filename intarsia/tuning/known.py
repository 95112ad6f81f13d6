"""What tuning found, for compilations to come: which schedule was the fastest for a kernel on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from intarsia.cache import cache_directory
from intarsia.ir.errors import CompileError
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target

if TYPE_CHECKING:
    from intarsia.tuning.database import Row


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
    where nothing was. What is compiled for any GPU of a kind does not depend on what one of them has measured."""
    if (target.kind == "gpu" and not target.model) or not state_of_knowledge():
        return lambda kernel: None
    return _Known(target)


class _Known:
    """The fastest schedules of all kernels for a target. The database is read once, when the first one is asked for;
    without it a program compiles too, with a warning."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __call__(self, kernel: Kernel) -> str | None:
        from intarsia.tuning.isolation import problem_key

        return self._best.get(problem_key(kernel, self._target)) if self._best else None

    @cached_property
    def _best(self) -> dict[str, str]:
        from intarsia.tuning.database import Database, machine_name  # SQLite, only where there is a file

        try:
            return Database(database_path()).best(machine_name(self._target))
        except CompileError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
            return {}


def known_rows(kernel: Kernel, target: Target) -> list[Row]:
    """What was measured of a naive kernel on this machine, the fastest first; nothing where the database is of no use,
    which the compilation has said."""
    from intarsia.tuning.database import Database, machine_name
    from intarsia.tuning.isolation import problem_key

    if not state_of_knowledge():
        return []
    try:
        return Database(database_path()).rows(problem_key(kernel, target), machine_name(target))
    except CompileError:
        return []

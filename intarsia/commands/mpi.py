"""Starting the processes of the devices of a mesh by MPI, for `run --devices mpi`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from intarsia.function import Function
from intarsia.ir.errors import CompileError
from intarsia.ir.sharding import Mesh
from intarsia.runtime.threads import usable_cores

STARTED_BY = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Environment variables of processes that an mpiexec has started."""


def is_started() -> bool:
    """Is this process one of several of MPI?"""
    return any(name in os.environ for name in STARTED_BY)


def start(function: Function) -> int:
    """Run this command once for each device of the mesh; gives the exit status. The cores are shared out.

    Raises CompileError E1901 where there is no mesh, E1907 where there is no MPI.
    """
    text = function.program.options.mesh or function.form.mesh
    if not text:
        raise CompileError("E1901", "the program is for one device", hint="give --mesh data=2")
    try:
        count = Mesh.parse(text).devices
    except ValueError as error:
        raise CompileError("E1901", str(error)) from None
    own = Path(sys.executable).parent / "mpiexec"
    launcher = str(own) if own.exists() else shutil.which("mpiexec")
    if launcher is None:
        from intarsia.mpi import HINT

        raise CompileError("E1907", "there is no mpiexec", hint=HINT)
    arguments: list[str] = click.get_current_context().obj
    threads = {"INTARSIA_NUM_THREADS": str(max(1, usable_cores() // count))}
    command = [launcher, "-n", str(count), *_watched(count), sys.executable, "-m", "intarsia", *arguments]
    return subprocess.run(command, env={**threads, **os.environ}, check=False).returncode


def _watched(count: int) -> list[str]:
    """What a process is started by, so that one that a signal ends, as where memory is short, is named. The mpiexec has
    to see that signal, or it may wait for the others."""
    if os.name != "posix":
        return []
    rank = "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-$PMIX_RANK}}"
    told = f'echo "device {rank} of {count} failed: it was ended by signal $((s - 128))" >&2'
    return ["sh", "-c", f'"$@"; s=$?; [ $s -gt 128 ] && {told} && kill -$((s - 128)) $$; exit $s', "sh"]


def together(command: Callable[..., int]) -> Callable[..., int]:
    """A command that, as one of several processes, ends all of them where it fails."""

    @wraps(command)
    def run(*, devices: str | None, **settings: Any) -> int:
        if devices != "mpi" or not is_started():
            return command(devices=devices, **settings)
        from intarsia.processes import world

        return world("mpi").or_end_all(lambda: command(devices=devices, **settings))

    return run


def is_first() -> bool:
    """Is this the process that prints?"""
    from intarsia.processes import world

    return world("mpi").rank == 0

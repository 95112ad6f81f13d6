"""Starting the processes that are the devices of a mesh, for `run --devices mpi`, `gloo` and `nccl`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, cast

import click

from intarsia.ir.errors import CompileError
from intarsia.options import PROCESS_KINDS, ProcessKind
from intarsia.runtime.threads import usable_cores

_MPI_RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
STARTED_BY = {"mpi": _MPI_RANKS, "gloo": ("RANK",), "nccl": ("RANK",)}
"""Environment variables of processes that an mpiexec or torchrun has started."""

STARTERS = {"mpi": "mpiexec -n", "gloo": "torchrun --nproc-per-node", "nccl": "torchrun --nproc-per-node"}

MOST_ON_A_CORE = 16
"""Processes on a core. Each takes some 100 MB, and a core its share of the time while the others wait for it."""


def is_started(devices: str | None) -> bool:
    """Is this process one of those that are the devices?"""
    return any(name in os.environ for name in STARTED_BY.get(devices or "", ()))


def is_to_start(devices: str | None) -> bool:
    """Are there processes to be started?"""
    return devices in PROCESS_KINDS and not is_started(devices)


def start(kind: str, count: int) -> int:
    """Run this command in so many processes; gives the exit status. The cores are shared out.

    Raises CompileError E1907 where there is no MPI or no PyTorch, or where so many would mostly wait for each other.
    """
    if count > (most := MOST_ON_A_CORE * usable_cores()):
        message = f"{count} processes are more than the {most} that {usable_cores()} cores take"
        hint = f"--devices simulate takes one process; several machines are started by {STARTERS[kind]} {count} …"
        raise CompileError("E1907", message, hint=hint)
    arguments: list[str] = click.get_current_context().obj
    command = [sys.executable, "-m", "intarsia", *arguments]
    threads = {"INTARSIA_NUM_THREADS": str(max(1, usable_cores() // count))}
    environment = {**threads, **os.environ}
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # which ends those that are started, too
    if kind == "mpi":
        return subprocess.run([*_mpiexec(count), *command], env=environment, check=False).returncode
    from intarsia.torch_processes import distributed

    distributed("nccl" if kind == "nccl" else "gloo")
    return _run_side_by_side(command, count, environment)


def _mpiexec(count: int) -> list[str]:
    """What starts so many processes of MPI."""
    own = Path(sys.executable).parent / "mpiexec"
    launcher = str(own) if own.exists() else shutil.which("mpiexec")
    if launcher is None:
        from intarsia.mpi import HINT

        raise CompileError("E1907", "there is no mpiexec", hint=HINT)
    return [launcher, "-n", str(count), *_watched(count)]


def _watched(count: int) -> list[str]:
    """What a process is started by, so that one that a signal ends, as where memory is short, is named. The mpiexec has
    to see that signal, or it may wait for the others."""
    if os.name != "posix":
        return []
    rank = "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-$PMIX_RANK}}"
    told = f'echo "device {rank} of {count} failed: it was ended by signal $((s - 128))" >&2'
    return ["sh", "-c", f'"$@"; s=$?; [ $s -gt 128 ] && {told} && kill -$((s - 128)) $$; exit $s', "sh"]


def _run_side_by_side(command: Sequence[str], count: int, environment: dict[str, str]) -> int:
    """Run a command in processes that find each other as those of torchrun do. One that fails ends all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for n in range(count):
            own = {**environment, **place, "RANK": str(n), "LOCAL_RANK": str(n)}
            running[n] = subprocess.Popen(command, env=own)
        while running:
            time.sleep(0.02)
            for n, process in [*running.items()]:
                if (status := process.poll()) is not None:
                    del running[n]
                    if status < 0:
                        click.echo(f"device {n} of {count} failed: it was ended by signal {-status}", err=True)
                    if status:
                        return abs(status)
        return 0
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def together(command: Callable[..., int]) -> Callable[..., int]:
    """A command that, as one of several processes, ends all of them where it fails."""

    @wraps(command)
    def run(*, devices: str | None, **settings: Any) -> int:
        if not is_started(devices):
            return command(devices=devices, **settings)
        from intarsia.processes import world

        every = world(cast(ProcessKind, devices))
        return every.or_end_all(lambda: command(devices=devices, **settings))

    return run


def is_first(devices: str | None) -> bool:
    """Is this the process that prints?"""
    if devices not in PROCESS_KINDS:
        return True
    from intarsia.processes import world

    return world(cast(ProcessKind, devices)).rank == 0

"""Stopping machine code by Ctrl-C wherever it is: between two kernels or in the middle of one."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import click

T = TypeVar("T")


def interruptible(work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own and give its result. Ctrl-C ends the whole process, with status 130.

    Compiled code notices a signal between two kernels only (`intarsia.runtime.interrupts`), and one kernel can run for
    as long as its loops say. Exceptions of `work` come through.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed on below
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)  # what Python does at a normal end would pull memory away from under the code that still runs
    if failures:
        raise failures[0]
    return results[0]

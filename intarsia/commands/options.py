"""Options and small helpers that several verbs share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from intarsia.driver import Options, schedule_text
from intarsia.files import decode_source, read_source
from intarsia.ir.errors import Source

INTERPRETERS = ("reference", "kernels", "plan")
"""Targets that run a stage with NumPy in place of machine code."""

F = TypeVar("F", bound=Callable[..., Any])


def read_text(name: str) -> Source:
    """The text of a program or IR file; `-` is standard input. Raises CompileError E0701 or E0702."""
    return decode_source("<stdin>", sys.stdin.buffer.read()) if name == "-" else read_source(name)


def split_function(name: str) -> tuple[str, str | None]:
    """`FILE:FN` to the file and the function; a file alone gives None."""
    file, colon, function = name.rpartition(":")
    if colon and file and function.isidentifier() and not Path(name).exists():
        return file, function
    return name, None


def program_argument(function: F) -> F:
    """FILE[:FN] or `-e TEXT`."""
    function = click.option("-e", "text", metavar="TEXT", help="The program itself, in place of FILE.")(function)
    return click.argument("file", metavar="FILE[:FN]", required=False)(function)


def open_program(file: str | None, text: str | None) -> tuple[Source, str | None]:
    """The source and the function's name that `program_argument` gave. With -e, FILE may name a function."""
    if text is not None:
        return Source("<command line>", text), (file or "").lstrip(":") or None
    if file is None:
        raise click.UsageError("give a FILE, or a program with -e")
    path, function = split_function(file)
    return read_text(path), function


def compile_options(function: F) -> F:
    """The options that run, emit, bench and explain have in common."""
    options = {
        "--dim": {"multiple": True, "metavar": "B=128", "help": "Size of a dimension that no argument fixes."},
        "--dynamic": {"multiple": True, "metavar": "B", "help": "Keep this dimension a run-time value."},
        "--target": {"metavar": "TARGET", "help": "cpu, cpu:x86-avx2, reference, kernels, …  [default: cpu]"},
        "--passes": {"metavar": "TEXT", "help": "The passes to run in place of the default ones."},
        "--schedule": {"metavar": "FILE|TEXT", "help": "Pin a schedule."},
        "--no-cache": {"is_flag": True, "help": "Neither read nor write the cache."},
        "--checks": {"is_flag": True, "help": "Check subscripts and divisors at run time."},
        "--unordered": {"is_flag": True, "help": "Let float scatter-adds use atomics."},
        "--threads": {"type": click.IntRange(1), "help": "Threads to use  [default: all cores]"},
    }
    for name, settings in reversed(options.items()):
        names = (name, "dims") if name == "--dim" else (name,)
        function = click.option(*names, **settings)(function)  # type: ignore[arg-type]
    return function


def options_of(settings: Mapping[str, Any]) -> tuple[Options, bool, str | None]:
    """What `compile_options` gave: options, whether to use the cache, and the target as it was named."""
    from intarsia.runtime.threads import THREADS

    if settings["threads"] is not None:
        THREADS.set(settings["threads"])
    target = settings["target"]
    options = Options(
        target=None if target in INTERPRETERS else target,
        dynamic=settings["dynamic"],
        passes=settings["passes"],
        schedule=schedule_text(settings["schedule"]),
        checks=settings["checks"],
        unordered=settings["unordered"],
    )
    return options, not settings["no_cache"], target

"""The public entry points: a program from a file or from text."""

from __future__ import annotations

from pathlib import Path

from intarsia.files import read_source
from intarsia.function import Function
from intarsia.ir.errors import Source
from intarsia.options import Options
from intarsia.program import Program
from intarsia.runtime.buffers import POOL


def load(path: str | Path, options: Options | None = None, *, use_cache: bool = True) -> Program:
    """The program in a file. Its functions are attributes; they compile when they are called.

    Raises CompileError E0701 or E0702 where the file cannot be read; what is wrong with the program itself is raised
    when a function is used.
    """
    return Program(read_source(path), options, use_cache=use_cache)


def compile(text: str, options: Options | None = None, *, use_cache: bool = True) -> Program:
    """The program in a string; imports are relative to the current directory."""
    return Program(Source("<string>", text), options, use_cache=use_cache)


def jit(text: str, options: Options | None = None, *, use_cache: bool = True) -> Function:
    """The entry point of a program in a string, ready to call: `main`, else the only or the last function."""
    return compile(text, options, use_cache=use_cache).entry()


def release_memory() -> None:
    """Give memory that is kept for the results of later calls back to the system. It comes back as it is needed."""
    POOL.release()

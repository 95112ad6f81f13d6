"""The public entry points: a program from a file or from text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from intarsia.files import read_source
from intarsia.function import Function
from intarsia.ir.errors import Source
from intarsia.options import Options
from intarsia.program import Program
from intarsia.runtime.buffers import POOL


def load(path: str | Path, options: Options | None = None, *, use_cache: bool = True) -> Program:
    """The program in a file. Its functions are attributes; they compile when they are called.

    Raises CompileError E0701 or E0102 where the file cannot be read; what is wrong with the program itself is raised
    when a function is used.
    """
    return Program(read_source(path), options, use_cache=use_cache)


def compile(text: str, options: Options | None = None, *, use_cache: bool = True) -> Program:
    """The program in a string; imports are relative to the current directory."""
    return Program(Source("<string>", text), options, use_cache=use_cache)


def jit(text: str, options: Options | None = None, *, use_cache: bool = True) -> Function:
    """The entry point of a program in a string, ready to call: `main`, else the only or the last function."""
    return compile(text, options, use_cache=use_cache).entry()


def grad(function: Function, wrt: str | Sequence[str]) -> Function:
    """The gradient of a function, which gives one float: `grad(program.loss, wrt=("w", "b"))`.

    It takes the same arguments, and gives one result for each name; for a struct, one for each of its tensors, in the
    order of its fields. Raises CompileError E0322 to E0325, when it is used, where there is no such gradient.
    """
    return _transformed("grad", function, wrt)


def value_and_grad(function: Function, wrt: str | Sequence[str]) -> Function:
    """Like `grad`, with the value of the function as the first result."""
    return _transformed("value_and_grad", function, wrt)


def jvp(function: Function, wrt: str | Sequence[str]) -> Function:
    """The results of a function, and how each changes where its parameters `wrt` do, by forward mode.

    It takes the same arguments, then a change for each of `wrt` in that order, named `d_w` for `w`.
    """
    return _transformed("jvp", function, wrt)


def _transformed(transform: str, function: Function, wrt: str | Sequence[str]) -> Function:
    names = wrt if isinstance(wrt, str) else f"({', '.join(wrt)},)"
    entry = function.program.entry(f"{transform}({function.name or function.form.function}, wrt={names})")
    return Function(entry.program, entry.name, function.bound) if function.bound else entry


def release_memory() -> None:
    """Give memory that is kept for the results of later calls back to the system. It comes back as it is needed."""
    POOL.release()

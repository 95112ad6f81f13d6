"""The C kernels as Python functions, compiled by gcc, or by clang with Polly."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kernels import Arguments, Kernel

CLANG = max(map(str, Path("/usr/lib").glob("llvm-*/bin/clang")), default="clang")
POLLY = (CLANG, "-mllvm", "-polly")


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C."""

    name: str
    command: tuple[str, ...]

    @property
    def available(self) -> bool:
        """Is it installed?"""
        return shutil.which(self.command[0]) is not None

    def compile(self, kernel: Kernel, sizes: Mapping[str, int], folder: Path) -> Callable[[Arguments], None]:
        """A function of the arguments of C, which it changes."""
        target = folder / f"{kernel.name}-{self.name}.so"
        macros = [f"-D{name}={value}" for name, value in sizes.items()]
        options = ["-O3", "-march=native", "-ffast-math", "-fPIC"]
        made = target.with_suffix(".o")
        compile_ = [*self.command, *options, *macros, "-c", str(kernel.c_source), "-o", str(made)]
        # Linked with -ffast-math, a library makes the thread that loads it take subnormals as zero from then on.
        link = [self.command[0], str(made), *self.command[1:], "-shared", "-o", str(target), "-lm"]
        for command in (compile_, link):
            subprocess.run(command, check=True, capture_output=True)
        entry = ctypes.CDLL(str(target)).kernel
        return lambda arguments: entry(*map(as_c, arguments.values())) and None


PEERS = {
    "gcc": Compiler("gcc", ("gcc",)),
    "polly": Compiler("polly", POLLY),
    "polly-parallel": Compiler("polly-parallel", (*POLLY, "-mllvm", "-polly-parallel", "-lgomp")),
}


def as_c(value: object) -> object:
    """An argument as ctypes wants it; the number of steps is a macro in C."""
    return ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else ctypes.c_double(float(value))  # type: ignore[arg-type]


def c_arguments(kernel: Kernel, sizes: Mapping[str, int], arguments: Arguments) -> Arguments:
    """Arrays of its own for a C kernel, which changes them, and those that are only written."""
    given = {name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in arguments.items() if name != "steps"}
    return {**given, **kernel.made(**sizes)}

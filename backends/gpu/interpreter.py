"""Kernels run without a GPU: Triton's interpreter on NumPy arrays, with every access to memory checked.

The interpreter is made as strict as the chip is unforgiving; `guard.py` and `interpreter_arithmetic.py` say how. It is
slow, about a twentieth of a millisecond for each operation on a tile, so tests run few programs.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np

from intarsia.backends.gpu.guard import DeviceMemory, MemoryFault
from intarsia.backends.gpu.triton_kernel import Pointer, Scalar, TritonKernel
from intarsia.backends.gpu.triton_module import TRITON_LOCK, load_function, refusals, require_triton, signature
from intarsia.ir.dtypes import Array

Memory: TypeAlias = "Array | list[Array]"
"""The array of a buffer, or those of a list's tensors."""

GRID_LIMITS = ((1 << 31) - 1, (1 << 16) - 1, (1 << 16) - 1)
"""How many programs there may be along each axis of a grid."""


class InterpreterError(Exception):
    """A kernel that cannot be interpreted, or that is launched with what it does not allow."""


def run(kernel: TritonKernel, arrays: Mapping[str, Memory], sizes: Mapping[str, int]) -> None:
    """Run all programs of a launch, one after the other; they write into the arrays.

    arrays: for each buffer one that lies in one piece, at a multiple of 16 bytes; what is read-only there must not be
    written. sizes: of the kernel's names. Raises CompileError E1704 where Triton is not installed, MemoryFault for an
    access outside a buffer or one that another program or lane can come before, and InterpreterError for what a launch
    would refuse.
    """
    require_triton()
    grid = launch_grid(kernel, sizes)
    with TRITON_LOCK, np.errstate(all="ignore"):
        memory = DeviceMemory(kernel.name, kernel.warps)
        arguments = [_argument(kernel, p, arrays, sizes, memory) for p in kernel.parameters]
        _run_programs(kernel, arguments, grid, memory)


def launch_grid(kernel: TritonKernel, sizes: Mapping[str, int]) -> tuple[int, int, int]:
    """The number of programs along each axis. Raises InterpreterError for more than can be launched."""
    counts = tuple(extent.evaluate(sizes) for extent in kernel.grid)
    assert len(counts) <= 3, f"{kernel.name} has a grid of {len(counts)} axes"
    x, y, z = (*counts, 1, 1, 1)[:3]
    if any(count > limit for count, limit in zip((x, y, z), GRID_LIMITS)):
        raise InterpreterError(f"kernel '{kernel.name}': a grid of {x}, {y}, {z} programs cannot be launched")
    return x, y, z


def _argument(
    kernel: TritonKernel,
    parameter: Pointer | Scalar,
    arrays: Mapping[str, Memory],
    sizes: Mapping[str, int],
    memory: DeviceMemory,
) -> tuple[int, str]:
    """The value of a parameter, an address or a number, and its type in Triton's notation."""
    kind = signature(kernel)[parameter.name]
    if isinstance(parameter, Pointer):
        given = arrays[parameter.buffer]
        if isinstance(given, list):
            assert parameter.element is not None, f"{parameter.name} points to a list"
            given = given[parameter.element.evaluate(sizes)]
        wanted = parameter.dtype.numpy
        assert given.dtype == wanted, f"{parameter.name} points to {wanted}, the array holds {given.dtype}"
        if parameter.aligned and given.size and given.ctypes.data % 16:
            raise InterpreterError(f"kernel '{kernel.name}': {parameter.name} is not at a multiple of 16 bytes")
        return memory.add(parameter.name, given), kind
    value = parameter.value.evaluate(sizes)
    if not -(1 << (int(parameter.type[1:]) - 1)) <= value < 1 << (int(parameter.type[1:]) - 1):
        raise InterpreterError(f"kernel '{kernel.name}': {parameter.name} = {value} is no {parameter.type}")
    if parameter.divisible and value % 16:
        raise InterpreterError(f"kernel '{kernel.name}': {parameter.name} = {value} is promised to be divisible by 16")
    return value, kind


def _run_programs(
    kernel: TritonKernel, arguments: list[tuple[int, str]], grid: tuple[int, int, int], memory: DeviceMemory
) -> None:
    import triton.language as tl

    from intarsia.backends.gpu import interpreter_language as language

    function = load_function(kernel)
    with language.interpreted_language():
        types = [tl.str_to_ty(kind, None) for _, kind in arguments]
        tensors = [language.tensor(np.array([value]), dtype) for (value, _), dtype in zip(arguments, types)]
        body = language.interpreted(function)
        builder = language.BUILDER
        builder.memory = memory
        builder.set_grid_dim(*grid)
        for program in _programs(grid):
            memory.start_program(program)
            builder.set_grid_idx(*program)
            try:
                body(*tensors, **dict(kernel.constants))
            except MemoryFault as fault:
                raise fault.at(_line(fault)) from None
            except refusals() as error:
                where = ", ".join(map(str, program))
                reason = f"{type(error).__name__}: {error}{_line(error)}"
                raise InterpreterError(f"kernel '{kernel.name}', program ({where}): {reason}") from error


def _programs(grid: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    yield from itertools.product(*map(range, grid))


def _line(error: BaseException) -> str:
    """Where in the text of a kernel an error arose."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith("<intarsia"):
            return f"\n  {frame.line}"
    return ""

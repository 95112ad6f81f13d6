"""From scheduled kernels to launches for a GPU, and what is asked of the back end about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from intarsia.backends.gpu import interpreter
from intarsia.backends.gpu.emit import emit_kernel
from intarsia.backends.gpu.triton_kernel import RECORD, TritonKernel
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Kernel
from intarsia.ir.kernel_interpreter import CheckFailed
from intarsia.ir.plan import Plan
from intarsia.ir.plan_alignment import unaligned_parameters
from intarsia.ir.plan_interpreter import Memory
from intarsia.ir.sizes import product


def launches_of_plan(plan: Plan) -> dict[str, tuple[TritonKernel, ...]]:
    """What each kernel of a plan is on a GPU, by its name."""
    found: dict[str, tuple[TritonKernel, ...]] = {}
    for part in plan.whole:
        unaligned = unaligned_parameters(part, 16)
        found.update({kernel.name: emit_kernel(kernel, unaligned[kernel.name]) for kernel in part.kernels})
    return found


def writing_problem(kernel: Kernel, dimensions: Collection[str] = ()) -> str | None:
    """Why a kernel cannot be written in Triton; None if it can. `dimensions` have values before anything runs."""
    try:
        emit_kernel(kernel)
    except ScheduleError as error:
        return str(error)
    for statement in kernel.body:
        if isinstance(statement, Alloc) and not product(statement.buffer.shape).symbols <= set(dimensions):
            return f"how large {statement.buffer.name} is changes while the program runs"
    return None


def interpret(launches: Sequence[TritonKernel], arrays: Mapping[str, Memory], sizes: Mapping[str, int]) -> None:
    """Run launches in Triton's interpreter, on NumPy arrays. Raises CheckFailed as they would."""
    record = np.zeros(RECORD.shape[0].constant or 0, RECORD.dtype.numpy)
    for launch in launches:
        interpreter.run(launch, {**arrays, RECORD.name: record}, sizes)
    if record[0]:
        number, count, *values = map(int, record)
        raise CheckFailed(number, tuple(values[:count]))

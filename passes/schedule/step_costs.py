"""Is a loop on a GPU better one kernel, or a launch for each kernel of each step?

One kernel has no launches inside, but a program has one core, and its threads wait for each other between the parts of
a step. Launches begin some microseconds after each other, and every one of them has the whole chip. Both are estimated
in cycles of a core, from figures that have been the same for generations of chips; as no chip has been measured, they
are meant to tell apart what differs by more than a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.ir.kernel import LANES, For, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.target import Target
from intarsia.passes.schedule.shape import count, operations
from intarsia.passes.schedule.tree import find_loop, substitute

LAUNCH = 4000
"""Cycles from the end of one kernel of a CUDA graph to that of the next, if this has hardly anything to do."""

PHASE = 600
"""Cycles until what threads have written is there for others of the same program, or what memory is asked for comes."""

BYTES = 64
"""Bytes a cycle from the second cache to a core."""

OPERATIONS = 128
"""Multiply-adds of f32, and other operations, a cycle and core."""

MATRIX_OPERATIONS = {8: 2048, 16: 1024, 64: 64}
"""Multiply-adds of matrix units a cycle and core, by the bits of what is multiplied."""

SHORTEST = 16
"""Lanes that each dimension of a product for matrix units has at least."""


@dataclass(frozen=True)
class StepCosts:
    """Cycles of a step: in one kernel, and with a launch for each of its kernels."""

    one: int
    launches: int

    @property
    def is_one_better(self) -> bool:
        return self.one <= self.launches


def step_costs(kernel: Kernel, steps: str, launches: int, target: Target) -> StepCosts:
    """The costs of a step of a loop that is scheduled as one kernel; otherwise it is so many launches."""
    loop, around = find_loop(kernel, steps)
    middle = {steps: (loop.lower + loop.upper) // 2}
    programs = math.prod(count(trips(x)) for x in around if x.kind == "grid")
    rows = tuple(x for x in around if x.kind in LANES)
    phases, busy = 0, 0
    for statement, inside in walk(substitute(loop.body, middle), rows):
        if isinstance(statement, Put):  # in the middle of the loop, as some steps may have more to do than others
            busy += _busy(kernel, statement, inside)
            if kernel.buffers()[statement.buffer].memory != "register":
                phases += math.prod(count(trips(x)) for x in inside if x.kind not in LANES)
    in_all = busy * programs // min(programs, target.cores)
    return StepCosts(phases * PHASE + in_all, launches * LAUNCH + busy * programs // target.cores)


def _busy(kernel: Kernel, put: Put, loops: Sequence[For]) -> int:
    """Cycles in which a core computes or moves what a statement needs, the longer of the two."""
    moved = 0
    for access in dict.fromkeys(accesses((put,))):
        buffer = kernel.buffers()[access.buffer]
        if buffer.memory != "register":
            used = frozenset().union(*(i.symbols for i in access.indices))
            times = math.prod(count(trips(x)) for x in loops if x.kind not in LANES or x.axis in used)
            moved += times * buffer.dtype.bytes
    lanes = [x for x in loops if x.kind in LANES]
    done = math.prod(count(trips(x)) for x in loops)
    if put.operator == "+=" and len(lanes) > 2 and all(count(trips(x)) >= SHORTEST for x in lanes[-3:]):
        bits = min(kernel.buffers()[a.buffer].dtype.bits for a in accesses((put,)) if a.buffer != put.buffer)
        return max(moved // BYTES, done // MATRIX_OPERATIONS.get(bits, OPERATIONS))
    return max(moved // BYTES, done * max(1, operations(put.value) // 2) // OPERATIONS)

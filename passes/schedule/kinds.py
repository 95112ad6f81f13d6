"""Steps that change the kind of a loop, each checked by the dependence test."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For, Kernel, LoopKind, Prefetch, Put
from intarsia.ir.kernel_access import accesses
from intarsia.ir.schedule import Dot, Grid, Parallel, Unroll, Vectorize
from intarsia.passes.schedule.dependence import carried_dependence, describe
from intarsia.passes.schedule.tree import find_loop, replace_loop


def vectorize(kernel: Kernel, step: Vectorize) -> Kernel:
    """See `Vectorize`."""
    for axis in step.axes:
        loop, around = find_loop(kernel, axis)
        _require_numbers(loop, "vectorize")
        if selects_of_list(kernel, loop):
            raise ScheduleError(f"{axis} says which tensor of a list is read, and lanes read one")
        if pair := carried_dependence(kernel, loop, around, reductions=True):
            raise ScheduleError(f"iterations of {axis} meet at {describe(pair)}")
        kernel = _with_kind(kernel, axis, "lane")
    return kernel


def selects_of_list(kernel: Kernel, loop: For) -> bool:
    """Do iterations read different tensors of a list, each of which lies elsewhere?"""
    lists = {x.name for x in kernel.parameters if x.length is not None}
    return bool(lists) and any(a.buffer in lists and loop.axis in a.indices[0].symbols for a in accesses(loop.body))


def unroll(kernel: Kernel, step: Unroll) -> Kernel:
    """See `Unroll`."""
    for axis in step.axes:
        _require_numbers(find_loop(kernel, axis)[0], "unroll")
        kernel = _with_kind(kernel, axis, "unroll")
    return kernel


def dot(kernel: Kernel, step: Dot) -> Kernel:
    """See `Dot`."""
    for axis in step.axes:
        loop, around = find_loop(kernel, axis)
        _require_numbers(loop, "dot")
        if [type(s) for s in loop.body if not isinstance(s, Prefetch)] != [Put]:
            raise ScheduleError(f"{axis} has to hold one write and nothing else")
        if pair := carried_dependence(kernel, loop, around, reductions=True):
            raise ScheduleError(f"iterations of {axis} meet at {describe(pair)}")
        kernel = _with_kind(kernel, axis, "dot")
    return kernel


def parallel(kernel: Kernel, step: Parallel) -> Kernel:
    """See `Parallel`."""
    return _independent(kernel, step.axes, "parallel")


def grid(kernel: Kernel, step: Grid) -> Kernel:
    """See `Grid`."""
    return _independent(kernel, step.axes, "grid")


def _independent(kernel: Kernel, axes: tuple[str, ...], kind: LoopKind) -> Kernel:
    for axis in axes:
        loop, around = find_loop(kernel, axis)
        if pair := carried_dependence(kernel, loop, around, reductions=False):
            raise ScheduleError(f"iterations of {axis} meet at {describe(pair)}")
        kernel = _with_kind(kernel, axis, kind)
    return kernel


def _with_kind(kernel: Kernel, axis: str, kind: LoopKind) -> Kernel:
    return replace_loop(kernel, axis, lambda loop: replace(loop, kind=kind))


def _require_numbers(loop: For, step: str) -> None:
    if loop.lower.constant is None or loop.upper.constant is None:
        raise ScheduleError(f"the bounds {loop.lower}..{loop.upper} are not numbers")

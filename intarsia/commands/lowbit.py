"""What became of data of few bits, for `explain --about lowbit`: below the decisions of `legalize-dtype`, in which
types is computed, stands how kernels store, decode and multiply codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from intarsia.backends.cpu.tables import is_usable
from intarsia.driver import Compilation
from intarsia.ir.dots import find_dot, find_scaled_dot, widened_factors
from intarsia.ir.dtypes import U8, DType
from intarsia.ir.few_bits import FewBits
from intarsia.ir.halves import are_in_bf16
from intarsia.ir.kernel import Alloc, For, Kernel, Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Apply, Bitcast, Expr, factors, sides
from intarsia.ir.scalar import walk as parts
from intarsia.ir.schedule import Pack, Schedule, Squeeze
from intarsia.ir.target import Target


def lowbit_report(compilation: Compilation) -> str:
    """Lines for each kernel that reads narrow elements or has dot instructions."""
    lines = [
        f"kernel {kernel.name}: {line}"
        for kernel in compilation.scheduled.kernels
        for line in dict.fromkeys(_kernel(kernel, compilation))
    ]
    is_empty = not lines and all(remark.about != "lowbit" for remark in compilation.remarks.items)
    return "lowbit: nothing to decide" if is_empty else "\n".join(lines)


def _kernel(kernel: Kernel, compilation: Compilation) -> Iterator[str]:
    steps = Schedule.parse(compilation.schedules.get(kernel.name, ""))
    shared = {step.new for step in steps if isinstance(step, Squeeze)}
    puts = [(s, loops) for s, loops in walk(kernel.body) if isinstance(s, Put) and s.buffer not in shared]
    is_gpu = compilation.target.kind == "gpu"
    text = "".join(launch.text for launch in compilation.launches[kernel.name]) if is_gpu else ""
    yield from _stored(kernel, steps)
    for put, loops in puts:
        yield from _decoded(compilation.target, put, loops, "looked_up_" in text)
    if is_gpu:
        yield from _on_matrix_units(compilation.target, puts, "tl.dot_scaled(" in text)
    else:
        yield from _multiplied(compilation.target, puts)


def _stored(kernel: Kernel, steps: Schedule) -> Iterator[str]:
    """Where the narrow elements of each parameter are read."""
    words = {s.buffer.name: s.buffer.dtype.bits for s, _ in walk(kernel.body) if isinstance(s, Alloc)}
    for buffer in kernel.inputs:
        if not buffer.dtype.is_narrow:
            continue
        names, packed, order = {buffer.name}, "a byte each", ""
        for step in steps:
            if isinstance(step, Pack) and step.buffer in names and step.memory == "prepared":
                names.add(step.new)
                order = ", in the order in which they are read, copied once for all calls"
            elif isinstance(step, Squeeze) and step.buffer in names:
                bits = words[step.new]
                packed = f"without gaps, {bits / buffer.dtype.bits:g} to a word of {bits} bits"
        yield f"{buffer.name} is {buffer.dtype}, {packed}{order}"


def _decoded(target: Target, put: Put, loops: Sequence[For], has_tables: bool) -> Iterator[str]:
    """How codes become numbers. has_tables: does a kernel for a GPU choose numbers from tables?"""
    few, done = FewBits(), set[DType]()
    lanes = math.prod(trips(loop).constant or 0 for loop in loops if loop.kind == "lane")
    for e in parts(put.value):
        argument = few.argument(e)
        element = _element(argument or e)
        if element is not None and element not in done:
            done.add(element)
            in_table = isinstance(e, Apply) and e.function == "where" and has_tables
            if argument is not None and (in_table or is_usable(target, e, argument, lanes)):
                yield f"{element} is decoded by a look-up in a table of {1 << element.bits} numbers"
            else:
                yield f"{element} is decoded by arithmetic on its bits"


def _element(e: Expr) -> DType | None:
    """The narrow type of which an expression is a code."""
    return e.value.dtype if isinstance(e, Bitcast) and e.dtype == U8 and e.value.dtype.is_narrow else None


def _on_matrix_units(target: Target, puts: Sequence[tuple[Put, Sequence[For]]], is_scaled: bool) -> Iterator[str]:
    """Which products are on the matrix units of a GPU, and in which types."""
    for put, loops in puts:
        lanes = [loop.axis for loop in loops if loop.kind == "lane"]
        found = sides([{a for a in lanes if a in f.symbols} for f in factors(put.value)])
        if put.operator != "+=" or found is None:
            continue
        scaled = (find_scaled_dot(put.value, found[1], axis) for axis in lanes if is_scaled)
        if (dot := find_dot(target, put) or next(filter(None, scaled), None)) is not None:
            yield f"{dot} is multiplied by matrix units, and summed in {dot.total}"
        elif are_in_bf16(put.value, found[1]):
            yield "factors are put together in bf16, which holds them, and multiplied by matrix units"


def _multiplied(target: Target, puts: Sequence[tuple[Put, Sequence[For]]]) -> Iterator[str]:
    """Which products of short numbers an instruction adds up, and which are widened first."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for put, loops in puts:
        pair, dot = widened_factors(put), find_dot(target, put)
        if dot is not None and loops and loops[-1].kind == "dot":
            what = f"{dot.left} by {dot.right} stays: one instruction adds up {dot.width} products in each lane"
            lines[True].append(what)
        elif pair is not None and all(e.dtype.bits <= 16 for e in pair):
            why = "no dot instruction fits the target" if dot is None else "the schedule takes no dot instruction"
            lines[False].append(f"{pair[0].dtype} by {pair[1].dtype} is widened to {put.value.dtype}: {why}")
    yield from lines[True] or lines[False]  # what is left over at the ends of loops is widened anyway

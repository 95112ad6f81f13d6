"""How long a program takes: as a whole against the limits of the machine, and kernel by kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import click
import numpy as np

from intarsia.backends.cpu.compile import compile_plan
from intarsia.backends.cpu.plan import kernel_plan
from intarsia.commands.binding import Bound
from intarsia.commands.interruption import interruptible
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation, executable_of
from intarsia.executable import Executable
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Span
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_counts import count_operations, depends_on_data
from intarsia.ir.plan_counts import count_plan_operations
from intarsia.ir.plan_interpreter import Memory, run_plan, run_preparation
from intarsia.ir.work import region_work
from intarsia.limits import Limits, machine_limits
from intarsia.measurement import duration_text, measure, median_and_spread, size_text
from intarsia.runtime.buffers import lease
from intarsia.runtime.native import address_of, pointer_table


def report_time(bound: Bound, call: Callable[[], object], compile_seconds: float) -> None:
    """Compile time, median and spread of run time, and the rates that they come to."""
    found = "compiled" if bound.function.program.is_parsed else "found in the cache"
    samples = interruptible(lambda: measure(call))
    median, spread = median_and_spread(samples)
    compilation = with_deep_stack(bound.compilation)
    operations = with_deep_stack(lambda: operations_done(compilation))
    limits = machine_limits(bound.function.program.cache, operations / median)
    click.echo(f"ready after {duration_text(compile_seconds)}, {found}", err=True)
    click.echo(
        f"run: median {duration_text(median)}, quartiles {duration_text(spread)} apart, {len(samples)} runs", err=True
    )
    moved = argument_bytes(compilation)
    click.echo(f"     {_rates(operations, moved, median, limits)}", err=True)
    if not limits.agreed:
        click.echo("note: the machine was busy while its limits were measured; it may do more", err=True)


def operations_done(compilation: Compilation) -> int:
    """The operations of the program, or those of its scheduled kernels where these are fewer: a schedule leaves out
    what masks do not let through, and may compute something twice."""
    written = region_work(compilation.graph.graph.body, compilation.sizes).operations
    if any(depends_on_data(kernel) for kernel in compilation.kernels.kernels):
        return written
    plan = compilation.plan
    done = count_plan_operations(plan, {name: compilation.sizes[name] for name in plan.sizes})
    return written if done is None else min(written, done)


def argument_bytes(compilation: Compilation) -> int:
    """The bytes of arguments and results, each once."""
    graph = compilation.graph.graph
    return sum(v.type.bytes_for(compilation.sizes) for v in (*(p.value for p in graph.parameters), *graph.results))


def _rates(operations: float, moved: float, seconds: float, limits: Limits) -> str:
    """Rates with their share of what the machine can do."""
    done, carried = operations / seconds, moved / seconds
    return (
        f"{done / 1e9:.1f} GFLOP/s ({done / limits.operations:.0%} of this machine's peak in f32), "
        f"{carried / 1e9:.1f} GB/s ({carried / limits.bytes:.0%} of its memory's)"
    )


# ---------------------------------------------------------------------- kernel by kernel


@dataclass
class Row:
    """What one kernel, or one collective, did in a run: seconds of each launch, bytes of its parameters; operations of
    the last launch, None where they depend on data."""

    name: str
    span: Span | None
    seconds: list[float] = field(default_factory=list)
    bytes: int = 0
    operations: int | None = None


class TimedKernels:
    """Runs the kernels of a plan as machine code, each by itself, and keeps the time of each launch."""

    def __init__(self, compilation: Compilation) -> None:
        self._by_data = {k.name for k in compilation.kernels.kernels if depends_on_data(k)}
        self._counted: dict[tuple[str, tuple[int, ...]], int] = {}
        self.rows: dict[str, Row] = {}
        self._code: dict[str, Executable] = {}
        for kernel in (k for part in compilation.plan.whole for k in part.kernels):
            plan = kernel_plan(kernel)
            labels = [s.name for s in plan.slots if s.place == "input"]
            self._code[kernel.name] = executable_of(plan, (compile_plan(plan, compilation.target).object_code,), labels)
            self.rows[kernel.name] = Row(kernel.name, kernel.span)

    def run(self, kernel: Kernel, arrays: Mapping[str, Memory], sizes: Mapping[str, int]) -> None:
        """Run on arrays in place, as `kernel_interpreter.run` does."""
        code, row = self._code[kernel.name], self.rows[kernel.name]
        inputs = [arrays[b.name] for b in kernel.parameters if b.role == "in"]
        outputs = [arrays[b.name] for b in kernel.parameters if b.role not in ("in", "temp")]
        workspace = lease(int(code.workspace.evaluate(sizes)))
        tables = [i if isinstance(i, np.ndarray) else pointer_table(i) for i in inputs]
        given, made = [address_of(t) for t in tables], [address_of(_one(o)) for o in outputs]
        values = [sizes[name] for name in kernel.sizes]
        start = time.perf_counter()
        code.native.call(given, made, values, address_of(workspace), interruptible=False)
        row.seconds.append(time.perf_counter() - start)
        row.bytes = sum(a.nbytes for item in (*inputs, *outputs) for a in (item if isinstance(item, list) else [item]))
        if kernel.name not in self._by_data:
            key = kernel.name, tuple(values)
            if key not in self._counted:
                self._counted[key] = count_operations(kernel, sizes)
            row.operations = self._counted[key]


def _one(memory: Memory) -> Array:
    assert isinstance(memory, np.ndarray)
    return memory


def report_profile(bound: Bound) -> None:
    """Each kernel on the program's own data: how often it runs, its time, bytes and operations, and the user's line."""
    compilation = with_deep_stack(bound.compilation)
    timed = with_deep_stack(lambda: TimedKernels(compilation))
    inputs, sizes = bound.inputs(compilation), {n: compilation.sizes[n] for n in compilation.plan.sizes}
    made = interruptible(lambda: run_preparation(compilation.plan, inputs, sizes, timed.run))
    plan, given = replace(compilation.plan, preparation=None), [*inputs, *made]  # constants are prepared before
    rounds = interruptible(lambda: _repeat(lambda: run_plan(plan, given, sizes, timed.run), timed))
    print_rows(timed.rows.values(), rounds, machine_limits(bound.function.program.cache))


def print_rows(found: Iterable[Row], rounds: int, limits: Limits) -> None:
    """The table of a profile of several rounds."""
    rows = sorted(found, key=lambda r: -sum(r.seconds))
    total = sum(sum(r.seconds) for r in rows) or 1.0
    click.echo(
        f"{'share':>6} {'times':>6} {'each':>9} {'bytes':>9} {'GB/s':>7} {'GFLOP/s':>8} {'limit':>6}  kernel", err=True
    )
    for row in rows:
        if row.seconds:
            click.echo(_profile_line(row, rounds, total, limits), err=True)


def _repeat(run: Callable[[], object], timed: TimedKernels) -> int:
    """Run once to warm caches and threads, then for up to half a second; gives the number of runs that count."""
    run()
    for row in timed.rows.values():
        row.seconds.clear()
    rounds, end = 0, time.perf_counter() + 0.5
    while not rounds or (rounds < 20 and time.perf_counter() < end):
        run()
        rounds += 1
    return rounds


def _profile_line(row: Row, rounds: int, total: float, limits: Limits) -> str:
    """`limit` is how much of the time the machine would need at least, by its arithmetic or its memory."""
    each, spent = float(np.median(row.seconds)), sum(row.seconds)
    operations = row.operations or 0
    least = max(row.bytes / limits.bytes, operations / limits.operations)
    done = "-" if row.operations is None else f"{operations / each / 1e9:.1f}"
    rates = f"{row.bytes / each / 1e9:7.1f} {done:>8} {least / each:6.0%}"
    place = f"  {row.span}" if row.span else ""
    launches = f"{len(row.seconds) // rounds:6} {duration_text(each):>9}"
    return f"{spent / total:6.1%} {launches} {size_text(row.bytes):>9} {rates}  {row.name}{place}"

"""What `run` shows besides results: comparison, times, rates, kernels one by one, values by name, the first NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click
import numpy as np

from intarsia.arguments import format_array
from intarsia.commands.binding import Bound
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation
from intarsia.executable import Executable
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Node, Value
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel import Kernel
from intarsia.ir.tolerance import expected
from intarsia.ir.types import TensorType
from intarsia.measurement import measure, median_and_spread
from intarsia.program import Function

REPRODUCER = "intarsia-reproducer.npz"


def compilation_of(function: Function, bound: Bound) -> Compilation:
    return function.compilation(bound.tensors, bound.statics, bound.dims)


def inputs_of(compilation: Compilation, bound: Bound) -> list[Array | Sequence[Array]]:
    """The arguments in the order of the graph's parameters."""
    return [bound.tensors[p.label] for p in compilation.source_module.graph.parameters]


def interpret(function: Function, bound: Bound, stage: str) -> list[Array]:
    """Run a stage with NumPy: `reference` the graph, `kernels` the scheduled kernels, `plan` in its workspace."""
    compilation = compilation_of(function, bound)

    def work() -> list[Array]:
        inputs = inputs_of(compilation, bound)
        if stage == "plan":
            from intarsia.ir.plan_interpreter import run_plan

            return list(run_plan(compilation.plan, inputs, compilation.sizes))
        module = compilation.source_module if stage == "reference" else compilation.scheduled
        return list(evaluate(module, inputs, compilation.sizes, checks=stage == "reference"))

    return with_deep_stack(work)


def report_comparison(function: Function, bound: Bound, results: Sequence[Array]) -> int:
    """Compare with the reference in f64 and its error bound. Returns 3 where a result is wrong, else 0."""
    compilation = compilation_of(function, bound)
    inputs = inputs_of(compilation, bound)
    wanted = with_deep_stack(lambda: expected(compilation.source_module, inputs, compilation.sizes))
    status = 0
    for index, (result, reference) in enumerate(zip(results, wanted)):
        name = "result" if len(results) == 1 else f"result{index}"
        if (wrong := reference.mismatch(result)) is not None:
            status = 3
            click.echo(f"{name}: WRONG: {wrong}", err=True)
        else:
            click.echo(f"{name}: equal to the reference{_largest_error(result, reference.value)}", err=True)
    if status:
        flat = {n: v for n, v in bound.tensors.items() if isinstance(v, np.ndarray)}
        np.savez(REPRODUCER, **flat)
        source = function.program.source
        click.echo(
            f"This is a bug in Intarsia. The arguments are in {REPRODUCER}; run again with "
            f"`intarsia run {source.name} --weights {REPRODUCER} --compare`.",
            err=True,
        )
    return status


def _largest_error(result: Array, reference: Array) -> str:
    """The largest relative error, in units that a reader knows."""
    if result.size == 0 or result.dtype.kind in "iub":
        return ""
    with np.errstate(all="ignore"):
        error = np.abs(result.astype(np.float64) - reference)
        scale = np.max(np.abs(reference), where=np.isfinite(reference), initial=0.0)
        largest = float(np.max(error, where=np.isfinite(error), initial=0.0))
    return f" (largest error {largest:.1e}, largest value {float(scale):.3g})"


def report_time(function: Function, bound: Bound, call: Callable[[], object], first: float) -> None:
    """First call with its compilation, median and spread of further calls, and the rates that they come to."""
    samples = measure(call)
    median, spread = median_and_spread(samples)
    compilation = compilation_of(function, bound)
    operations, moved = with_deep_stack(lambda: _work(compilation))
    click.echo(f"first call, compiled or from the cache: {first * 1e3:.1f} ms", err=True)
    click.echo(
        f"run: median {median * 1e3:.3f} ms, quartiles {spread * 1e3:.3f} ms apart, {len(samples)} runs", err=True
    )
    click.echo(f"     {operations / median / 1e9:.1f} GFLOP/s, {moved / median / 1e9:.1f} GB/s", err=True)


def _work(compilation: Compilation) -> tuple[float, float]:
    """Scalar operations of the program, and the bytes of its arguments and results."""
    from intarsia.ir.work import region_work

    graph = compilation.graph.graph
    moved = sum(_bytes(v) for v in [*(p.value for p in graph.parameters), *graph.results])
    return float(region_work(graph.body, compilation.sizes).operations), float(moved)


def _bytes(value: Value) -> int:
    kind = value.type
    if isinstance(kind, TensorType):
        return int(kind.elements) * kind.dtype.bits // 8
    return int(kind.length) * int(kind.element.elements) * kind.element.dtype.bits // 8


def report_profile(function: Function, bound: Bound) -> None:
    """Each kernel timed by itself on made-up data: how often it runs, its time and bytes, and the user's line."""
    compilation = compilation_of(function, bound)
    module = with_deep_stack(lambda: compilation.scheduled)
    counts = with_deep_stack(lambda: _launches(compilation))
    rows = [(k, counts.get(k.name, 0), *_time_kernel(compilation, k)) for k in module.kernels if counts.get(k.name)]
    total = sum(count * seconds for _, count, seconds, _ in rows) or 1.0
    click.echo(f"{'share':>6} {'times':>6} {'each':>11} {'GB/s':>7}  kernel", err=True)
    for kernel, count, seconds, moved in sorted(rows, key=lambda r: -r[1] * r[2]):
        share, place = count * seconds / total, f"  {kernel.span}" if kernel.span else ""
        rate = moved / seconds / 1e9 if seconds else 0.0
        click.echo(f"{share:6.1%} {count:6} {seconds * 1e6:8.1f} us {rate:7.1f}  {kernel.name}{place}", err=True)


def _launches(compilation: Compilation) -> dict[str, int]:
    """How often each kernel runs; a loop whose steps depend on data counts as one."""
    from intarsia.ir.plan import Invoke, PlanStatement, Repeat

    counts: dict[str, int] = {}

    def go(statements: Sequence[PlanStatement], times: int) -> None:
        for statement in statements:
            match statement:
                case Invoke(kernel=name):
                    counts[name] = counts.get(name, 0) + times
                case Repeat():
                    steps = (statement.upper - statement.lower).constant
                    go((*statement.test, *statement.body), times * max(0, 1 if steps is None else steps))

    go(compilation.plan.body, 1)
    return counts


def _time_kernel(compilation: Compilation, kernel: Kernel) -> tuple[float, int]:
    """Median seconds of one kernel, and the bytes of its arguments."""
    from intarsia.backends.cpu.compile import compile_plan
    from intarsia.backends.cpu.plan import kernel_plan

    plan = kernel_plan(kernel)
    code = with_deep_stack(lambda: compile_plan(plan, compilation.target))
    executable = Executable.of(plan, code)
    rng = np.random.default_rng(0)
    inputs = [
        rng.random(t.concrete_shape({})).astype(t.dtype.numpy)
        if t.dtype.is_float
        else np.zeros(t.concrete_shape({}), t.dtype.numpy)
        for t in executable.inputs
    ]
    median, _ = median_and_spread(measure(lambda: executable.run(inputs, {}), seconds=0.2))
    layouts = (*executable.inputs, *executable.outputs)
    return median, sum(int(np.prod(t.concrete_shape({}))) * t.dtype.bytes for t in layouts)


def report_trace(function: Function, bound: Bound, name: str) -> int:
    """Print every value that is assigned to `name`, in order of execution."""
    from intarsia.dsl.show import assignments

    spans = assignments(function.program.library.program, name)
    if not spans:
        raise CompileError("E0617", f"nothing is assigned to '{name}' in {function.program.source.name}")
    lines = {(s.source.name, s.start, s.end) for s in spans}
    count = 0

    def observe(node: Node, results: Sequence[Array]) -> None:
        nonlocal count
        if node.span and (node.span.source.name, node.span.start, node.span.end) in lines:
            for result in results:
                count += 1
                click.echo(f"{node.span.source.name}:{node.span.line}: {format_array(name, np.asarray(result))}")

    _observed(function, bound, observe)
    if not count:
        click.echo(f"{name} is a static value, a parameter or part of a larger expression: nothing to show", err=True)
    return 0


def report_nan(function: Function, bound: Bound) -> int:
    """Name the first operation whose result has a NaN although none of its operands has one. Returns 0."""
    found: list[str] = []
    bad: set[Value] = set()

    def observe(node: Node, results: Sequence[Array]) -> None:
        for value, result in zip(node.values, results):
            array = np.asarray(result)
            if array.dtype.kind in "iub" or not np.isnan(array.astype(np.float64)).any():
                bad.discard(value)
                continue
            if not found and not any(v in bad for v in node.inputs):
                place = tuple(int(i) for i in np.argwhere(np.isnan(array.astype(np.float64)))[0])
                message = f"{node.name} gives {value.type} with a NaN at {list(place)}, from operands without one"
                found.append(str(CompileError("E0804", message, node.span)) if node.span else message)
            bad.add(value)

    arguments = [n for n, v in bound.tensors.items() if isinstance(v, np.ndarray) and _has_nan(v)]
    for name in arguments:
        click.echo(f"the argument {name} has a NaN")
    _observed(function, bound, observe)
    click.echo(found[0] if found else "no operation makes a NaN")
    return 0


def _has_nan(array: Array) -> bool:
    return array.dtype.kind not in "iub" and bool(np.isnan(array.astype(np.float64)).any())


def _observed(function: Function, bound: Bound, observe: Callable[[Node, Sequence[Array]], None]) -> None:
    """Run the reference and show every node with its results as it runs."""
    compilation = compilation_of(function, bound)
    inputs = inputs_of(compilation, bound)
    with_deep_stack(lambda: evaluate(compilation.source_module, inputs, compilation.sizes, observe=observe))

"""Running a stage with NumPy in place of machine code, and watching the reference as it runs."""

from __future__ import annotations

from collections.abc import Sequence

import click
import numpy as np

from intarsia.commands.binding import Bound
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation, checks_of
from intarsia.dsl.evaluation.builder import Assigned
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node, Parameter, Value
from intarsia.ir.interpreter import Observer, evaluate
from intarsia.ir.kernel_interpreter import CheckFailed
from intarsia.ir.plan_interpreter import run_plan
from intarsia.passes.fuse.report import title
from intarsia.results import format_array
from intarsia.tensors import declared_types


def interpret(bound: Bound, stage: str) -> list[Array]:
    """Run a stage: `reference` the graph, `kernels` the scheduled kernels one by one, `plan` in its workspace,
    `triton-interpret` the plan with each kernel in Triton's interpreter.

    The reference checks subscripts and divisors always. Raises CompileError where a check fails.
    """
    compilation = with_deep_stack(bound.compilation)
    return with_deep_stack(lambda: _interpreted(compilation, bound, stage))


def _interpreted(compilation: Compilation, bound: Bound, stage: str) -> list[Array]:
    inputs = bound.inputs(compilation)
    if stage == "reference":
        return list(evaluate(compilation.source_module, inputs, compilation.sizes, checks=True))
    try:
        if stage == "triton-interpret":
            return list(run_plan(compilation.plan, inputs, compilation.sizes, compilation.interpret_launches))
        if stage == "plan":
            return list(run_plan(compilation.plan, inputs, compilation.sizes))
        return list(evaluate(compilation.scheduled, inputs, compilation.sizes))
    except CheckFailed as failure:
        raise checks_of(compilation.plan)[failure.number].error(failure.values) from None


def report_trace(bound: Bound, name: str) -> None:
    """Print every value that `name` is given, in order of execution.

    Raises CompileError E0617 where nothing of that name has a value at run time.
    """
    function = bound.function
    library, types = function.program.library, declared_types(function.form, bound.tensors, bound.dims)

    def build() -> tuple[Module, dict[str, int], tuple[Assigned, ...]]:
        sizes = library.bind_sizes(function.name, types, bound.dims)
        module, assigned = library.build_traced(function.name, types, sizes, bound.statics)
        return module, sizes, assigned

    module, sizes, assigned = with_deep_stack(build)
    shown = {a.value: a for a in assigned if a.name == name}
    count = 0

    def show(value: Value, array: Array) -> None:
        nonlocal count
        if (found := shown.get(value)) is not None:
            count += 1
            click.echo(f"{found.span}: {format_array(name, array)}")

    def observe(node: Node, results: Sequence[Array | list[Array]]) -> None:
        for value, result in zip(node.values, results):
            show(value, np.asarray(result))

    inputs = [bound.whole(p.label) for p in module.graph.parameters]
    for parameter, given in zip(module.graph.parameters, inputs):
        show(parameter.value, np.asarray(given))
    arrays = [list(i) if isinstance(i, tuple) else i for i in inputs]
    with_deep_stack(lambda: evaluate(module, arrays, sizes, observe=observe))
    if not count:
        names = ", ".join(dict.fromkeys(a.name for a in assigned)) or "none"
        message = f"no tensor is assigned to '{name}' when {function.form.function} runs"
        raise CompileError("E0617", message, hint=f"names that are given tensors: {names}")


def report_nan(bound: Bound) -> None:
    """Name the first operation whose result has a NaN although none of its operands has one."""
    found: list[str] = []
    bad: set[Value] = set()

    def is_bad(value: Value) -> bool:
        """A state of a loop is watched where it is made, not where it is read."""
        return value in bad or (isinstance(value.node, Parameter) and bool(bad))

    def observe(node: Node, results: Sequence[Array | list[Array]]) -> None:
        for value, result in zip(node.values, results):
            if not isinstance(result, np.ndarray) or (place := _first_nan(result)) is None:
                bad.discard(value)
                continue
            if not found and not any(map(is_bad, node.inputs)):
                message = f"{title(node)} gives {value.type} with a NaN at {list(place)}, from operands without one"
                found.append(str(CompileError("E0804", message, node.span)))
            bad.add(value)

    compilation = with_deep_stack(bound.compilation)
    for parameter in compilation.source_module.graph.parameters:
        value = bound.whole(parameter.label)
        if any(_first_nan(a) is not None for a in (value if isinstance(value, tuple) else (value,))):
            click.echo(f"the argument {parameter.label} has a NaN")
            bad.add(parameter.value)
    _watch(bound, observe, compilation)
    click.echo(found[0] if found else "no operation makes a NaN")


def _first_nan(array: Array) -> tuple[int, ...] | None:
    if array.dtype.kind in "iub":
        return None
    wrong = np.isnan(array.astype(np.float64))
    return tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.any() else None


def _watch(bound: Bound, observe: Observer, compilation: Compilation | None = None) -> None:
    """Run the reference and show every node with its results as it runs."""
    ready = compilation or with_deep_stack(bound.compilation)
    inputs = bound.inputs(ready)
    with_deep_stack(lambda: evaluate(ready.source_module, inputs, ready.sizes, observe=observe))

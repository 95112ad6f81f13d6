"""Gradients checked against finite differences, in f64 in the interpreter of the Graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.gradients import gradients, push_forward
from intarsia.ir.graph import Graph, Module, Parameter, Region, Value
from intarsia.ir.interpreter import bind_sizes, evaluate
from intarsia.ir.ops import Cast, Compute, Elementwise
from intarsia.ir.scalar import Apply, Load
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.types import ListType
from intarsia.ir.verifier import verify_module

STEP = 1e-6


def weighted(results: Sequence[Value]) -> tuple[Value, list[Parameter]]:
    """One number made of all float results: the sum of each times a weight of its own, given as parameters."""
    total: Value | None = None
    weights: list[Parameter] = []
    for number, value in enumerate(r for r in results if r.dtype.is_float):
        dtype = value.dtype.accumulator
        value = value if value.dtype == dtype else Cast(value, dtype).value
        weight = Parameter(f"weight{number}", value.tensor)
        axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(value.tensor.shape))
        loads = tuple(Load(operand(p), tuple(Size.of(a.name) for a in axes), dtype) for p in range(2))
        space = Space((), Apply("mul", loads), dtype, axes, "sum" if axes else None)
        part = Compute((value, weight.value), space).value
        same = part if total is None or part.dtype == total.dtype else Cast(part, total.dtype).value
        total = same if total is None else Elementwise("add", (total, same)).value
        weights.append(weight)
    assert total is not None
    return total, weights


def gradient_module(graph: Graph, wrt: Sequence[Value], forward: bool = False) -> Module:
    """The gradients of a graph's weighted results, or these themselves."""
    loss, weights = weighted(graph.results)
    results = [loss] if forward else gradients(loss, wrt, lambda node: node, _fresh())
    module = Module(Graph(graph.name, Region.of((*graph.parameters, *weights), results), graph.dimensions))
    verify_module(module)
    return module


def _fresh() -> Callable[[str], str]:
    numbers = itertools.count(1)
    return lambda name: f"{name}_again{next(numbers)}"


def change_module(graph: Graph, parameter: Parameter) -> Module:
    """How the weighted results change with one parameter, by forward mode."""
    loss, weights = weighted(graph.results)
    direction = Parameter("direction", parameter.type)
    results = push_forward([loss], {parameter.value: direction.value}, lambda node: node, _fresh())
    parameters = (*graph.parameters, *weights, direction)
    module = Module(Graph(graph.name, Region.of(parameters, results), graph.dimensions))
    verify_module(module)
    return module


def check_gradients(
    graph: Graph,
    inputs: Mapping[str, Any],
    wrt: Sequence[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    tolerance: float = 1e-6,
) -> list[Array]:
    """Compare the gradients, and derivatives by forward mode, with differences along random directions. Gives the
    gradients."""
    rng = np.random.default_rng(7)
    chosen = [p for p in graph.parameters if (p.label in wrt if wrt is not None else _is_float(p))]
    forward = gradient_module(graph, (), forward=True)
    backward = gradient_module(graph, [p.value for p in chosen])
    given = dict(inputs)
    names = bind_sizes(graph, [given[p.label] for p in graph.parameters], sizes or {})
    for weight in forward.graph.parameters[len(graph.parameters) :]:
        shape = [s.evaluate(names) for s in weight.value.tensor.shape]
        given[weight.label] = np.asarray(rng.normal(size=shape), weight.value.dtype.numpy)

    def run(module: Module, values: Mapping[str, Any]) -> tuple[Array, ...]:
        return evaluate(module, [values[p.label] for p in module.graph.parameters], sizes, precision="f64")

    found = run(backward, given)
    for parameter, gradient in zip(chosen, found):
        x = given[parameter.label]
        direction = rng.normal(size=np.shape(x))
        ends = []
        for sign in (1, -1):
            moved = np.asarray(x, np.float64) + sign * STEP * direction
            ends.append(float(run(forward, {**given, parameter.label: moved})[0]))
        slope = (ends[0] - ends[1]) / (2 * STEP)
        own = float((np.asarray(gradient, np.float64) * direction).sum())
        assert gradient.shape == np.shape(x)
        scale = 1 + abs(slope) + float(np.abs(gradient * direction).sum())
        assert abs(own - slope) <= tolerance * scale, f"{parameter.label}: {own} and by differences {slope}"
        along = {**given, "direction": np.asarray(direction, parameter.value.dtype.numpy)}
        change = float(run(change_module(graph, parameter), along)[0])
        assert abs(change - slope) <= tolerance * scale, f"{parameter.label}: forwards {change}, and {slope}"
    return list(found)


def _is_float(parameter: Parameter) -> bool:
    return not isinstance(parameter.type, ListType) and parameter.type.dtype.is_float

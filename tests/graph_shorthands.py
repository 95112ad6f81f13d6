"""Small graphs built by hand for tests: shorthands for nodes, and data to run them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intarsia.ir.dtypes import BOOL, Array, DType
from intarsia.ir.graph import Graph, Parameter, Region, Value
from intarsia.ir.ops import Constant, Elementwise, Fused, Loop, Update
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis
from intarsia.ir.types import ListType, TensorType

Operand = Any
i, j, k, r = (Size.of(n) for n in "ijkr")


@dataclass(frozen=True)
class Program:
    """A graph and what to run it on."""

    graph: Graph
    inputs: tuple[Operand, ...]
    sizes: dict[str, int]


def parameter(label: str, dtype: DType, *shape: Any) -> Parameter:
    return Parameter(label, TensorType.of(dtype, *shape))


def data(dtype: DType, *shape: int, seed: int = 0) -> Array:
    """Small integers, of both signs where the type has them."""
    rng = np.random.default_rng(seed + sum(shape))
    low, high = (0, 2) if dtype == BOOL else (-4, 5) if dtype.is_signed else (0, 7)
    return rng.integers(low, high, shape).astype(dtype.numpy)


def program(
    parameters: Sequence[Parameter], results: Sequence[Value], sizes: dict[str, int] | None = None, **given: Operand
) -> Program:
    """The program that computes `results`, on `given` inputs or made-up ones."""
    sizes = sizes or {}
    inputs: list[Operand] = []
    for position, p in enumerate(parameters):
        if p.label in given:
            inputs.append(given[p.label])
        elif isinstance(p.type, ListType):
            shape = [s.evaluate(sizes) for s in p.type.element.shape]
            inputs.append([data(p.type.element.dtype, *shape, seed=n) for n in range(p.type.length.evaluate(sizes))])
        else:
            inputs.append(data(p.type.dtype, *(s.evaluate(sizes) for s in p.type.shape), seed=position))
    return Program(Graph("f", Region.of(parameters, results), tuple(sizes)), tuple(inputs), sizes)


def fused(*results: Value) -> tuple[Value, ...]:
    """The nodes behind `results` as one group."""
    return Fused(Region.of((), results)).values


def scalar(value: float, dtype: DType) -> Value:
    return Constant(value, dtype).value


def binary(function: str, a: Value, b: Value) -> Value:
    return Elementwise(function, (a, b)).value


def unary(function: str, a: Value) -> Value:
    return Elementwise(function, (a,)).value


def load(position: int, dtype: DType, *indices: Any) -> Load:
    return Load(f"a{position}", tuple(Size.of(n) for n in indices), dtype)


def update(
    base: Value, arguments: Sequence[Value], axes: Sequence[Axis], targets: Sequence[Any], operator: Any, body: Expr
) -> Value:
    return Update(base, tuple(arguments), tuple(axes), tuple(map(Size.of, targets)), operator, body).value


def loop(
    initial: Sequence[Value],
    step: Callable[..., Sequence[Value]],
    lower: Any,
    upper: Any,
    counter: str = "t",
    scalars: Sequence[Value] = (),
    condition: Callable[..., Value] | None = None,
    stacked: int = 0,
    emit: Callable[..., Sequence[Value]] = lambda *states: (),
) -> tuple[Value, ...]:
    """A loop whose step maps states to states."""
    states = [Parameter(f"s{n}", v.tensor) for n, v in enumerate(initial)]
    values = [s.value for s in states]
    results = (*step(*values), *emit(*values))
    # What does not depend on the states stays outside, as the dsl builds it.
    stop = frozenset(v.node for v in (*initial, *scalars))
    test = None
    if condition is not None:
        own = [Parameter(f"s{n}", v.tensor) for n, v in enumerate(initial)]
        test = Region.of(own, (condition(*[s.value for s in own]),), stop)
    node = Loop(
        counter,
        Size.of(lower),
        Size.of(upper),
        tuple(scalars),
        tuple(initial),
        Region.of(states, results, stop),
        test,
        stacked or len(results) - len(initial),
    )
    return node.values

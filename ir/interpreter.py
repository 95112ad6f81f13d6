"""The Graph evaluated with NumPy: the meaning of every program, against which all else is tested.

`checks` reports at run time what `--checks` promises: E0801 a subscript that depends on data and falls outside, E0802
an integer division by zero, E0803 two values written to one element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from intarsia.ir import kernel_interpreter
from intarsia.ir.arithmetic import Arithmetic, DoubleArithmetic
from intarsia.ir.dtypes import I64, Array
from intarsia.ir.graph import Graph, Module, Node, Region, Structured, Value
from intarsia.ir.kernel import Buffer
from intarsia.ir.ops.collective import Collective, DeviceIndex, Done
from intarsia.ir.ops.control import After, Call, Fused, ListGet, Loop
from intarsia.ir.ops.index import Update
from intarsia.ir.ops.order import Argsort, Cumulative, Sort
from intarsia.ir.ops.reduction import ArgReduce
from intarsia.ir.points import Context, Operand, Points
from intarsia.ir.sizes import Size
from intarsia.ir.space import operand
from intarsia.ir.structured import UpdateEvaluator, evaluate_space
from intarsia.ir.types import ListType, TensorType, Type

Observer: TypeAlias = Callable[[Node, Sequence[Operand]], None]

Exchange: TypeAlias = Callable[[Node, Array], Array]
"""The result of a collective on one device, for what this device has."""


def evaluate(
    module: Module,
    inputs: Sequence[Operand],
    sizes: Mapping[str, int] | None = None,
    checks: bool = False,
    precision: Literal["own", "f64"] = "own",
    observe: Observer | None = None,
) -> tuple[Array, ...]:
    """The results of the graph for one input a parameter, a list of arrays for a list of tensors.

    `sizes` gives dimension names; those that the shapes of the inputs decide may be left out. With `precision="f64"`
    all floats are f64 arrays, rounded only where the program converts. `observe` is handed every node that has been
    evaluated, with its results, in order, those in loops once for each step. Raises CompileError under `checks`, see
    above.
    """
    arithmetic = Arithmetic() if precision == "own" else DoubleArithmetic()
    return evaluate_with(arithmetic, module, inputs, sizes, checks, observe)


def evaluate_with(
    arithmetic: Arithmetic,
    module: Module,
    inputs: Sequence[Operand],
    sizes: Mapping[str, int] | None = None,
    checks: bool = False,
    observe: Observer | None = None,
    exchange: Exchange | None = None,
) -> tuple[Array, ...]:
    """`evaluate` with a given arithmetic, for the program of one device with what gives it the results of
    collectives."""
    graph = module.graph
    names = bind_sizes(graph, inputs, sizes or {})
    interpreter = _Interpreter(module, arithmetic, names, checks, observe, exchange)
    for parameter, given in zip(graph.parameters, inputs):
        interpreter.check_input(parameter.label, parameter.type, given)
        interpreter.values[parameter.value] = interpreter.lift(given, parameter.type)
    with np.errstate(all="ignore"):
        results = interpreter.run(graph.body)
    return tuple(np.ascontiguousarray(r).reshape(r.shape) for r in results)


def bind_sizes(graph: Graph, inputs: Sequence[Operand], given: Mapping[str, int]) -> dict[str, int]:
    """The dimension names: `given`, and what the shapes of the inputs say of names that stand alone or in a dim that
    is linear in one unknown."""
    assert len(inputs) == len(graph.parameters), f"{len(inputs)} inputs for {len(graph.parameters)} parameters"
    known = dict(given)
    equations: list[tuple[Size, int]] = []
    for parameter, value in zip(graph.parameters, inputs):
        type_, array = parameter.type, value
        if isinstance(type_, ListType):
            assert isinstance(value, list), f"{parameter.label} wants a list"
            equations.append((type_.length, len(value)))
            if not value:
                continue
            type_, array = type_.element, value[0]
        equations += zip(type_.shape, np.shape(array))
    equations.sort(key=lambda e: e[0].as_name is None)
    for _ in range(len(graph.dimensions) + 1):
        for size, number in equations:
            unknown = sorted(size.symbols - known.keys())
            if len(unknown) == 1 and (factor := size.coefficient(unknown[0])):
                rest = (size - Size.of(unknown[0]) * factor).evaluate(known)
                known[unknown[0]] = (number - rest) // factor
    return known


@dataclass
class _Interpreter:
    """Runs regions; `values` holds what every value is, `names` the sizes and the counters of loops around."""

    module: Module
    arithmetic: Arithmetic
    names: dict[str, int]
    checks: bool
    observe: Observer | None = None
    exchange: Exchange | None = None
    values: dict[Value, Operand] = field(default_factory=dict)

    def run(self, region: Region) -> tuple[Array, ...]:
        """The results of a region whose parameters and captures are bound."""
        for node in region.nodes:
            results = self.evaluate(node)
            self.values.update(zip(node.values, results))
            if self.observe is not None:
                self.observe(node, results)
        return tuple(self.array(v) for v in region.results)

    def array(self, value: Value) -> Array:
        found = self.values[value]
        assert isinstance(found, np.ndarray)
        return found

    def evaluate(self, node: Node) -> Sequence[Operand]:
        """The results of one node."""
        match node:
            case Structured():
                return (evaluate_space(node.space, self.operands(node.operands), self.context(node)),)
            case Update():
                operands = self.operands((node.base, *node.arguments))
                fields = (node.axes, node.targets, node.operator, node.body)
                return (UpdateEvaluator(self.array(node.base), *fields, operands, self.context(node)).result(),)
            case Loop():
                return self._loop(node)
            case ListGet(source, index, scalars):
                tensors = list(self.values[source])
                return (Points((), self.context(node), self.operands(scalars)).list_element(tensors, index),)
            case After(x) | Done(x):
                return (self.values[x],)
            case Fused(body):
                return self.run(body)
            case Call():
                return self._call(node)
            case Collective(x):
                assert self.exchange is not None, f"{node.name} runs on the devices of a mesh"
                return (self.exchange(node, self.array(x)),)
            case DeviceIndex():
                assert self.exchange is not None, f"{node.name} runs on the devices of a mesh"
                return (self.exchange(node, np.zeros((), np.int64)),)
            case _:
                return (self._ordered(node),)

    def _ordered(self, node: Node) -> Array:
        match node:
            case Sort(x) | Argsort(x):
                array = self.array(x)
                keys = self.arithmetic.order(array, x.dtype)
                order = np.argsort(keys, axis=-1, kind="stable") if keys.ndim else np.zeros((), np.int64)
                if isinstance(node, Argsort):
                    return order.astype(np.int64)
                return np.take_along_axis(array, order, axis=-1) if keys.ndim else array
            case Cumulative(x, combiner, axis):
                target = node.value.dtype
                wide = I64 if x.dtype.kind == "bool" else x.dtype.accumulator
                array = self.arithmetic.cast(self.array(x), x.dtype, wide)
                return self.arithmetic.cast(self.arithmetic.accumulate(combiner, array, axis, wide), wide, target)
            case ArgReduce(x, which, axis):
                pick = np.argmax if which == "argmax" else np.argmin
                keys = self.arithmetic.order(self.array(x), x.dtype)
                if not keys.shape[axis]:
                    return np.zeros(self.shape(node.value.type), np.int64)
                return np.asarray(pick(keys, axis=axis)).astype(np.int64)
        raise AssertionError(f"the interpreter does not know {node.name}")

    def _loop(self, node: Loop) -> tuple[Array, ...]:
        lower = self.integer(node.lower, node.scalars, node)
        upper = self.integer(node.upper, node.scalars, node)
        states = tuple(self.array(v) for v in node.initial)
        emitted: list[list[Array]] = [[] for _ in range(node.stacked)]
        outer = self.names.get(node.counter)
        for step in range(lower, upper):
            self.names[node.counter] = step
            if node.condition is not None:
                self.values.update(zip((p.value for p in node.condition.parameters), states))
                if not self.run(node.condition)[0]:
                    break
            self.values.update(zip((p.value for p in node.body.parameters), states))
            results = self.run(node.body)
            states = results[: len(states)]
            for stack, value in zip(emitted, results[len(states) :]):
                stack.append(value)
        self.names.pop(node.counter, None)
        if outer is not None:
            self.names[node.counter] = outer
        stacked = [
            np.stack(stack) if stack else np.zeros(self.shape(t), self.arithmetic.storage(_tensor(t).dtype))
            for stack, t in zip(emitted, node.results[len(states) :])
        ]
        return (*states, *stacked)

    def _call(self, node: Call) -> tuple[Array, ...]:
        assert type(self.arithmetic) is Arithmetic, "a kernel computes in its own precision only"
        kernel = self.module.kernel(node.kernel)
        arguments = iter([self.values[v] for v in node.arguments])
        arrays: dict[str, Operand] = {}
        results: list[Array] = []
        types = iter(node.results)
        sizes = dict(zip(kernel.sizes, (self.integer(s, (), node) for s in node.sizes)))

        def in_shape(operand: Operand, buffer: Buffer) -> Operand:
            """The same memory in the shape of a buffer, whose dimensions a schedule may have flattened."""
            shape = tuple(s.evaluate(sizes) for s in buffer.shape)
            if isinstance(operand, list):
                return [np.ascontiguousarray(a).reshape(shape) for a in operand]
            return operand if operand.shape == shape else np.ascontiguousarray(operand).reshape(shape)

        for buffer in kernel.parameters:
            if buffer.role == "in":
                arrays[buffer.name] = in_shape(next(arguments), buffer)
                continue
            type_ = _tensor(next(types))
            if buffer.role == "inout":
                old = next(arguments)
                assert isinstance(old, np.ndarray)
                results.append(old.copy())
            else:
                results.append(np.zeros(self.shape(type_), type_.dtype.numpy))
            arrays[buffer.name] = in_shape(results[-1], buffer)
        kernel_interpreter.run(kernel, arrays, sizes)
        return tuple(results)

    # ------------------------------------------------------------------ helpers

    def operands(self, values: Sequence[Value]) -> dict[str, Operand]:
        """Operands by the names that a space loads them by."""
        return {operand(position): self.values[v] for position, v in enumerate(values)}

    def context(self, node: Node) -> Context:
        return Context(self.names, self.arithmetic, self.checks, node.span)

    def integer(self, size: Size, scalars: Sequence[Value], node: Node) -> int:
        """The value of an integer expression that may load scalars."""
        found = Points((), self.context(node), self.operands(scalars)).size(size)
        assert isinstance(found, int)
        return found

    def shape(self, type_: Type) -> tuple[int, ...]:
        return tuple(s.evaluate(self.names) for s in _tensor(type_).shape)

    def lift(self, given: Operand, type_: Type) -> Operand:
        """An input in the arithmetic of this run."""
        if isinstance(type_, ListType):
            return [self.arithmetic.lift(np.asarray(a), type_.element.dtype) for a in given]
        return self.arithmetic.lift(np.asarray(given), type_.dtype)

    def check_input(self, label: str, type_: Type, given: Operand) -> None:
        """An input that does not have the type of its parameter is a mistake of the caller."""
        if isinstance(type_, ListType):
            length = type_.length.evaluate(self.names)
            assert len(given) == length, f"{label} has {len(given)} tensors, not {length}"
            for position, array in enumerate(given):
                self.check_input(f"{label}.{position}", type_.element, array)
            return
        shape, array = self.shape(type_), np.asarray(given)
        assert array.shape == shape, f"{label} has shape {array.shape}, not {shape}"
        assert array.dtype == type_.dtype.numpy, f"{label} is {array.dtype}, not {type_.dtype}"


def _tensor(type_: Type) -> TensorType:
    assert isinstance(type_, TensorType)
    return type_

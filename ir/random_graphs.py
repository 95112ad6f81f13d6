"""Random graphs and inputs for them: what property tests and fuzzers of the Graph draw from.

A graph is made by a seed alone. Its values stay small (functions that grow are followed by `tanh`), its dimensions have
names, and its subscripts that depend on data may fall outside, as the language allows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, Array
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.interpreter import bind_sizes
from intarsia.ir.ops import (
    ArgReduce,
    Argsort,
    BroadcastTo,
    Cast,
    Compute,
    Concat,
    Constant,
    Cumulative,
    Elementwise,
    ListGet,
    Loop,
    Matmul,
    Pad,
    Reduce,
    Reshape,
    Slice,
    Sort,
    Transpose,
    Update,
)
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.ops.reduction import accumulated
from intarsia.ir.points import Operand
from intarsia.ir.scalar import Apply, Expr, Index, Load, apply, where
from intarsia.ir.sizes import ONE, ZERO, Size, maximum, minimum, product
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import ListType, TensorType, Type

DIMENSIONS = ("N", "M", "K")


def random_module(seed: int, nodes: int = 12) -> Module:
    """A graph with about this many nodes."""
    maker = _Maker(random.Random(seed))
    for _ in range(nodes):
        maker.add_node()
    results = maker.pool[-1:] + [v for v in maker.pool[:-1] if maker.random.random() < 0.2]
    parameters = [v.node for v in maker.parameters if isinstance(v.node, Parameter)]
    return Module(Graph("f", Region.of(parameters, results), DIMENSIONS))


def random_inputs(module: Module, seed: int, sizes: Mapping[str, int]) -> list[Operand]:
    """Values for the parameters of a module."""
    generator = np.random.default_rng(seed)
    found: list[Operand] = []
    for parameter in module.graph.parameters:
        match parameter.type:
            case ListType(length, element):
                count = length.evaluate(sizes)
                found.append([random_array(generator, element, sizes) for _ in range(count)])
            case TensorType() as tensor:
                found.append(random_array(generator, tensor, sizes))
    assert bind_sizes(module.graph, found, sizes) == dict(sizes)
    return found


def random_array(generator: np.random.Generator, type_: TensorType, sizes: Mapping[str, int]) -> Array:
    """Floats of about 1, integers from -3 to 12 as far as the dtype has them."""
    shape = tuple(s.evaluate(sizes) for s in type_.shape)
    if type_.dtype.is_float:
        return convert(generator.standard_normal(shape), F64, type_.dtype)
    if type_.dtype == BOOL:
        return generator.random(shape) < 0.5
    low = -3 if type_.dtype.is_signed else 0
    return convert(generator.integers(low, 13, shape), I64, type_.dtype)


class _Maker:
    """Adds random nodes to a pool of values."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        n, m, k = map(Size.of, DIMENSIONS)
        types: tuple[Type, ...] = (
            TensorType(F32, (n, m)),
            TensorType(F32, (m, k)),
            TensorType(F32, (k,)),
            TensorType(I64, (n,)),
            TensorType(self.random.choice((BF16, F16, F64)), (n, k)),
            TensorType(self.random.choice((I8, U8, I32, BOOL)), (n, m)),
            TensorType(F32),
            ListType(Size.of(3), TensorType(F32, (m,))),
        )
        named = [Parameter(f"p{i}", t, constant=i == 1) for i, t in enumerate(types)]
        self.parameters = [p.value for p in named]
        self.weights = self.parameters.pop()
        self.pool = list(self.parameters)
        self.parameters.append(self.weights)
        self.counters = 0

    def pick(self, fits: Callable[[TensorType], bool] = lambda t: True) -> Value | None:
        """A value that fits, more often a late one."""
        found = [v for v in self.pool if fits(v.tensor)]
        return found[min(len(found) - 1, int(len(found) * self.random.random() ** 0.5))] if found else None

    def add_node(self) -> None:
        """One more node, whichever fits first in a random order."""
        makers = [
            self.unary, self.binary, self.select, self.cast, self.reduce, self.matmul, self.transpose, self.reshape,
            self.slice, self.pad, self.concat, self.broadcast, self.order, self.shifted, self.gather, self.triangle,
            self.update, self.scatter, self.loop, self.scan, self.list_get, self.unary, self.binary, self.constant,
        ]  # fmt: skip
        self.random.shuffle(makers)
        for make in makers:
            node = make()
            if node is not None:
                self.pool += node.values
                return

    # ------------------------------------------------------------------ ops

    def unary(self) -> Node | None:
        x = self.pick(lambda t: t.dtype.is_float)
        function = self.random.choice(("tanh", "sin", "abs", "neg", "sigmoid", "floor", "exp"))
        if x is None:
            return None
        if function == "exp":
            x = Elementwise("tanh", (x,)).value
        return Elementwise(function, (x,))

    def binary(self) -> Node | None:
        a = self.pick(lambda t: t.dtype not in (BOOL, I8, U8))
        b = a and self.pick(lambda t: t.dtype == a.dtype and t.shape in (a.tensor.shape, a.tensor.shape[1:], ()))
        if a is None or b is None:
            return None
        function = self.random.choice(("add", "sub", "mul", "maximum", "minimum"))
        result = Elementwise(function, (a, b))
        if a.dtype.is_float and function in ("mul", "add", "sub"):
            return Elementwise("tanh", (result.value,))
        return result

    def select(self) -> Node | None:
        a = self.pick()
        b = a and self.pick(lambda t: t == a.tensor)
        if a is None or b is None or a.dtype == BOOL:
            return None
        condition = Elementwise(self.random.choice(("lt", "ge", "ne")), (a, b)).value
        return Elementwise("where", (condition, b, a))

    def cast(self) -> Node | None:
        x = self.pick()
        return Cast(x, self.random.choice((F32, F32, F64, I32, I64, BF16, F16, BOOL, I8))) if x else None

    def constant(self) -> Node | None:
        dtype = self.random.choice((F32, F32, I64, BF16))
        return Constant(self.random.choice((0, 1, -2, 0.5)), dtype)

    def reduce(self) -> Node | None:
        x = self.pick(lambda t: t.rank > 0 and not t.dtype.is_narrow)
        if x is None:
            return None
        axes = tuple(d for d in range(x.tensor.rank) if self.random.random() < 0.6) or (0,)
        combiners = ("any", "all") if x.dtype == BOOL else ("sum", "max", "min")
        node = Reduce(x, self.random.choice(combiners), axes, self.random.random() < 0.5)
        return Elementwise("tanh", (node.value,)) if x.dtype.is_float and node.combiner == "sum" else node

    def matmul(self) -> Node | None:
        a = self.pick(lambda t: t.rank in (1, 2) and t.dtype != BOOL)
        b = a and self.pick(lambda t: t.rank in (1, 2) and t.dtype == a.dtype and t.shape[0] == a.tensor.shape[-1])
        return Matmul(a, b) if a and b else None

    def transpose(self) -> Node | None:
        x = self.pick(lambda t: t.rank > 1)
        if x is None:
            return None
        axes = list(range(x.tensor.rank))
        self.random.shuffle(axes)
        return Transpose(x, tuple(axes))

    def reshape(self) -> Node | None:
        x = self.pick(lambda t: t.rank > 1)
        if x is None:
            return None
        shape = x.tensor.shape
        new = self.random.choice(
            ((product(shape),), (shape[0], product(shape[1:])), (ONE, *shape), tuple(reversed(shape)))
        )
        return Reshape(x, new)

    def slice(self) -> Node | None:
        x = self.pick(lambda t: t.rank > 0)
        if x is None:
            return None
        parts: list[tuple[Size, Size, int]] = []
        dropped: list[int] = []
        for d, extent in enumerate(x.tensor.shape):
            choices = [(ZERO, extent, 1), (extent // 2, extent - extent // 2, 1), (ZERO, (extent + 1) // 2, 2)]
            if extent.constant != 0:
                choices.append((ZERO, ONE, 1))
            parts.append(self.random.choice(choices))
            if parts[-1][1] == ONE and self.random.random() < 0.5:
                dropped.append(d)
        starts, extents, steps = zip(*parts)
        return Slice(x, starts, extents, steps, tuple(dropped))

    def pad(self) -> Node | None:
        x = self.pick(lambda t: t.rank > 0)
        if x is None:
            return None
        before, after = ([Size.of(self.random.randrange(3)) for _ in x.tensor.shape] for _ in range(2))
        return Pad(x, tuple(before), tuple(after), self.random.choice((0, 1)))

    def concat(self) -> Node | None:
        a = self.pick(lambda t: t.rank > 0)
        b = a and self.pick(
            lambda t: t.rank == a.tensor.rank and t.dtype == a.dtype and t.shape[1:] == a.tensor.shape[1:]
        )
        return Concat((a, b, a)[: self.random.choice((2, 3))], 0) if a and b else None

    def broadcast(self) -> Node | None:
        x = self.pick(lambda t: t.rank < 2)
        return BroadcastTo(x, (Size.of(self.random.choice(DIMENSIONS)), *x.tensor.shape)) if x else None

    def order(self) -> Node | None:
        x = self.pick(lambda t: t.rank > 0 and t.dtype not in (BOOL,))
        if x is None or x.tensor.shape[-1].constant == 0:
            return None
        match self.random.randrange(4):
            case 0:
                return Sort(x)
            case 1:
                return Argsort(x)
            case 2:
                node = Cumulative(x, "sum", self.random.randrange(x.tensor.rank))
                return Elementwise("tanh", (node.value,)) if x.dtype.is_float else node
        return ArgReduce(x, self.random.choice(("argmax", "argmin")), x.tensor.rank - 1)

    def shifted(self) -> Node | None:
        """`where(i > 0, x[i - 1], x[i])`."""
        x = self.pick(lambda t: t.rank > 0)
        if x is None:
            return None
        axes = axes_for(x.tensor.shape)
        i, *rest = (Size.of(a.name) for a in axes)
        before = Load("a0", (i - 1, *rest), x.dtype)
        body = where(apply("gt", Index(i), Index(ZERO)), before, Load("a0", (i, *rest), x.dtype))
        return Compute((x,), Space(axes, body, x.dtype))

    def gather(self) -> Node | None:
        x, ids = self.pick(lambda t: t.rank > 0), self.pick(lambda t: t.rank == 1 and t.dtype in (I64, I32))
        if x is None or ids is None:
            return None
        axes = axes_for((*ids.tensor.shape, *x.tensor.shape[1:]))
        i, *rest = (Size.of(a.name) for a in axes)
        index = Size.opaque(Load("a0", (i,), ids.dtype)) + self.random.randrange(-1, 2)
        return Compute((ids, x), Space(axes, Load("a1", (index, *rest), x.dtype), x.dtype))

    def triangle(self) -> Node | None:
        """`sum[k < minimum(i + 1, extent)](x[i, k] * x[i, k])`, or over a range that data gives."""
        x = self.pick(lambda t: t.rank == 2 and t.dtype in (F32, BF16, I64))
        if x is None:
            return None
        rows, columns = x.tensor.shape
        i, k = Size.of("i"), Size.of("k")
        load = Load("a0", (i, k), x.dtype)
        ids = self.pick(lambda t: t.dtype == I64 and t.shape == (rows,))
        upper = minimum(i + 1, columns)
        operands: tuple[Value, ...] = (x,)
        if ids is not None and self.random.random() < 0.5:
            upper = minimum(Size.opaque(Load("a1", (i,), I64)), columns)
            operands = (x, ids)
        combiner = self.random.choice(("sum", "max"))
        body, dtype = accumulated(combiner, Apply("mul", (load, load)))
        space = Space((Axis.of("i", rows),), body, dtype, (Axis("k", ZERO, maximum(upper, 0)),), combiner)
        node = Compute(operands, space)
        return Elementwise("tanh", (node.value,)) if dtype.is_float else node

    def update(self) -> Node | None:
        """`update x[i in 1..n, …] = …` of old elements."""
        x = self.pick(lambda t: t.rank > 0 and t.dtype.is_float)
        if x is None:
            return None
        first, *others = x.tensor.shape
        axes = (Axis("i", ONE, first), *axes_for(tuple(others), "j"))
        i, *rest = targets = tuple(Size.of(a.name) for a in axes)
        body: Expr = Load("a0", (i - 1, *rest), x.dtype)
        return Update(x, (), axes, targets, self.random.choice(("=", "+=", "max=")), apply("tanh", body))

    def scatter(self) -> Node | None:
        """`update x[ids[i]] += …`; targets repeat and may be outside."""
        x, ids = self.pick(lambda t: t.rank == 1), self.pick(lambda t: t.rank == 1 and t.dtype in (I64, I32))
        if x is None or ids is None or x.dtype == BOOL:
            return None
        target = Size.opaque(Load("a1", (Size.of("i"),), ids.dtype))
        value = apply("mul", *[Load("a0", (minimum("i", maximum(x.tensor.shape[0] - 1, 0)),), x.dtype)] * 2)
        if x.dtype.is_float:
            value = apply("tanh", value)
        axes = (Axis.of("i", minimum(ids.tensor.shape[0], x.tensor.shape[0])),)
        return Update(x, (ids,), axes, (target,), self.random.choice(("+=", "max=", "min=")), value)

    def loop(self) -> Node | None:
        x = self.pick(lambda t: t.dtype.is_float)
        if x is None:
            return None
        state, counter = Parameter("h", x.tensor), self.counter()
        step = Elementwise("tanh", (Elementwise("add", (state.value, x)).value,)).value
        body = Region.of((state,), (step,), frozenset((x.node,)))
        condition = None
        if self.random.random() < 0.5 and x.tensor.shape:
            tested = Parameter("h", x.tensor)
            every = tuple(range(x.tensor.rank))
            total = Cast(Reduce(tested.value, "max", every).value, F32).value
            small = Elementwise("lt", (total, Constant(0.9, F32).value)).value
            condition = Region.of((tested,), (small,))
        return Loop(counter, ZERO, Size.of("N"), (), (x,), body, condition)

    def scan(self) -> Node | None:
        x = self.pick(lambda t: t.rank == 2 and t.dtype.is_float)
        if x is None or x.tensor.shape[1].constant == 0:
            return None
        rows, columns = x.tensor.shape
        state, counter = Parameter("h", TensorType(x.dtype, (columns,))), self.counter()
        row = Slice.row(x, Size.of(counter)).value
        step = Elementwise("tanh", (Elementwise("add", (state.value, row)).value,)).value
        body = Region.of((state,), (step, row), frozenset((x.node,)))
        initial = BroadcastTo(Constant(0, x.dtype).value, (columns,)).value
        return Loop(counter, ZERO, rows, (), (initial,), body, None, 1)

    def list_get(self) -> Node | None:
        scalar = self.pick(lambda t: t.rank == 0 and t.dtype == I64)
        if scalar is not None:
            return ListGet(self.weights, Size.opaque(Load("a0", (), I64)), (scalar,))
        return ListGet(self.weights, Size.of(self.random.randrange(3)))

    def counter(self) -> str:
        self.counters += 1
        return f"t{self.counters}"


def random_sizes(seed: int, choices: Sequence[int] = (1, 2, 3, 4, 5, 7)) -> dict[str, int]:
    """Numbers for the dimensions of a random module."""
    generator = random.Random(seed)
    return {name: generator.choice(choices) for name in DIMENSIONS}

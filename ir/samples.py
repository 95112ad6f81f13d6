"""One or more nodes of every op that has a name: what the tests of all ops, and their documentation, are drawn from."""

from __future__ import annotations

import itertools

from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, DType, dtype
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Node, Parameter, Value
from intarsia.ir.ops import (
    ArgReduce,
    Argsort,
    BitcastOp,
    BroadcastTo,
    Cast,
    Concat,
    Constant,
    Cumulative,
    Elementwise,
    Matmul,
    Pad,
    Reduce,
    Reshape,
    Shard,
    Slice,
    Sort,
    Transpose,
)
from intarsia.ir.sharding import Sharding
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.types import TensorType


def samples() -> tuple[Node, ...]:
    """Nodes with numbers for sizes; the first of each op, and of each elementwise function, is the plainest."""
    return tuple(itertools.chain(_elementwise(), _conversions(), _reductions(), _products(), _shapes(), _orders()))


def _x(dtype_: DType, *shape: int, label: str = "x") -> Value:
    return Parameter(label, TensorType.of(dtype_, *shape)).value


def _sizes(*numbers: int) -> tuple[Size, ...]:
    return tuple(map(Size.of, numbers))


def _elementwise() -> list[Node]:
    found: list[Node] = []
    for function in FUNCTIONS.values():
        for dtype_ in (F32, I32, BOOL, BF16, U8, F64):
            if function.accepts(dtype_) or function.name == "where":
                arguments = [_x(dtype_, 4, 3, label=name) for name in "xyz"[: function.arity]]
                if function.name == "where":
                    arguments[0] = _x(BOOL, 4, 3, label="condition")
                try:
                    function.result(tuple(a.dtype for a in arguments))
                except TypeError:  # a function whose arguments differ in dtype
                    continue
                found.append(Elementwise(function.name, tuple(arguments)))
    broadcast = (_x(F32, 4, 1, 3), _x(F32, 2, 1, label="y"))
    return [*found, Elementwise("mul", broadcast), Elementwise("sub", (_x(F32, 0, 3), _x(F32, label="y")))]


def _conversions() -> list[Node]:
    f8, i4 = dtype("f8e4m3"), dtype("i4")
    assert f8 is not None and i4 is not None
    pairs = ((F32, I32), (F32, BF16), (BF16, F32), (I32, U8), (F64, F16), (F32, f8), (f8, F32), (I8, i4), (BOOL, F32))
    casts = [Cast(_x(a, 3, 4), b) for a, b in pairs]
    literals = [Constant(1.5, F32), Constant(-3, I8), Constant(True, BOOL), Constant(float("nan"), BF16)]
    return [*casts, BitcastOp(_x(F32, 5), I32), BitcastOp(_x(U8, 5), I8), *literals]


def _reductions() -> list[Node]:
    found: list[Node] = [Reduce(_x(F32, 4, 5), combiner, (1,)) for combiner in ("sum", "prod", "max", "min")]
    found += [Reduce(_x(BOOL, 4, 5), combiner, (0,)) for combiner in ("any", "all", "sum")]
    for dtype_ in (BF16, F16, I8, U8, I64):
        found.append(Reduce(_x(dtype_, 3, 4, 5), "sum", (0, 2), keepdims=True))
    found += [Reduce(_x(F32, 4, 5), "max", ()), Reduce(_x(F32, 4, 0), "min", (1,)), Reduce(_x(F32, 4), "sum", (0,))]
    found += [
        ArgReduce(_x(F32, 4, 5), "argmax", 1),
        ArgReduce(_x(BF16, 4, 5), "argmin", 0),
        ArgReduce(_x(I8, 6), "argmax", 0),
    ]
    return found


def _products() -> list[Node]:
    shapes = (
        ((4, 5), (5, 3)),
        ((5,), (5,)),
        ((4, 5), (5,)),
        ((5,), (5, 3)),
        ((2, 1, 4, 5), (3, 5, 6)),
        ((4, 0), (0, 3)),
    )
    found: list[Node] = [Matmul(_x(F32, *a), _x(F32, *b, label="y")) for a, b in shapes]
    return found + [Matmul(_x(t, 4, 5), _x(t, 5, 3, label="y")) for t in (BF16, F16, I8, I64, F64)]


def _shapes() -> list[Node]:
    x = _x(F32, 4, 6)
    return [
        Reshape(x, _sizes(24)),
        Reshape(x, _sizes(3, 8)),
        Reshape(_x(I8, 2, 3, 4), _sizes(6, 1, 4)),
        Reshape(_x(F32), _sizes(1, 1)),
        Transpose(x, (1, 0)),
        Transpose(_x(BF16, 2, 3, 4), (2, 0, 1)),
        BroadcastTo(_x(F32, 3, 1), _sizes(2, 3, 4)),
        BroadcastTo(_x(F32), _sizes(2, 3)),
        Slice(x, _sizes(1, 0), _sizes(2, 3), (1, 2)),
        Slice(x, _sizes(3, 5), _sizes(1, 6), (1, -1), (0,)),
        Slice(_x(F32, 5), (ZERO,), (ONE,), (1,), (0,)),
        Pad(x, _sizes(1, 0), _sizes(0, 2), 0.0),
        Pad(_x(I8, 3), _sizes(2), _sizes(1), -1),
        Concat((x, _x(F32, 2, 6, label="y")), 0),
        Shard(x, shardings=(Sharding.parse(("a", ""), ""),)),
        Concat((x, _x(F32, 4, 0, label="y"), _x(F32, 4, 1, label="z")), 1),
    ]


def _orders() -> list[Node]:
    return [
        Sort(_x(F32, 3, 7)),
        Sort(_x(BF16, 7)),
        Argsort(_x(I32, 3, 7)),
        Argsort(_x(F32, 7)),
        Cumulative(_x(F32, 3, 7), "sum", 1),
        Cumulative(_x(I8, 3, 7), "prod", 0),
        Cumulative(_x(BOOL, 7), "sum", 0),
        Cumulative(_x(BF16, 3, 7), "sum", 0),
    ]

"""A small program for every kind of op, of every dtype that it takes: `PROGRAMS` by name.

Inputs are small integers, so that sums are exact in any order and the levels of the compiler agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graph_shorthands import (
    Program,
    binary,
    data,
    fused,
    i,
    j,
    load,
    loop,
    parameter,
    program,
    scalar,
    unary,
    update,
)

from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U64, DType
from intarsia.ir.graph import Parameter, Region, Value
from intarsia.ir.ops import (
    ArgReduce,
    Argsort,
    BroadcastTo,
    Cast,
    Compute,
    Concat,
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
)
from intarsia.ir.scalar import Const, Expr, Index, Load, apply, where
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import ListType, TensorType


def elementwise_chain(dtype: DType) -> Program:
    x, y = parameter("x", dtype, 3, 5), parameter("y", dtype, 5)
    total = binary("add", binary("mul", x.value, y.value), scalar(2, dtype))
    return program([x, y], [binary("maximum", total, x.value), total])


def fused_chain(dtype: DType) -> Program:
    x, y = parameter("x", dtype, 3, 5), parameter("y", dtype, 5)
    product = binary("mul", x.value, y.value)
    total = binary("add", product, scalar(2, dtype))
    return program([x, y], fused(binary("maximum", total, x.value), total, total))


def softmax(dtype: DType) -> Program:
    x = parameter("x", dtype, 3, 5)
    shifted = binary("sub", x.value, Reduce(x.value, "max", (1,), True).value)
    e = unary("exp2", shifted)
    return program([x], fused(binary("div", e, Reduce(e, "sum", (1,), True).value)))


def reduction(dtype: DType, combiner: str, axes: tuple[int, ...], keepdims: bool, *shape: int) -> Program:
    x = parameter("x", dtype, *shape)
    return program([x], [Reduce(x.value, combiner, axes, keepdims).value])


def reduction_and_more(dtype: DType) -> Program:
    """The rounded sum is a result and used again."""
    x = parameter("x", dtype, 4, 6)
    total = Reduce(x.value, "sum", (1,), True).value
    again = Reduce(x.value, "sum", (1,), True).value
    return program(
        [x], fused(total, binary("sub", Cast(x.value, total.dtype).value, total), binary("mul", again, again))
    )


def matmul(dtype: DType, left: tuple[int, ...], right: tuple[int, ...]) -> Program:
    a, b = parameter("a", dtype, *left), parameter("b", dtype, *right)
    return program([a, b], [Matmul(a.value, b.value).value])


def feed_forward() -> Program:
    """A dear function between two products is stored; the bias is put into it."""
    x, w, b, v = (
        parameter("x", F32, 3, 4),
        parameter("w", F32, 4, 5),
        parameter("b", F32, 5),
        parameter("v", F32, 5, 2),
    )
    hidden = unary("exp2", binary("add", Matmul(x.value, w.value).value, b.value))
    return program([x, w, b, v], fused(Matmul(hidden, v.value).value))


def views() -> Program:
    x = parameter("x", F32, 4, 6)
    t = Transpose(x.value, (1, 0)).value
    s = Slice(Reshape(t, (Size.of(3), Size.of(8))).value, (ONE, ZERO), (Size.of(2), Size.of(4)), (1, 2)).value
    p = Pad(s, (ONE, ZERO), (ZERO, Size.of(2)), 7.0).value
    c = Concat((p, p, p), 1).value
    return program([x], fused(c, Reduce(p, "sum", (0,)).value))


def lone_views() -> Program:
    x = parameter("x", I32, 2, 6)
    return program(
        [x],
        [
            Reshape(x.value, (Size.of(3), Size.of(4))).value,
            Transpose(x.value, (1, 0)).value,
            BroadcastTo(scalar(3, I32), (Size.of(2), Size.of(2))).value,
            scalar(5, F64),
            x.value,
        ],
    )


def convolution() -> Program:
    """Padding is put into the sum as masked loads."""
    x, w = parameter("x", F32, 2, 7, 5), parameter("w", F32, 3, 2, 3, 3)
    padded = Pad(x.value, (ZERO, ONE, ONE), (ZERO, ONE, ONE), 0.0).value
    axes = (Axis.of("o", 3), Axis.of("i", 7), Axis.of("j", 5))
    body = apply("mul", load(0, F32, "c", i + "r", j + "s"), load(1, F32, "o", "c", "r", "s"))
    space = Space(axes, body, F32, (Axis.of("c", 2), Axis.of("r", 3), Axis.of("s", 3)), "sum")
    return program([x, w], fused(Compute((padded, w.value), space).value))


def triangular() -> Program:
    """Bounds of a reduction that use an axis, and a guarded read of the row before."""
    x = parameter("x", F32, 5, 5)
    space = Space((Axis.of("i", 5),), load(0, F32, "i", "k"), F32, (Axis("k", ZERO, i + 1),), "sum")
    before = where(apply("gt", Index(i), Index(ZERO)), load(0, F32, i - 1, "j"), Const(-1.0, F32))
    shifted = Space((Axis.of("i", 5), Axis.of("j", 5)), before, F32)
    return program([x], [Compute((x.value,), space).value, Compute((x.value,), shifted).value])


def sparse_rows() -> Program:
    """A product with a matrix in CSR form: bounds, here partly outside, and subscripts that depend on data."""
    start, column = parameter("start", I64, 5), parameter("column", I32, 6)
    value, x = parameter("value", F32, 6), parameter("x", F32, 3)
    row = Axis("p", Size.opaque(load(0, I64, "i")), Size.opaque(load(0, I64, i + 1)))
    gathered = load(3, F32, Size.opaque(load(2, I32, "p")))
    space = Space((Axis.of("i", 4),), apply("mul", load(1, F32, "p"), gathered), F32, (row,), "sum")
    node = Compute((start.value, value.value, column.value, x.value), space)
    return program(
        [start, column, value, x],
        [node.value],
        start=np.array([-2, 2, 2, 5, 9]),
        column=np.array([0, 2, 1, 9, -3, 0], np.int32),
    )


def gather(dtype: DType) -> Program:
    """Ids outside are clamped, also through a view that is put into the gather."""
    table, ids = parameter("table", F32, 6, 3), parameter("ids", dtype, 4)
    tail = Slice(table.value, (Size.of(2), ZERO), (Size.of(4), Size.of(3)), (1, 1)).value
    space = Space((Axis.of("i", 4), Axis.of("j", 3)), load(0, F32, Size.opaque(load(1, dtype, "i")), "j"), F32)
    given = np.array([0, 3, 200, 5]).astype(dtype.numpy)
    return program([table, ids], fused(Compute((tail, ids.value), space).value), ids=given)


def gather_from_nothing() -> Program:
    table, ids = parameter("table", F32, 0, 3), parameter("ids", I64, 4)
    space = Space((Axis.of("i", 4), Axis.of("j", 3)), load(0, F32, Size.opaque(load(1, I64, "i")), "j"), F32)
    return program([table, ids], [Compute((table.value, ids.value), space).value])


def index_values() -> Program:
    space = Space((Axis.of("i", 4), Axis.of("j", 3)), Index(i * 10 + j), I64)
    iota = Compute((), space).value
    return program([], fused(iota, binary("mul", iota, iota)))


def arg_reduce(dtype: DType, which: str, axis: int) -> Program:
    x = parameter("x", dtype, 3, 6, 2)
    given = data(dtype, 3, 6, 2)
    if dtype.is_float:
        given[1, 2, 0] = given[1, 4, 0] = np.nan
        given[2] = -np.inf
    return program([x], [ArgReduce(x.value, which, axis).value], x=given)


def arg_reduce_of_sum() -> Program:
    x = parameter("x", I64, 3, 6)
    total = binary("add", x.value, scalar(1, I64))
    return program([x], fused(ArgReduce(total, "argmin", 1).value, Reduce(total, "min", (1,)).value))


def cumulative(dtype: DType, combiner: str, axis: int) -> Program:
    x = parameter("x", dtype, 2, 5, 3)
    return program([x], [Cumulative(x.value, combiner, axis).value])


def cumulative_in_group() -> Program:
    x = parameter("x", F16, 2, 5)
    total = Cumulative(binary("add", x.value, x.value), "sum", 1).value
    return program([x], fused(binary("mul", total, total)))


def sort(dtype: DType) -> Program:
    x = parameter("x", dtype, 2, 3, 7)
    given = data(dtype, 2, 3, 7)
    if dtype.is_float:
        given[1, 1, 2] = np.nan
    return program([x], [Sort(x.value).value, Argsort(x.value).value], x=given)


def sort_in_group() -> Program:
    x = parameter("x", F32, 3, 7)
    return program([x], fused(unary("neg", Sort(unary("neg", x.value)).value)))


def jacobi(base: Value, n: int) -> Value:
    """A stencil: the body reads elements that other points write."""
    axes = (Axis("i", ONE, Size.of(n - 1)), Axis("j", ONE, Size.of(n - 1)))
    body = apply("add", load(0, F32, i - 1, "j"), load(0, F32, "i", j + 1))
    return update(base, (), axes, ("i", "j"), "=", body)


def doubled(base: Value, rows: int) -> Value:
    """A region that reads only what it writes."""
    axes = (Axis("i", ONE, Size.of(rows)), Axis.of("j", base.tensor.shape[1]))
    return update(base, (), axes, ("i", "j"), "=", apply("add", load(0, F32, "i", "j"), load(0, F32, "i", "j")))


def updates() -> Program:
    a, bins = parameter("a", F32, 4, 4), parameter("bins", I32, 9)
    histogram = update(
        BroadcastTo(scalar(0, I32), (Size.of(3),)).value,
        (bins.value,),
        (Axis.of("i", 9),),
        (Size.opaque(load(1, I32, "i")),),
        "+=",
        Const(1, I32),
    )
    twice = update(a.value, (), (Axis.of("i", 4), Axis.of("j", 4)), (i // 2, "j"), "+=", load(0, F32, "i", "j"))
    return program(
        [a, bins],
        [jacobi(a.value, 4), doubled(a.value, 3), doubled(doubled(a.value, 3), 2), histogram, twice],
    )


def diagonals() -> Program:
    """Targets that are no box, though each of them is an axis or a part of one; a copy keeps the rest."""
    a = parameter("a", F32, 4, 4)
    places = ((i, i), (i, i % 3), (i % 3, i), (i, (i + 1) // 2))
    first = load(0, F32, "i", ZERO)
    return program([a], [update(a.value, (), (Axis.of("i", 4),), place, "=", first) for place in places])


def updates_in_group() -> Program:
    a, bins = parameter("a", F32, 4, 4), parameter("bins", I32, 9)
    zeros = BroadcastTo(scalar(0, F32), (Size.of(4), Size.of(4))).value
    body = load(2, F32, Size.opaque(load(1, I32, "i")), ZERO)
    counted = update(
        zeros, (bins.value, a.value), (Axis.of("i", 9),), (Size.opaque(load(1, I32, "i")), 1), "max=", body
    )
    rows = Reduce(a.value, "sum", (1,)).value
    changed = update(rows, (), (Axis.of("i", 3),), (i + 1,), "*=", Const(2.0, F32))
    e = unary("exp2", rows)
    after = unary("exp2", changed)
    return program(
        [a, bins],
        fused(
            counted,
            binary("add", Reduce(e, "sum", (0,)).value, binary("mul", e, after)),
            jacobi(binary("add", a.value, a.value), 4),
        ),
    )


def update_rows(base: Value, body: Expr, n: int) -> Value:
    """Row t, from column 1 on."""
    return update(base, (), (Axis("j", ONE, Size.of(n)),), ("t", "j"), "=", body)


def tables() -> Program:
    """Updates in loops that read what other steps wrote: rows before, diagonals, single elements, a sum before them."""
    a = parameter("a", F32, 5, 5)
    before = apply("add", load(0, F32, Size.of("t") - 1, "j"), load(0, F32, Size.of("t") - 1, j - 1))
    (rows,) = loop([a.value], lambda s: [update_rows(s, before, 5)], 1, 5)
    # The row that it writes is read one column on: the result begins as a copy.
    (shifted,) = loop([a.value], lambda s: [update_rows(s, load(0, F32, "t", j - 1), 5)], 1, 5, "t")

    def diagonal(s: Value) -> Sequence[Value]:
        axes = (Axis.of("i", Size.of(5) - "t"),)
        body = apply("add", load(0, F32, "i", i + "t" - 1), load(0, F32, i + 1, i + "t"))
        return [update(s, (), axes, ("i", i + "t"), "=", body)]

    (diagonals,) = loop([a.value], diagonal, 1, 5)

    def point(s: Value) -> Sequence[Value]:
        body = apply("add", load(0, F32, Size.of("t") - 1, "t"), load(0, F32, "t", Size.of("t") - 1))
        return [update(s, (), (), ("t", "t"), "=", body)]

    (points,) = loop([a.value], point, 1, 5)

    def solved(s: Value) -> Sequence[Value]:
        space = Space((Axis.of("i", 5),), load(0, F32, "i", "k"), F32, (Axis("k", ZERO, Size.of("c")),), "sum")
        total = Compute((s,), space).value
        body = apply("sub", load(1, F32, "i"), load(0, F32, "i", "c"))
        return fused(update(s, (total,), (Axis.of("i", 5),), ("i", "c"), "=", body))

    (columns,) = loop([a.value], solved, 0, 5, "c")
    return program([a], [rows, shifted, diagonals, points, columns])


def updates_of_stored_values() -> Program:
    """A temporary becomes the result; a value that is read later, or is a result too, is not changed."""
    a = parameter("a", F32, 4, 4)
    e = unary("exp2", a.value)
    first = doubled(e, 3)
    kept = unary("exp2", binary("add", a.value, a.value))
    second = doubled(kept, 3)
    return program([a], [*fused(first), *fused(second, binary("add", kept, Reduce(kept, "sum", (0,)).value))])


def shared_stages() -> Program:
    """Equal reductions are computed once, and never after an update has changed what they read."""
    a = parameter("a", F32, 3, 4)
    first, second = Reduce(a.value, "sum", (0,)).value, Reduce(a.value, "sum", (0,)).value
    return program([a], fused(binary("add", first, second), binary("mul", first, first)))


def causal_scores() -> Program:
    q = parameter("q", F32, 2, 5, 3)
    axes = (Axis.of("h", 2), Axis.of("i", 5), Axis.of("j", 5))
    product = apply("mul", load(0, F32, "h", "i", "d"), load(0, F32, "h", "j", "d"))
    score = Compute((q.value,), Space(axes, product, F32, (Axis.of("d", 3),), "sum")).value
    seen = where(apply("le", Index(j), Index(i)), load(0, F32, "h", "i", "j"), Const(-float("inf"), F32))
    masked = Compute((score,), Space(axes, seen, F32)).value
    e = unary("exp2", binary("sub", masked, Reduce(masked, "max", (2,), True).value))
    p = binary("div", e, Reduce(e, "sum", (2,), True).value)
    return program([q], fused(Matmul(p, q.value).value))


def dynamic_rows() -> Program:
    """Names that stay open: shapes, a window that needs no guard, and one whose guard cannot be proved."""
    x, w = parameter("x", F32, "B", "N"), parameter("w", F32, "N", 3)
    y = Matmul(x.value, w.value).value
    axes = (Axis.of("i", "B"), Axis("j", ZERO, Size.of("N") - 1))
    pairs = Compute((x.value,), Space(axes, apply("add", load(0, F32, "i", "j"), load(0, F32, "i", j + 1)), F32)).value
    return program([x, w], [y, pairs, *fused(Reduce(binary("mul", y, y), "sum", (0, 1)).value)], {"B": 2, "N": 5})


def bits_and_casts() -> Program:
    x = parameter("x", I8, 2, 5)
    wide = Cast(x.value, F32).value
    back = Cast(binary("mul", wide, scalar(40, F32)), I8).value
    return program([x], fused(back, binary("floordiv", x.value, back), binary("mod", x.value, back)))


def loops() -> Program:
    a, n = parameter("a", F32, 4, 4), parameter("n", I64)
    (stencil,) = loop([a.value], lambda s: [jacobi(s, 4)], 0, 3)
    (in_place,) = loop([a.value], lambda s: [doubled(s, 3)], 0, 3, "u")
    zero = unary("neg", a.value)
    until, _ = loop(
        [zero, zero],
        lambda s, t: [binary("add", s, t), s],
        1,
        Size.opaque(load(0, I64)) + 1,
        "v",
        [n.value],
        lambda s, t: binary("lt", Reduce(s, "max", (0, 1)).value, scalar(50, F32)),
    )
    return program([a, n], [stencil, in_place, until], n=np.array(4))


def scans() -> Program:
    x, h = parameter("x", F32, 5, 3), parameter("h", F32, 3)

    def step(state: Value) -> Value:
        axes = (Axis.of("i", 3),)
        body = apply("add", load(0, F32, "i"), load(1, F32, "t", "i"))
        return Compute((state, x.value), Space(axes, body, F32)).value

    states = Parameter("h", h.type)
    new = step(states.value)
    stop: frozenset[Any] = frozenset()
    node = Loop(
        "t",
        ZERO,
        Size.of(5),
        (),
        (h.value,),
        Region.of([states], (new, new, unary("neg", new), h.value), stop),
        None,
        3,
    )
    return program([x, h], node.values)


def nested_loops() -> Program:
    """Fibonacci in a scan of a loop: states that change places, a value passed through, a counter inside."""
    a, b = parameter("a", I64, 3), parameter("b", I64, 3)

    def inner(p: Value, q: Value) -> tuple[Value, ...]:
        return loop([p, q], lambda s, t: [t, binary("add", s, t)], 0, Size.of("t") + 1, "u")

    outer = [Parameter("p", a.type), Parameter("q", b.type), Parameter("c", b.type)]
    p, q, c = (o.value for o in outer)
    next_p, next_q = inner(p, q)
    body = Region.of(outer, (next_q, next_p, c, next_p, c))
    node = Loop("t", ZERO, Size.of(4), (), (a.value, b.value, b.value), body, None, 2)
    return program([a, b], node.values)


def swaps() -> Program:
    a, b = parameter("a", F32, 3), parameter("b", F32, 3)
    x, y = unary("neg", a.value), unary("neg", b.value)
    return program([a, b], [*loop([x, y], lambda s, t: [t, s], 0, 3), *loop([x, x], lambda s, t: [s, x], 0, 0, "u")])


def escape(dtype: DType) -> Program:
    """A loop on each element by itself: states of two types, a value used by several, a dear one, a bound by data."""
    c, n = parameter("c", dtype, 3, 1, 5), parameter("n", I64)
    shape = c.value.tensor.shape
    z = BroadcastTo(scalar(0, dtype), shape).value
    count = BroadcastTo(scalar(0, I32), shape).value

    def step(z: Value, count: Value) -> Sequence[Value]:
        square = binary("mul", z, z)
        inside = binary("le", binary("add", square, unary("abs", unary("neg", z))), scalar(6, dtype))
        moved = binary("add", square, c.value)
        return [Elementwise("where", (inside, moved, z)).value, binary("add", count, Cast(inside, I32).value)]

    return program([c, n], loop([z, count], step, 0, Size.opaque(load(0, I64)), "t", [n.value]), n=np.array(7))


def scalar_recurrence() -> Program:
    """Numbers alone: no loop over elements is left."""
    a, n = parameter("a", I64), parameter("n", I64)
    upper = Size.opaque(load(0, I64))
    states = loop([a.value, scalar(1, I64)], lambda p, q: [q, binary("add", p, q)], 0, upper, "t", [n.value])
    return program([a, n], states, n=np.array(9))


def emitted_rows() -> Program:
    """Rows by the counter, which begins at 2; a state that stays, one that is a row, and no steps at all."""
    x, h = parameter("x", F32, 7, 4), parameter("h", F32, 4)

    def row(at: Size) -> Value:
        space = Space((Axis.of("k", 4),), Load("a0", (at, Size.of("k")), F32), F32)
        return Compute((x.value,), space).value

    def step(s: Value, t: Value, u: Value) -> Sequence[Value]:
        return [binary("add", binary("mul", s, row(Size.of("t"))), t), t, row(Size.of("t") - 2)]

    def emit(s: Value, t: Value, u: Value) -> Sequence[Value]:
        return [binary("sub", u, t), s]

    some = loop([h.value, h.value, h.value], step, 2, 7, emit=emit)
    none = loop([h.value], lambda s: [unary("neg", s)], 3, 3, "v", emit=lambda s: [s])
    return program([x, h], [*some, *none])


def layers() -> Program:
    """Weights in a list: one by the counter in a loop, one by data, and all of them in one sum."""
    w = Parameter("w", ListType(Size.of(3), TensorType.of(F32, 4, 4)))
    x, which = parameter("x", F32, 2, 4), parameter("which", I32)
    (h,) = loop([x.value], lambda s: [Matmul(s, ListGet(w.value, Size.of("t")).value).value], 0, 3)
    chosen = ListGet(w.value, Size.opaque(load(0, I32)) - 1, (which.value,)).value
    space = Space((Axis.of("i", 4),), load(0, F32, "l", "i", "i"), F32, (Axis.of("l", 3),), "sum")
    diagonal = Compute((w.value,), space).value
    return program([w, x, which], [h, Matmul(x.value, chosen).value, chosen, diagonal], which=np.array(7, np.int32))


def empty_and_single() -> Program:
    x = parameter("x", F32, 0, 3)
    y = parameter("y", F32, 1, 3)
    return program(
        [x, y],
        [
            Reduce(x.value, "max", (0,)).value,
            unary("neg", x.value),
            Matmul(Transpose(x.value, (1, 0)).value, x.value).value,
            Cumulative(x.value, "sum", 1).value,
            ArgReduce(y.value, "argmax", 0).value,
            *fused(binary("sub", y.value, Reduce(y.value, "max", (0,), True).value)),
        ],
    )


NUMBERS = (F64, F32, F16, BF16, I64, I32, I16, I8, U64, U8)

PROGRAMS: dict[str, Callable[[], Program]] = {
    **{f"elementwise {d}": lambda d=d: elementwise_chain(d) for d in NUMBERS},
    **{f"fused {d}": lambda d=d: fused_chain(d) for d in NUMBERS},
    **{f"softmax {d}": lambda d=d: softmax(d) for d in (F64, F32, F16, BF16)},
    **{
        f"{c} {d}": lambda c=c, d=d: reduction(d, c, (1,), False, 3, 5)
        for d in NUMBERS
        for c in ("sum", "prod", "max", "min")
    },
    **{f"{c} bool": lambda c=c: reduction(BOOL, c, (0,), True, 3, 5) for c in ("any", "all", "sum", "max", "min")},
    "sum of all": lambda: reduction(F32, "sum", (0, 1, 2), True, 2, 3, 4),
    "sum over nothing": lambda: reduction(F16, "sum", (), False, 2, 3),
    **{f"reduction used again {d}": lambda d=d: reduction_and_more(d) for d in (F32, BF16, I8)},
    **{
        f"matmul {a} {b} {d}": lambda a=a, b=b, d=d: matmul(d, a, b)
        for d in (F32, BF16, I8)
        for a, b in (((3, 4), (4, 5)), ((4,), (4,)), ((2, 3, 4), (4,)), ((2, 1, 3, 4), (5, 4, 2)))
    },
    **{
        f"{w} {d} {a}": lambda w=w, d=d, a=a: arg_reduce(d, w, a)
        for w in ("argmax", "argmin")
        for d in (F32, I64, BOOL)
        for a in (0, 1)
    },
    **{
        f"cum{c} {d} {a}": lambda c=c, d=d, a=a: cumulative(d, c, a)
        for c in ("sum", "prod")
        for d in (F32, BF16, I8)
        for a in (0, 1, 2)
    },
    "cumsum bool": lambda: cumulative(BOOL, "sum", 1),
    **{f"sort {d}": lambda d=d: sort(d) for d in (F32, F16, I64, U8, BOOL)},
    **{f"escape {d}": lambda d=d: escape(d) for d in (F32, F64, I16)},
    **{f"gather {d}": lambda d=d: gather(d) for d in (I64, I32, I8, U64)},
    **{
        f.__name__: f
        for f in (
            feed_forward, views, lone_views, convolution, triangular, sparse_rows, gather_from_nothing, index_values,
            arg_reduce_of_sum, cumulative_in_group, sort_in_group, updates, diagonals, updates_in_group, tables,
            updates_of_stored_values, shared_stages,
            causal_scores, dynamic_rows, bits_and_casts, loops, scans, nested_loops, swaps, scalar_recurrence,
            emitted_rows, layers, empty_and_single,
        )
    },
}  # fmt: skip

"""Tensors of formats that are cut, turned, reshaped and joined: the values are those of the same done to the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import pytest

import intarsia
from intarsia import CompileError
from intarsia.ir.dtypes import Array
from intarsia.ir.formats import BUILT_IN
from intarsia.ir.interpreter import evaluate

FORMATS = {
    "symmetric": "quant(i4, scale=f16, group=4, axis=AXIS)",
    "asymmetric": "quant(u4, scale=f16, zero=u4, group=8, axis=AXIS)",
    "value": 'quant(u3, scale=f16, zero=f16, zero_means="value", group=4, axis=AXIS)',
    "rows": "quant(i5, scale=bf16, group=none, axis=AXIS)",
    "tensor": "quant(ternary, scale=f32, axis=none)",
    "two_levels": "quant(i4, scale=quant(u8, scale=f32, group=3, axis=AXIS), group=4, axis=AXIS)",
    "crossed": "quant(i4, scale=quant(u8, scale=f32, group=4, axis=OTHER), group=4, axis=AXIS)",
    **{name: f"{name}(axis=AXIS)" for name in BUILT_IN},
}

Move = tuple[str, Callable[[Array], Array]]
MOVES: list[Move] = [
    ("w[3]", lambda w: w[3]),
    ("w[:, 2]", lambda w: w[:, 2]),
    ("w[4:]", lambda w: w[4:]),
    ("w[:, 8:13]", lambda w: w[:, 8:13]),
    ("w[64:66, ...]", lambda w: w[64:66]),
    ("w[:, 64:, none]", lambda w: w[:, 64:, None]),
    ("w[5:9]", lambda w: w[5:9]),
    ("w[::2]", lambda w: w[::2]),
    ("w[:, ::-1]", lambda w: w[:, ::-1]),
    ("w[-4:, 8:9]", lambda w: w[-4:, 8:9]),
    ("w[i]", lambda w: w[2]),
    ("w[:, i]", lambda w: w[:, 2]),
    ("transpose(w)", lambda w: w.T),
    ("transpose(w[:, :, none], axes=(2, 0, 1))", lambda w: w[None]),
    ("moveaxis(w, 0, 1)", lambda w: w.T),
    ("expand_dims(w, 1)", lambda w: w[:, None]),
    ("squeeze(w[:, :, none], 2)", lambda w: w),
    ("reshape(w, (-1,))", lambda w: w.reshape(-1)),
    ("reshape(w, (2, -1, extent(w, axis=1)))", lambda w: w.reshape(2, -1, w.shape[1])),
    ("reshape(w, (extent(w, axis=0), -1, 4))", lambda w: w.reshape(len(w), -1, 4)),
    ("reshape(w, (-1, 2))", lambda w: w.reshape(-1, 2)),
    ("concat((w, w))", lambda w: np.concatenate((w, w))),
    ("concat((w[:32], w, w[:5]), axis=0)", lambda w: np.concatenate((w[:32], w, w[:5]))),
    ("concat((w, w[:, :7]), axis=1)", lambda w: np.concatenate((w, w[:, :7]), 1)),
    ("stack((w, w), axis=1)", lambda w: np.stack((w, w), 1)),
    ("stack((w, w), axis=2)", lambda w: np.stack((w, w), 2)),
    ("concat(split(w, 2, axis=0), axis=1)", lambda w: np.concatenate(np.split(w, 2), 1)),
    ("broadcast_to(w, (2, extent(w, axis=0), extent(w, axis=1)))", lambda w: np.broadcast_to(w, (2, *w.shape))),
    ("broadcast_to(w[4:5], (9, extent(w, axis=1)))", lambda w: np.broadcast_to(w[4:5], (9, w.shape[1]))),
    ("tile(w, (1, 2))", lambda w: np.tile(w, (1, 2))),
    ("tile(w, (3, 1))", lambda w: np.tile(w, (3, 1))),
    ("take(w, ids, axis=0)", lambda w: w[[3, 0, 3]]),
    ("take(w, ids, axis=1)", lambda w: w[:, [3, 0, 3]]),
    ("flip(w, 0)", lambda w: w[::-1]),
    ("repeat(w, 2, 1)", lambda w: np.repeat(w, 2, 1)),
    ("tensor[b, a](w[a, b])", lambda w: w.T),
    ("tensor[t, c](w[ids[t], c])", lambda w: w[[3, 0, 3]]),
    ("tensor[r, t](w[r, ids[t]])", lambda w: w[:, [3, 0, 3]]),
    ("tensor[a < 2, b](w[i + a, b])", lambda w: w[2:4]),
    ("tensor[p < 2, r < 8, c](w[p * 8 + r, c])", lambda w: w[:16].reshape(2, 8, -1)),
]
SIZES = [(72, 40), (66, 70)]
KEPT = {"symmetric": (28, 32), "rows": (31, 33), "tensor": (34, 34), "two_levels": (23, 27), "mxfp4": (21, 26)}
"""So many of the moves keep the groups along axis 0 and 1 of the first size."""


def declaration(name: str, axis: int) -> str:
    return FORMATS[name].replace("AXIS", str(axis)).replace("OTHER", str(1 - axis))


def evaluated(text: str, arguments: Sequence[Array], shape: tuple[int, ...]) -> list[Array]:
    """What the function f gives, as the graph interpreter says."""
    sizes = dict(zip("AB", shape))
    with np.errstate(all="ignore"):
        return evaluate(intarsia.compile(text).library.build("f", dims=sizes), arguments, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", FORMATS)
def test_moves(name: str, axis: int) -> None:
    """The values of what has moved are what has moved of the values; else it is E0212."""
    head = f"format q = {declaration(name, axis)}\n"
    for size in SIZES:
        x = np.random.default_rng(1).standard_normal(size, np.float32)
        parts = evaluated(head + "fn f(w: f32[A, B]) -> q[A, B] { return quantize(w, q) }", [x], size)
        values = evaluated(head + "fn f(w: q[A, B]) -> f32[A, B] { return dequantize(w) }", parts, size)[0]
        kept = sum(agrees(head, parts, values, size, move) for move in MOVES)
        if name in KEPT and size == SIZES[0]:
            assert kept == KEPT[name][axis]


def agrees(head: str, parts: Sequence[Array], values: Array, size: tuple[int, int], move: Move) -> bool:
    """Compare one move with the same of the values. False where it cuts through groups, or there is no such shape."""
    text, reference = move
    try:
        wanted = reference(values)
    except ValueError:
        return False
    body = f"fn f(w: q[A, B], ids: i64[3], i: i64) {{ m = {text}\n return m, dequantize(m) }}"
    try:
        *moved, found = evaluated(head + body, [*parts, np.array([3, 0, 3]), np.int64(2)], size)
    except CompileError as error:
        assert error.code == "E0212", (text, error)
        return False
    assert len(moved) == len(parts) and moved[0].shape == wanted.shape
    assert np.array_equal(found, wanted), text
    return True


LAYERS = """
format w4 = quant(i4, scale=f16, group=8, axis=-2)
format by_rows = quant(i4, scale=f16, group=8, axis=1)
struct Layer(K, N) {
    weight: w4[K, N]
    bias: f32[N]
}

fn layer(x: f32[M, K], w: w4[K, N]) -> f32[M, N] { return x @ dequantize(w) }

fn stacked(x: f32[M, K], w: w4[L, K, K]) -> f32[M, K] {
    return loop (h = x) for l in 0..L { yield layer(h, w[l]) }
}

fn scanned(x: f32[M, K], w: w4[L, K, K]) -> f32[L, M, K] {
    last, all = scan (h = x) for l in 0..L {
        y = layer(h, w[l])
        yield y
        emit y
    }
    return all
}

fn fields(x: f32[M, K], layers: Layer(K, K)[L]) -> f32[M, K] {
    return loop (h = x) for l in 0..L {
        half = layers[l].weight[0:8]
        yield h[:, 0:8] @ dequantize(half) + h[:, 8:] @ dequantize(layers[l].weight[8:]) + layers[l].bias
    }
}

fn turned(x: f32[M, N], w: w4[K, N]) -> f32[M, K] {
    t: by_rows[N, K] = transpose(w)
    return x @ dequantize(t)
}

fn rows(table: by_rows[V, D], ids: i64[T]) -> by_rows[T, D] {
    return tensor[t, d](table[ids[t], d])
}

fn row_values(table: by_rows[V, D], ids: i64[T]) -> f32[T, D] {
    y[t, d] = dequantize(table[ids[t], d])
    return y
}

fn parts(x: f32[M, K], w: w4[K, 12]) -> (f32[M, 4], f32[M, 8]) {
    a, b, c = split(w, 3, axis=1)
    return x @ dequantize(a), x @ dequantize(concat((c, b), axis=1))
}

fn blocks(x: f32[M, K], w: w4[K, N]) -> f32[M, N] {
    return loop (y = zeros(f32[M, N])) for b in 0..K // 16 {
        yield y + x[:, b*16:b*16 + 16] @ dequantize(w[b*16:b*16 + 16])
    }
}
"""


@pytest.fixture(scope="module")
def layers() -> intarsia.Program:
    return intarsia.compile(LAYERS)


def near(found: Array, wanted: Array) -> bool:
    return bool(np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max())


def stack(layers: intarsia.Program) -> tuple[Array, dict[str, Array], list[Array]]:
    """An input, four layers and the states between them."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 20), np.float32), rng.standard_normal((4, 20, 20), np.float32) / 4
    parts = intarsia.quantize(w, "w4", layers)
    states = [x]
    for value in intarsia.dequantize(parts, "w4", layers):
        states.append(states[-1] @ value)
    return x, parts, states


@pytest.mark.slow
def test_layers(layers: intarsia.Program) -> None:
    """Of a stack, in a loop and in a scan, and of a list."""
    x, parts, states = stack(layers)
    assert near(layers.stacked(x, parts), states[-1])
    assert near(layers.scanned(x, parts), np.stack(states[1:]))
    each = [
        {"weight": {name: part[i] for name, part in parts.items()}, "bias": np.zeros(20, np.float32)} for i in range(4)
    ]
    assert near(layers.fields(x, each), states[-1])


@pytest.mark.slow
def test_turned_and_gathered(layers: intarsia.Program) -> None:
    """A format is what it stores, whatever its name: a transposed tensor is of another one."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 12), np.float32), rng.standard_normal((21, 12), np.float32)
    parts = intarsia.quantize(w, "w4", layers)
    values = intarsia.dequantize(parts, "w4", layers)
    assert near(layers.turned(x, parts), x @ values.T)
    table, ids = intarsia.quantize(w, "by_rows", layers), np.array([20, 0, 7])
    wanted = intarsia.dequantize(table, "by_rows", layers)[ids]
    assert np.array_equal(layers.row_values(table, ids), wanted)
    found = layers.rows(table, ids)
    assert np.array_equal(intarsia.dequantize(dict(zip(table, found)), "by_rows", layers), wanted)


def test_a_layer_of_a_stack_is_what_a_function_takes(layers: intarsia.Program) -> None:
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-8, 8, (3, 10, 10)).astype(ml_dtypes.int4), rng.random((3, 2, 10)).astype(np.float16)
    state = x = rng.standard_normal((2, 10), np.float32)
    for c, s in zip(codes, scale):
        state = state @ (c.astype(np.float32) * np.repeat(s, 8, 0)[:10].astype(np.float32))
    assert near(evaluate(layers.library.build("stacked"), [x, codes, scale], {"M": 2, "K": 10, "L": 3})[0], state)


def test_parts_of_a_split(layers: intarsia.Program) -> None:
    """A tuple of tensors in a format is taken apart like one of tensors."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 20), np.float32), rng.standard_normal((20, 12), np.float32)
    head = "format w4 = quant(i4, scale=f16, group=8, axis=0)\n"
    parts = evaluated(head + "fn f(w: f32[A, B]) -> w4[A, B] { return quantize(w, w4) }", [w], w.shape)
    (values,) = evaluated(head + "fn f(w: w4[A, B]) -> f32[A, B] { return dequantize(w) }", parts, w.shape)
    first, others = evaluate(layers.library.build("parts"), [x, *parts], {"M": 3, "K": 20})
    assert near(first, x @ values[:, :4]) and near(others, x @ np.concatenate((values[:, 8:], values[:, 4:8]), 1))


@pytest.mark.slow
def test_blocks_of_a_loop(layers: intarsia.Program) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 48), np.float32), rng.standard_normal((48, 20), np.float32)
    parts = intarsia.quantize(w, "w4", layers)
    assert near(layers.blocks(x, parts), x @ intarsia.dequantize(parts, "w4", layers))

"""The standard library against NumPy and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
from numpy.lib.stride_tricks import sliding_window_view

from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Node

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape)


def close(actual: Array, expected: Array) -> None:
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * scipy.special.expit(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(run: Any, name: str) -> None:
    x = np.concatenate([floats(40) * 3, [0.0, -30.0, 30.0]])
    close(run(f"fn f(x: f64[N]) -> f64[N] {{ return {name}(x) }}", x), ACTIVATIONS[name](x))


AXES = ["none", "0", "-1", "(0, 2)", "(-1, 1)"]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("keepdims", ["true", "false"])
@pytest.mark.parametrize("name", ["sum", "prod", "mean", "var", "max", "min", "logsumexp"])
def test_reductions(run: Any, name: str, axis: str, keepdims: str) -> None:
    x = floats(3, 4, 5)
    where = None if axis == "none" else eval(axis)
    reference = {"logsumexp": scipy.special.logsumexp}.get(name) or getattr(np, name)
    actual = run(f"fn f(x: f64[A, B, C]) {{ return {name}(x, axis={axis}, keepdims={keepdims}) }}", x)
    close(actual, reference(x, axis=where, keepdims=keepdims == "true"))


def test_mean_of_nothing_is_nan(run: Any) -> None:
    actual = run("fn f(x: f64[A, B]) { return mean(x, axis=1) }", floats(3, 0))
    assert np.isnan(actual).all() and actual.shape == (3,)


def test_logsumexp_of_infinities(run: Any) -> None:
    x = np.array([[-np.inf, -np.inf], [np.inf, 1.0], [np.nan, 1.0], [1.0, -np.inf]])
    actual = run("fn f(x: f64[A, B]) { return logsumexp(x, axis=1) }", x)
    np.testing.assert_array_equal(actual, [-np.inf, np.inf, np.nan, 1.0])


def test_any_and_all(run: Any) -> None:
    x = RANDOM.random((3, 4, 5)) < 0.5
    text = (
        "fn f(x: bool[A, B, C]) { return any(x, axis=(0, 1)), all(x, axis=2), sum(x), all(x), any(x, keepdims=true) }"
    )
    actual = run(text, x)
    expected = (x.any((0, 1)), x.all(2), np.int64(x.sum()), x.all(), x.any(keepdims=True))
    for a, e in zip(actual, expected):
        np.testing.assert_array_equal(a, e)
        assert a.dtype == np.asarray(e).dtype


@pytest.mark.parametrize("axis", [0, 1, -1, None])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions(run: Any, name: str, axis: int | None) -> None:
    x = np.round(floats(6, 7) * 2)
    written = "none" if axis is None else axis
    actual = run(f"fn f(x: f64[A, B]) {{ return {name}(x, axis={written}) }}", x)
    np.testing.assert_array_equal(actual, getattr(np, name)(x, axis=axis))
    kept = run(f"fn f(x: f64[A, B]) {{ return {name}(x, axis={written}, keepdims=true) }}", x)
    np.testing.assert_array_equal(kept, getattr(np, name)(x, axis=axis, keepdims=True))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_normalising(run: Any, axis: int) -> None:
    x = floats(5, 6)
    close(run(f"fn f(x: f64[A, B]) {{ return softmax(x, axis={axis}) }}", x), scipy.special.softmax(x, axis))
    close(run(f"fn f(x: f64[A, B]) {{ return log_softmax(x, axis={axis}) }}", x), scipy.special.log_softmax(x, axis))


def test_norms(run: Any) -> None:
    x, gain, bias = floats(2, 3, 8), floats(8), floats(8)
    text = "fn f(x: f64[A, B, D], g: f64[D], b: f64[D]) { return layer_norm(x, g, b), rms_norm(x, g, eps=1e-3) }"
    layer, rms = run(text, x, gain, bias)
    centred = x - x.mean(-1, keepdims=True)
    close(layer, centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + bias)
    close(rms, x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * gain)


def ops(text: str) -> list[str]:
    nodes: list[Node] = list(load(Source("t.ita", text)).build().graph.body.nodes)
    return [f"{n.name} {n.attributes}" for n in nodes]


def test_a_hand_written_softmax_is_the_same_graph() -> None:
    own = """fn f(x: f32[B, N]) -> f32[B, N] {
        e = exp(x - max(x, axis=-1, keepdims=true))
        return e / sum(e, axis=-1, keepdims=true)
    }"""
    assert ops(own) == ops("fn f(x: f32[B, N]) -> f32[B, N] { return softmax(x) }")


def attention(q: Array, k: Array, v: Array, mask: Array | None = None, scale: float | None = None) -> Array:
    scores = np.einsum("...id,...jd->...ij", q, k) * (scale or 1 / np.sqrt(q.shape[-1]))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    return np.asarray(np.einsum("...ij,...jd->...id", scipy.special.softmax(scores, -1), v))


def test_attention(run: Any) -> None:
    q, k, v = floats(2, 3, 5, 4), floats(2, 3, 7, 4), floats(2, 3, 7, 6)
    head = "fn f(q: f64[A, H, S, D], k: f64[A, H, T, D], v: f64[A, H, T, E]"
    close(run(f"{head}) {{ return attention(q, k, v) }}", q, k, v), attention(q, k, v))
    causal = np.tri(5, 7, dtype=bool)
    close(run(f"{head}) {{ return attention(q, k, v, causal=true) }}", q, k, v), attention(q, k, v, causal))
    close(run(f"{head}) {{ return attention(q, k, v, scale=0.3) }}", q, k, v), attention(q, k, v, None, 0.3))
    masks = [RANDOM.random((5, 7)) < 0.7, floats(3, 1, 7)]
    for mask, type_ in zip(masks, ("bool[S, T]", "f64[H, 1, T]")):
        text = f"{head}, m: {type_}) {{ return attention(q, k, v, mask=m) }}"
        close(run(text, q, k, v, mask), attention(q, k, v, mask))


def test_attention_of_bf16_rounds_its_result_only() -> None:
    text = "fn f(q: bf16[S, D], k: bf16[T, D], v: bf16[T, E]) -> bf16[S, E] { return attention(q, k, v) }"
    types = [str(n.value.dtype) for n in load(Source("t.ita", text)).build().graph.body.nodes]
    assert types == ["f32"] * 8 + ["bf16"]


def test_shapes(run: Any) -> None:
    x = floats(2, 3, 4)
    cases = {
        "reshape(x, (-1, C))": x.reshape(-1, 4),
        "reshape(x, (A * B, 2, 2))": x.reshape(6, 2, 2),
        "transpose(x)": x.T,
        "transpose(x, (1, 0, -1))": x.transpose(1, 0, 2),
        "moveaxis(x, 0, -1)": np.moveaxis(x, 0, -1),
        "broadcast_to(x, (5, A, B, C))": np.broadcast_to(x, (5, 2, 3, 4)),
        "concat((x, x, x), axis=1)": np.concatenate([x] * 3, 1),
        "stack((x, x), axis=-1)": np.stack([x, x], -1),
        "stack((x, x))": np.stack([x, x]),
        "split(x, 2, axis=2)": np.split(x, 2, 2),
        "split(x, (1, B - 1), axis=1)": np.split(x, [1], 1),
        "pad(x, ((1, 0), (0, 2), (3, 1)), value=7)": np.pad(x, ((1, 0), (0, 2), (3, 1)), constant_values=7),
        "pad(x, 1)": np.pad(x, 1),
        "flip(x, 1)": np.flip(x, 1),
        "flip(x, -1)": np.flip(x, -1),
        "repeat(x, 3, axis=0)": np.repeat(x, 3, 0),
        "tile(x, (2, 1))": np.tile(x, (2, 1)),
        "tile(x, (2, 1, 1, 3))": np.tile(x, (2, 1, 1, 3)),
        "expand_dims(x, 1)": np.expand_dims(x, 1),
        "squeeze(x[:, 1:2], axis=1)": x[:, 1],
    }
    for text, expected in cases.items():
        actual = run(f"fn f(x: f64[A, B, C]) {{ return {text} }}", x)
        for a, e in zip(*((actual, expected) if isinstance(expected, list) else ([actual], [expected]))):
            np.testing.assert_array_equal(a, e, err_msg=text)


def test_building(run: Any) -> None:
    x = floats(3)
    cases = {
        "zeros(f32[N, 2])": np.zeros((3, 2), np.float32),
        "ones(i8[N])": np.ones(3, np.int8),
        "ones(bool[N])": np.ones(3, bool),
        "full(f64[2], 1.5)": np.full(2, 1.5),
        "full(f64[2, N], x[1])": np.full((2, 3), x[1]),
        "iota(N)": np.arange(3),
        "eye(N)": np.eye(3, dtype=np.float32),
        "one_hot(iota(N) % 2, 2)": np.eye(2, dtype=np.float32)[[0, 1, 0]],
    }
    for text, expected in cases.items():
        actual = run(f"fn f(x: f64[N]) {{ return {text} }}", x)
        np.testing.assert_array_equal(actual, expected, err_msg=text)
        assert actual.dtype == expected.dtype


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_take_and_gather(run: Any, axis: int) -> None:
    x = floats(4, 5, 6)
    ids = RANDOM.integers(0, 4, (3, 2)).astype(np.int32)
    taken = ", ".join(f"take(x, {i}, axis={axis})" for i in ("i", "i[0]", "2"))
    actual = run(f"fn f(x: f64[A, B, C], i: i32[M, K]) {{ return {taken} }}", x, ids)
    for a, i in zip(actual, (ids, ids[0], 2)):
        np.testing.assert_array_equal(a, np.take(x, i, axis))
    shape = list(x.shape)
    shape[axis] = 3
    ids = RANDOM.integers(0, 4, shape)
    text = "fn f(x: f64[A, B, C], i: i64[A2, B2, C2]) { return gather(x, i, axis=%d) }"
    names = ["A", "B", "C"]
    names[axis] = "K"
    text = text.replace("A2, B2, C2", ", ".join(names)) % axis
    np.testing.assert_array_equal(run(text, x, ids), np.take_along_axis(x, ids, axis))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_sorting(run: Any, axis: int) -> None:
    x = np.round(floats(5, 6) * 2)
    x[2, 3] = np.nan
    text = f"fn f(x: f64[A, B]) {{ return sort(x, axis={axis}), argsort(x, axis={axis}) }}"
    values, order = run(text, x)
    np.testing.assert_array_equal(values, np.sort(x, axis))
    np.testing.assert_array_equal(order, np.argsort(x, axis, kind="stable"))


def test_running_totals(run: Any) -> None:
    x = floats(5, 6)
    total, product = run("fn f(x: f64[A, B]) { return cumsum(x, axis=0), cumprod(x, axis=-1) }", x)
    close(total, np.cumsum(x, 0))
    close(product, np.cumprod(x, -1))


def test_top_k(run: Any) -> None:
    x = np.round(floats(5, 9) * 2)
    values, indices = run("fn f(x: f64[A, B]) -> (f64[A, 4], i64[A, 4]) { return top_k(x, 4) }", x)
    order = np.argsort(-x, -1, kind="stable")[:, :4]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))


def test_linear_algebra(run: Any) -> None:
    x, y, m = floats(4), floats(4), floats(4, 4)
    actual = run(
        "fn f(x: f64[N], y: f64[N], m: f64[N, N]) { return dot(x, y), outer(x, y), trace(m), m @ x, x @ m }", x, y, m
    )
    for a, e in zip(actual, (x @ y, np.outer(x, y), np.trace(m), m @ x, x @ m)):
        close(a, e)


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "ij,jk", "ij,ij->", "ij,kj->ikj", "ii->i", "ij->ji", "ij", "ij,jk,kl->il", "ij,jk,i->k"]
)
def test_einsum(run: Any, equation: str) -> None:
    operands = [floats(*([3] * len(letters))) for letters in equation.split("->")[0].split(",")]
    names = ["x", "y", "z"][: len(operands)]
    parameters = ", ".join(f"{n}: f64[{', '.join('N' * o.ndim)}]" for n, o in zip(names, operands))
    text = f'fn f({parameters}) {{ return einsum("{equation}", {", ".join(names)}) }}'
    close(run(text, *operands), np.einsum(equation, *operands))


def convolve(x: Array, w: Array, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Array:
    """Directly from the definition, one group and one output channel at a time."""
    count = w.shape[0] // groups
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    wide = np.zeros((*w.shape[:2], *((s - 1) * dilation + 1 for s in w.shape[2:])))
    wide[:, :, ::dilation, ::dilation] = w
    rows = []
    for o in range(w.shape[0]):
        channels = x[:, o // count * w.shape[1] : (o // count + 1) * w.shape[1]]
        one = np.einsum("nihwrs,irs->nhw", sliding_window_view(channels, wide.shape[2:], (2, 3)), wide[o])
        rows.append(one[:, ::stride, ::stride])
    return np.stack(rows, 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"dilation": 2},
        {"groups": 2},
        {"stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    ],
)
def test_convolution(run: Any, options: dict[str, int]) -> None:
    x, w = floats(2, 4, 9, 8), floats(6, 4 // options.get("groups", 1), 3, 2)
    arguments = "".join(f", {name}={value}" for name, value in options.items())
    text = f"fn f(x: f64[N, C, H, W], w: f64[O, I, 3, 2]) {{ return conv2d(x, w{arguments}) }}"
    text = text.replace("C, H", "2*I, H" if options.get("groups") else "I, H")
    close(run(text, x, w), convolve(x, w, **options))


@pytest.mark.parametrize(
    "sizes, arguments, options",
    [
        ("[4, 1, R, 3]", "padding=R//2, groups=C", {"padding": 1, "groups": 4}),
        ("[2*C, 1, R, 3]", "groups=C, stride=2", {"stride": 2, "groups": 4}),
        ("[8, C//2, R, 3]", "padding=(C - 3, 1), groups=C//2", {"padding": 1, "groups": 2}),
    ],
)
def test_convolution_by_names_of_dimensions(run: Any, sizes: str, arguments: str, options: dict[str, int]) -> None:
    x, w = floats(2, 4, 9, 8), floats(4 if sizes.startswith("[4") else 8, 4 // options["groups"], 3, 3)
    text = f"fn f(x: f64[N, C, H, W], w: f64{sizes}) {{ return conv2d(x, w, {arguments}) }}"
    close(run(text, x, w), convolve(x, w, **options))


def test_convolution_in_one_dimension(run: Any) -> None:
    x, w = floats(2, 3, 9), floats(4, 3, 3)
    text = "fn f(x: f64[N, I, W], w: f64[O, I, S]) { return conv1d(x, w, stride=2, padding=1) }"
    expected = convolve(np.pad(x, ((0, 0), (0, 0), (1, 1)))[:, :, None], w[:, :, None])[:, :, 0, ::2]
    close(run(text, x, w), expected)


def windows(x: Array, size: tuple[int, int], stride: tuple[int, int], padding: int) -> Array:
    """All windows, with NaN where there is padding."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=np.nan)
    found = sliding_window_view(x, size, (2, 3))
    return found[:, :, :: stride[0], :: stride[1]]


def test_pooling(run: Any) -> None:
    x = floats(2, 3, 7, 8) - 5
    cases = [
        ("2", (2, 2), (2, 2), 0),
        ("(3, 2), stride=1, padding=1", (3, 2), (1, 1), 1),
        ("3, stride=(2, 1)", (3, 3), (2, 1), 0),
    ]
    for arguments, size, stride, padding in cases:
        text = f"fn f(x: f64[N, C, H, W]) {{ return max_pool2d(x, {arguments}), avg_pool2d(x, {arguments}) }}"
        largest, average = run(text, x)
        parts = windows(x, size, stride, padding)
        close(largest, np.nanmax(parts, (-1, -2)))
        close(average, np.nanmean(parts, (-1, -2)))


def test_scalar_functions(run: Any) -> None:
    x, y = RANDOM.uniform(0.1, 0.9, 20), RANDOM.uniform(0.1, 0.9, 20)
    special = {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "round": np.rint, "erf": scipy.special.erf}
    special |= {"rsqrt": lambda v: 1 / np.sqrt(v), "sigmoid": scipy.special.expit}
    names = "abs sign floor ceil round exp exp2 log log2 log1p expm1 sqrt rsqrt sin cos tan tanh sinh cosh"
    for name in [*names.split(), "asin", "acos", "atan", "erf", "sigmoid"]:
        close(run(f"fn f(x: f64[N]) {{ return {name}(x) }}", x), (special.get(name) or getattr(np, name))(x))
    pairs = {"atan2": np.arctan2, "pow": np.power, "minimum": np.minimum, "maximum": np.maximum}
    for name, reference in pairs.items():
        close(run(f"fn f(x: f64[N], y: f64[N]) {{ return {name}(x, y) }}", x, y), reference(x, y))
    close(run("fn f(x: f64[N]) { return clip(x, 0.2, 0.5) }", x), np.clip(x, 0.2, 0.5))


def test_bits(run: Any) -> None:
    x, y = RANDOM.integers(-128, 128, 50).astype(np.int8), RANDOM.integers(0, 8, 50).astype(np.int8)
    head = "fn f(x: i8[N], y: i8[N])"
    names = "bit_and(x, y), bit_or(x, y), bit_xor(x, y), bit_not(x), shift_left(x, y), shift_right(x, y), popcount(x)"
    actual = run(f"{head} {{ return {names} }}", x, y)
    expected = [
        x & y,
        x | y,
        x ^ y,
        ~x,
        x << y,
        x >> y,
        np.array([bin(v & 255).count("1") for v in x.tolist()], np.int8),
    ]
    for a, e in zip(actual, expected):
        np.testing.assert_array_equal(a, e)
    z = RANDOM.standard_normal(5).astype(np.float32)
    np.testing.assert_array_equal(run("fn f(x: f32[N]) { return bitcast(x, i32) }", z), z.view(np.int32))

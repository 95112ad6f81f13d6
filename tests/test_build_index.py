"""Index notation, updates and loops against NumPy."""

# ruff: noqa: E501 (tables of one-line programs)

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source

RANDOM = np.random.default_rng(1)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape)


def close(actual: Any, expected: Any) -> None:
    actual, expected = (x if isinstance(x, tuple) else (x,) for x in (actual, expected))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.shape == np.shape(e)
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)


X, Y, M, SQUARE = floats(6), floats(6), floats(6, 5), floats(6, 6)
IDS = np.array([3, 0, 5, 5, 1, 2])
START = np.array([0, 2, 2, 5, 6])

CASES: dict[str, tuple[str, list[Array], Any]] = {
    "elements": ("x: f64[N], y: f64[N]) { z[i] = x[i] * y[i] + 1.0; return z", [X, Y], X * Y + 1),
    "outer": ("x: f64[N], y: f64[N]) { return tensor[i, j](x[i] * y[j])", [X, Y], np.outer(X, Y)),
    "extents": (
        "x: f64[N]) { return tensor[i < N, j < 4](f64(i == j) + f64(i))",
        [X],
        np.eye(6, 4) + np.arange(6)[:, None],
    ),
    "transposed": ("m: f64[N, K]) { t[j, i] = m[i, j]; return t", [M], M.T),
    "reversed": ("x: f64[N]) { r[i < N] = x[N - 1 - i]; return r", [X], X[::-1]),
    "last": ("x: f64[N]) { r[i] = x[i] - x[-1]; return r", [X], X - X[-1]),
    "strided": ("x: f64[2*K]) { r[i < K] = x[2*i] + x[2*i + 1]; return r", [X], X[::2] + X[1::2]),
    "folded": ("x: f64[N]) { r[i < N // 2, j < 2] = x[2*i + j]; return r", [X], X.reshape(3, 2)),
    "unfolded": ("x: f64[3, 2]) { r[i < 6] = x[i // 2, i % 2]; return r", [X.reshape(3, 2)], X),
    "gather": ("x: f64[N], i: i64[M]) { r[t] = x[i[t]]; return r", [X, IDS], X[IDS]),
    "gather rows": ("x: f64[N, K], i: i32[M]) { r[t, k] = x[i[t], k]; return r", [M, IDS.astype(np.int32)], M[IDS]),
    "clamped": ("x: f64[N], i: i64[M]) { r[t] = x[i[t] * 2 - 3]; return r", [X, IDS], X[np.clip(IDS * 2 - 3, 0, 5)]),
    "product": ("a: f64[N, K], b: f64[K, M]) { c[i, j] = sum[k](a[i, k] * b[k, j]); return c", [M.T, M], M.T @ M),
    "total": ("m: f64[N, K]) { return sum[i, j](m[i, j])", [M], M.sum()),
    "nested": ("m: f64[N, K]) { return sum[i](max[j](m[i, j]))", [M], M.max(1).sum()),
    "scaled sum": ("m: f64[N, K]) { r[i] = 2.0 * sum[j](m[i, j]) + m[i, 0]; return r", [M], 2 * M.sum(1) + M[:, 0]),
    "two sums": (
        "m: f64[N, K]) { r[i] = sum[j](m[i, j]) / sum[j](exp(m[i, j])); return r",
        [M],
        M.sum(1) / np.exp(M).sum(1),
    ),
    "any all": (
        "m: f64[N, K]) { a[i] = any[j](m[i, j] > 0); return a, all[i, j](m[i, j] > -9)",
        [M],
        ((M > 0).any(1), np.True_),
    ),
    "counted": ("m: f64[N, K]) { r[i] = sum[j](m[i, j] > 0); return r", [M], (M > 0).sum(1)),
    "argmax": (
        "m: f64[N, K]) { r[i] = argmax[j](m[i, j]); return r, argmin[i](m[i, 0])",
        [M],
        (M.argmax(1), M[:, 0].argmin()),
    ),
    "argmax used": ("m: f64[N, K]) { r[i] = m[i, argmax[j](m[i, j])]; return r", [M], M.max(1)),
    "argmax of a range": ("x: f64[N]) { return argmax[k in 2..N](x[k])", [X], 2 + X[2:].argmax()),
    "argmax below": (
        "m: f64[N, N]) { r[i] = argmax[k < i + 1](m[i, k]); return r",
        [SQUARE],
        np.array([SQUARE[i, : i + 1].argmax() for i in range(6)]),
    ),
    "triangle": (
        "l: f64[N, N], x: f64[N]) { r[i] = sum[k < i](l[i, k] * x[k]); return r",
        [SQUARE, X],
        np.tril(SQUARE, -1) @ X,
    ),
    "triangle used": (
        "l: f64[N, N], x: f64[N]) { r[i] = x[i] - sum[k < i](l[i, k] * x[k]); return r",
        [SQUARE, X],
        X - np.tril(SQUARE, -1) @ X,
    ),
    "sum in triangle": (
        "l: f64[N, N], m: f64[N, K]) { r[i] = 1.0 + sum[k < i](l[i, k] * sum[j](m[k, j])); return r",
        [SQUARE, M],
        1 + np.tril(SQUARE, -1) @ M.sum(1),
    ),
    "guarded in triangle": (
        "l: f64[N, N], m: f64[N, K]) { r[i] = sum[k in 1..i](l[i, k] * sum[j](m[k - 1, j])); return r",
        [SQUARE, M],
        np.array([sum(SQUARE[i, k] * M[k - 1].sum() for k in range(1, i)) for i in range(6)]),
    ),
    "minimum bound": (
        "x: f64[N]) { r[i < N] = sum[k in maximum(i - 1, 0)..minimum(i + 2, N)](x[k]); return r",
        [X],
        np.convolve(X, [1, 1, 1], "same"),
    ),
    "guard": (
        "x: f64[N]) { r[i < N] = where(i > 0, x[i - 1], 0.0) + where(i == N - 1, 0.0, x[i + 1]); return r",
        [X],
        np.convolve(X, [1, 0, 1], "same"),
    ),
    "guard and": (
        "x: f64[N]) { r[i < N + 2] = where(i >= 1 and i < N + 1, x[i - 1], 0.0); return r",
        [X],
        np.pad(X, 1),
    ),
    "guarded sum": (
        "m: f64[N, K]) { r[i < N] = where(i > 0, sum[j](m[i - 1, j]), 0.0); return r",
        [M],
        np.concatenate([[0], M[:-1].sum(1)]),
    ),
    "guarded bound": (
        "x: f64[N], s: i64[M]) { r[i] = where(i > 0, sum[k in s[i - 1]..s[i]](x[k]), -1.0); return r",
        [X, START],
        np.array([-1, *(X[a:b].sum() for a, b in pairwise(START))]),
    ),
    "sparse": (
        "s: i64[R + 1], col: i64[P], val: f64[P], x: f64[N]) { y[r < R] = sum[p in s[r]..s[r + 1]](val[p] * x[col[p]]); return y",
        [START, IDS, X, Y],
        np.array([sum(X[p] * Y[IDS[p]] for p in range(a, b)) for a, b in pairwise(START)]),
    ),
    "sparse rows": (
        "s: i64[R + 1], col: i64[P], x: f64[N, K]) { y[r < R] = sum[p in s[r]..s[r + 1]](sum[k](x[col[p], k])); return y",
        [START, IDS, M],
        np.array([sum(M[IDS[p]].sum() for p in range(a, b)) for a, b in pairwise(START)]),
    ),
    "whole inside": (
        "m: f64[N, K]) { r[i, j] = softmax(m, axis=-1)[i, j] * sum(m); return r",
        [M],
        np.exp(M) / np.exp(M).sum(1, keepdims=True) * M.sum(),
    ),
    "vector inside": ("x: f64[N], y: f64[N]) { r[i] = x[i] * dot(y, y); return r", [X, Y], X * (Y @ Y)),
    "row inside": (
        "x: f64[N], m: f64[N, N]) { r[i] = x[i] * dot(m[2], m[:, 1]); return r",
        [X, SQUARE],
        X * (SQUARE[2] @ SQUARE[:, 1]),
    ),
    "scalars inside": (
        "x: f64[N], a: f64) { r[i] = x[i] * a + sqrt(f64(N)); return r",
        [X, np.float64(3)],
        X * 3 + np.sqrt(6),
    ),
    "convolution": (
        "x: f64[N], w: f64[3]) { r[i < N - 2] = sum[k](x[i + k] * w[k]); return r",
        [X, X[:3]],
        np.correlate(X, X[:3], "valid"),
    ),
    "packs": (
        "x: f64[A, B, C], g: f64[C]) { return scale(x, g) }\nfn scale[T: float](x: T[..S, D], g: T[D]) -> T[..S, D] { y[..i, j] = x[..i, j] * g[j]; return y",
        [M.reshape(2, 3, 5), M[0]],
        M.reshape(2, 3, 5) * M[0],
    ),
    "functions of elements": (
        "x: f64[N]) { y[i] = clip(silu(x[i]), -0.1, square(x[i])); return y }\nfn square(a: f64) -> f64 { b = a * a; return b",
        [X],
        np.minimum(np.maximum(X / (1 + np.exp(-X)), -0.1), X * X),
    ),
    "functions of indices": (
        "m: f64[N, N]) { y[i, j] = m[i, j] * mask(i, j); return y }\nfn mask(a: i64, b: i64) -> f64 { return where(a >= b, f64(1), 0.0)",
        [SQUARE],
        np.tril(SQUARE),
    ),
    "sums in functions": (
        "x: f64[N]) { y[i] = poly(x[i]); return y }\nfn poly(a: f64) -> f64 { return sum[k < 4](a ** f64(k))",
        [np.abs(X)],
        sum(np.abs(X) ** k for k in range(4)),
    ),
    "same letters": (
        "x: f64[N]) { y[i] = x[i] * norm(x); return y }\nfn norm(x: f64[N]) -> f64 { s = sum[i](x[i] * x[i]); return sqrt(s)",
        [X],
        X * np.linalg.norm(X),
    ),
    "sum as a name": ("x: f64[N]) { sum[i] = x[i] + 1.0; return sum[k](sum[k])", [X], (X + 1).sum()),
    "casts": (
        "x: i32[N]) { y[i] = f32(x[i]) / f32(i + 1) + f32(true); return y",
        [IDS.astype(np.int32)],
        (IDS.astype(np.float32) / (np.arange(6) + 1).astype(np.float32)) + np.float32(1),
    ),
    "empty": ("x: f64[N]) { y[i < N] = sum[k < i](x[k]); return y", [X[:0]], X[:0]),
    "range of a reduction": (
        "x: f64[N]) { return sum[k in 1..N - 1](x[k + 1] - x[k - 1])",
        [X],
        (X[2:] - X[:-2]).sum(),
    ),
    "sum over a range inside": (
        "m: f64[N, K]) { r[j] = 1.0 * max[i in 2..N](m[i, j] * sum[k in 1..i](m[k, j])); return r",
        [M],
        np.array([max(M[i, j] * M[1:i, j].sum() for i in range(2, 6)) for j in range(5)]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_index_notation(run: Any, name: str) -> None:
    text, arrays, expected = CASES[name]
    close(run(f"fn f({text} }}", *arrays, function="f"), expected)
    assert load(Source("t.ita", f"fn f({text} }}")).check() == []


def jacobi(a: Array, steps: int) -> Array:
    for _ in range(steps):
        b = a.copy()
        b[1:-1, 1:-1] = 0.25 * (a[:-2, 1:-1] + a[2:, 1:-1] + a[1:-1, :-2] + a[1:-1, 2:])
        a = b
    return a


def updated(target: Array, change: Any) -> Array:
    result = target.copy()
    change(result)
    return result


def _put(index: Any, value: Any) -> Any:
    def change(a: Array) -> None:
        a[index] = value

    return change


def _add(index: Any, value: Any) -> Any:
    return lambda a: np.add.at(a, index, value)


UPDATES: dict[str, tuple[str, list[Array], Any]] = {
    "region": ("a: f64[N, N]) { return update a[i in 1..N-1, j in 1..N-1] = 0.25 * (a[i-1, j] + a[i+1, j] + a[i, j-1] + a[i, j+1])", [SQUARE], jacobi(SQUARE, 1)),
    "diagonal": ("a: f64[N, N]) { return update a[i, i] = 1.0", [SQUARE], updated(SQUARE, _put(np.diag_indices(6), 1))),
    "row": ("a: f64[N, K], r: f64[K], t: i64) { return update a[t, j] = r[j]", [M, M[0], np.int64(3)], updated(M, _put(3, M[0]))),
    "every second": ("a: f64[2*K], b: f64[K]) { return update a[2*i + 1] += b[i]", [X, X[:3]], updated(X, lambda a: a[1::2].__iadd__(X[:3]))),
    "scatter add": ("a: f64[N], b: i64[M], x: f64[M]) { return update a[b[i]] += x[i]", [X, IDS, Y], updated(X, _add(IDS, Y))),
    "scatter subtract": ("a: f64[N], b: i64[M], x: f64[M]) { return update a[b[i]] -= x[i]", [X, IDS, Y], updated(X, _add(IDS, -Y))),
    "histogram": ("h: i64[N], b: i32[M]) { return update h[b[i]] += 1", [np.zeros(6, np.int64), IDS.astype(np.int32)], np.bincount(IDS, minlength=6)),
    "scatter max": ("a: f64[N], b: i64[M], x: f64[M]) { return update a[b[i]] max= x[i]", [X, IDS, Y], updated(X, lambda a: np.maximum.at(a, IDS, Y))),
    "outside dropped": ("a: f64[N], b: i64[M]) { return update a[b[i] + 3] += 1.0", [X, IDS], updated(X, lambda a: np.add.at(a, (IDS + 3)[IDS < 3], 1))),
    "slice": ("a: f64[N, K], c: f64[N], p: i64) { return update a[:, p] = c", [M, X, np.int64(2)], updated(M, _put((slice(None), 2), X))),
    "slice of steps": ("a: f64[N, K]) { return update a[1::2, :-1] *= 2.0", [M], updated(M, lambda a: a[1::2, :-1].__imul__(2))),
    "whole row": ("a: f64[N, K]) { return update a[-1] = 0", [M], updated(M, _put(-1, 0))),
    "last": ("a: f64[N]) { return update a[-1] = a[0]", [X], updated(X, _put(-1, X[0]))),
    "broadcast": ("a: f64[N, K], r: f64[K]) { return update a[2:4] += r", [M, M[0]], updated(M, lambda a: a[2:4].__iadd__(M[0]))),
    "sum inside": ("a: f64[N, N]) { return update a[i in 1..N, 0] = sum[k](a[i - 1, k])", [SQUARE], updated(SQUARE, lambda a: a.__setitem__((slice(1, None), 0), SQUARE[:-1].sum(1)))),
    "twice": ("a: f64[N]) { b = update a[0] = 1.0; return (update b[1] = 2.0) + a", [X], X + np.array([1, 2, *X[2:]])),
    "mixed radix": ("a: f64[24], b: f64[6, 4]) { return update a[4*i + j] = b[i, j]", [floats(24), SQUARE[:, :4]], SQUARE[:, :4].reshape(24)),
}  # fmt: skip


@pytest.mark.parametrize("name", UPDATES)
def test_updates(run: Any, name: str) -> None:
    text, arrays, expected = UPDATES[name]
    close(run(f"fn f({text} }}", *arrays, function="f"), expected)
    assert load(Source("t.ita", f"fn f({text} }}")).check() == []


def test_loops(run: Any) -> None:
    text = """fn jacobi(a: f64[N, N], steps: i64) -> f64[N, N] {
        return loop (x = a) for t < steps {
            yield update x[i in 1..N-1, j in 1..N-1] = 0.25 * (x[i-1, j] + x[i+1, j] + x[i, j-1] + x[i, j+1])
        }
    }"""
    for steps in (0, 1, 5, -3):
        close(run(text, SQUARE, np.int64(steps)), jacobi(SQUARE, steps))


def test_scan_and_several_values(run: Any) -> None:
    text = """fn rnn(a: f64[T, D], x: f64[T, D]) -> (f64[D], f64[T, D], i64[T]) {
        last, all_h, square = scan (h = zeros(f64[D])) for t < T {
            h1 = a[t] * h + x[t]
            yield h1
            emit h1, t * t
        }
        return last, all_h, square
    }"""
    a, x = M, floats(6, 5)
    h, states = np.zeros(5), []
    for t in range(6):
        h = a[t] * h + x[t]
        states.append(h)
    close(run(text, a, x), (h, np.stack(states), np.arange(6) ** 2))
    close(run(text, a[:0], x[:0]), (np.zeros(5), np.zeros((0, 5)), np.zeros(0)))


def test_while_and_states_of_several_types(run: Any) -> None:
    text = """fn newton(a: f64) {
        x, n = loop (x = a, n = 0) for t < 100 while abs(x * x - a) > 1e-12 {
            yield 0.5 * (x + a / x), n + 1
        }
        return x, n
    }"""
    x, n = run(text, np.float64(2))
    assert abs(x - np.sqrt(2)) < 1e-12 and n.dtype == np.int64 and n < 8


def test_loops_in_loops_use_both_counters(run: Any) -> None:
    text = """fn f(a: f64[N, N]) {
        return loop (s = 0.0) for t in 1..N {
            inner = loop (r = s) for u < t { yield r + f32(t) * f32(u) }
            yield inner + 1
        }
    }"""
    assert run(text, SQUARE) == sum(sum(t * u for u in range(t)) + 1 for t in range(1, 6))


def test_states_of_two_kinds_change_together(run: Any) -> None:
    text = """fn fibonacci(n: i64) {
        a, b = loop (a = 0, b = 1) for t < n { yield b, a + b }
        return a
    }"""
    assert run(text, np.int64(30)) == 832040


def test_lists_of_structs(run: Any) -> None:
    text = """
    struct Linear(N, K) { weight: f64[N, K]
                          bias: f64[N] }
    struct Layer(D, F) { up: Linear(F, D)
                         down: Linear(D, F) }
    fn linear(x: f64[B, K], p: Linear(N, K)) -> f64[B, N] { return x @ transpose(p.weight) + p.bias }
    fn stack_of(x: f64[B, D], layer: Layer(D, F)[L]) -> f64[B, D] {
        return loop (h = x) for i < L { yield h + linear(relu(linear(h, layer[i].up)), layer[i].down) }
    }"""
    x = floats(4, 3)
    weights = [(floats(7, 3), floats(7), floats(3, 7), floats(3)) for _ in range(5)]
    expected = x
    for up, up_bias, down, down_bias in weights:
        expected = expected + np.maximum(expected @ up.T + up_bias, 0) @ down.T + down_bias
    close(run(text, x, *(list(w) for w in zip(*weights))), expected)


def test_elements_of_lists(run: Any) -> None:
    text = """
    struct Row(K) { values: f64[K] }
    fn total(rows: Row(K)[L], which: i64[M]) {
        all[l] = sum[k](rows[l].values[k])
        some[m] = sum[k](rows[which[m]].values[k])
        return all, some, rows[which[0]].values, rows[-1].values
    }"""
    rows = [floats(4) for _ in range(5)]
    which = np.array([3, 0, 3])
    stacked = np.stack(rows)
    close(run(text, rows, which), (stacked.sum(1), stacked[which].sum(1), rows[3], rows[4]))


def test_whole_tensor_indexing(run: Any) -> None:
    x = floats(4, 5, 6)
    cases = {
        "x[1]": x[1],
        "x[-1]": x[-1],
        "x[1:, :-1]": x[1:, :-1],
        "x[..., ::2]": x[..., ::2],
        "x[:, none]": x[:, None],
        "x[1, ..., none, 2]": x[1, ..., None, 2],
        "x[::-1, 3:0:-2]": x[::-1, 3:0:-2],
        "x[-2:]": x[-2:],
        "x[:100, 4:100]": x[:100, 4:100],
        "x[3:1]": x[3:1],
        "x[1:4:2, 2]": x[1:4:2, 2],
        "x[A - 1, B // 2]": x[3, 2],
        "x[p]": x[2],
        "x[:, p, p]": x[:, 2, 2],
        "x[...]": x,
    }
    for text, expected in cases.items():
        close(run(f"fn f(x: f64[A, B, C], p: i64) {{ return {text} }}", x, np.int64(2)), expected)


def test_operators(run: Any) -> None:
    a, b = RANDOM.integers(-9, 9, 40), RANDOM.integers(-3, 3, 40)
    with np.errstate(all="ignore"):
        cases = {
            "a // b": np.where(b == 0, 0, a // np.where(b == 0, 1, b)),
            "a % b": np.where(b == 0, 0, a % np.where(b == 0, 1, b)),
            "-a ** 2 + 3": -(a**2) + 3,
            "a < b or not a == b and a >= 2": (a < b) | ((a != b) & (a >= 2)),
            "where(a != b, a, -1)": np.where(a != b, a, -1),
            "f64(a) / f64(b)": a / b,
            "2 ** 3 ** 2 + a": 512 + a,
            "a * N + 7 // 2": a * 40 + 3,
            "a + N // 3": a + 13,
        }
        for text, expected in cases.items():
            np.testing.assert_array_equal(run(f"fn f(a: i64[N], b: i64[N]) {{ return {text} }}", a, b), expected)


def test_narrow_types_are_moved_and_cast(run: Any) -> None:
    import ml_dtypes

    w = RANDOM.integers(-8, 8, (4, 6)).astype(ml_dtypes.int4)
    x = floats(3, 4).astype(np.float32)
    text = """fn f(x: f32[M, K], w: i4[K, N]) {
        t = transpose(w)
        return x @ f32(w), f32(t[1:]), i8(concat((w, w)))
    }"""
    product, part, both = run(text, x, w)
    np.testing.assert_allclose(product, x @ w.astype(np.float32), rtol=1e-5)
    np.testing.assert_array_equal(part, w.T[1:].astype(np.float32))
    np.testing.assert_array_equal(both, np.concatenate([w, w]).astype(np.int8))


def test_tests_are_graphs_of_what_they_assert(run: Any) -> None:
    from intarsia.ir.interpreter import evaluate

    text = """test "sums" {
        x = iota(5)
        assert sum(x) == 10
        assert all(x < 4)
        assert 1 < 2
    }"""
    library = load(Source("t.ita", text))
    assert library.check() == [] and [t.name.value for t in library.tests] == ["sums"]
    assert [bool(r) for r in evaluate(library.build_test(0), [])] == [True, False, True]

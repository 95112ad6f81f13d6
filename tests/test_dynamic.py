"""Dimensions that stay open: one compilation is right for every length."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import intarsia
from intarsia.driver import Compilation
from intarsia.ir.interpreter import evaluate
from intarsia.options import Options

FOLDER = Path(__file__).parent / "programs"
sys.path.insert(0, str(FOLDER))

import data  # noqa: E402, F401
import networks  # noqa: E402, F401
import numerics  # noqa: E402, F401
import polybench  # noqa: E402, F401
from case import CATALOGUE, Entry, Random, check_results, compilation_of  # noqa: E402

Array = NDArray[Any]
LENGTHS = (17, 0, 1, 15, 16, 33, 1000)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Compilation]]:
    """The compilations that ran all the way to machine code."""
    found: list[Compilation] = []
    real = Compilation.executable

    def counted(self: Compilation, *arguments: Any) -> Any:
        found.append(self)
        return real(self, *arguments)

    monkeypatch.setattr(Compilation, "executable", counted)
    yield found


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(-1, keepdims=True))


def attend(q: Array, k: Array, v: Array) -> Array:
    return softmax(q.astype(np.float64) @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ v


def normalized(x: Array, gain: Array, bias: Array) -> Array:
    if x.shape[-1] == 0:
        return x
    wide = x.astype(np.float64)
    return np.asarray((wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * gain + bias)


PRODUCT = "fn main(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }"
NARROW = "fn main(a: f16[M, K], b: f16[K, N]) -> f16[M, N] { return a @ b }"
LINEAR = "fn main(x: f32[B, K], w: f32[K, N], b: f32[N]) -> f32[B, N] { return relu(x @ w + b) }"
ATTENTION = """fn main(q: f32[H, S, D], k: f32[H, T, D], v: f32[H, T, D]) -> f32[H, S, D] {
    return attention(q, k, v)
}"""
CAUSAL = """fn main(q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D]) -> f32[H, S, D] {
    return attention(q, k, v, causal=true)
}"""
SUMS = "fn main(x: f32[B, D]) -> (f32[B], f32[D], f32) { return sum(x, axis=1), sum(x, axis=0), sum(x) }"
SOFTMAX = "fn main(x: f32[B, D]) -> f32[B, D] { return softmax(x) }"
NEIGHBOURS = """fn main(x: f32[N]) -> (f32[N], f32[2*N], f32[N]) {
    return flip(x, axis=0), concat((x, 2.0 * x)), tensor[i < N](where(i > 0, x[i - 1], 0.0))
}"""


def product_case(m: int, k: int, n: int) -> Callable[[Random], list[Array]]:
    return lambda r: [r.f32(m, k), r.f32(k, n)]


def heads(s: int, t: int) -> Callable[[Random], list[Array]]:
    return lambda r: [r.f32(2, s, 16), r.f32(2, t, 16), r.f32(2, t, 16)]


def matmul(a: Array, b: Array) -> Array:
    return np.asarray(a.astype(np.float64) @ b)


CASES: dict[str, tuple[str, str, Callable[[int], Callable[[Random], list[Array]]], Callable[..., Any]]] = {
    "elementwise": (
        "fn main(x: f32[B, D], y: f32[D]) -> f32[B, D] { return tanh(x) * y + 1.0 }",
        "B",
        lambda n: lambda r: [r.f32(n, 5), r.f32(5)],
        lambda x, y: np.tanh(x) * y + 1,
    ),
    "elementwise-last": (
        "fn main(x: f32[B, D], y: f32[D]) -> f32[B, D] { return tanh(x) * y + 1.0 }",
        "D",
        lambda n: lambda r: [r.f32(3, n), r.f32(n)],
        lambda x, y: np.tanh(x) * y + 1,
    ),
    "sums-over-rows": (SUMS, "B", lambda n: lambda r: [r.f32(n, 37)], lambda x: (x.sum(1), x.sum(0), x.sum())),
    "sums-over-columns": (SUMS, "D", lambda n: lambda r: [r.f32(3, n)], lambda x: (x.sum(1), x.sum(0), x.sum())),
    "product-M": (PRODUCT, "M", lambda n: product_case(n, 37, 20), matmul),
    "product-N": (PRODUCT, "N", lambda n: product_case(19, 37, n), matmul),
    "product-K": (PRODUCT, "K", lambda n: product_case(19, n, 21), matmul),
    "product-K-of-many-rows": (PRODUCT, "K", lambda n: product_case(70, n, 21), matmul),
    "product-all": (PRODUCT, "M,N,K", lambda n: product_case(min(n, 100), n, n + 1), matmul),
    "product-f16": (NARROW, "K", lambda n: lambda r: [r.f16(3, n), r.f16(n, 5)], matmul),
    "vector-M": (
        "fn main(a: f64[M, K], x: f64[K]) -> f64[M] { return a @ x }",
        "M",
        lambda n: lambda r: [r.f64(n, 37), r.f64(37)],
        matmul,
    ),
    "vector-K": (
        "fn main(a: f64[M, K], x: f64[K]) -> f64[M] { return a @ x }",
        "K",
        lambda n: lambda r: [r.f64(9, n), r.f64(n)],
        matmul,
    ),
    "linear": (
        LINEAR,
        "B",
        lambda n: lambda r: [r.f32(n, 64), r.f32(64, 48), r.f32(48)],
        lambda x, w, b: np.maximum(matmul(x, w) + b, 0),
    ),
    "softmax-rows": (SOFTMAX, "B", lambda n: lambda r: [r.f32(n, 33)], softmax),
    "softmax-columns": (SOFTMAX, "D", lambda n: lambda r: [r.f32(4, n)], softmax),
    "layer-norm": (
        "fn main(x: f32[B, D], g: f32[D], b: f32[D]) -> f32[B, D] { return layer_norm(x, g, b) }",
        "D",
        lambda n: lambda r: [r.f32(4, n), r.f32(n), r.f32(n)],
        normalized,
    ),
    "attention-S": (ATTENTION, "S", lambda n: heads(n, 37), attend),
    "attention-T": (ATTENTION, "T", lambda n: heads(9, n), attend),
    "attention-both": (ATTENTION, "S,T", lambda n: heads(n + 1, n), attend),
    "causal": (
        CAUSAL,
        "S",
        lambda n: heads(n, n),
        lambda q, k, v: (
            softmax(np.where(np.tri(q.shape[1], dtype=bool), q.astype(np.float64) @ k.swapaxes(1, 2) / 4, -np.inf)) @ v
        ),
    ),
    "running-sum": (
        "fn main(x: f64[N], y: f64[N, 3]) -> (f64[N], f64[N, 3]) { return cumsum(x, axis=0), cumsum(y, axis=0) }",
        "N",
        lambda n: lambda r: [r.f64(n), r.f64(n, 3)],
        lambda x, y: (x.cumsum(0), y.cumsum(0)),
    ),
    "sort": (
        "fn main(x: f32[N], y: f32[3, N]) -> (f32[N], i64[3, N]) { return sort(x), argsort(y) }",
        "N",
        lambda n: lambda r: [r.f32(n), r.f32(3, n)],
        lambda x, y: (np.sort(x), np.argsort(y, kind="stable")),
    ),
    "histogram": (
        "fn main(x: i64[N]) -> i64[16] { h = zeros(i64[16]); return update h[x[i]] += 1 }",
        "N",
        lambda n: lambda r: [r.integers(0, 16, (n,))],
        lambda x: np.bincount(x, minlength=16),
    ),
    "neighbours": (
        NEIGHBOURS,
        "N",
        lambda n: lambda r: [r.f32(n)],
        lambda x: (x[::-1], np.concatenate([x, 2 * x]), np.concatenate([np.zeros(1, np.float32), x])[: len(x)]),
    ),
    "heads": (
        "fn main(x: f32[B, T, 8]) -> f32[B, 2, T, 4] { return transpose(reshape(x, (B, T, 2, 4)), axes=(0, 2, 1, 3)) }",
        "B,T",
        lambda n: lambda r: [r.f32(min(n, 3), n, 8)],
        lambda x: x.reshape(*x.shape[:2], 2, 4).transpose(0, 2, 1, 3),
    ),
    "gather": (
        "fn main(table: f32[V, D], ids: i64[T]) -> f32[T, D] { return take(table, ids, axis=0) }",
        "V,T",
        lambda n: lambda r: [r.f32(n + 1, 3), r.integers(0, n + 1, (n,))],
        lambda table, ids: table[ids],
    ),
}


COVERED = {"attention-S", "attention-T", "attention-both", "product-M", "product-N", "product-K"}
"""Dear cases; others open the same dimensions of products and of attention."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in COVERED else n for n in CASES])
@pytest.mark.slow
def test_one_compilation_serves_every_length(name: str, compilations: list[Compilation]) -> None:
    text, names, make, reference = CASES[name]
    program = intarsia.compile(text, Options(dynamic=tuple(names.split(","))), use_cache=False)
    for length in LENGTHS:
        arguments = make(length)(Random(length))
        results = program.entry()(*arguments)
        with np.errstate(all="ignore"):
            wanted = reference(*arguments)
        check_results(results, wanted, label=f"length {length}")
    assert len(compilations) == 1


@pytest.mark.slow
@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda e: e.name)
def test_every_dimension_of_a_program_open(entry: Entry, compilations: list[Compilation]) -> None:
    path = FOLDER / f"{entry.name}.ita"
    names = intarsia.load(path, use_cache=False).entry("main").form.dimensions
    function = intarsia.load(path, Options(dynamic=names), use_cache=False).entry("main")
    for sizes in entry.sizes:
        case = entry.make(Random(), **sizes)
        check_results(function(*case.arguments), case.wanted, entry.tolerance, label=str(sizes))
    if names and entry.name != "rotary":
        assert len(compilations) == 1


@pytest.mark.slow
def test_the_sequence_length_of_a_sentence_encoder(compilations: list[Compilation]) -> None:
    """examples/minilm.ita with its own structure and small widths, against the graph interpreter."""
    r = Random()
    width, inner, places = 24, 40, 40

    def matrix(rows: int, columns: int) -> Array:
        return 0.2 * r.f32(rows, columns)

    def linear(rows: int, columns: int) -> dict[str, Array]:
        return {"weight": matrix(rows, columns), "bias": 0.1 * r.f32(rows)}

    def norm() -> dict[str, Array]:
        return {"weight": 1 + 0.1 * r.f32(width), "bias": 0.1 * r.f32(width)}

    def layer() -> dict[str, Any]:
        return {
            "attention": {
                "self": {name: linear(width, width) for name in ("query", "key", "value")},
                "output": {"dense": linear(width, width), "LayerNorm": norm()},
            },
            "intermediate": {"dense": linear(inner, width)},
            "output": {"dense": linear(width, inner), "LayerNorm": norm()},
        }

    weights = {
        "embeddings": {
            "word_embeddings": {"weight": matrix(50, width)},
            "position_embeddings": {"weight": matrix(places, width)},
            "token_type_embeddings": {"weight": matrix(2, width)},
            "LayerNorm": norm(),
        },
        "encoder": {"layer": [layer() for _ in range(2)]},
    }
    path = FOLDER.parent.parent / "examples" / "minilm.ita"
    encode = intarsia.load(path, Options(dynamic=("T",)), use_cache=False).main
    for length in (17, 1, 16, 33, 0):
        ids = r.integers(0, 50, (2, length))
        mask = (r.rng.random((2, length)) < 0.7).astype(np.float32)
        mask[:, :1] = 1
        compilation, inputs = compilation_of(intarsia.load(path).main, (ids, mask, weights))
        wanted = evaluate(compilation.source_module, inputs, compilation.sizes)
        check_results(encode(ids, mask, weights), wanted, 1e-4, f"length {length}")
    assert len(compilations) == 1
    with pytest.raises(intarsia.CompileError, match="T"):
        encode(r.integers(0, 50, (2, places + 1)), np.ones((2, places + 1), np.float32), weights)

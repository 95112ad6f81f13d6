"""The value and all gradients of a softmax, of norms and of pointwise functions: how many kernels they are."""

from __future__ import annotations

import numpy as np
import pytest

import intarsia
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.pipeline import Context, Instrument, default_pipeline
from intarsia.passes.verify import verification
from intarsia.runtime.threads import THREADS

TARGET = TARGETS["cpu:x86-avx512"]

BY_HAND = """
    m[i] = sum[j](TYPE32(x[i, j])) / TYPE32(M)
    v[i] = sum[j]((TYPE32(x[i, j]) - m[i]) ** 2) / TYPE32(M)
    return tensor[i, j](TYPE((TYPE32(x[i, j]) - m[i]) / sqrt(v[i] + 1e-5) * TYPE32(g[j]) + TYPE32(b[j])))"""
GROUPS = """
    m[n, o] = sum[k, l](TYPE32(x[n, o, k, l])) / TYPE32(K * L)
    v[n, o] = sum[k, l]((TYPE32(x[n, o, k, l]) - m[n, o]) ** 2) / TYPE32(K * L)
    y[n, o, k, l] = (TYPE32(x[n, o, k, l]) - m[n, o]) * rsqrt(v[n, o] + 1e-5)
    return tensor[n, o, k, l](TYPE(y[n, o, k, l] * TYPE32(g[o, k]) + TYPE32(b[o, k])))"""

SLOW = pytest.mark.slow
MATRIX, ROW = "TYPE[N, M]", "TYPE[M]"
PROGRAMS = {  # by the types of what gradients are taken of
    "softmax": ({"x": MATRIX}, "return softmax(x, axis=-1)", 1),
    "gelu": ({"x": MATRIX}, "return gelu(x)", 1),
    "rms_norm": ({"x": MATRIX, "g": ROW}, "return rms_norm(x, g)", 2),
    "layer_norm": ({"x": MATRIX, "g": ROW, "b": ROW}, "return layer_norm(x, g, b)", 2),
    "layer_norm_3d": ({"x": "TYPE[B, N, M]", "g": ROW, "b": ROW}, "return layer_norm(x, g, b)", 2),
    "layer_norm_by_hand": ({"x": MATRIX, "g": ROW, "b": ROW}, BY_HAND, 2),
    "group_norm": ({"x": "TYPE[N, G, K, L]", "g": "TYPE[G, K]", "b": "TYPE[G, K]"}, GROUPS, 2),
}


def program(name: str, dtype: str = "f32") -> str:
    """The value and the gradients of a program, for the cotangents `c`."""
    types, body, _ = PROGRAMS[name]
    given = ", ".join(f"{n}: {t}" for n, t in types.items())
    names, shape = ", ".join(types), types["x"]
    text = f"""fn value({given}) -> {shape} {{ {body} }}
    fn loss({given}, c: {shape}) -> TYPE32 {{ return sum(TYPE32(value({names})) * TYPE32(c)) }}
    fn f({given}, c: {shape}) {{
        {", ".join(f"d{n}" for n in types)} = grad(loss, wrt=({names}))({names}, c)
        return value({names}), {", ".join(f"d{n}" for n in types)}
    }}"""
    return text.replace("TYPE32", "f64" if dtype == "f64" else "f32").replace("TYPE", dtype)


def passed(name: str, dtype: str, sizes: dict[str, int], *instruments: Instrument) -> Module:
    module = load(Source("f", program(name, dtype))).build("f")
    known = {name: size for name, size in sizes.items() if name in module.graph.dimensions}
    return default_pipeline(known).run(module, Context(TARGET), instruments)


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW if n == "layer_norm_3d" else ()) for n in PROGRAMS])
def test_few_kernels(name: str) -> None:
    sizes = {"B": 3, "N": 61, "M": 203, "G": 5, "K": 3, "L": 37}
    assert len(passed(name, "f32", sizes).kernels) <= PROGRAMS[name][2]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (300, 33), (4096, 1024)])
def test_few_kernels_of_any_size(name: str, dtype: str, shape: tuple[int, int]) -> None:
    n, m = shape
    sizes = {"B": 3, "N": n, "M": m, "G": 5, "K": 3, "L": m}
    assert len(passed(name, dtype, sizes).kernels) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_pass_keeps_the_meaning(name: str, dtype: str) -> None:
    passed(name, dtype, {"B": 2, "N": 37, "M": 65, "G": 2, "K": 3, "L": 19}, *verification("exec"))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(301, 517), (1027, 33), (4099, 1025)])
def test_layer_norm_is_that_of_numpy_on_any_number_of_threads(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, c = (rng.standard_normal(shape) for _ in range(2))
    g, b = (rng.standard_normal(shape[1]) for _ in range(2))
    scale = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    normal = (x - x.mean(axis=1, keepdims=True)) * scale
    slope = c * g
    means = (slope.mean(axis=1, keepdims=True), normal * (slope * normal).mean(axis=1, keepdims=True))
    expected = (normal * g + b, scale * (slope - means[0] - means[1]), (c * normal).sum(axis=0), c.sum(axis=0))
    function = intarsia.compile(program("layer_norm"), Options(target="cpu"))["f"]
    before, found = THREADS.get(), []
    try:
        for threads in (1, 2):
            THREADS.set(threads)
            found.append(function(*(a.astype(np.float32) for a in (x, g, b, c))))
    finally:
        THREADS.set(before)
    for one, two, true in zip(*found, expected, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, true, rtol=1e-3, atol=1e-5 * shape[0] ** 0.5 * 10)

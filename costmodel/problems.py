"""Programs to learn from: kernels of every kind in many sizes, written in the language.

A problem is a text and a kind; `problems(seed, count)` draws them, the kinds in turn. Sizes are drawn on a logarithmic
scale, round ones and odd ones, from what fits a first cache to what is several times a last one; work is bounded so
that a run takes milliseconds, and tens of milliseconds in the kinds that are called large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Problem:
    """A program of one function named `f`, with numbers for sizes. kind: which generator made it."""

    kind: str
    text: str


MOST_WORK = 2e8
"""Multiply-adds of a product at most."""

MOST_ELEMENTS = 6e6
"""Elements of an operand that is only read through at most."""

LARGE_WORK = 9e9
"""Multiply-adds of a large product at most: a little more than 2048 cubed."""

LARGE_ELEMENTS = 4e7
"""Elements of a large matrix at most."""


def problems(seed: int, count: int) -> Iterator[Problem]:
    """Different problems, as many of each kind."""
    random = Random(seed)
    seen: set[str] = set()
    names = list(KINDS)
    made = 0
    while made < count:
        kind = names[made % len(names)]
        for _ in range(100):
            text = KINDS[kind](random)
            if text not in seen:
                break
        seen.add(text)
        made += 1
        yield Problem(kind, text)


# ---------------------------------------------------------------------- sizes


def _size(r: Random, least: float, most: float) -> int:
    """A size between bounds: a power of two, a multiple of 16, or any."""
    value = math.exp(r.uniform(math.log(least), math.log(most)))
    match r.randrange(4):
        case 0:
            return max(int(least), min(int(most), 1 << round(math.log2(value))))
        case 1 | 2:
            return max(int(least), round(value / 16) * 16 or 16)
    return max(1, round(value))


def _product(r: Random, least: int = 24, most: int = 1024) -> tuple[int, int, int]:
    """Rows, steps and columns of a product that is not too long."""
    while True:
        m, k, n = _size(r, least, most), _size(r, least, most), _size(r, least, most)
        if 2e4 < m * k * n <= MOST_WORK:
            return m, k, n


def _matrix(r: Random, least: int = 16, most: int = 4096) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    while True:
        n, m = _size(r, least, most), _size(r, least, most)
        if 4e3 < n * m <= MOST_ELEMENTS:
            return n, m


ACTIVATIONS = ("relu(t)", "gelu_tanh(t)", "silu(t)", "tanh(t)", "sigmoid(t)", "t * t", "exp(t * 0.1)")


# ---------------------------------------------------------------------- kinds


def matmul(r: Random) -> str:
    m, k, n = _product(r)
    dtype = r.choice(("f32", "f32", "f32", "f64"))
    a, b = f"a: {dtype}[{m}, {k}]", f"b: {dtype}[{k}, {n}]"
    return f"fn f({a}, {b}) -> {dtype}[{m}, {n}] {{ return a @ b }}"


def square_matmul(r: Random) -> str:
    n = _size(r, 32, 560)
    return f"fn f(a: f32[{n}, {n}], b: f32[{n}, {n}]) -> f32[{n}, {n}] {{ return a @ b }}"


def skinny_matmul(r: Random) -> str:
    m = r.choice((1, 2, 3, 4, 5, 8, 12, 16, 24, 32))
    k, n = _size(r, 128, 2048), _size(r, 128, 2048)
    const = r.choice(("", "", "const "))
    return f"fn f(a: f32[{m}, {k}], {const}b: f32[{k}, {n}]) -> f32[{m}, {n}] {{ return a @ b }}"


def transposed_matmul(r: Random) -> str:
    m, k, n = _product(r)
    if r.random() < 0.5:
        return f"fn f(a: f32[{m}, {k}], b: f32[{n}, {k}]) -> f32[{m}, {n}] {{ return a @ transpose(b) }}"
    return f"fn f(a: f32[{k}, {m}], b: f32[{k}, {n}]) -> f32[{m}, {n}] {{ return transpose(a) @ b }}"


def linear_layer(r: Random) -> str:
    m, k, n = _product(r)
    const = r.choice(("", "const "))
    return (
        f"fn f(x: f32[{m}, {k}], {const}w: f32[{k}, {n}], b: f32[{n}]) -> f32[{m}, {n}] "
        f"{{ t = x @ w + b\n return {r.choice(ACTIVATIONS)} }}"
    )


def batched_matmul(r: Random) -> str:
    batch = r.choice((2, 4, 8, 12, 16, 32, 64))
    while True:
        m, k, n = _size(r, 16, 256), _size(r, 16, 256), _size(r, 16, 256)
        if 2e4 < batch * m * k * n <= MOST_WORK:
            break
    return f"fn f(a: f32[{batch}, {m}, {k}], b: f32[{batch}, {k}, {n}]) -> f32[{batch}, {m}, {n}] {{ return a @ b }}"


def convolution(r: Random) -> str:
    while True:
        c, o, side, window, stride = (
            r.choice((3, 8, 16, 32, 48, 64, 96)),
            r.choice((8, 16, 24, 32, 64, 96, 128)),
            r.choice((7, 14, 16, 28, 32, 56, 57, 64, 112)),
            r.choice((1, 3, 3, 3, 5, 7)),
            r.choice((1, 1, 1, 2)),
        )
        if 1e5 < c * o * side * side * window * window / stride**2 <= MOST_WORK and window < side:
            break
    out = (side + 2 * (window // 2) - window) // stride + 1
    options = f", stride={stride}" * (stride > 1) + f", padding={window // 2}" * (window > 1)
    return (
        f"fn f(x: f32[1, {c}, {side}, {side}], const w: f32[{o}, {c}, {window}, {window}]) "
        f"-> f32[1, {o}, {out}, {out}] {{ return conv2d(x, w{options}) }}"
    )


def depthwise(r: Random) -> str:
    c, side = r.choice((16, 32, 64, 96, 144)), r.choice((14, 28, 56, 112))
    return (
        f"fn f(x: f32[1, {c}, {side}, {side}], w: f32[{c}, 1, 3, 3]) -> f32[1, {c}, {side}, {side}] "
        f"{{ return conv2d(x, w, padding=1, groups={c}) }}"
    )


def row_reduction(r: Random) -> str:
    n, m = _matrix(r)
    what = r.choice(("sum(x, axis=1)", "max(x, axis=1)", "mean(x * x, axis=1)", "sum(abs(x), axis=1)"))
    return f"fn f(x: f32[{n}, {m}]) -> f32[{n}] {{ return {what} }}"


def column_reduction(r: Random) -> str:
    n, m = _matrix(r)
    what = r.choice(("sum(x, axis=0)", "max(x, axis=0)", "mean(x * x, axis=0)"))
    return f"fn f(x: f32[{n}, {m}]) -> f32[{m}] {{ return {what} }}"


def matrix_vector(r: Random) -> str:
    n, m = _matrix(r)
    if r.random() < 0.5:
        return f"fn f(a: f32[{n}, {m}], x: f32[{m}]) -> f32[{n}] {{ return a @ x }}"
    return f"fn f(a: f32[{n}, {m}], x: f32[{n}]) -> f32[{m}] {{ return x @ a }}"


def softmax(r: Random) -> str:
    n, m = _matrix(r)
    axis = r.choice((1, 1, 1, 0))
    what = r.choice(("softmax", "softmax", "log_softmax"))
    return f"fn f(x: f32[{n}, {m}]) -> f32[{n}, {m}] {{ return {what}(x, axis={axis}) }}"


def norm(r: Random) -> str:
    n, d = _matrix(r)
    if r.random() < 0.5:
        return f"fn f(x: f32[{n}, {d}], g: f32[{d}]) -> f32[{n}, {d}] {{ return rms_norm(x, g) }}"
    return f"fn f(x: f32[{n}, {d}], g: f32[{d}], b: f32[{d}]) -> f32[{n}, {d}] {{ return layer_norm(x, g, b) }}"


def elementwise(r: Random) -> str:
    n, m = _matrix(r)
    steps = r.randrange(1, 5)
    body = "\n ".join(f"t = {r.choice(CHAIN)}" for _ in range(steps))
    given = f"x: f32[{n}, {m}], y: f32[{n}, {m}], s: f32[{m}]"
    return f"fn f({given}) -> f32[{n}, {m}] {{ t = x * s + y\n {body}\n return t }}"


CHAIN = (
    *ACTIVATIONS,
    "maximum(t, x)",
    "t * 0.5 + y",
    "t / (1.0 + abs(t))",
    "sqrt(abs(t) + 1.0)",
    "where(x > 0.0, t, y)",
)


def narrow_elementwise(r: Random) -> str:
    n, m = _matrix(r)
    dtype = r.choice(("bf16", "f16"))
    return f"fn f(t: {dtype}[{n}, {m}]) -> {dtype}[{n}, {m}] {{ return {r.choice(ACTIVATIONS[:5])} }}"


def transposition(r: Random) -> str:
    n, m = _matrix(r, 32)
    dtype = r.choice(("f32", "f32", "f64", "bf16"))
    if r.random() < 0.6:
        return f"fn f(x: {dtype}[{n}, {m}]) -> {dtype}[{m}, {n}] {{ return transpose(x) }}"
    b = r.choice((2, 4, 8))
    n = max(16, n // b)
    return f"fn f(x: {dtype}[{b}, {n}, {m}]) -> {dtype}[{b}, {m}, {n}] {{ return transpose(x, axes=(0, 2, 1)) }}"


def gather(r: Random) -> str:
    v, d = _size(r, 256, 20000), _size(r, 8, 512)
    n = _size(r, 64, 4096)
    return f"fn f(t: f32[{v}, {d}], i: i64[{n}]) -> f32[{n}, {d}] {{ return tensor[n, d](t[i[n], d]) }}"


def stencil(r: Random) -> str:
    n, m = _matrix(r, 32)
    dtype = r.choice(("f32", "f64"))
    points = r.choice(
        (
            "0.25 * (x[i, j + 1] + x[i + 2, j + 1] + x[i + 1, j] + x[i + 1, j + 2])",
            "0.2 * (x[i + 1, j + 1] + x[i, j + 1] + x[i + 2, j + 1] + x[i + 1, j] + x[i + 1, j + 2])",
            "0.1 * x[i, j] + 0.8 * x[i + 1, j + 1] + 0.1 * x[i + 2, j + 2]",
            "max(dy in 0..3, dx in 0..3)(x[i + dy, j + dx])",
            "sum(dy in 0..3, dx in 0..3)(w[dy, dx] * x[i + dy, j + dx])",
        )
    )
    weights = f", w: {dtype}[3, 3]" if "w[" in points else ""
    body = points.replace("max(dy in 0..3, dx in 0..3)", "max[dy < 3, dx < 3]")
    body = body.replace("sum(dy in 0..3, dx in 0..3)", "sum[dy < 3, dx < 3]")
    return (
        f"fn f(x: {dtype}[{n}, {m}]{weights}) -> {dtype}[{n - 2}, {m - 2}] "
        f"{{ return tensor[i < {n - 2}, j < {m - 2}]({body}) }}"
    )


def attention(r: Random) -> str:
    while True:
        h, s, d = r.choice((1, 2, 4, 8)), _size(r, 32, 512), r.choice((16, 32, 40, 64, 80, 128))
        if 2e4 < 2 * h * s * s * d <= MOST_WORK:
            break
    causal = r.choice(("", ", causal=true"))
    t = f"f32[{h}, {s}, {d}]"
    return f"fn f(q: {t}, k: {t}, v: {t}) -> {t} {{ return attention(q, k, v{causal}) }}"


def dequantised_matmul(r: Random) -> str:
    m = r.choice((1, 1, 2, 4, 16, 64))
    k, n = _size(r, 128, 1024), _size(r, 128, 1024)
    return f"fn f(x: f32[{m}, {k}], w: i8[{k}, {n}], s: f32[{n}]) -> f32[{m}, {n}] {{ return x @ (f32(w) * s) }}"


def coded_matmul(r: Random) -> str:
    """A product with weights in a format: codes of a few bits, with a scale for each group of them."""
    element, group = r.choice(("i4", "i4", "u4", "i8", "i2", "f4e2m1", "f8e4m3", "u3")), r.choice((32, 64, 128))
    m, k, n = r.choice((1, 1, 2, 4, 8, 16, 64)), group * r.randrange(1, 2048 // group + 1), _size(r, 64, 2048)
    while m * k * n > MOST_WORK:
        n //= 2
    return (
        f"format w = quant({element}, scale=f16, group={group}, axis=0)\n"
        f"fn f(x: f32[{m}, {k}], const w: w[{k}, {n}]) -> f32[{m}, {n}] {{ return x @ dequantize(w) }}"
    )


def dot_matmul(r: Random) -> str:
    """A product of types that the machine multiplies and adds up in one instruction."""
    m, k, n = _product(r, 16)
    const = r.choice(("", "const "))
    given, result = r.choice(((("bf16", "bf16"), "f32"), (("i8", "i8"), "i32"), (("u8", "i8"), "i32")))
    return (
        f"fn f(a: {given[0]}[{m}, {k}], {const}b: {given[1]}[{k}, {n}]) -> {result}[{m}, {n}] "
        f"{{ return tensor[i, j](sum[k]({result}(a[i, k]) * {result}(b[k, j]))) }}"
    )


def random_graph(r: Random) -> str:
    """Pointwise ops, reductions of rows and columns and products in any order, as fusion will have them."""
    n, m = _matrix(r, 32, 1024)
    body, full = [], ["x", "y"]
    for step in range(r.randrange(3, 8)):
        a, b = r.choice(full), r.choice(full)
        body.append(
            f"t{step} = "
            + r.choice(
                (
                    f"{a} * {b} + 0.5",
                    f"{a} - {b}",
                    f"tanh({a})",
                    f"{a} * s",
                    f"{a} / (1.0 + abs({b}))",
                    f"{a} - mean({a}, axis=1, keepdims=true)",
                    f"{a} / sqrt(1.0 + sum({b} * {b}, axis=1, keepdims=true))",
                    f"{a} * max({b}, axis=0, keepdims=true)",
                    f"softmax({a}, axis=1)",
                    f"where({a} > {b}, {a}, s)",
                )
            )
        )
        full.append(f"t{step}")
    steps = "\n ".join(body)
    last = r.choice((full[-1], full[-1], f"sum({full[-1]}, axis=1)", f"sum({full[-1]}, axis=0)"))
    shape = f"{n}, {m}" if last == full[-1] else str(n if "axis=1" in last else m)
    return f"fn f(x: f32[{n}, {m}], y: f32[{n}, {m}], s: f32[{m}]) -> f32[{shape}] {{ {steps}\n return {last} }}"


def contraction(r: Random) -> str:
    """A tensor contraction of three or four dimensions."""
    while True:
        a, b, c, d = (_size(r, 8, 96) for _ in range(4))
        if 2e4 < a * b * c * d <= MOST_WORK / 2:
            break
    return (
        f"fn f(x: f32[{a}, {d}, {b}], y: f32[{d}, {c}]) -> f32[{a}, {b}, {c}] "
        f"{{ return tensor[a, b, c](sum[d](x[a, d, b] * y[d, c])) }}"
    )


def mixed(r: Random) -> str:
    """Reductions and pointwise ops in one kernel."""
    n, m = _matrix(r, 32, 2048)
    middle = r.choice(("max(x, axis=1)", "mean(x, axis=1)", "sqrt(sum(x * x, axis=1))"))
    t = f"t = (x - reshape({middle}, ({n}, 1))) * y"
    last = r.choice(("t", "sum(t, axis=1)", "sum(t * t, axis=0)", "tanh(t)"))
    shape = {"sum(t, axis=1)": f"{n}", "sum(t * t, axis=0)": f"{m}"}.get(last, f"{n}, {m}")
    return f"fn f(x: f32[{n}, {m}], y: f32[{n}, {m}]) -> f32[{shape}] {{ {t}\n return {last} }}"


def large_matmul(r: Random) -> str:
    """A product that takes milliseconds, alone or as a layer."""
    while True:
        m, k, n = (_size(r, 384, 2560) for _ in range(3))
        if r.random() < 0.3:
            m = k = n
        if MOST_WORK < m * k * n <= LARGE_WORK:
            break
    match r.randrange(4):
        case 0:
            return f"fn f(a: f32[{m}, {k}], b: f32[{n}, {k}]) -> f32[{m}, {n}] {{ return a @ transpose(b) }}"
        case 1:
            w, last = r.choice(("w", "const w")), r.choice(ACTIVATIONS)
            given = f"x: f32[{m}, {k}], {w}: f32[{k}, {n}], b: f32[{n}]"
            return f"fn f({given}) -> f32[{m}, {n}] {{ t = x @ w + b\n return {last} }}"
    return f"fn f(a: f32[{m}, {k}], b: f32[{k}, {n}]) -> f32[{m}, {n}] {{ return a @ b }}"


def streamed_matmul(r: Random) -> str:
    """A few rows times a matrix that no cache holds."""
    m = r.choice((1, 1, 2, 4, 8, 16, 32))
    while True:
        k, n = _size(r, 1024, 8192), _size(r, 1024, 8192)
        if MOST_ELEMENTS < k * n <= LARGE_ELEMENTS:
            break
    const = r.choice(("", "", "const "))
    return f"fn f(a: f32[{m}, {k}], {const}b: f32[{k}, {n}]) -> f32[{m}, {n}] {{ return a @ b }}"


def large_matrix(r: Random) -> str:
    """One pass or a few over a matrix that no cache holds."""
    while True:
        n, m = _size(r, 512, 16384), _size(r, 512, 16384)
        if MOST_ELEMENTS < n * m <= LARGE_ELEMENTS:
            break
    scale = f", s: f32[{m}]"
    given, shape, body = r.choice(
        (
            (scale, f"{n}, {m}", f"t = x * s\n return {r.choice(ACTIVATIONS)}"),
            (scale, f"{n}, {m}", "return rms_norm(x, s)"),
            ("", f"{n}, {m}", f"return softmax(x, axis={r.choice((0, 1, 1))})"),
            ("", f"{m}, {n}", "return transpose(x)"),
            ("", f"{n}", "return sum(x, axis=1)"),
            ("", f"{m}", "return sum(x, axis=0)"),
        )
    )
    return f"fn f(x: f32[{n}, {m}]{given}) -> f32[{shape}] {{ {body} }}"


KINDS: dict[str, Callable[[Random], str]] = {
    kind.__name__: kind
    for kind in (
        matmul, elementwise, row_reduction, skinny_matmul, convolution, softmax, square_matmul, transposition, norm,
        batched_matmul, column_reduction, linear_layer, stencil, attention, transposed_matmul, matrix_vector, gather,
        depthwise, mixed, dequantised_matmul, narrow_elementwise, contraction, coded_matmul, dot_matmul, random_graph,
        large_matmul, streamed_matmul, large_matrix,
    )
}  # fmt: skip
"""The generators by name."""

"""What broken passes are tried on: programs of the language, the inputs of golden files, random graphs, expressions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fuzz"))

from chains import generate_chain
from expressions import Expressions, module_of
from generate import FuzzProgram, generate

from intarsia.dsl.library import load
from intarsia.ir.dtypes import BOOL, F32, I32
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.random_graphs import random_module
from intarsia.ir.text import read_module

ROOT = Path(__file__).parent.parent.parent

PROGRAMS = (
    "fn f(x: f32[N, M], g: f32[M], b: f32[M]) -> f32[N, M] { return layer_norm(x, g, b) }",
    "fn f(x: f32[N, M]) -> (f32[N, M], f32[N]) { return softmax(x), logsumexp(x, axis=1) }",
    "fn f(x: f32[N, K], w: f32[K, M], b: f32[M]) -> f32[N, M] { return gelu(x @ w + b) }",
    "fn f(x: bf16[N, M], g: bf16[M]) -> (bf16[N, M], i64[N]) { return softmax(x * g), argmax(x, axis=1) }",
    "fn f(x: f16[N, M]) -> (f16[N], f16[N, M]) { return sum(x * x, axis=1), where(x > 0.0, x, x * 0.1) }",
    "fn f(x: f32[N], b: i64[M], v: f32[M]) -> f32[N] { return update x[b[i]] += v[i] * 2.0 }",
    "fn f(x: f32[N, M]) -> f32[N, M] { return update x[i in 1..N, j] = x[i - 1, j] * 0.5 }",
    "fn f(x: f32[N]) -> f32[N] { y[i < N] = where(i > 0, x[i - 1], 0.0) + where(i < N - 1, x[i + 1], 1.0); return y }",
    "fn f(t: f32[N, M], ids: i64[K]) -> f32[K, M] { return take(t, ids, axis=0) * 2.0 }",
    "fn f(x: f32[N, M], k: i64) -> f32[N, M] { return loop (h = x) for t < k { yield tanh(h) + x * f32(t) } }",
    "fn f(a: f32[N, M], x: f32[N, M]) -> (f32[M], f32[N, M]) {"
    " s, all = scan (h = zeros(f32[M])) for t < N { n = a[t] * h + x[t]; yield n; emit n }; return s, all }",
    "fn f(l: f32[N, N], x: f32[N]) -> f32[N] { y[i] = sum[k < i](l[i, k] * x[k]); return y }",
    "fn f(x: f32[N, M]) -> (f32[M, N], f32[N, M], f32[2*N, M]) {"
    " return transpose(x) * 2.0, cumsum(x, axis=1), concat((x, exp(x)), axis=0) }",
    "fn f(x: f32[N, M]) -> (f32[N, M], i64[N, M]) { return sort(x), argsort(-x) }",
    "fn f(x: f32[1, 2, N, M], w: f32[3, 2, 2, 2]) -> f32[1, 3, N - 1, M - 1] { return conv2d(x, w) + 1.0 }",
    "fn f(x: f32[N, M]) -> f32[N * M] { return reshape(pad(x, ((0, 0), (0, 0))) + x, (N * M)) }",
    "fn f(x: f32[N], k: i64) -> (f32[N], f32[N]) { a[i < N] = where(i <= N - 2, x[i + 1], 0.5);"
    " b[i < N] = where(i >= 1 and not i > N - 1, x[i - 1], -1.0); return a, b }",
    "fn f(x: f32[N], y: f32[N]) -> f32[N] { z[i < N] = where(i == 0, x[0], where(i < 2, 7.0, y[i - 1] + x[i - 2]));"
    " return z }",
    "fn f(x: f32[N, M]) -> (f32[N, M], f32[2 * N, M]) { return flip(x, axis=0) * 2.0, repeat(x, 2, 0) }",
    "fn f(x: bool[N], y: bool[N]) -> (bool[N], bool, bool[N]) { return maximum(x, y), max(minimum(x, y)), x <= y }",
    "fn f(x: f16[N], y: f16[N], b: bool[N]) -> (f16[N], f16, f32[N]) {"
    " update_ = update x[0] += y[0]; return where(b, x * y, update_), max(x - y), f32(f16(f32(x) * 0.1)) }",
    "fn f(x: i32[N], y: bool[N]) -> (i32, bool[N], i32[N]) { return max(x), x > 1 and not y, x // 3 + x % 3 }",
    "fn f(x: f32[N]) -> (i64[N], i64[N]) { y[i < N] = (i * 7) % 5; return sort(y), argsort(-y) }",
    "fn f(x: f32[N, M], w: f32[M]) -> (f32[N], f32[M]) { y[i] = sum[j](x[i, j] * w[j]);"
    " z[j] = sum[i](x[i, j] * y[i]); return y, z }",
    "fn f(x: f32[N, M], g: f32[M]) -> (f32[N, M], f32[M]) { return rms_norm(x, g), mean(x, axis=0) - max(x, axis=0) }",
    "fn f(x: f32[N, M], ids: i64[K]) -> f32[N, M] { return loop (h = x) for t < N { n = update h[t] = h[0] + x[t];"
    " yield n } }",
    "fn f(x: f32[N, N]) -> f32[N, N] { return loop (d = x) for k < N {"
    " n[i, j] = minimum(d[i, j], d[i, k] + d[k, j]); yield n } }",
    "fn f(x: f32[N]) -> f32[N] { return loop (h = x) for t < 3 { n[i < N] = h[N - 1 - i] * 0.5 + 1.0; yield n } }",
    "fn f(x: f32[N, M], y: f32[M, K], z: f32[K, N]) -> f32[N, N] {"
    " a[i, l] = sum[j in 1..M, k](x[i, j] * y[j, k] * z[k, l]); return a }",
    "fn f(x: f32[N, M]) -> (f32[N, M], f32[N, M], bool[N]) { y = tanh(x); c[i] = not (y[i, 0] != x[i, 0]);"
    " return update y[0] = 1.0, y * 2.0, c }",
    "fn f(x: f16[N], y: i32[N]) -> (f32[N], f32[N]) { a[i < N] = where(i > 0, f32(x[i - 1]), 0.0);"
    " b[i < N] = where(i > 0, f32(y[i] // 3), 0.0); return a, b }",
    "fn f(x: f32[N, M], w: f32[M], y: f32[N]) -> f32[N] { s[i] = sum[j](x[i, j] * w[j]);"
    " return update y[i in 1..N] += s[i] }",
    "fn f(x: f32[N], y: f32[N], k: i64) -> (f32[N], f32[N]) { a, b, c = loop (a = x, b = y, c = x * 2.0) for t < k {"
    " n[i < N] = a[N - 1 - i] * 0.5 + b[i] + c[0]; yield b, n, c }; return a, b + c }",
    "fn f(x: f32[N, N]) -> f32[N, N] { return loop (h = x) for t < 9 while max(h) < 9.0 {"
    " n[i, j] = h[j, i] * 1.5 + 1.0; yield n } }",
    "fn f(x: f32[N, N]) -> (f32[N, N], f32[N, N, N]) { return scan (h = x) for t < N {"
    " n[i, j] = h[j, i] * 0.5 + x[t, j]; yield n; emit n } }",
    "fn f(x: f32[N, K], const w: f32[K, M]) -> f32[N, M] { return x @ exp(w) }",
    "fn f[N: dim, M: dim](x: f32[8 * N + M], y: f32[3 * N]) -> (f32[N, M], f32[N]) { a = tanh(x * x) * exp(x);"
    " b[i < N, j < M] = a[8 * i + j] + 1.0; c = tanh(y * y) * exp(y); d[i < N] = c[3 * i] * 0.5; return b, d }",
    "fn f[N: dim](x: f16[N * N], w: f32[N, M]) -> f32[N, M] { y = f32(x);"
    " z[i < N, m < M] = sum[k < N](y[i * k] * w[k, m]); return z }",
)

LONG_ROWS = (
    "fn f(q: f32[9, 4], k: f32[450, 4], v: f32[450, 3]) -> f32[9, 3] { return attention(q, k, v) }",
    "fn f(q: f32[37, 4], k: f32[450, 4], v: f32[450, 3]) -> f32[37, 3] { s = q @ transpose(k);"
    " m[i < 37, j < 450] = where(j <= 11 * i, s[i, j], -inf); return softmax(m) @ v }",
    "fn f(x: f32[3, 5000]) -> (f32[3, 5000], f32[3]) { return softmax(x), logsumexp(x, axis=1) }",
)
"""Rows of several blocks."""

SIZES: tuple[Mapping[str, int], ...] = ({"N": 5, "M": 3, "K": 4}, {"N": 17, "M": 33, "K": 7}, {"N": 1, "M": 2, "K": 1})

LARGE: Mapping[str, int] = {"N": 67, "M": 35, "K": 40}
"""Sizes worth a schedule, which leaves small kernels alone; no tile divides them."""

RANDOM_PROGRAMS = 20

GOLDEN = (
    "specialize",
    "canonicalize",
    "cse",
    "dce",
    "sample",
    "contract",
    "exchange",
    "fuse",
    "legalize-dtype",
    "skip-rounding",
    "lower",
)


@dataclass(frozen=True)
class Example:
    """A module, and numbers for some of its dimension names; the others stay open.

    passes: the text of a pipeline in place of the default one. schedule: the steps that its kernels get.
    """

    name: str
    module: Module
    sizes: tuple[tuple[str, int], ...] = ()
    passes: str = ""
    schedule: str = ""


def corpus(random_programs: int = RANDOM_PROGRAMS) -> list[Example]:
    """Programs at several sizes and at open ones, the inputs of golden files, random expressions and graphs."""
    found: list[Example] = []
    for number, text in enumerate(PROGRAMS):
        module = load(Source(f"program{number}.ita", text)).build(None)
        found.append(Example(f"program {number} at open sizes", module))
        for sizes in (*SIZES, LARGE):
            found.append(example(f"program {number} at {_text(sizes)}", module, sizes))
    for number, text in enumerate(LONG_ROWS):
        found.append(Example(f"long rows {number}", load(Source(f"long{number}.ita", text)).build(None)))
    for folder in GOLDEN:
        for path in sorted((ROOT / "tests" / "golden" / folder).glob("*.ir")):
            inputs = path.read_text("utf-8").partition("# ===== expected\n")[0].split("# -----\n")
            for number, text in enumerate(inputs if path.stem != "errors" else ()):
                module = read_module(Source(path.name, text))
                found.append(example(f"{folder}/{path.name} {number}", module, SIZES[0]))
                if folder not in ("lower", "specialize"):
                    found.append(Example(f"{folder}/{path.name} {number} alone", module, passes=folder))
    found += kernel_examples()
    negative = read_module(Source("negative.ir", "func @f[N](%x: f32[N - 5]) {\n  return %x\n}\n"))
    found.append(Example("a negative size", negative, (("N", 3),)))
    for seed in range(0, 300, 60):
        bodies = [Expressions(s).of((F32, I32, BOOL)[s % 3], 4) for s in range(seed, seed + 60)]
        found.append(Example(f"random expressions {seed}", module_of(bodies)))
    found += [Example(f"random graph {seed}", random_module(seed)) for seed in range(24)]
    found += [_random_program(f"random program {s}", generate(s, statements=6)) for s in range(random_programs)]
    return found + [_random_program(f"chain {s}", generate_chain(s)) for s in range(random_programs)]


def _random_program(name: str, given: FuzzProgram) -> Example:
    """A program of the fuzzer at its sizes."""
    dims = {n: k for n, k in given.sizes.items() if not n.isdigit()}
    return example(name, load(Source(f"{name}.ita", given.text)).build(None, dims=dims), dims)


def kernel_examples() -> Iterator[Example]:
    """The kernels of the golden files of schedule steps, each called by a program."""
    for path in sorted((ROOT / "tests" / "golden").glob("schedule-*/*.ir")):
        cases = path.read_text("utf-8").partition("# ===== expected\n")[0].split("# -----\n")
        for number, text in enumerate(cases):
            (steps,) = re.findall(r"^# schedule: (.*)$", text, re.MULTILINE)
            kernel = read_kernel(Source(path.name, text))
            if any(b.length is not None for b in kernel.parameters):
                continue
            types = {b.name: f"{b.dtype}[{', '.join(map(str, b.shape))}]" for b in kernel.parameters}
            inputs = [b for b in kernel.parameters if b.role != "out"]
            given = ", ".join(f"{'const ' * b.constant}%{b.name}: {types[b.name]}" for b in inputs)
            names = ", ".join(f"%{b.name}" for b in inputs)
            made = [types[b.name] for b in kernel.parameters if b.role in ("out", "inout")]
            sizes = f"[{', '.join(kernel.sizes)}]" if kernel.sizes else ""
            results = "%0" if len(made) == 1 else ", ".join(f"%0#{n}" for n in range(len(made)))
            head = f"func @main{sizes}({given}) {{\n  %0{f':{len(made)}' if len(made) > 1 else ''} = call "
            body = f"@{kernel.name}({names}){sizes} : {', '.join(made)}\n  return {results}\n}}\n\n"
            module = read_module(Source(path.name, head + body + print_kernel(kernel)))
            name = f"{path.parent.name}/{path.name} {number}"
            yield Example(name, module, passes="schedule", schedule=steps)
            if number == 0:
                yield Example(f"{name} by name", module, passes="schedule", schedule=f"kernel {kernel.name}: {steps}")


def example(name: str, module: Module, sizes: Mapping[str, int]) -> Example:
    return Example(name, module, tuple((n, v) for n, v in sizes.items() if n in module.graph.dimensions))


def _text(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={number}" for name, number in sizes.items())

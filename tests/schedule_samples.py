"""Kernels for the tests of schedules, as text with odd sizes, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_interpreter import run
from intarsia.ir.kernel_text import read_kernel

SAMPLES: dict[str, tuple[str, dict[str, int]]] = {
    "pointwise": (
        """kernel pointwise(x: f32[37], w: f32[37], out y: f32[37]) {
          for i in 0..37 { y[i] = x[i] * 2.0 + w[i] }
        }""",
        {},
    ),
    "pointwise_unknown": (
        """kernel pointwise_unknown(x: f32[N], out y: f32[N], out z: f32[N])[sizes N] {
          alloc t: f32[N]
          for i in 0..N { t[i] = exp(x[i]) }
          for j in 0..N { y[j] = t[j] + 1.0 }
          for k in 0..N { z[k] = y[k] * t[k] }
        }""",
        {"N": 21},
    ),
    "rows": (
        """kernel rows(x: f32[7, 19], out y: f32[7, 19]) {
          alloc m: f32[7]
          alloc e: f32[7, 19]
          alloc l: f32[7]
          for i in 0..7 { m[i] = -inf }
          for i.1 in 0..7 { for j in 0..19 { m[i.1] max= x[i.1, j] } }
          for i.2 in 0..7 { for j.2 in 0..19 { e[i.2, j.2] = exp(x[i.2, j.2] - m[i.2]) } }
          for i.3 in 0..7 { l[i.3] = 0.0 }
          for i.4 in 0..7 { for j.4 in 0..19 { l[i.4] += e[i.4, j.4] } }
          for i.5 in 0..7 { for j.5 in 0..19 { y[i.5, j.5] = e[i.5, j.5] / l[i.5] } }
        }""",
        {},
    ),
    "moments": (
        """kernel moments(x: f32[7, 19], out v: f32[7], out y: f32[7, 19]) {
          alloc s: f32[7]
          alloc m: f32[7]
          for i in 0..7 { s[i] = 0.0 }
          for i.1 in 0..7 { for j in 0..19 { s[i.1] += x[i.1, j] } }
          for i.2 in 0..7 { m[i.2] = s[i.2] / 19.0 }
          for i.3 in 0..7 { v[i.3] = 0.0 }
          for i.4 in 0..7 { for j.4 in 0..19 { v[i.4] += (x[i.4, j.4] - m[i.4]) * (x[i.4, j.4] - m[i.4]) } }
          for i.5 in 0..7 { for j.5 in 0..19 { y[i.5, j.5] = (x[i.5, j.5] - m[i.5]) / v[i.5] } }
        }""",
        {},
    ),
    "product": (
        """kernel product(a: f32[9, 11], b: f32[11, 13], out c: f32[9, 13]) {
          for i in 0..9 { for j in 0..13 { c[i, j] = 0.0 } }
          for m in 0..9 { for n in 0..13 { for k in 0..11 { c[m, n] += a[m, k] * b[k, n] } } }
        }""",
        {},
    ),
    "product_bytes": (
        """kernel product_bytes(a: i8[5, 10], const b: i8[10, 7], out y: f32[5, 7]) {
          alloc c: i32[5, 7]
          for i in 0..5 { for j in 0..7 { c[i, j] = i32:0 } }
          for m in 0..5 { for n in 0..7 { for k in 0..10 { c[m, n] += i32(a[m, k]) * i32(b[k, n]) } } }
          for p in 0..5 { for q in 0..7 { y[p, q] = f32(c[p, q]) * 0.5 } }
        }""",
        {},
    ),
    "product_constant": (
        """kernel product_constant(a: f32[5, 11], const b: f32[11, 7], const d: f32[7], out c: f32[5, 7]) {
          for i in 0..5 { for j in 0..7 { c[i, j] = d[j] } }
          for m in 0..5 { for n in 0..7 { for k in 0..11 { c[m, n] += a[m, k] * b[k, n] } } }
        }""",
        {},
    ),
    "product_unknown": (
        """kernel product_unknown(a: f32[M, K], b: f32[K, N], bias: f32[N], out y: f32[M, N])[sizes M, N, K] {
          alloc c: f32[M, N]
          for i in 0..M { for j in 0..N { c[i, j] = 0.0 } }
          for m in 0..M { for n in 0..N { for k in 0..K { c[m, n] += a[m, k] * b[k, n] } } }
          for p in 0..M { for q in 0..N { y[p, q] = c[p, q] + bias[q] } }
        }""",
        {"M": 5, "N": 7, "K": 6},
    ),
    "transposition": (
        """kernel transposition(x: f32[18, 21], out y: f32[21, 18]) {
          for j in 0..21 { for i in 0..18 { y[j, i] = x[i, j] } }
        }""",
        {},
    ),
    "triangle": (
        """kernel triangle(l: f32[9, 9], x: f32[9], out y: f32[9]) {
          for i in 0..9 { y[i] = 0.0 }
          for i.1 in 0..9 { for k in 0..i.1 { y[i.1] += l[i.1, k] * x[k] } }
        }""",
        {},
    ),
    "masked": (
        """kernel masked(x: f32[12], out y: f32[14], out m: f32[12]) {
          for i in 0..14 { y[i] = (x[i - 1] if 0 < i and i < 13 else 5.0) }
          for j in 0..12 { m[j] = -inf }
          for j.1 in 0..12 { for k in 0..12 { m[j.1] max= where(index(k) < index(j.1 + 1), x[k], -inf) } }
        }""",
        {},
    ),
    "causal": (
        """kernel causal(q: f32[7, 5], k: f32[9, 5], v: f32[9, 3], out y: f32[7, 3]) {
          for i in 0..7 {
            alloc s: f32[9]
            alloc m: f32
            alloc p: f32[9]
            alloc l: f32
            for j in 0..9 { s[j] = 0.0 }
            for j.1 in 0..9 { for d in 0..5 { s[j.1] += q[i, d] * k[j.1, d] } }
            m[] = -inf
            for j.2 in 0..9 { m[] max= where(index(j.2) <= index(i), s[j.2], -inf) }
            for j.3 in 0..9 { p[j.3] = exp(where(index(j.3) <= index(i), s[j.3], -inf) - m[]) }
            l[] = 0.0
            for j.4 in 0..9 { l[] += p[j.4] }
            for e in 0..3 { y[i, e] = 0.0 }
            for e.1 in 0..3 { for j.5 in 0..9 { y[i, e.1] += p[j.5] * v[j.5, e.1] / l[] } }
          }
        }""",
        {},
    ),
    "recurrence": (
        """kernel recurrence(a: f32[6, 10], out y: f32[6, 10]) {
          alloc h: f32[10]
          for d in 0..10 { h[d] = 0.0 }
          for t in 0..6 { for d.1 in 0..10 { h[d.1] = h[d.1] * 0.5 + a[t, d.1]
                                             y[t, d.1] = h[d.1] } }
        }""",
        {},
    ),
    "steps": (
        """kernel steps(x: f32[11, 9], out y: f32[11, 9], out z: f32[11, 9]) {
          alloc t: f32[11, 9]
          alloc u: f32[11, 9]
          for i in 0..11 { for j in 0..9 { t[i, j] = x[i, j] } }
          for i.1 in 1..10 { for j.1 in 1..9 { t[i.1, j.1] += x[i.1 + 1, j.1] * x[i.1 - 1, j.1 - 1] } }
          for j.2 in 0..9 { u[0, j.2] = t[0, j.2] }
          for i.3 in 1..11 { for j.3 in 0..9 { u[i.3, j.3] = t[i.3, j.3] - t[i.3 - 1, j.3] } }
          for i.4 in 0..11 { for j.4 in 0..9 { y[i.4, j.4] = u[i.4, j.4] } }
          for i.5 in 0..11 { for j.5 in 0..9 { z[i.5, j.5] = t[i.5, j.5] } }
          for i.6 in 0..10 { for j.6 in 0..7 { z[i.6, j.6] += u[i.6 + 1, j.6 + 2] } }
        }""",
        {},
    ),
    "sweep": (
        """kernel sweep(inout x: f32[8, 9]) {
          for i in 1..7 { for j in 1..8 { x[i, j] = (x[i - 1, j] + x[i + 1, j] + x[i, j - 1] + x[i, j + 1]) * 0.25 } }
        }""",
        {},
    ),
    "slope": (
        """kernel slope(inout x: f32[7, 10]) {
          for i in 1..7 { for j in 1..9 { x[i, j] = (x[i - 1, j + 1] + x[i, j - 1] + x[i, j + 1]) * 0.5 } }
        }""",
        {},
    ),
    "relaxation": (
        """kernel relaxation(inout x: f32[13])[sizes T] {
          for t in 0..T { for i in 1..12 { x[i] = (x[i - 1] + x[i + 1]) * 0.5 } }
        }""",
        {"T": 5},
    ),
    "substitution": (
        """kernel substitution(a: f32[9, 9], inout x: f32[9]) {
          for i in 0..9 { for j in i + 1..9 { x[j] += a[i, j] * x[i] } }
        }""",
        {},
    ),
    "prefixes": (
        """kernel prefixes(x: f32[4, 13], out y: f32[4, 13], out z: f32[4]) {
          for i in 0..4 {
            alloc run: f32
            run[] = -0.0
            for k in 0..13 { alloc t: f32
                             t[] = x[i, k] * 2.0
                             run[] += t[]
                             y[i, k] = run[] - t[] }
          }
          for i.1 in 0..4 { z[i.1] = y[i.1, 12] }
        }""",
        {},
    ),
    "prefixes_unknown": (
        """kernel prefixes_unknown(x: f32[K, N], out y: f32[K, N])[sizes K, N] {
          alloc run: f32[N]
          for j in 0..N { run[j] = 0.0 }
          for k in 0..K { for j.1 in 0..N { run[j.1] += x[k, j.1]
                                            y[k, j.1] = run[j.1] } }
        }""",
        {"K": 7, "N": 5},
    ),
    "histogram": (
        """kernel histogram(bin: i64[40], w: f32[40], inout h: f32[6]) {
          for i in 0..40 { h[bin[i]] += w[i] where 0 < bin[i] + 1 and bin[i] < 6 }
        }""",
        {},
    ),
    "gather": (
        """kernel gather(x: f32[9, 5], ids: i64[14], out y: f32[14, 5]) {
          for i in 0..14 { for j in 0..5 { y[i, j] = x[max(0, min(ids[i], 8)), j] } }
        }""",
        {},
    ),
    "ragged": (
        """kernel ragged(start: i64[6], value: f32[30], out y: f32[5]) {
          for r in 0..5 { y[r] = 0.0 }
          for r.1 in 0..5 { for p in max(0, start[r.1])..min(30, start[r.1 + 1]) { y[r.1] += value[p] } }
        }""",
        {},
    ),
    "convolution": (
        """kernel convolution(x: f32[2, 3, 8], w: f32[4, 3, 3], out y: f32[2, 4, 6]) {
          for n in 0..2 { for o in 0..4 { for q in 0..6 { y[n, o, q] = 0.0 } } }
          for n.1 in 0..2 { for o.1 in 0..4 { for q.1 in 0..6 { for c in 0..3 { for s in 0..3 {
            y[n.1, o.1, q.1] += x[n.1, c, q.1 + s] * w[o.1, c, s] } } } } }
        }""",
        {},
    ),
    "integers": (
        """kernel integers(x: i8[5, 23], out s: i32[23], out any: bool[5]) {
          for j in 0..23 { s[j] = i32:0 }
          for j.1 in 0..23 { for i in 0..5 { s[j.1] += i32(x[i, j.1]) } }
          for i.2 in 0..5 { any[i.2] = false }
          for i.3 in 0..5 { for j.3 in 0..23 { any[i.3] or= x[i.3, j.3] == i8:3 } }
        }""",
        {},
    ),
}


def sample(name: str) -> tuple[Kernel, dict[str, int]]:
    """A kernel and its sizes."""
    text, sizes = SAMPLES[name]
    return read_kernel(Source(f"{name}.ir", text)), sizes


def arrays_for(kernel: Kernel, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Random arguments; integers are small, and `start` rises, so that they can be subscripts and bounds."""
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for buffer in kernel.parameters:
        shape = tuple(extent.evaluate(sizes) for extent in buffer.shape)
        if buffer.dtype.is_float:
            values: Array = random.standard_normal(shape)
        elif buffer.dtype.is_narrow:
            values = random.integers(int(buffer.dtype.least), int(buffer.dtype.greatest) + 1, shape)
        else:
            values = random.integers(0, 2 if buffer.dtype.kind == "bool" else 9, shape)
        found[buffer.name] = np.asarray(values.astype(buffer.dtype.numpy))
        if buffer.name == "start":
            found[buffer.name] = np.sort(random.integers(0, 31, shape))
    return found


def results(kernel: Kernel, like: Kernel, sizes: Mapping[str, int]) -> dict[str, Array]:
    """What a kernel makes of random arguments for the parameters of `like`, of which it may see other views."""
    arguments = arrays_for(like, sizes)
    views = {b.name: arguments[b.name].reshape(tuple(e.evaluate(sizes) for e in b.shape)) for b in kernel.parameters}
    run(kernel, views, sizes)
    return {b.name: arguments[b.name] for b in like.outputs}


def assert_same_meaning(kernel: Kernel, scheduled: Kernel, sizes: Mapping[str, int]) -> None:
    """Both give the same results, but for the order of sums."""
    expected = results(kernel, kernel, sizes)
    for name, actual in results(scheduled, kernel, sizes).items():
        np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)

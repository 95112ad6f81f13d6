"""numba njit(fastmath, parallel) of the naive loops; output buffers are reused.  Memory-bound workloads only."""

import math

import numba as nb
import numpy as np


def setup(threads, variant):
    nb.set_num_threads(threads)


def version():
    return "numba " + nb.__version__


def to_numpy(x):
    return x


jit = nb.njit(fastmath=True, parallel=True)
f = np.float32


@jit
def k_gelu(x, scale, bias, o):
    for i in nb.prange(x.shape[0]):
        for j in range(x.shape[1]):
            t = x[i, j] * scale[j] + bias[j]
            o[i, j] = f(0.5) * t * (f(1) + math.tanh(f(0.7978845608) * (t + f(0.044715) * t * t * t)))


@jit
def k_chain(x, o):
    for i in nb.prange(x.shape[0]):
        t = max(x[i] * f(1.1) + f(0.3), f(-1))
        t = t * t - x[i]
        o[i] = math.exp(-abs(t)) * f(0.5) + x[i]


@jit
def k_softmax(x, o):
    for i in nb.prange(x.shape[0]):
        m = f(-np.inf)
        for j in range(x.shape[1]):
            m = max(m, x[i, j])
        s = f(0)
        for j in range(x.shape[1]):
            e = math.exp(x[i, j] - m)
            o[i, j] = e
            s += e
        r = f(1) / s
        for j in range(x.shape[1]):
            o[i, j] *= r


@jit
def k_layernorm(x, g, b, o):
    n = x.shape[1]
    for i in nb.prange(x.shape[0]):
        m = f(0)
        for j in range(n):
            m += x[i, j]
        m = f(m / n)
        v = f(0)
        for j in range(n):
            v += (x[i, j] - m) * (x[i, j] - m)
        r = f(1 / math.sqrt(v / n + 1e-5))
        for j in range(n):
            o[i, j] = (x[i, j] - m) * r * g[j] + b[j]


@jit
def k_rmsnorm(x, g, o):
    n = x.shape[1]
    for i in nb.prange(x.shape[0]):
        v = f(0)
        for j in range(n):
            v += x[i, j] * x[i, j]
        r = f(1 / math.sqrt(v / n + 1e-5))
        for j in range(n):
            o[i, j] = x[i, j] * r * g[j]


@jit
def k_sum0(x, o):
    w = 2048
    for c in nb.prange(x.shape[1] // w):
        for j in range(c * w, c * w + w):
            o[j] = f(0)
        for i in range(x.shape[0]):
            for j in range(c * w, c * w + w):
                o[j] += x[i, j]


@jit
def k_sum1(x, o):
    for i in nb.prange(x.shape[0]):
        s = f(0)
        for j in range(x.shape[1]):
            s += x[i, j]
        o[i] = s


@jit
def k_transpose(x, o):
    t = 32
    for bi in nb.prange(x.shape[0] // t):
        for bj in range(x.shape[1] // t):
            for j in range(bj * t, bj * t + t):
                for i in range(bi * t, bi * t + t):
                    o[j, i] = x[i, j]


@jit
def k_gather(table, idx, o):
    for i in nb.prange(idx.shape[0]):
        for j in range(table.shape[1]):
            o[i, j] = table[idx[i], j]


def build(kernel, shape):
    def make(**inputs):
        o = np.empty(shape(inputs), np.float32)
        args = (*inputs.values(), o)

        def run():
            kernel(*args)
            return o

        return run

    return make


same = lambda i: i["x"].shape
BUILD = {
    "gelu_scale_bias": build(k_gelu, same),
    "chain10_16M": build(k_chain, same),
    "softmax_4096": build(k_softmax, same),
    "layernorm_4096x1024": build(k_layernorm, same),
    "rmsnorm_4096": build(k_rmsnorm, same),
    "sum_axis0_4096": build(k_sum0, lambda i: i["x"].shape[1:]),
    "sum_axis1_4096": build(k_sum1, lambda i: i["x"].shape[:1]),
    "transpose_4096": build(k_transpose, lambda i: i["x"].shape[::-1]),
    "gather_4096": build(k_gather, lambda i: (i["idx"].size, i["table"].shape[1])),
}

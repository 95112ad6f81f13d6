"""numpy with its bundled OpenBLAS.  `out=` and in-place steps where they are how one writes fast numpy."""

import numpy as np


def setup(threads, variant):
    pass  # OPENBLAS_NUM_THREADS is set by bench.py


def version():
    return "numpy " + np.__version__


def to_numpy(x):
    return x


F = np.float32
C0, C1 = F(0.7978845608028654), F(0.044715)


def gelu(x):
    t = x * x
    t *= x
    t *= C1
    t += x
    t *= C0
    np.tanh(t, out=t)
    t += F(1)
    t *= x
    t *= F(0.5)
    return t


def softmax(x):
    e = x - x.max(-1, keepdims=True)
    np.exp(e, out=e)
    e /= e.sum(-1, keepdims=True)
    return e


def layernorm(x, g, b):
    y = x - x.mean(-1, keepdims=True)
    y *= 1 / np.sqrt(np.einsum("ij,ij->i", y, y)[:, None] / F(x.shape[-1]) + F(1e-5))
    y *= g
    y += b
    return y


def rmsnorm(x, g):
    y = x * (1 / np.sqrt(np.einsum("ij,ij->i", x, x)[:, None] / F(x.shape[-1]) + F(1e-5)))
    y *= g
    return y


def attention(q, k, v, causal):
    s = q @ k.swapaxes(-1, -2)
    s *= F(q.shape[-1] ** -0.5)
    if causal:
        n = s.shape[-1]
        s += np.triu(np.full((n, n), -np.inf, F), 1)
    return softmax(s) @ v


def gelu_scale_bias(x, scale, bias):
    t = x * scale
    t += bias
    return gelu(t)


def chain10(x):
    t = x * F(1.1)
    t += F(0.3)
    np.maximum(t, F(-1), out=t)
    t *= t
    t -= x
    np.abs(t, out=t)
    np.negative(t, out=t)
    np.exp(t, out=t)
    t *= F(0.5)
    t += x
    return t


def conv(x, w, stride, pad):
    o, c, kh, kw = w.shape
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    win = np.lib.stride_tricks.sliding_window_view(xp, (kh, kw), (2, 3))[:, :, ::stride, ::stride]
    h, wd = win.shape[2:4]
    col = win[0].transpose(0, 3, 4, 1, 2).reshape(c * kh * kw, h * wd)
    return (w.reshape(o, -1) @ col).reshape(1, o, h, wd)


def block(x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2):
    s, d = x.shape
    qkv = (layernorm(x, ln1g, ln1b) @ wqkv + bqkv).reshape(s, 3, 12, 64).transpose(1, 2, 0, 3)
    a = attention(qkv[0], qkv[1], qkv[2], True).transpose(1, 0, 2).reshape(s, d)
    x = x + a @ wproj + bproj
    return x + gelu(layernorm(x, ln2g, ln2b) @ w1 + b1) @ w2 + b2


def call(f):
    return lambda **i: lambda: f(**i)


mm = call(lambda a, b: a @ b)
BUILD = {
    **dict.fromkeys(("mm_512", "mm_1024", "mm_2048", "gemv_4096", "mm_16x4096x4096", "mm_128x768x3072"), mm),
    "gelu_scale_bias": call(gelu_scale_bias),
    "chain10_16M": call(chain10),
    "softmax_4096": call(softmax),
    "layernorm_4096x1024": call(layernorm),
    "rmsnorm_4096": call(rmsnorm),
    "sum_axis0_4096": call(lambda x: x.sum(0)),
    "sum_axis1_4096": call(lambda x: x.sum(1)),
    "mlp": call(lambda x, w1, b1, w2, b2: gelu(x @ w1 + b1) @ w2 + b2),
    "attention": call(lambda q, k, v: attention(q, k, v, False)),
    "attention_causal": call(lambda q, k, v: attention(q, k, v, True)),
    "conv3x3_64": call(lambda x, w: conv(x, w, 1, 1)),
    "conv7x7s2": call(lambda x, w: conv(x, w, 2, 3)),
    "transpose_4096": call(lambda x: np.ascontiguousarray(x.T)),
    "gather_4096": call(lambda table, idx: np.take(table, idx, axis=0)),
    "block": call(block),
}

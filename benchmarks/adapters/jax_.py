"""JAX (XLA:CPU), jax.jit.  Weights are arguments, not constants."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def setup(threads, variant):
    assert jax.default_backend() == "cpu"  # threads: by CPU affinity, set by bench.py


def version():
    return "jax " + jax.__version__


def to_numpy(x):
    return np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)


gelu = lambda x: jax.nn.gelu(x, approximate=True)


def ln(x, g, b):
    m = x.mean(-1, keepdims=True)
    v = jnp.square(x - m).mean(-1, keepdims=True)
    return (x - m) * lax.rsqrt(v + 1e-5) * g + b


def attention(q, k, v, causal):
    s = jnp.einsum("hqd,hkd->hqk", q, k) * (q.shape[-1] ** -0.5)
    if causal:
        s = jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, -jnp.inf)
    return jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(s, -1), v)


def block(x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2):
    s, d = x.shape
    qkv = (ln(x, ln1g, ln1b) @ wqkv + bqkv).reshape(s, 3, 12, 64).transpose(1, 2, 0, 3)
    a = attention(qkv[0], qkv[1], qkv[2], True).transpose(1, 0, 2).reshape(s, d)
    x = x + a @ wproj + bproj
    return x + gelu(ln(x, ln2g, ln2b) @ w1 + b1) @ w2 + b2


def chain10(x):
    t = jnp.maximum(x * 1.1 + 0.3, -1.0)
    t = t * t - x
    return jnp.exp(-jnp.abs(t)) * 0.5 + x


def gemv_int4(x, q, scale):
    packed = jnp.asarray(q[:, 0::2] | (q[:, 1::2] << 4))

    def f(x, p, s):
        w = jnp.stack([p & 15, p >> 4], -1).reshape(4096, 32, 128).astype(jnp.float32) - 8
        return jnp.einsum("gk,ngk,ng->n", x.reshape(32, 128), w, s)[None]

    return call(f, jnp.asarray(x), packed, jnp.asarray(scale))


def call(f, *args):
    f = jax.jit(f)
    return lambda: f(*args).block_until_ready()


def build(f):
    return lambda **i: call(lambda *a: f(*a), *[jax.block_until_ready(jnp.asarray(v)) for v in i.values()])


def typed(dtype, out):
    return lambda a, b: call(
        lambda a, b: lax.dot(a, b, preferred_element_type=out), *(jnp.asarray(v).astype(dtype) for v in (a, b))
    )


conv = lambda s, p: build(
    lambda x, w: lax.conv_general_dilated(x, w, (s, s), [(p, p)] * 2, dimension_numbers=("NCHW", "OIHW", "NCHW"))
)
mm = build(lambda a, b: a @ b)
BUILD = {
    **dict.fromkeys(("mm_512", "mm_1024", "mm_2048", "gemv_4096", "mm_16x4096x4096", "mm_128x768x3072"), mm),
    "mm_bf16_1024": typed(jnp.bfloat16, jnp.float32),
    "mm_int8_1024": typed(jnp.int8, jnp.int32),
    "gemv_int4_4096": gemv_int4,
    "gelu_scale_bias": build(lambda x, s, b: gelu(x * s + b)),
    "chain10_16M": build(chain10),
    "softmax_4096": build(lambda x: jax.nn.softmax(x, -1)),
    "layernorm_4096x1024": build(ln),
    "rmsnorm_4096": build(lambda x, g: x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * g),
    "sum_axis0_4096": build(lambda x: x.sum(0)),
    "sum_axis1_4096": build(lambda x: x.sum(1)),
    "mlp": build(lambda x, w1, b1, w2, b2: gelu(x @ w1 + b1) @ w2 + b2),
    "attention": build(lambda q, k, v: attention(q, k, v, False)),
    "attention_causal": build(lambda q, k, v: attention(q, k, v, True)),
    "conv3x3_64": conv(1, 1),
    "conv7x7s2": conv(2, 3),
    "transpose_4096": build(lambda x: lax.optimization_barrier(x.T) + 0.0),
    "gather_4096": build(lambda t, i: jnp.take(t, i, axis=0, mode="clip")),
    "block": build(block),
}

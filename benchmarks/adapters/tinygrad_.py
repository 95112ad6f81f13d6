"""tinygrad, TinyJit on its CPU device (LLVM renderer); variant beam2: BEAM=2 (set in bench.py's environment)."""

import importlib.metadata

from tinygrad import Device, Tensor, TinyJit, dtypes

VARIANT = ""


def setup(threads, variant):
    global VARIANT
    VARIANT = variant
    del BUILD[
        "attention"
    ]  # 23 s a call with the default schedule (the softmax is fused into the second matmul and recomputed)
    if variant == "beam2":  # the search takes minutes a kernel
        for n in set(BUILD) - {"mm_512", "mm_1024", "gelu_scale_bias", "softmax_4096", "mlp"}:
            del BUILD[n]


def version():
    return f"tinygrad {importlib.metadata.version('tinygrad')} {type(Device['CPU'].renderer).__name__} {VARIANT}"


def to_numpy(x):
    return x.float().numpy() if x.dtype == dtypes.bfloat16 else x.numpy()


def gelu(x):
    return x.gelu()


def ln(x, g, b):
    return x.layernorm(eps=1e-5) * g + b


def attention(q, k, v, causal):
    return q.scaled_dot_product_attention(k, v, is_causal=causal)


def block(x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2):
    s, d = x.shape
    qkv = (ln(x, ln1g, ln1b) @ wqkv + bqkv).reshape(s, 3, 12, 64).permute(1, 2, 0, 3)
    a = attention(qkv[0], qkv[1], qkv[2], True).permute(1, 0, 2).reshape(s, d)
    x = x + a @ wproj + bproj
    return x + gelu(ln(x, ln2g, ln2b) @ w1 + b1) @ w2 + b2


def chain10(x):
    t = (x * 1.1 + 0.3).maximum(-1.0)
    t = t * t - x
    return (-(t.abs())).exp() * 0.5 + x


def call(fn, *tensors):
    tensors = [t.contiguous().realize() for t in tensors]
    jit = TinyJit(lambda *a: fn(*a).contiguous().realize())

    def run():
        o = jit(*tensors)
        Device[Device.DEFAULT].synchronize()
        return o

    run()
    run()
    run()  # the jit captures on the second call
    return run


def build(fn):
    return lambda **i: call(fn, *[Tensor(v) for v in i.values()])


mm = build(lambda a, b: a @ b)
conv = lambda s, p: build(lambda x, w: x.conv2d(w, stride=s, padding=p))
BUILD = {
    **dict.fromkeys(("mm_512", "mm_1024", "mm_2048", "gemv_4096", "mm_16x4096x4096", "mm_128x768x3072"), mm),
    "mm_bf16_1024": lambda a, b: call(
        lambda a, b: a.matmul(b, dtype=dtypes.float32), Tensor(a).cast(dtypes.bfloat16), Tensor(b).cast(dtypes.bfloat16)
    ),
    "mm_int8_1024": build(lambda a, b: a.cast(dtypes.int32) @ b.cast(dtypes.int32)),
    "gelu_scale_bias": build(lambda x, s, b: gelu(x * s + b)),
    "chain10_16M": build(chain10),
    "softmax_4096": build(lambda x: x.softmax(-1)),
    "layernorm_4096x1024": build(ln),
    "rmsnorm_4096": build(lambda x, g: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * g),
    "sum_axis0_4096": build(lambda x: x.sum(0)),
    "sum_axis1_4096": build(lambda x: x.sum(1)),
    "mlp": build(lambda x, w1, b1, w2, b2: gelu(x @ w1 + b1) @ w2 + b2),
    "attention": build(lambda q, k, v: attention(q, k, v, False)),
    "attention_causal": build(lambda q, k, v: attention(q, k, v, True)),
    "conv3x3_64": conv(1, 1),
    "conv7x7s2": conv(2, 3),
    "transpose_4096": build(lambda x: x.T.contiguous()),
    "gather_4096": build(lambda t, i: t[i.cast(dtypes.int32)]),
    "block": build(block),
}

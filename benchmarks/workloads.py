"""The workloads, each defined once: numpy inputs, a float64 reference, and counts.

`flops` counts useful arithmetic (a fused multiply-add is 2; a transcendental counts 1), `bytes`
the compulsory traffic: every input read once and every output written once.  `bound` says which
physical limit the workload is held against: one of the keys of hw/limits.json.

Weights (`const` names) do not change between calls, so a peer may prepack them at compile time;
plain matmuls have none: both operands are run-time inputs in row-major order.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CACHE = Path(__file__).resolve().parent / "cache"
F32, F64 = np.float32, np.float64
LN_EPS = 1e-5
GROUP = 128  # int4 weight-only group size


@dataclass(frozen=True)
class Workload:
    name: str
    group: str
    make: object  # rng -> dict of numpy inputs, in call order
    reference: object  # dict of inputs (floats widened to float64) -> float64 array
    flops: float
    bytes: float
    bound: str  # f32 | bf16 | int8 | bandwidth
    tol: float = 1e-4  # on max|out-ref| / max|ref|
    const: tuple = ()
    note: str = ""

    def data(self):
        """Inputs and reference, made once and kept on disk so that every peer gets the same."""
        path = CACHE / f"{self.name}.npz"
        if not path.exists():
            CACHE.mkdir(exist_ok=True)
            inputs = self.make(np.random.default_rng(0))
            wide = {k: v.astype(F64) if v.dtype == F32 else v for k, v in inputs.items()}
            np.savez(path, __ref=self.reference(wide), **inputs)
        with np.load(path) as z:
            inputs = {k: z[k] for k in z.files if k != "__ref"}
            return inputs, z["__ref"]


def normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape, dtype=F32) * F32(scale)).astype(F32)


def to_bf16_grid(x):
    """Rounds float32 to values a bfloat16 holds exactly (kept as float32)."""
    u = x.view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F32)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layernorm(x, g, b):
    m = x.mean(-1, keepdims=True)
    v = ((x - m) ** 2).mean(-1, keepdims=True)
    return (x - m) / np.sqrt(v + LN_EPS) * g + b


def attention(q, k, v, causal):
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    return softmax(s) @ v


def chain10(x):
    t = x * 1.1 + 0.3  # mul, add
    t = np.maximum(t, -1.0)  # max
    t = t * t  # mul
    t = t - x  # sub
    t = np.exp(-np.abs(t))  # abs, neg, exp
    return t * 0.5 + x  # mul, add


def conv2d(x, w, stride, pad):
    """NCHW x OIHW by im2col."""
    o, c, kh, kw = w.shape
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    win = np.lib.stride_tricks.sliding_window_view(xp, (kh, kw), (2, 3))[:, :, ::stride, ::stride]
    n, _, h, wd = win.shape[:4]
    col = win.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * wd, c * kh * kw)
    return np.ascontiguousarray((col @ w.reshape(o, -1).T).reshape(n, h, wd, o).transpose(0, 3, 1, 2))


def block(x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2, heads=12):
    s, d = x.shape
    qkv = (layernorm(x, ln1g, ln1b) @ wqkv + bqkv).reshape(s, 3, heads, d // heads).transpose(1, 2, 0, 3)
    a = attention(qkv[0], qkv[1], qkv[2], True).transpose(1, 0, 2).reshape(s, d)
    x = x + a @ wproj + bproj
    return x + gelu(layernorm(x, ln2g, ln2b) @ w1 + b1) @ w2 + b2


def int4_dequant(q, scale):
    """q: uint8 [N, K] in 0..15; scale: [N, K/GROUP] -> float [N, K], zero point 8."""
    return (q.astype(F64) - 8) * np.repeat(scale, GROUP, axis=1)


def matmul(name, m, k, n, group="matmul f32"):
    bound = "f32" if m > 4 else "bandwidth"
    return Workload(
        name,
        group,
        lambda r: dict(a=normal(r, m, k), b=normal(r, k, n)),
        lambda i: i["a"] @ i["b"],
        2.0 * m * k * n,
        4.0 * (m * k + k * n + m * n),
        bound,
    )


def int8_inputs(r):
    return {s: r.integers(-128, 128, (1024, 1024), dtype=np.int8) for s in "ab"}


def int4_inputs(r, k=4096, n=4096):
    return dict(
        x=to_bf16_grid(normal(r, 1, k)),
        q=r.integers(0, 16, (n, k), dtype=np.uint8),
        scale=to_bf16_grid(np.abs(normal(r, n, k // GROUP, scale=0.01)) + F32(1e-3)),
    )


def mlp_inputs(r):
    return dict(
        x=normal(r, 128, 768),
        w1=normal(r, 768, 3072, scale=0.03),
        b1=normal(r, 3072),
        w2=normal(r, 3072, 768, scale=0.03),
        b2=normal(r, 768),
    )


def block_inputs(r, s=128, d=768):
    w = lambda *sh: normal(r, *sh, scale=0.03)
    return dict(
        x=normal(r, s, d),
        ln1g=1 + w(d),
        ln1b=w(d),
        wqkv=w(d, 3 * d),
        bqkv=w(3 * d),
        wproj=w(d, d),
        bproj=w(d),
        ln2g=1 + w(d),
        ln2b=w(d),
        w1=w(d, 4 * d),
        b1=w(4 * d),
        w2=w(4 * d, d),
        b2=w(d),
    )


def qkv_inputs(r):
    return {s: normal(r, 16, 1024, 64) for s in "qkv"}


M = 1 << 20
_LIST = [
    matmul("mm_512", 512, 512, 512),
    matmul("mm_1024", 1024, 1024, 1024),
    matmul("mm_2048", 2048, 2048, 2048),
    matmul("gemv_4096", 1, 4096, 4096),
    matmul("mm_16x4096x4096", 16, 4096, 4096),
    matmul("mm_128x768x3072", 128, 768, 3072),
    Workload(
        "mm_bf16_1024",
        "low precision",
        lambda r: {s: to_bf16_grid(normal(r, 1024, 1024)) for s in "ab"},
        lambda i: i["a"] @ i["b"],
        2.0 * 1024**3,
        3 * 2.0 * M,
        "bf16",
        1e-2,
        note="bf16 in, f32 accumulate, bf16 or f32 out",
    ),
    Workload(
        "mm_int8_1024",
        "low precision",
        int8_inputs,
        lambda i: i["a"].astype(F64) @ i["b"].astype(F64),
        2.0 * 1024**3,
        6.0 * M,
        "int8",
        0.0,
        note="int8 x int8 -> int32",
    ),
    Workload(
        "gemv_int4_4096",
        "low precision",
        int4_inputs,
        lambda i: i["x"] @ int4_dequant(i["q"], i["scale"]).T,
        2.0 * 4096**2,
        4096 * 4096 / 2 + 4096 * 32 * 4 + 2 * 4096 * 4,
        "bandwidth",
        2e-2,
        const=("q", "scale"),
        note="weights 4 bit, group 128; x f32 or bf16",
    ),
    Workload(
        "stream_triad",
        "elementwise",
        lambda r: dict(b=r.standard_normal(16 * M), c=r.standard_normal(16 * M)),
        lambda i: i["b"] + 3.0 * i["c"],
        2.0 * 16 * M,
        3 * 8.0 * 16 * M,
        "bandwidth",
        1e-15,
    ),
    Workload(
        "gelu_scale_bias",
        "elementwise",
        lambda r: dict(x=normal(r, 4096, 4096), scale=normal(r, 4096), bias=normal(r, 4096)),
        lambda i: gelu(i["x"] * i["scale"] + i["bias"]),
        10.0 * 16 * M,
        128.0 * M,
        "bandwidth",
    ),
    Workload(
        "chain10_16M",
        "elementwise",
        lambda r: dict(x=normal(r, 16 * M)),
        lambda i: chain10(i["x"]),
        10.0 * 16 * M,
        128.0 * M,
        "bandwidth",
    ),
    Workload(
        "softmax_4096",
        "reduction",
        lambda r: dict(x=normal(r, 4096, 4096)),
        lambda i: softmax(i["x"]),
        5.0 * 16 * M,
        128.0 * M,
        "bandwidth",
    ),
    Workload(
        "layernorm_4096x1024",
        "reduction",
        lambda r: dict(x=normal(r, 4096, 1024), g=normal(r, 1024), b=normal(r, 1024)),
        lambda i: layernorm(**i),
        7.0 * 4 * M,
        32.0 * M,
        "bandwidth",
    ),
    Workload(
        "rmsnorm_4096",
        "reduction",
        lambda r: dict(x=normal(r, 4096, 4096), g=normal(r, 4096)),
        lambda i: i["x"] / np.sqrt((i["x"] ** 2).mean(-1, keepdims=True) + LN_EPS) * i["g"],
        4.0 * 16 * M,
        128.0 * M,
        "bandwidth",
    ),
    Workload(
        "sum_axis0_4096",
        "reduction",
        lambda r: dict(x=normal(r, 4096, 4096)),
        lambda i: i["x"].sum(0),
        16.0 * M,
        64.0 * M,
        "bandwidth",
    ),
    Workload(
        "sum_axis1_4096",
        "reduction",
        lambda r: dict(x=normal(r, 4096, 4096)),
        lambda i: i["x"].sum(1),
        16.0 * M,
        64.0 * M,
        "bandwidth",
    ),
    Workload(
        "mlp",
        "fused",
        mlp_inputs,
        lambda i: gelu(i["x"] @ i["w1"] + i["b1"]) @ i["w2"] + i["b2"],
        4.0 * 128 * 768 * 3072,
        4.0 * (2 * 128 * 768 + 2 * 768 * 3072 + 3072 + 768),
        "f32",
        const=("w1", "b1", "w2", "b2"),
    ),
    Workload(
        "attention",
        "fused",
        qkv_inputs,
        lambda i: attention(i["q"], i["k"], i["v"], False),
        4.0 * 16 * 1024 * 1024 * 64,
        4.0 * 4 * 16 * 1024 * 64,
        "f32",
    ),
    Workload(
        "attention_causal",
        "fused",
        qkv_inputs,
        lambda i: attention(i["q"], i["k"], i["v"], True),
        4.0 * 16 * 1024 * 1025 / 2 * 64,
        4.0 * 4 * 16 * 1024 * 64,
        "f32",
        note="flops of the lower triangle only",
    ),
    Workload(
        "conv3x3_64",
        "conv",
        lambda r: dict(x=normal(r, 1, 64, 56, 56), w=normal(r, 64, 64, 3, 3)),
        lambda i: conv2d(i["x"], i["w"], 1, 1),
        2.0 * 64 * 64 * 9 * 56 * 56,
        4.0 * (2 * 64 * 56 * 56 + 64 * 64 * 9),
        "f32",
        const=("w",),
    ),
    Workload(
        "conv7x7s2",
        "conv",
        lambda r: dict(x=normal(r, 1, 3, 224, 224), w=normal(r, 64, 3, 7, 7)),
        lambda i: conv2d(i["x"], i["w"], 2, 3),
        2.0 * 64 * 3 * 49 * 112 * 112,
        4.0 * (3 * 224 * 224 + 64 * 112 * 112 + 64 * 147),
        "f32",
        const=("w",),
    ),
    Workload(
        "transpose_4096",
        "movement",
        lambda r: dict(x=normal(r, 4096, 4096)),
        lambda i: i["x"].T.copy(),
        0.0,
        128.0 * M,
        "bandwidth",
        0.0,
    ),
    Workload(
        "gather_4096",
        "movement",
        lambda r: dict(table=normal(r, 32000, 1024), idx=r.integers(0, 32000, 4096).astype(np.int64)),
        lambda i: i["table"][i["idx"]],
        0.0,
        32.0 * M + 8 * 4096,
        "bandwidth",
        0.0,
    ),
    Workload(
        "block",
        "fused",
        block_inputs,
        lambda i: block(**i),
        2.0 * 128 * 768 * (12 * 768) + 4.0 * 12 * 128 * 129 / 2 * 64,
        4.0 * (2 * 128 * 768 + 12 * 768 * 768 + 13 * 768),
        "f32",
        const=tuple(["ln1g", "ln1b", "wqkv", "bqkv", "wproj", "bproj", "ln2g", "ln2b", "w1", "b1", "w2", "b2"]),
    ),
]
WORKLOADS = {w.name: w for w in _LIST}

if __name__ == "__main__":  # make the data of all
    for w in _LIST:
        inputs, ref = w.data()
        print(f"{w.name:22} ref {ref.shape} {'  '.join(f'{k}{v.shape}' for k, v in inputs.items())}")

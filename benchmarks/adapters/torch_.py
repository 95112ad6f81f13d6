"""PyTorch CPU (MKL + oneDNN).  Variants: eager; compile (inductor, defaults);
max (inductor with max_autotune and weights frozen as constants, so it may prepack them)."""

import torch
import torch.nn.functional as F

VARIANT = "eager"


def setup(threads, variant):
    global VARIANT
    VARIANT = variant or "eager"
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_grad_enabled(False)
    if VARIANT == "max":
        import torch._inductor.config as c

        c.freezing = True
        c.max_autotune = True
        c.max_autotune_gemm_backends = "CPP,ATEN"
        for n in [n for n in BUILD if not n.startswith(("mm_", "gemv_4096", "mlp", "block", "conv"))]:
            del BUILD[n]  # the rest is what `compile` gives


def version():
    return f"torch {torch.__version__} ({VARIANT})"


def to_numpy(x):
    return x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()


def gelu(x):
    return F.gelu(x, approximate="tanh")


def ln(x, g, b):
    return F.layer_norm(x, x.shape[-1:], g, b, 1e-5)


def block(x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2):
    s, d = x.shape
    q, k, v = (ln(x, ln1g, ln1b) @ wqkv + bqkv).view(1, s, 3, 12, 64).permute(2, 0, 3, 1, 4)
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1).reshape(s, d)
    x = x + (a @ wproj + bproj)
    return x + (gelu(ln(x, ln2g, ln2b) @ w1 + b1) @ w2 + b2)


def block_eager(x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2):
    s, d = x.shape
    q, k, v = torch.addmm(bqkv, ln(x, ln1g, ln1b), wqkv).view(1, s, 3, 12, 64).permute(2, 0, 3, 1, 4)
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1).reshape(s, d)
    x = x + torch.addmm(bproj, a, wproj)
    return x + torch.addmm(b2, gelu(torch.addmm(b1, ln(x, ln2g, ln2b), w1)), w2)


def chain10(x):
    t = torch.maximum(x * 1.1 + 0.3, torch.tensor(-1.0))
    t = t * t - x
    return torch.exp(-torch.abs(t)) * 0.5 + x


def chain10_eager(x):  # in place where the value is not needed again
    t = x.mul(1.1).add_(0.3).clamp_(min=-1.0)
    return t.mul_(t).sub_(x).abs_().neg_().exp_().mul_(0.5).add_(x)


def build(fn, const=(), eager=None):
    """A builder that turns numpy inputs to tensors and compiles `fn` unless the variant is eager."""

    def make(**inputs):
        t = {k: torch.from_numpy(v) for k, v in inputs.items()}
        if VARIANT == "eager":
            return lambda f=eager or fn: f(**t)
        torch._dynamo.reset()
        if VARIANT == "max":

            class Frozen(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.w = torch.nn.ParameterDict({k: torch.nn.Parameter(t[k], requires_grad=False) for k in const})

                def forward(self, **x):
                    return fn(**x, **{k: self.w[k] for k in const})

            f = torch.compile(Frozen().eval())
            x = {k: v for k, v in t.items() if k not in const}
            return lambda: f(**x)
        f = torch.compile(fn)
        return lambda: f(**t)

    return make


def compiled(op, a, b):
    if VARIANT == "eager":
        return lambda: op(a, b)
    torch._dynamo.reset()
    f = torch.compile(lambda x, y: op(x, y))
    return lambda: f(a, b)


def mm_bf16(a, b):
    a, b = torch.from_numpy(a).bfloat16(), torch.from_numpy(b).bfloat16()
    return compiled(torch.mm, a, b)


def mm_int8(a, b):
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    return compiled(torch._int_mm, a, b)


def gemv_int4(x, q, scale):
    """ATen's int4 kernel; eager: bf16 activations, compile: f32 activations (both through the same ATen op)."""
    n, k = q.shape
    dt = torch.bfloat16 if VARIANT == "eager" else torch.float32
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(q).int(), 2)
    s = torch.from_numpy(scale).T.contiguous()  # [K/group, N]
    sz = torch.stack([s, torch.zeros_like(s)], -1).to(dt).contiguous()
    xx = torch.from_numpy(x).to(dt)
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(xx, packed, 128, sz)


mm = build(lambda a, b: a @ b)
conv = lambda stride, pad: build(lambda x, w: F.conv2d(x, w, stride=stride, padding=pad), ("w",))
sdpa = lambda causal: build(lambda q, k, v: F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal))
BUILD = {
    **dict.fromkeys(("mm_512", "mm_1024", "mm_2048", "gemv_4096", "mm_16x4096x4096", "mm_128x768x3072"), mm),
    "mm_bf16_1024": mm_bf16,
    "mm_int8_1024": mm_int8,
    "gemv_int4_4096": gemv_int4,
    "gelu_scale_bias": build(lambda x, scale, bias: gelu(x * scale + bias)),
    "chain10_16M": build(chain10, eager=chain10_eager),
    "softmax_4096": build(lambda x: torch.softmax(x, -1)),
    "layernorm_4096x1024": build(ln),
    "rmsnorm_4096": build(lambda x, g: F.rms_norm(x, x.shape[-1:], g, 1e-5)),
    "sum_axis0_4096": build(lambda x: x.sum(0)),
    "sum_axis1_4096": build(lambda x: x.sum(1)),
    "mlp": build(
        lambda x, w1, b1, w2, b2: gelu(x @ w1 + b1) @ w2 + b2,
        ("w1", "b1", "w2", "b2"),
        eager=lambda x, w1, b1, w2, b2: torch.addmm(b2, gelu(torch.addmm(b1, x, w1)), w2),
    ),
    "attention": sdpa(False),
    "attention_causal": sdpa(True),
    "conv3x3_64": conv(1, 1),
    "conv7x7s2": conv(2, 3),
    "transpose_4096": build(lambda x: x.T.contiguous()),
    "gather_4096": build(lambda table, idx: F.embedding(idx, table)),
    "block": build(
        block,
        tuple(["ln1g", "ln1b", "wqkv", "bqkv", "wproj", "bproj", "ln2g", "ln2b", "w1", "b1", "w2", "b2"]),
        eager=block_eager,
    ),
}

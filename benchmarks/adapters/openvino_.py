"""OpenVINO CPU plugin (oneDNN inside), f32 precision hint, weights as constants, bound tensors."""

import numpy as np
import openvino as ov
from openvino import opset15 as op

THREADS = 1
KEEP = []


def setup(threads, variant):
    global THREADS
    THREADS = threads


def version():
    return "openvino " + ov.__version__.split("-")[0]


def to_numpy(x):
    return x


TYPES = {np.dtype(np.float32): ov.Type.f32, np.dtype(np.int64): ov.Type.i64, np.dtype(np.int8): ov.Type.i8}


def compiled(result, params, values, precision=ov.Type.f32):
    c = ov.Core().compile_model(
        ov.Model([result], params),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": str(THREADS),
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        },
    )
    r = c.create_infer_request()
    for i, v in enumerate(values):
        r.set_input_tensor(i, ov.Tensor(v, shared_memory=True))
    out = r.get_output_tensor(0)

    def run():
        r.infer()
        return r.get_output_tensor(0).data

    return run


def build(body, const=(), precision=ov.Type.f32):
    def make(**inputs):
        nodes = {
            k: op.constant(v) if k in const else op.parameter(v.shape, TYPES[v.dtype], name=k)
            for k, v in inputs.items()
        }
        free = [k for k in inputs if k not in const]
        return compiled(body(**nodes), [nodes[k] for k in free], [inputs[k] for k in free], precision)

    return make


f = lambda v: op.constant(np.float32(v))
i64 = lambda v: op.constant(np.array(v, np.int64))
mm = lambda a, b, tb=False: op.matmul(a, b, False, tb)
gelu = lambda x: op.gelu(x, "tanh")


def ln(x, g, b):
    return op.add(op.multiply(op.mvn(x, i64([-1]), True, 1e-5, "inside_sqrt"), g), b)


def sdpa(q, k, v, causal):
    return op.scaled_dot_product_attention(q, k, v, causal=causal)


def mlp(x, w1, b1, w2, b2):
    return op.add(mm(gelu(op.add(mm(x, w1), b1)), w2), b2)


def block(x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2):
    qkv = op.transpose(
        op.reshape(op.add(mm(ln(x, ln1g, ln1b), wqkv), bqkv), i64([1, 128, 3, 12, 64]), False), i64([2, 0, 3, 1, 4])
    )
    q, k, v = (op.gather(qkv, i64(n), i64(0)) for n in range(3))
    a = op.reshape(op.transpose(sdpa(q, k, v, True), i64([0, 2, 1, 3])), i64([128, 768]), False)
    x = op.add(x, op.add(mm(a, wproj), bproj))
    return op.add(x, mlp(ln(x, ln2g, ln2b), w1, b1, w2, b2))


def chain10(x):
    t = op.maximum(op.add(op.multiply(x, f(1.1)), f(0.3)), f(-1))
    t = op.subtract(op.multiply(t, t), x)
    return op.add(op.multiply(op.exp(op.negative(op.abs(t))), f(0.5)), x)


def attention(causal):
    return build(lambda q, k, v: sdpa(*(op.unsqueeze(t, i64([0])) for t in (q, k, v)), causal))


def mm_bf16(a, b):
    pa, pb = (op.parameter(a.shape, ov.Type.bf16, name=n) for n in "ab")
    vals = []
    for v in (a, b):
        t = ov.Tensor(ov.Type.bf16, v.shape)
        t.data[:] = (v.view(np.uint32) >> 16).astype(np.uint16).view(t.data.dtype)
        vals.append(t)
    c = ov.Core().compile_model(
        ov.Model([op.convert(mm(pa, pb), "f32")], [pa, pb]),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": str(THREADS),
            "INFERENCE_PRECISION_HINT": ov.Type.bf16,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        },
    )
    r = c.create_infer_request()
    for n, t in enumerate(vals):
        r.set_input_tensor(n, t)

    def run():
        r.infer()
        return r.get_output_tensor(0).data

    return run


def gemv_int4(x, q, scale):
    """u4 weights decompressed inside the matmul; dynamic quantization of x left at the plugin's default."""
    n, k = q.shape
    packed, zeros = (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(-1), np.full(n * (k // 128) // 2, 0x88, np.uint8)
    KEEP.extend((packed, zeros))  # ov.Tensor of a 4-bit type does not own its memory
    u4 = lambda v, *shape: op.convert(op.constant(ov.Tensor(v, ov.Shape(shape), ov.Type.u4)), "f32")
    w = op.subtract(u4(packed, n, k // 128, 128), u4(zeros, n, k // 128, 1))
    w = op.multiply(w, op.constant(np.ascontiguousarray(scale[:, :, None])))
    p = op.parameter(x.shape, ov.Type.f32, name="x")
    return compiled(mm(p, op.reshape(w, i64([n, k]), False), True), [p], [x])


plain = build(lambda a, b: mm(a, b))
conv = lambda s, p: build(lambda x, w: op.convolution(x, w, [s, s], [p, p], [p, p], [1, 1]), ("w",))
BUILD = {
    **dict.fromkeys(("mm_512", "mm_1024", "mm_2048", "gemv_4096", "mm_16x4096x4096", "mm_128x768x3072"), plain),
    "mm_bf16_1024": mm_bf16,
    "gemv_int4_4096": gemv_int4,
    "gelu_scale_bias": build(lambda x, scale, bias: gelu(op.add(op.multiply(x, scale), bias))),
    "chain10_16M": build(chain10),
    "softmax_4096": build(lambda x: op.softmax(x, 1)),
    "layernorm_4096x1024": build(lambda **n: ln(n["x"], n["g"], n["b"])),
    "rmsnorm_4096": build(
        lambda x, g: op.multiply(
            op.divide(x, op.sqrt(op.add(op.reduce_mean(op.multiply(x, x), i64([-1]), True), f(1e-5)))), g
        )
    ),
    "sum_axis0_4096": build(lambda x: op.reduce_sum(x, i64([0]), False)),
    "sum_axis1_4096": build(lambda x: op.reduce_sum(x, i64([1]), False)),
    "mlp": build(mlp, ("w1", "b1", "w2", "b2")),
    "attention": attention(False),
    "attention_causal": attention(True),
    "conv3x3_64": conv(1, 1),
    "conv7x7s2": conv(2, 3),
    "transpose_4096": build(lambda x: op.transpose(x, i64([1, 0]))),
    "gather_4096": build(lambda table, idx: op.gather(table, idx, i64(0))),
    "block": build(
        block, tuple(["ln1g", "ln1b", "wqkv", "bqkv", "wproj", "bproj", "ln2g", "ln2b", "w1", "b1", "w2", "b2"])
    ),
}

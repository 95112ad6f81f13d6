"""ONNX Runtime CPU, models built with onnx.helper, weights as initializers (so it may prepack them),
inputs and outputs bound once with IOBinding, all graph optimizations."""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto
from onnx import helper as h
from onnx import numpy_helper as nh

THREADS = 1


def setup(threads, variant):
    global THREADS
    THREADS = threads


def version():
    return "onnxruntime " + ort.__version__


def to_numpy(x):
    return x.numpy()


DT = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
}


class Graph:
    """Collects nodes; `op` returns the output name."""

    def __init__(self):
        self.nodes, self.inits, self.n = [], [], 0

    def name(self):
        self.n += 1
        return f"t{self.n}"

    def const(self, v, name=None):
        name = name or self.name()
        self.inits.append(nh.from_array(np.asarray(v, order="C"), name))
        return name

    def f(self, v):
        return self.const(np.float32(v))

    def op(self, kind, *args, domain="", **attrs):
        o = self.name()
        self.nodes.append(h.make_node(kind, list(args), [o], domain=domain, **attrs))
        return o


def build(body, const=(), out_dtype=TensorProto.FLOAT):
    """body(graph, **names) -> output name."""

    def make(**inputs):
        g = Graph()
        for k in const:
            g.const(inputs[k], k)
        res = body(g, **{k: k for k in inputs})
        free = {k: v for k, v in inputs.items() if k not in const}
        graph = h.make_graph(
            g.nodes,
            "g",
            [h.make_tensor_value_info(k, DT[v.dtype], v.shape) for k, v in free.items()],
            [h.make_tensor_value_info(res, out_dtype, None)],
            g.inits,
        )
        return session(graph, free, res)

    return make


def session(graph, free, res):
    model = h.make_model(
        graph, opset_imports=[h.make_opsetid("", 21), h.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    so = ort.SessionOptions()
    so.intra_op_num_threads, so.inter_op_num_threads = THREADS, 1
    so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    s = ort.InferenceSession(model.SerializeToString(), so, providers=["CPUExecutionProvider"])
    b = s.io_binding()
    for k, v in free.items():
        b.bind_ortvalue_input(k, ort.OrtValue.ortvalue_from_numpy(v))
    b.bind_output(res)
    s.run_with_iobinding(b)
    o = b.get_outputs()[0]
    b.bind_ortvalue_output(res, o)

    def run():
        s.run_with_iobinding(b)
        return o

    return run


def gelu(g, x):
    return g.op("Gelu", x, approximate="tanh")


def ln(g, x, w, b):
    return g.op("LayerNormalization", x, w, b, axis=-1, epsilon=1e-5)


def attention(g, q, k, v, causal, d=64, s=1024):
    sc = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), g.f(d**-0.5))
    if causal:
        sc = g.op("Add", sc, g.const(np.triu(np.full((s, s), -1e30, np.float32), 1)))
    return g.op("MatMul", g.op("Softmax", sc, axis=-1), v)


def block(g, x, ln1g, ln1b, wqkv, bqkv, wproj, bproj, ln2g, ln2b, w1, b1, w2, b2):
    i = lambda *v: g.const(np.array(v, np.int64))
    lin = lambda x, w, b: g.op("Add", g.op("MatMul", x, w), b)
    qkv = g.op(
        "Transpose", g.op("Reshape", lin(ln(g, x, ln1g, ln1b), wqkv, bqkv), i(128, 3, 12, 64)), perm=[1, 2, 0, 3]
    )
    q, k, v = (g.op("Gather", qkv, g.const(np.array(n, np.int64)), axis=0) for n in range(3))
    a = g.op("Reshape", g.op("Transpose", attention(g, q, k, v, True, s=128), perm=[1, 0, 2]), i(128, 768))
    x = g.op("Add", x, lin(a, wproj, bproj))
    return g.op("Add", x, lin(gelu(g, lin(ln(g, x, ln2g, ln2b), w1, b1)), w2, b2))


def chain10(g, x):
    t = g.op("Max", g.op("Add", g.op("Mul", x, g.f(1.1)), g.f(0.3)), g.f(-1))
    t = g.op("Sub", g.op("Mul", t, t), x)
    return g.op("Add", g.op("Mul", g.op("Exp", g.op("Neg", g.op("Abs", t))), g.f(0.5)), x)


def rmsnorm(g, x, w):
    return g.op("SimplifiedLayerNormalization", x, w, axis=-1, epsilon=1e-5)


def mlp(g, x, w1, b1, w2, b2):
    return g.op("Add", g.op("MatMul", gelu(g, g.op("Add", g.op("MatMul", x, w1), b1)), w2), b2)


def gemv_int4(x, q, scale, level=4):
    """MatMulNBits; accuracy_level 4: activations are quantized to int8 on the fly, so VNNI can be used."""
    n, k = q.shape
    g = Graph()
    packed = (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(n, k // 128, 64)
    res = g.op(
        "MatMulNBits",
        "x",
        g.const(packed),
        g.const(scale.reshape(-1)),
        domain="com.microsoft",
        K=k,
        N=n,
        bits=4,
        block_size=128,
        accuracy_level=level,
    )
    graph = h.make_graph(
        g.nodes,
        "g",
        [h.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [h.make_tensor_value_info(res, TensorProto.FLOAT, None)],
        g.inits,
    )
    return session(graph, {"x": x}, res)


mm = build(lambda g, a, b: g.op("MatMul", a, b))
conv = lambda s, p: build(lambda g, x, w: g.op("Conv", x, w, strides=[s, s], pads=[p] * 4), ("w",))
BUILD = {
    **dict.fromkeys(("mm_512", "mm_1024", "mm_2048", "gemv_4096", "mm_16x4096x4096", "mm_128x768x3072"), mm),
    "mm_int8_1024": build(lambda g, a, b: g.op("MatMulInteger", a, b), out_dtype=TensorProto.INT32),
    "gemv_int4_4096": gemv_int4,
    "gelu_scale_bias": build(lambda g, x, scale, bias: gelu(g, g.op("Add", g.op("Mul", x, scale), bias))),
    "chain10_16M": build(chain10),
    "softmax_4096": build(lambda g, x: g.op("Softmax", x, axis=-1)),
    "layernorm_4096x1024": build(lambda graph, **n: ln(graph, n["x"], n["g"], n["b"])),
    "rmsnorm_4096": build(lambda graph, **n: rmsnorm(graph, n["x"], n["g"])),
    "sum_axis0_4096": build(lambda g, x: g.op("ReduceSum", x, g.const(np.array([0])), keepdims=0)),
    "sum_axis1_4096": build(lambda g, x: g.op("ReduceSum", x, g.const(np.array([1])), keepdims=0)),
    "mlp": build(mlp, ("w1", "b1", "w2", "b2")),
    "attention": build(lambda g, q, k, v: attention(g, q, k, v, False)),
    "attention_causal": build(lambda g, q, k, v: attention(g, q, k, v, True)),
    "conv3x3_64": conv(1, 1),
    "conv7x7s2": conv(2, 3),
    "transpose_4096": build(lambda g, x: g.op("Transpose", x, perm=[1, 0])),
    "gather_4096": build(lambda g, table, idx: g.op("Gather", table, idx, axis=0)),
    "block": build(
        block, tuple(["ln1g", "ln1b", "wqkv", "bqkv", "wproj", "bproj", "ln2g", "ln2b", "w1", "b1", "w2", "b2"])
    ),
}

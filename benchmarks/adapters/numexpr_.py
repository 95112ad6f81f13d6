"""numexpr: the elementwise workloads, with a reused output."""

import numexpr as ne
import numpy as np


def setup(threads, variant):
    ne.set_num_threads(threads)


def version():
    return f"numexpr {ne.__version__} (VML {ne.use_vml})"


def to_numpy(x):
    return x


def build(expr):
    def make(**inputs):
        o = np.empty_like(inputs["x"])
        inputs = {**inputs, **{n: np.float32(v) for n, v in CONST.items()}}
        return lambda: ne.evaluate(expr, local_dict=inputs, out=o, casting="same_kind")

    return make


CONST = dict(half=0.5, one=1, c0=0.7978845608, c1=0.044715, k1=1.1, k2=0.3, m=-1)
T = "(x*scale+bias)"
U = "(where(x*k1+k2 > m, x*k1+k2, m))"
BUILD = {
    "gelu_scale_bias": build(f"half*{T}*(one+tanh(c0*({T}+c1*{T}*{T}*{T})))"),
    "chain10_16M": build(f"exp(-abs({U}*{U}-x))*half+x"),
}

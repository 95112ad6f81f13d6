"""Halide, JIT, scheduled by the Adams2019 autoscheduler; variant Mullapudi2016: by that one."""

import importlib.metadata
import os

import halide as hl
import numpy as np

PAR = "2"
SCHEDULER = "Adams2019"


def setup(threads, variant):
    global SCHEDULER
    SCHEDULER = (
        variant or SCHEDULER
    )  # PAR stays 2: told of one core, Adams2019 finds a schedule 6x slower; threads: HL_NUM_THREADS
    d = os.path.join(os.path.dirname(hl.__file__), "lib64")
    hl.load_plugin(os.path.join(d, f"libautoschedule_{SCHEDULER.lower()}.so"))


def version():
    return f"halide {importlib.metadata.version('halide')} {SCHEDULER}"


def to_numpy(x):
    return x


x, y = hl.Var("x"), hl.Var("y")


def image(name, v):
    p = hl.ImageParam(hl.Float(32), v.ndim, name)
    stride = 1
    for d, n in enumerate(v.shape[::-1]):
        p.dim(d).set_bounds(0, n)
        if d:
            p.dim(d).set_stride(stride)
        stride *= n
    p.set_estimates([(0, n) for n in v.shape[::-1]])
    p.set(hl.Buffer(v))
    return p


def compiled(func, shape):
    func.set_estimates([(0, n) for n in shape[::-1]])
    pipe, t = hl.Pipeline(func), hl.get_host_target()
    pipe.apply_autoscheduler(t, hl.AutoschedulerParams(SCHEDULER, {"parallelism": PAR}))
    pipe.compile_jit(t)
    out = np.empty(shape, np.float32)
    buf = hl.Buffer(out)

    def run():
        pipe.realize(buf)
        return out

    return run


def mm(a, b):
    A, B, k = image("A", a), image("B", b), hl.RDom([(0, a.shape[1])])
    p, o = hl.Func("p"), hl.Func("o")
    p[x, y] = hl.f32(0)
    p[x, y] += A[k, y] * B[x, k]
    o[x, y] = p[x, y]
    return compiled(o, (a.shape[0], b.shape[1]))


f = hl.f32


def gelu_scale_bias(**i):
    X, S, B, t, o = image("X", i["x"]), image("S", i["scale"]), image("B", i["bias"]), hl.Func("t"), hl.Func("o")
    t[x, y] = X[x, y] * S[x] + B[x]
    v = t[x, y]
    u = f(0.7978845608) * (v + f(0.044715) * v * v * v)
    o[x, y] = v * (f(1) - f(1) / (hl.exp(f(2) * u) + f(1)))  # 0.5 * v * (1 + tanh(u))
    return compiled(o, i["x"].shape)


def chain10(**i):
    X, o = image("X", i["x"]), hl.Func("o")
    t = hl.max(X[x] * f(1.1) + f(0.3), f(-1))
    t = t * t - X[x]
    o[x] = hl.exp(-hl.abs(t)) * f(0.5) + X[x]
    return compiled(o, i["x"].shape)


BUILD = {"mm_512": mm, "mm_1024": mm, "mm_2048": mm, "gelu_scale_bias": gelu_scale_bias, "chain10_16M": chain10}

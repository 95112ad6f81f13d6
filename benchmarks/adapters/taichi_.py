"""taichi on its x64 (LLVM) backend: plain loops over ndarrays, outputs reused.  A few memory-bound workloads only."""

import taichi as ti


def setup(threads, variant):
    ti.init(arch=ti.cpu, cpu_max_num_threads=threads, fast_math=True, log_level=ti.WARN, offline_cache=False)


def version():
    return "taichi " + ".".join(map(str, ti.__version__))


def to_numpy(x):
    return x.to_numpy()


V1, V2 = ti.types.ndarray(dtype=ti.f32, ndim=1), ti.types.ndarray(dtype=ti.f32, ndim=2)


@ti.kernel
def k_gelu(x: V2, scale: V1, bias: V1, o: V2):
    for i, j in ti.ndrange(4096, 4096):
        t = x[i, j] * scale[j] + bias[j]
        o[i, j] = 0.5 * t * (1.0 + ti.tanh(0.7978845608 * (t + 0.044715 * t * t * t)))


@ti.kernel
def k_chain(x: V1, o: V1):
    for i in range(x.shape[0]):
        t = ti.max(x[i] * 1.1 + 0.3, -1.0)
        t = t * t - x[i]
        o[i] = ti.exp(-ti.abs(t)) * 0.5 + x[i]


@ti.kernel
def k_softmax(x: V2, o: V2):
    for i in range(x.shape[0]):
        m = -1e30
        for j in range(4096):
            m = ti.max(m, x[i, j])
        s = 0.0
        for j in range(4096):
            e = ti.exp(x[i, j] - m)
            o[i, j] = e
            s += e
        for j in range(4096):
            o[i, j] /= s


@ti.kernel
def k_sum1(x: V2, o: V1):
    for i in range(x.shape[0]):
        s = 0.0
        for j in range(4096):
            s += x[i, j]
        o[i] = s


def array(v):
    a = ti.ndarray(ti.f32, v.shape)
    a.from_numpy(v)
    return a


def build(kernel, shape):
    def make(**inputs):
        args = [array(v) for v in inputs.values()]
        o = ti.ndarray(ti.f32, shape(inputs["x"].shape))

        def run():
            kernel(*args, o)
            ti.sync()
            return o

        return run

    return make


BUILD = {
    "gelu_scale_bias": build(k_gelu, lambda s: s),
    "chain10_16M": build(k_chain, lambda s: s),
    "softmax_4096": build(k_softmax, lambda s: s),
    "sum_axis1_4096": build(k_sum1, lambda s: s[:1]),
}

"""Intarsia itself, through its public Python interface, with default settings."""

from pathlib import Path

import ml_dtypes

import intarsia

PROGRAM = None


def setup(threads, variant):
    global PROGRAM
    PROGRAM = intarsia.load(Path(__file__).parent.parent / "workloads.ita")


def version():
    return f"intarsia {intarsia.__version__}"


def to_numpy(x):
    return x


def build(function, cast=None):
    """A workload's function compiled for its inputs; `const` parameters are bound once."""

    def make(**inputs):
        if cast is not None:
            inputs = {k: v.astype(cast) for k, v in inputs.items()}
        f = PROGRAM[function]
        constants = {k: v for k, v in inputs.items() if k in f.constants}
        if constants:
            f = f.bind(**constants)
        arguments = [v for k, v in inputs.items() if k not in constants]
        return lambda: f(*arguments)

    return make


BUILD = {
    **{
        name: build("mm")
        for name in ("mm_512", "mm_1024", "mm_2048", "gemv_4096", "mm_16x4096x4096", "mm_128x768x3072")
    },
    "mm_bf16_1024": build("mm_bf16_1024", ml_dtypes.bfloat16),
    "attention": build("attention_full"),
    **{
        name: build(name)
        for name in (
            "mm_int8_1024",
            "stream_triad",
            "gelu_scale_bias",
            "chain10_16M",
            "softmax_4096",
            "layernorm_4096x1024",
            "rmsnorm_4096",
            "sum_axis0_4096",
            "sum_axis1_4096",
            "mlp",
            "attention_causal",
            "conv3x3_64",
            "conv7x7s2",
            "transpose_4096",
            "gather_4096",
            "block",
        )
    },
}

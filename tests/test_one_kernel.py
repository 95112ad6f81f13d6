"""The programs that must become one kernel each, and read and write every element from and to memory once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel_trace import memory_traffic
from intarsia.ir.plan import Invoke
from intarsia.passes.fuse.report import pass_counts

WORKLOADS = Path(__file__).parent.parent / "benchmarks" / "workloads.ita"
CACHE = 1500
"""Elements that the simulated cache holds: a few rows, not a whole tensor."""

FUNCTIONS = {
    "softmax_4096": {"N": 9, "M": 203},
    "layernorm_4096x1024": {"N": 9, "D": 203},
    "rmsnorm_4096": {"N": 9, "D": 203},
    "sum_axis0_4096": {"N": 203, "M": 37},
    "sum_axis1_4096": {"N": 9, "M": 203},
    "gelu_scale_bias": {"N": 9, "D": 203},
    "stream_triad": {"N": 2003},
}
HAND_WRITTEN = """
fn main(x: f32[N, M]) -> f32[N, M] {
    m[i] = max[j](x[i, j])
    e[i, j] = exp(x[i, j] - m[i])
    return tensor[i, j](e[i, j] / sum[k](e[i, k]))
}
"""


def compilation(text: str, function: str | None, sizes: dict[str, int]) -> Compilation:
    library = load(Source("program.ita", text))
    return Compilation(library.build(function, dims=sizes), sizes, Options(target="cpu:x86-avx512"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_call_and_every_element_once(name: str) -> None:
    sizes = FUNCTIONS[name]
    done = compilation(WORKLOADS.read_text(encoding="utf-8"), name, sizes)
    assert [type(s) for s in done.plan.body] == [Invoke]
    (kernel,) = done.scheduled.kernels
    traffic = memory_traffic(kernel, {}, CACHE)
    elements = {b.name: int(np.prod([int(s) for s in b.shape])) for b in kernel.parameters}
    for buffer in kernel.parameters:
        reads, writes = traffic[buffer.name]
        if buffer.role == "in":
            assert (reads, writes) == (elements[buffer.name], 0), buffer.name
        elif buffer.role == "out":
            assert writes == elements[buffer.name] and reads == 0, buffer.name
    assert all(count.after == 1 for count in pass_counts(done.fused))


def test_a_softmax_written_by_hand_becomes_the_same_kernel() -> None:
    """Up to the names of the parameters and axes, nothing tells it from the built-in one."""
    built_in = "fn main(x: f32[N, M]) -> f32[N, M] { return softmax(x, axis=-1) }"
    texts = []
    for text in (HAND_WRITTEN, built_in):
        done = compilation(text, None, {"N": 9, "M": 203})
        (kernel,) = done.scheduled.kernels
        traffic = memory_traffic(kernel, {}, CACHE)
        texts.append((sorted(traffic.values()), len(done.plan.body), _shape(kernel.body)))
    assert texts[0] == texts[1]


def _shape(body: object) -> object:
    """The structure of a kernel without names: kinds of statements, loops and operators."""
    from intarsia.ir.kernel import For, Put

    assert isinstance(body, tuple)
    shape: list[object] = []
    for statement in body:
        match statement:
            case For(_, _, _, inner, kind, step):
                shape.append((kind, step, _shape(inner)))
            case Put(_, _, operator):
                shape.append(operator)
            case _:
                shape.append(type(statement).__name__)
    return tuple(shape)

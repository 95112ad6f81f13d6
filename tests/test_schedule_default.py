"""The default schedule: for every kind of kernel it is legal, keeps the meaning, and says the same twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from schedule_programs import PROGRAMS, SHORTER
from schedule_samples import SAMPLES, assert_same_meaning, results, sample

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.kernel_verifier import unproved_accesses, verify_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import TARGETS
from intarsia.passes.pipeline import Context, default_pipeline
from intarsia.passes.schedule.apply import apply
from intarsia.passes.schedule.default import schedule_kernel

TARGET = TARGETS["cpu:x86-avx512"]

COUNTER = 5
"""The value of what counts the steps of a loop around a kernel."""


def kernels(name: str, dynamic: bool = False) -> list[tuple[Kernel, dict[str, int]]]:
    """The naive kernels of a program, and the sizes that each is given at run time."""
    text, dims = PROGRAMS[name]
    if dynamic:
        dims = {**dims, **SHORTER.get(name, {})}
    module = load(Source("f.ita", text)).build(None, None, dims)
    given: Mapping[str, int] = {} if dynamic else dims
    pipeline = default_pipeline(given).before("schedule")
    lowered = pipeline.run(module, Context(TARGET, dynamic=frozenset(dims if dynamic else ())))
    return [(k, {n: dims.get(n, COUNTER) for n in k.sizes}) for k in lowered.kernels]


def check(kernel: Kernel, sizes: dict[str, int]) -> Kernel:
    """Schedule a kernel, and compare what it means before and after."""
    schedule, scheduled = schedule_kernel(kernel, TARGET)
    verify_kernel(scheduled)
    assert not unproved_accesses(scheduled) or unproved_accesses(kernel)
    assert apply(kernel, Schedule.parse(str(schedule))) == scheduled
    assert read_kernel(Source("k.ir", print_kernel(scheduled))) == scheduled
    if any(b.dtype.bits <= 16 and b.dtype.is_float for b in kernel.outputs):
        wanted = results(kernel, kernel, sizes)
        for name, actual in results(scheduled, kernel, sizes).items():
            np.testing.assert_allclose(actual.astype(np.float32), wanted[name].astype(np.float32), rtol=2**-7)
    else:
        assert_same_meaning(kernel, scheduled, sizes)
    return scheduled


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SHORTER else ()) for n in sorted(PROGRAMS)]
)
def test_programs_keep_their_meaning(name: str) -> None:
    for kernel, sizes in kernels(name):
        check(kernel, sizes)


ALIKE = {
    "batched", "blur_along_diagonals", "blur_of_sums", "conv2d_few", "conv2d_groups", "conv2d_last_few",
    "conv2d_strided", "depthwise_dilated", "depthwise_last", "depthwise_strided", "longest_paths_deep",
    "matmul_across_deep", "matmul_few_crowded", "matmul_narrow_weighted", "matmul_outer", "matmul_weighted",
    "rows_in_batches", "shortest_paths_across", "sum_of_few",
}  # fmt: skip
"""Programs that are scheduled as others are where sizes are not known."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in sorted(PROGRAMS)]
)
@pytest.mark.slow
def test_programs_of_unknown_sizes_keep_their_meaning(name: str) -> None:
    for kernel, sizes in kernels(name, dynamic=True):
        check(kernel, sizes)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_samples_keep_their_meaning(name: str) -> None:
    check(*sample(name))


@pytest.mark.parametrize("target", ["cpu:x86-avx2", "cpu:neon"])
@pytest.mark.parametrize("name", ["softmax", "matmul", "sum_down", "transpose", "depthwise_small"])
def test_other_machines(name: str, target: str) -> None:
    for kernel, sizes in kernels(name):
        _, scheduled = schedule_kernel(kernel, TARGETS[target])
        assert_same_meaning(kernel, scheduled, sizes)


@pytest.mark.parametrize(
    "name",
    [
        "softmax",
        "layer_norm",
        "broadcast",
        "transpose",
        "transpose_wide",
        "gelu",
        "conv2d",
        "softmax_down",
        "depthwise",
    ],
)
def test_streams(name: str) -> None:
    """Nothing fits the caches: rows are fetched early, and results bypass the caches from whole lines on."""
    tiny = replace(TARGET, caches=(256, 1 << 11, 1 << 12))
    for kernel, sizes in kernels(name):
        schedule, scheduled = schedule_kernel(kernel, tiny)
        verify_kernel(scheduled)
        assert not unproved_accesses(scheduled)
        assert name not in ("softmax", "layer_norm", "broadcast") or "align" in str(schedule)
        assert_same_meaning(kernel, scheduled, sizes)


def test_schedules_are_deterministic() -> None:
    (first,), (second,) = kernels("matmul_packed"), kernels("matmul_packed")
    assert str(schedule_kernel(first[0], TARGET)[0]) == str(schedule_kernel(second[0], TARGET)[0])

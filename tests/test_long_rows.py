"""Rows that are longer than a cache: what needs their maximum or mean is found in the sweep that finds that."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from intarsia.costmodel.extents import memory_passes
from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Alloc, Kernel, walk
from intarsia.ir.kernel_interpreter import run
from intarsia.ir.kernel_verifier import unproved_accesses, verify_kernel
from intarsia.ir.target import TARGETS, Target
from intarsia.passes.schedule.default import build_schedule

SMALL = replace(TARGETS["cpu:x86-avx512"], caches=(4 << 10, 16 << 10, 1 << 20))
"""A machine whose second cache holds 4096 elements."""

MANY = replace(SMALL, cores=8)
"""The same with more cores than rows."""


def scheduled(text: str, target: Target = SMALL) -> tuple[str, Kernel]:
    """The steps and the kernel of a program of one kernel."""
    library = load(Source("program.ita", text))
    (kernel,) = Compilation(library.build("f"), {}, Options(target=SMALL.name)).kernels.kernels
    b = build_schedule(kernel, target)
    verify_kernel(b.kernel)
    assert not unproved_accesses(b.kernel)
    return str(b.schedule), b.kernel


def computed(kernel: Kernel, x: Array) -> Array:
    (out,) = kernel.outputs
    result = np.full([int(e) for e in out.shape], 7.0, np.float32)
    with np.errstate(all="ignore"):
        run(kernel, {kernel.inputs[0].name: x, out.name: result}, {})
    return result.reshape(len(x), -1)


def softmax(x: Array) -> Array:
    with np.errstate(all="ignore"):
        e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True))


def logsumexp(x: Array) -> Array:
    return np.asarray(np.logaddexp.reduce(x.astype(np.float64), -1, keepdims=True))


def variance(x: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.var(x.astype(np.float64), -1, keepdims=True))


def normalized(x: Array) -> Array:
    with np.errstate(all="ignore"):
        centred = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance(x) + 1e-5))


MEANS = {
    "variance": ("fn f(x: f32[3, 9001]) -> f32[3] { return var(x, axis=-1) }", variance),
    "layer norm": (
        "fn f(x: f32[3, 9001]) -> f32[3, 9001] { c = x - mean(x, axis=-1, keepdims=true)\n"
        "return c * rsqrt(mean(c * c, axis=-1, keepdims=true) + 1e-5) }",
        normalized,
    ),
}
PROGRAMS = {
    "softmax": ("fn f(x: f32[3, 9001]) -> f32[3, 9001] { return softmax(x, axis=-1) }", softmax),
    "logsumexp": ("fn f(x: f32[3, 9001]) -> f32[3] { return logsumexp(x, axis=-1) }", logsumexp),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_maximum_and_the_sum_are_found_in_one_sweep(name: str) -> None:
    text, reference = PROGRAMS[name]
    steps, kernel = scheduled(text)
    assert "online t_max 4096" in steps
    x = np.random.default_rng(0).standard_normal((3, 9001)).astype(np.float32) * 9
    np.testing.assert_allclose(computed(kernel, x), reference(x), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("values", [[-np.inf], [np.nan, 5000], [np.inf, 9000], [-np.inf, 3]])
def test_infinities_and_nan_are_kept(values: list[float]) -> None:
    """A number for a whole row, or one for an element of it."""
    _, kernel = scheduled(PROGRAMS["softmax"][0])
    x = np.random.default_rng(0).standard_normal((3, 9001)).astype(np.float32)
    x[1, int(values[1]) if len(values) > 1 else slice(None)] = values[0]
    np.testing.assert_allclose(computed(kernel, x), softmax(x), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_and_what_needs_it_are_found_in_one_sweep(name: str) -> None:
    """Rows of large numbers close together, one of them sorted, as exactly as in two passes."""
    text, reference = MEANS[name]
    steps, kernel = scheduled(text)
    assert "online t_sum 4096" in steps
    random = np.random.default_rng(0)
    x = (1e4 + random.standard_normal((3, 9001))).astype(np.float32)
    x[1].sort()
    np.testing.assert_allclose(computed(kernel, x), reference(x), rtol=2e-4, atol=2e-3)
    assert memory_passes(kernel, 24 << 10, SMALL.cache_line)["x"] == (1 if name == "variance" else 2)
    for special in (np.inf, -np.inf, np.nan):
        x[2, 5000] = special
        np.testing.assert_allclose(computed(kernel, x)[2], reference(x)[2])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "name", ["logsumexp", "variance", *(pytest.param(n, marks=pytest.mark.slow) for n in ("softmax", "layer norm"))]
)
def test_rows_fewer_than_cores_are_cut_into_parts(name: str) -> None:
    """Each part is read once from beyond the second cache for all that is found out about it."""
    text, reference = {**PROGRAMS, **MEANS}[name]
    steps, kernel = scheduled(text, MANY)
    assert re.search(r"parts t_(max|sum) 1024", steps)
    x = np.random.default_rng(0).standard_normal((3, 9001)).astype(np.float32) * 9
    np.testing.assert_allclose(computed(kernel, x), reference(x), rtol=1e-5, atol=1e-6)
    assert memory_passes(kernel, 12 << 10, MANY.cache_line)["x"] == (1 if reference(x).shape == (3, 1) else 2)
    for special in (np.inf, -np.inf, np.nan):
        x[1, 7], x[2] = special, special
        np.testing.assert_allclose(computed(kernel, x), reference(x), rtol=1e-5, atol=1e-6)


def test_a_variance_of_numbers_near_zero_is_exact() -> None:
    _, kernel = scheduled(MEANS["variance"][0])
    x = np.random.default_rng(0).standard_normal((3, 9001)).astype(np.float32)
    x[2] *= np.linspace(0, 9, 9001, dtype=np.float32)
    np.testing.assert_allclose(computed(kernel, x), variance(x), rtol=2e-6)


def test_rows_that_stay_in_the_cache_are_swept_as_before() -> None:
    steps, _ = scheduled("fn f(x: f32[3, 4000]) -> f32[3, 4000] { return softmax(x, axis=-1) }")
    assert "online" not in steps


def test_nothing_of_the_length_of_a_row_is_kept() -> None:
    _, kernel = scheduled(PROGRAMS["softmax"][0])
    sizes = [int(np.prod([int(e) for e in s.buffer.shape])) for s, _ in walk(kernel.body) if isinstance(s, Alloc)]
    assert max(sizes) < 100

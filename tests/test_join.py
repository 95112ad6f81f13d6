"""Kernels that go through one large matrix one after the other become one, which goes through it once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedule_samples import assert_same_meaning

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel_verifier import unproved_accesses, verify_kernel
from intarsia.ir.target import TARGETS
from intarsia.passes.pipeline import Context, default_pipeline
from intarsia.passes.schedule.candidates import Space

TINY = replace(TARGETS["cpu:x86-avx512"], caches=(1 << 10, 4 << 10, 8 << 10), cores=2)

PROGRAMS = {
    "one after the other": "fn f(a: f64[N, M], x: f64[M]) -> f64[M] { return transpose(a) @ (a @ x) }",
    "side by side": "fn f(a: f64[N, M], p: f64[M], r: f64[N]) -> (f64[M], f64[N]) { return transpose(a) @ r, a @ p }",
    "with what follows": (
        "fn f(a: f64[N, M], x: f64[N], y: f64[M], z: f64[N]) -> (f64[N], f64[M]) {"
        " return x + a @ y, y + transpose(a) @ z }"
    ),
    "made on the way": (
        "fn f(a: f64[N, M], u: f64[N], v: f64[M]) -> (f64[N, M], f64[M]) {"
        " b[i, j] = a[i, j] + u[i] * v[j]\n return b, transpose(b) @ u }"
    ),
}


def module_of(text: str, n: int, m: int, target: str = "") -> Module:
    module = load(Source("f.ita", text)).build(None, None, {"N": n, "M": m})
    return default_pipeline({"N": n, "M": m}).before("schedule").run(module, Context(TINY))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_joined_kernels_keep_their_meaning(name: str) -> None:
    module = module_of(PROGRAMS[name], 45, 70)
    (kernel,) = module.kernels
    space = Space(kernel, TINY)
    assert any(choice.startswith("passes over") for choice in space.default.decisions)
    assert "parallel" in str(space.default.schedule) and "merge" in str(space.default.schedule)
    for candidate in (space.default, *(space.candidate({choice: 1}) for choice in space.default.decisions)):
        verify_kernel(candidate.kernel)
        assert not unproved_accesses(candidate.kernel)
        assert_same_meaning(kernel, candidate.kernel, {})

    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal([int(s) for s in p.value.tensor.shape]) for p in module.graph.body.parameters]
    separate = load(Source("f.ita", PROGRAMS[name])).build(None, None, {"N": 45, "M": 70})
    wanted = evaluate(default_pipeline({"N": 45, "M": 70}).first(1).run(separate, Context(TINY)), inputs)
    for got, expected in zip(evaluate(module, inputs), wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_what_a_cache_keeps_is_not_joined() -> None:
    assert len(module_of(PROGRAMS["side by side"], 12, 20).kernels) == 2

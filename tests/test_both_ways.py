"""Products whose elements are summed along rows and columns, such as those of the gradient of attention."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from _pytest.mark import ParameterSet

import intarsia
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.kernel_interpreter import run
from intarsia.ir.kernel_verifier import verify_kernel
from intarsia.ir.schedule import Skip
from intarsia.ir.target import TARGETS, Target
from intarsia.passes.pipeline import Context, default_pipeline
from intarsia.passes.schedule.both_ways import schedule_both_ways
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.verify import verification

TINY = replace(TARGETS["cpu:x86-avx512"], caches=(256, 1 << 12, 1 << 12), cores=2)
"""Products of some hundred elements do not fit its last cache."""

TEXT = """
fn value(q: {q}, k: {k}, v: {k}) -> {q} {{
    return {value}
}}
fn loss(q: {q}, k: {k}, v: {k}, g: {q}) -> {dtype} {{
    return sum(value(q, k, v) * g)
}}
fn f(q: {q}, k: {k}, v: {k}, g: {q}) {{
    {changes} = grad(loss, wrt=({wrt}))(q, k, v, g)
    return {results}
}}
"""

SCORES = "(q @ transpose(k, (0, 2, 1)) * 0.25)"
VALUES = {
    "softmax": f"softmax({SCORES}) @ v",
    "library": "attention(q, k, v)",
    "causal": "attention(q, k, v, causal=true)",
    "window": f"softmax(tensor[h, i, j](where(j <= i and i < j + 9, {SCORES}[h, i, j], -inf))) @ v",
    "biased": f"softmax({SCORES} + tensor[i < S, j < T](TYPE(i - j) * 0.1)) @ v",
    "sigmoid": f"sigmoid({SCORES}) @ v",
    "linear": f"{SCORES} @ v",
}


def program(name: str, wrt: str = "q, k, v", forward: bool = True, dtype: str = "f32") -> str:
    """The gradient of a program of VALUES, and what it computes if `forward`."""
    changes = ", ".join(f"d{n}" for n in wrt.split(", "))
    keys = "S" if name in ("causal", "window") else "T"
    value = VALUES[name].replace("TYPE", dtype)
    results = f"value(q, k, v), {changes}" if forward else changes
    types = {"q": f"{dtype}[H, S, D]", "k": f"{dtype}[H, {keys}, D]"}
    return TEXT.format(**types, value=value, dtype=dtype, changes=changes, wrt=wrt, results=results)


def scheduled(text: str, target: Target = TINY, **sizes: int) -> Module:
    """A program after all passes, each of them verified by execution. No kernel keeps a whole product."""
    module = load(Source("f", text)).build("f")
    known = {name: size for name, size in sizes.items() if name in module.graph.dimensions}
    module = default_pipeline(known).run(module, Context(target), verification("exec"))
    for kernel in module.kernels:
        verify_kernel(kernel)
        longest = max(math.prod(int(e) for e in b.shape) for b in kernel.buffers().values())
        assert longest < sizes["H"] * sizes["S"] * sizes["T"]
    return module


def slow_but(first: str) -> list[ParameterSet]:
    return [pytest.param(n, marks=() if n == first else pytest.mark.slow) for n in VALUES]


@pytest.mark.parametrize("name", slow_but("sigmoid"))
def test_a_gradient_is_one_sweep_after_that_of_the_value(name: str) -> None:
    module = scheduled(program(name), H=3, S=40, T=37, D=8)
    assert len(module.kernels) == (1 if name == "sigmoid" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("wrt", ["q", "k", "v", "k, v", "q, v"])
@pytest.mark.parametrize("name", ["library", "sigmoid"])
def test_sums_may_go_one_way(name: str, wrt: str) -> None:
    module = scheduled(program(name, wrt, forward=False), H=3, S=40, T=37, D=8)
    assert len(module.kernels) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        ("f64", {"H": 3, "S": 20, "T": 50, "D": 5}),
        ("f32", {"H": 2, "S": 70, "T": 150, "D": 17}),  # several blocks of rows and of columns, the last ones shorter
        ("f32", {"H": 1, "S": 64, "T": 33, "D": 3}),
    ],
)
def test_blocks_need_not_be_whole(dtype: str, sizes: dict[str, int]) -> None:
    scheduled(program("library", dtype=dtype), **sizes)


@pytest.mark.slow
def test_one_head_is_shared_by_rows_and_by_columns() -> None:
    """Where cores have no heads to share, each direction is a kernel whose blocks they share."""
    module = scheduled(program("library"), H=1, S=70, T=80, D=8)
    assert len(module.kernels) == 3
    wide = replace(TINY, cores=1)
    assert len(scheduled(program("library"), wide, H=1, S=70, T=80, D=8).kernels) == 2


@pytest.mark.slow
def test_a_number_may_stand_among_rows() -> None:
    """The loss itself, between what it is made of and the rows that its gradient begins with."""
    text = """fn loss(q: f32[S, D], k: f32[S, D], v: f32[S, D], w: f32[D, D], y: f32[S, D]) -> f32 {
        return mean((softmax(q @ transpose(k)) @ v @ w - y) ** 2.0)
    }"""
    module = load(Source("f", text)).build("value_and_grad(loss, wrt=(q, k, v))")
    for kernel in default_pipeline({"S": 2048, "D": 16}).run(module, Context(TINY)).kernels:
        verify_kernel(kernel)


@pytest.mark.slow
def test_keys_may_lie_across() -> None:
    text = """fn loss(q: f32[H, S, D], k: f32[H, D, T], v: f32[H, T, D], g: f32[H, S, D]) -> f32 {
        return sum(softmax(q @ k) @ v * g)
    }
    fn f(q: f32[H, S, D], k: f32[H, D, T], v: f32[H, T, D], g: f32[H, S, D]) {
        dq, dk, dv = grad(loss, wrt=(q, k, v))(q, k, v, g)
        return dq, dk, dv
    }"""
    assert len(scheduled(text, H=3, S=40, T=37, D=8).kernels) == 2


@pytest.mark.slow
def test_weights_that_are_needed_are_kept() -> None:
    """A product that is a result is stored, so that nothing computes it again."""
    text = program("softmax").replace("return value(q, k, v)", f"return softmax({SCORES})")
    module = load(Source("f", text)).build("f")
    sizes = {"H": 3, "S": 40, "T": 37, "D": 8}
    module = default_pipeline(sizes).run(module, Context(TINY), verification("exec"))
    assert len(module.kernels) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "shape"), [(False, (9, 1001, 64)), (True, (3, 1800, 40))])
def test_gradients_are_those_of_pytorch(causal: bool, shape: tuple[int, int, int]) -> None:
    torch = pytest.importorskip("torch")
    compiled = intarsia.compile(program("causal" if causal else "library"))["f"]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]
    found = compiled(*arrays)
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in arrays[:3])
    value = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    value.backward(torch.from_numpy(arrays[3]))
    for ours, theirs in zip(found, (value.detach(), q.grad, k.grad, v.grad), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_masked_products_are_stored_in_no_cache() -> None:
    """In the last cache others are: what is stored is computed as a whole, whatever a mask leaves out."""
    sizes = {"H": 3, "S": 40, "D": 8}
    wide = replace(TINY, caches=(256, 1 << 12, 1 << 22))
    for name, stored in (("causal", False), ("library", True)):
        known = sizes if name == "causal" else {**sizes, "T": 40}
        module = load(Source("f", program(name))).build("f")
        module = default_pipeline(known).before("schedule").run(module, Context(wide))
        parameters = [b for kernel in module.kernels for b in kernel.parameters]
        assert stored == any(math.prod(map(int, b.shape)) == 3 * 40 * 40 for b in parameters)


MASKED = """fn f(q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D], g: f32[H, S, D], m: f32[H, S], l: f32[H, S]) {
    e[h, i, j] = exp(where(MASK, sum[d](q[h, i, d] * k[h, j, d]), -inf) - m[h, i])
    x[h, i, j] = where(MASK, e[h, i, j] * sum[d](g[h, i, d] * v[h, j, d]), 0.0)
    dv[h, j, d] = sum[i](e[h, i, j] / l[h, i] * g[h, i, d])
    dq[h, i, d] = sum[j](x[h, i, j] * k[h, j, d])
    dk[h, j, d] = sum[i](x[h, i, j] * q[h, i, d])
    return dq, dk, dv
}"""


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["j <= i", "j <= i and i < j + 20", "i + 40 < j"])
def test_blocks_that_masks_leave_out_are_skipped(mask: str) -> None:
    """Unless an infinity or NaN in their rows or columns would be seen."""
    sizes = {"H": 3, "S": 90, "D": 3}
    module = load(Source("f", MASKED.replace("MASK", mask))).build("f")
    (naive,) = default_pipeline(sizes).before("schedule").run(module, Context(TINY)).kernels
    b = Builder(naive, TINY)
    assert schedule_both_ways(b) and any(isinstance(step, Skip) for step in b.steps)
    verify_kernel(b.kernel)
    rng = np.random.default_rng(0)
    for special in ("", "q", "k", "v", "g", "m", "l"):
        inputs = {x.name: rng.standard_normal([int(e) for e in x.shape], np.float32) for x in naive.inputs}
        inputs["l"] = abs(inputs["l"]) + 1
        if special:
            for place in ((0, 3), (1, 40), (1, 89)):
                inputs[special][place] = rng.choice([np.inf, -np.inf, np.nan, 0.0])
        found = []
        for kernel in (naive, b.kernel):
            results = {x.name: np.full([int(e) for e in x.shape], 7, np.float32) for x in kernel.outputs}
            with np.errstate(all="ignore"):
                run(kernel, {**inputs, **results}, {})
            found.append(results)
        for name, expected in found[0].items():
            np.testing.assert_allclose(found[1][name], expected, rtol=1e-4, atol=1e-4, err_msg=special)

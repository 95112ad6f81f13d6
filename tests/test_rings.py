"""Rings in place of gathered tensors and scattered sums: equal results, and what goes over the wire."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from sharded import check_results, compiled, run_passes
from test_sharding import LOCAL, built, bytes_of, collectives

from intarsia.ir.graph import Module, Region
from intarsia.ir.ops import AllGather, Collective, CollectivePermute, Loop
from intarsia.ir.sharding import ring_elements
from intarsia.ir.spmd import simulate
from intarsia.ir.types import TensorType
from intarsia.passes.verify.inputs import random_inputs

ATTENTION = """fn f(q: f32[H, S@d, K], k: f32[H, S@d, K], v: f32[H, S@d, E]) -> f32[H, S@d, E] {
    return attention(q, k, v, causal=true)
}"""

PROGRAMS: dict[str, tuple[str, dict[str, int]]] = {
    "rows that are gathered": (
        "fn f(x: f32[B@d, K], w: f32[K, N@d]) -> f32[B@_, N@d] { return x @ w }",
        {"B": 9, "K": 3, "N": 8},
    ),
    "what is summed over": (
        "fn f(x: f32[B@d, D], up: f32[D@d, F], down: f32[F@d, D]) -> f32[B@d, D] { return gelu(x @ up) @ down }",
        {"B": 64, "D": 11, "F": 13},
    ),
    "scattered sums": (
        "fn f(x: f32[B, K@d], w: f32[K@d, N]) -> f32[B@d, N] { return x @ w }",
        {"B": 10, "K": 11, "N": 6},
    ),
    "whole numbers": (
        "fn f(x: i32[B@d, K], w: i32[K, N@d]) -> i32[B@_, N@d] { return x @ w }",
        {"B": 9, "K": 5, "N": 6},
    ),
    "a window beyond the ends": (
        """fn f(g: f32[O@d, W], x: f32[C@d, W]) -> f32[O@d, C@_, 3] {
    p = pad(x, ((0, 0), (1, 1)))
    return tensor[o, c, s < 3](sum[w < W](g[o, w] * p[c, w + s]))
}""",
        {"O": 9, "C": 10, "W": 7},
    ),
    "in each step of a loop": (
        "fn f(x: f32[K@d, B], w: f32[K@d, K]) -> f32[K@d, B] { return loop (h = x) for t < 3 { yield tanh(w @ h) } }",
        {"B": 3, "K": 8},
    ),
    "attention": (ATTENTION, {"H": 2, "S": 9, "K": 4, "E": 3}),
    "attention in half": (ATTENTION.replace("f32", "f16"), {"H": 2, "S": 8, "K": 4, "E": 3}),
    "attention with a mask": (
        """fn f(q: f32[S@d, K], k: f32[S@d, K], v: f32[S@d, E], m: bool[S@d, S]) -> f32[S@d, E] {
    return attention(q, k, v, mask=m)
}""",
        {"S": 10, "K": 4, "E": 3},
    ),
    "rows of nothing": (
        """fn f(q: f32[S@d, K], k: f32[S@d, K], v: f32[S@d, K]) -> f32[S@d, K] {
    s[i, j] = where(j < i, sum[c](q[i, c] * k[j, c]), -inf)
    return softmax(s) @ v
}""",
        {"S": 8, "K": 4},
    ),
    "attention by hand": (
        """fn f(q: f32[S@d, K], k: f32[S@d, K], v: f32[S@d, E]) -> f32[S@d, E] {
    s = q @ transpose(k)
    m[i] = max[j](s[i, j])
    e[i, j] = exp(s[i, j] - m[i])
    total[i] = sum[j](e[i, j])
    made[i, c] = sum[j](e[i, j] * v[j, c])
    y[i, c] = made[i, c] / total[i]
    return y
}""",
        {"S": 10, "K": 4, "E": 3},
    ),
    "divided by a sum": (
        """fn f(q: f32[S@d, K], k: f32[S@d, K], v: f32[S@d, E]) -> f32[S@d, E] {
    s = exp(q @ transpose(k))
    return (s / sum(s, axis=1, keepdims=true)) @ v
}""",
        {"S": 10, "K": 4, "E": 3},
    ),
    "sums that end where data say": (
        """fn f(q: f32[S@d, K], k: f32[S@d, K], v: f32[S@d, E], n: i64[S@d]) -> f32[S@d, E] {
    s = q @ transpose(k)
    y[i, c] = sum[j < clip(n[i], 0, S)](s[i, j] * v[j, c])
    return y
}""",
        {"S": 7, "K": 3, "E": 2},
    ),
    "a contrastive loss": (
        """fn f(a: f32[N@d, K], b: f32[N@d, K]) -> f32 {
    p[i] = sum[k](a[i, k] * b[i, k])
    return mean(logsumexp(a @ transpose(b), axis=1) - p)
}""",
        {"N": 9, "K": 4},
    ),
}


def partitioned(text: str, devices: int, dims: dict[str, int], passes: str) -> tuple[Module, Module]:
    module = built(f"mesh m(d={devices})\n{text}", **dims)
    local, _ = run_passes(module, f"{LOCAL},{passes}" if passes else LOCAL)
    return module, local


def sent(module: Module) -> int:
    """The bytes that each device sends, by the formulas of rings."""

    def walk(region: Region, times: int) -> Iterator[float]:
        for node in region.nodes:
            steps = int(node.upper - node.lower) if isinstance(node, Loop) else 1
            for inner in node.regions:
                yield from walk(inner, times * steps)
            if isinstance(node, Collective):
                yield times * ring_elements(node.name, bytes_of(node), node.devices)

    return round(sum(walk(module.graph.body, 1)))


def rings(module: Module) -> list[Loop]:
    """The loops in which something is sent on."""
    return [
        n
        for n in module.graph.body.walk()
        if isinstance(n, Loop) and any(isinstance(x, CollectivePermute) for x in n.body.nodes)
    ]


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_ring_gives_what_one_device_gives(name: str, devices: int) -> None:
    text, dims = PROGRAMS[name]
    module, local = partitioned(text, devices, dims, "rings")
    _, gathered = partitioned(text, devices, dims, "")
    assert rings(local)
    assert sent(local) == sent(gathered)
    inputs = random_inputs(module, {}, 0)
    with np.errstate(invalid="ignore"):
        check_results(module, inputs, simulate(local, inputs))


def test_of_two_operands_that_are_gathered_over_other_axes_one_goes_round() -> None:
    text = """mesh m(a=2, b=2)
fn f(x: f32[B@a, K@b], w: f32[K@a, N@b]) -> f32[B@a, N@b] { return x @ w }"""
    module = built(text, B=8, K=6, N=8)
    local, _ = run_passes(module, f"{LOCAL},rings")
    assert {n.name for n in collectives(local)} == {"all_gather", "collective_permute"}
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


def test_no_device_holds_all_scores_or_all_keys() -> None:
    _, local = partitioned(ATTENTION, 4, {"H": 1, "S": 64, "K": 8, "E": 8}, "rings")
    sizes = [math.prod(v.tensor.static_shape) for n in local.graph.body.walk() for v in n.values]
    assert max(sizes) == 16 * 16


def test_the_program_of_many_devices_is_as_long_as_that_of_few() -> None:
    dims = {"H": 1, "S": 4096, "K": 8, "E": 8}
    few, many = (partitioned(ATTENTION, n, dims, "rings")[1] for n in (4, 2048))
    assert len(list(many.graph.body.walk())) == len(list(few.graph.body.walk()))


def test_a_permutation_needs_nothing_that_its_step_computes() -> None:
    """So that it can be under way meanwhile."""
    for name in ("attention", "scattered sums"):
        text, dims = PROGRAMS[name]
        _, local = partitioned(text, 4, dims, "rings")
        for ring in rings(local):
            own = {p.value for p in ring.states}
            permutes = [n for n in ring.body.nodes if isinstance(n, CollectivePermute)]
            assert permutes
            assert all(n.x in own for n in permutes)


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_scores_that_are_no_numbers(special: float) -> None:
    text, dims = PROGRAMS["attention by hand"]
    module, local = partitioned(text, 4, dims, "rings")
    q, k, v = random_inputs(module, {}, 0)
    k[3, 1] = special
    with np.errstate(invalid="ignore"):
        check_results(module, [q, k, v], simulate(local, [q, k, v]))


def test_permutations_are_under_way_while_a_block_is_computed() -> None:
    text, dims = PROGRAMS["attention"]
    _, local = partitioned(text, 4, dims, "rings,overlap")
    (ring,) = rings(local)
    names = [n.name for n in ring.body.nodes]
    assert all(n.started for n in ring.body.nodes if isinstance(n, Collective))
    assert names[:2] == ["collective_permute"] * 2
    assert names[-2:] == ["done"] * 2


def test_auto_weighs_waiting_against_time() -> None:
    """Where one step of the ring takes less than to start a message, all is gathered at once; and what fits into no
    device goes round."""
    text, small = PROGRAMS["what is summed over"]
    _, at_once = partitioned(text, 4, small, "rings{lowering=auto}")
    assert not rings(at_once)
    _, large = partitioned(text, 4, {"B": 4096, "D": 4096, "F": 4096}, "rings{lowering=auto}")
    assert len(rings(large)) == 2
    _, vast = partitioned(ATTENTION, 4, {"H": 64, "S": 1 << 20, "K": 64, "E": 64}, "rings{lowering=auto}")
    assert not any(isinstance(n, AllGather) for n in collectives(vast))
    assert all(isinstance(v.type, TensorType) for n in rings(vast) for v in n.values)


@pytest.mark.parametrize(
    "name", ["attention", *(pytest.param(n, marks=pytest.mark.slow) for n in ("what is summed over", "scattered sums"))]
)
def test_compiled_rings(name: str) -> None:
    """Nothing is read outside of a tensor, not even for padding."""
    text, dims = PROGRAMS[name]
    module = built(f"mesh m(d=3)\n{text}", **dims)
    program, _ = compiled(module, collectives="ring", checks=True)
    assert "collective_permute" in {n.name for n in program.collectives}
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, program.simulate(inputs))

"""Presets on training steps that go through their layers in a loop: what each step of a loop sends, and equal results.

Collectives are counted where they stand, with an apostrophe for the loop around them: `all_gather'` is one for each
layer.
"""

from __future__ import annotations

import pytest
from sharded import check_results, run_passes
from test_carried_sums import sent
from test_presets import EXAMPLE, ROWS, STATE, WIDE, check_found, planned, step_of

from intarsia.driver import Compilation
from intarsia.ir.graph import Module
from intarsia.ir.spmd import simulate
from intarsia.mesh_program import MeshProgram
from intarsia.options import Options
from intarsia.passes.pipeline import default_pipeline
from intarsia.passes.shard.memory import device_memory
from intarsia.passes.verify.inputs import random_inputs

DEEP = EXAMPLE.parent / "deep_training.ita"

STACKED = """import "examples/optim.ita"
fn loss(x: f32[B, D], y: f32[B, D], up: f32[L, D, F], gain: f32[L, F], down: f32[L, F, D]) -> f32 {
    h = loop (h = x) for i < L {
        u[b, f] = sum[d](h[b, d] * up[i, d, f]) * gain[i, f]
        yield h + tanh(u) @ down[i]
    }
    e = h - y
    return mean(e * e)
}
fn step(x: f32[B, D], y: f32[B, D], up: f32[L, D, F], gain: f32[L, F], down: f32[L, F, D],
        mu: f32[L, D, F], mg: f32[L, F], md: f32[L, F, D], rate: f32) {
    value, gu, gg, gd = value_and_grad(loss, wrt=(up, gain, down))(x, y, up, gain, down)
    u, m = sgd(up, gu, mu, rate)
    g, k = sgd(gain, gg, mg, rate)
    d, n = sgd(down, gd, md, rate)
    return value, u, g, d, m, k, n
}
"""

ACCUMULATED = """import "examples/optim.ita"
fn loss(x: f32[B, D], y: f32[B, D], w: f32[L, D, D], u: f32[D, D]) -> f32 {
    h = loop (h = x @ u) for i < L { yield h + tanh(h @ w[i]) }
    e = h - y
    return mean(e * e)
}
fn step(x: f32[M, B, D], y: f32[M, B, D], w: f32[L, D, D], u: f32[D, D], mw: f32[L, D, D], mu: f32[D, D], rate: f32) {
    total, gw, gu = loop (total: f32 = 0.0, gw = zeros(f32[L, D, D]), gu = zeros(f32[D, D])) for k < M {
        value, dw, du = value_and_grad(loss, wrt=(w, u))(x[k], y[k], w, u)
        yield total + value, gw + dw, gu + du
    }
    w1, m1 = sgd(w, gw, mw, rate)
    u1, n1 = sgd(u, gu, mu, rate)
    return total, w1, u1, m1, n1
}
"""

EXPERTS = """import "examples/optim.ita"
fn experts(x: f32[G, T, D], gate: f32[G, T, E, C], up: f32[E, D, F], down: f32[E, F, D]) -> f32[G, T, D] {
    sent = einsum("gtec,gtd->gecd", gate, x)
    made = einsum("gecf,efd->gecd", gelu(einsum("gecd,edf->gecf", sent, up)), down)
    return einsum("gtec,gecd->gtd", gate, made)
}
fn loss(x: f32[G, T, D], y: f32[G, T, D], gate: f32[G, T, E, C], up: f32[L, E, D, F], down: f32[L, E, F, D]) -> f32 {
    h = loop (h = x) for i < L { yield h + experts(h, gate, up[i], down[i]) }
    e = h - y
    return mean(e * e)
}
fn step(x: f32[G, T, D], y: f32[G, T, D], gate: f32[G, T, E, C], up: f32[L, E, D, F], down: f32[L, E, F, D],
        m_up: f32[L, E, D, F], m_down: f32[L, E, F, D], rate: f32) {
    value, g_up, g_down = value_and_grad(loss, wrt=(up, down))(x, y, gate, up, down)
    n_up, k_up = sgd(up, g_up, m_up, rate)
    n_down, k_down = sgd(down, g_down, m_down, rate)
    return value, n_up, n_down, k_up, k_down
}
"""


def deep(dims: dict[str, int], layers: int) -> Module:
    return step_of(DEEP.read_text(), DEEP, **dims, L=layers)


def stacked(text: str, **dims: int) -> Module:
    return step_of(text, EXAMPLE.parent.parent.parent / "stacked.ita", **dims)


SMALL = {"B": 4, "S": 2, "D": 8, "H": 2, "K": 4, "F": 16}
"""Sizes with which the graph interpreter takes little time."""


def check(module: Module, mesh: str, preset: str, wanted: dict[str, int]) -> None:
    """All devices together compute what one does, and send this, but for numbers of a loss."""
    assert sent(check_equal(module, mesh, preset)) == wanted


def check_equal(module: Module, mesh: str, preset: str) -> Module:
    """All devices together compute what one does; the program of one."""
    local = planned(module, mesh, preset)
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))
    return local


def test_lists_that_loops_go_through_are_weights() -> None:
    step = check_found(deep(ROWS, 2))
    assert all(len(own) == 1 for own in step.gradients.values())


PLANS: dict[str, tuple[dict[str, int], float]] = {
    "data": ({"all_reduce": 9}, 3.0),
    "zero1": ({"reduce_scatter": 9, "all_gather": 9}, 1.5),
    "zero2": ({"reduce_scatter'": 9, "all_gather": 9}, 1.5),
    "zero3": ({"all_gather'": 18, "reduce_scatter'": 9}, 0.75),
}
"""Collectives; and weights and states that each of four devices holds, as multiples of the weights."""


@pytest.mark.slow
@pytest.mark.parametrize("preset", PLANS)
def test_zero(preset: str) -> None:
    """ZeRO-3 gathers the weights of a layer in its steps, forwards and backwards; gradients are scattered as they come,
    or summed once where they stay whole."""
    module = deep(ROWS, 2)
    counts, kept = PLANS[preset]
    local = planned(module, "data=4", preset)
    assert sent(local) == counts
    check_equal(deep(SMALL, 2), "data=4", preset)
    weights = sum(2 * p.value.type.element.elements * 4 for p in module.graph.parameters if p.label.startswith("p."))
    fused, _ = run_passes(local, str(default_pipeline().before("lower")))
    data = 2 * 16 // 4 * 16 * 16 * 4
    assert device_memory(fused, STATE).parameters == kept * int(weights) + data + 8 + 4


@pytest.mark.slow
def test_no_device_has_the_weights_of_all_layers_at_once() -> None:
    """Under ZeRO-3 what each layer adds, beside the parameters of a device, are its parts of five things: the weights
    as one tensor, the gradients, and the next weights and states, which lie as one tensor each. The weights as a whole
    would be almost as much again."""
    held = []
    for layers in (4, 8):
        local = planned(deep({**WIDE, "B": 4, "S": 2}, layers), "data=4", "zero3")
        memory = device_memory(run_passes(local, str(default_pipeline().before("lower")))[0], STATE)
        held.append(memory.peak - memory.parameters)
    weights = 49_536 * 4  # bytes, of one layer
    assert held[1] - held[0] < 4 * 1.3 * weights


@pytest.mark.slow
def test_megatron() -> None:
    """Two all-reduces forwards and two backwards, and one for what the backward part computes again."""
    assert sent(planned(deep(WIDE, 2), "model=4", "megatron")) == {"all_reduce'": 5}
    check_equal(deep(SMALL, 2), "model=2", "megatron")


@pytest.mark.slow
def test_sequence() -> None:
    counts = {"all_gather'": 6, "reduce_scatter'": 5, "all_reduce": 2}
    assert sent(planned(deep(WIDE, 2), "model=4", "sequence")) == counts
    check_equal(deep(SMALL, 2), "model=2", "sequence")


def test_stacked_weights_and_products_that_take_a_layer_of_them() -> None:
    module = stacked(STACKED, B=16, D=4, F=8, L=3)
    check(module, "data=4", "zero3", {"all_gather'": 6, "reduce_scatter'": 3})


def test_micro_batches_in_a_loop_are_summed_once() -> None:
    module = stacked(ACCUMULATED, M=2, B=8, D=4, L=2)
    check(module, "data=4", "data", {"all_reduce": 2})


@pytest.mark.slow
def test_experts_in_layers() -> None:
    """Tokens go to their experts and come back in each layer. Backwards they go once more, as their gradients do, which
    come back too."""
    module = stacked(EXPERTS, G=4, T=4, D=8, E=4, C=2, F=16, L=2)
    check(module, "expert=4", "expert", {"all_to_all'": 5})


@pytest.mark.slow
@pytest.mark.parametrize("presets", ["data=zero3,model=megatron", "data=zero1,model=sequence"])
def test_presets_of_several_axes_add_up(presets: str) -> None:
    check_equal(deep(SMALL, 2), "data=2,model=2", presets)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "preset"), [("data=2", "zero3"), ("model=2", "megatron"), ("data=2", "data")])
def test_compiled(mesh: str, preset: str) -> None:
    module = deep(SMALL, 2)
    options = Options(devices="simulate", mesh=mesh, preset=preset)
    compilation = Compilation(module, {}, options)
    program = MeshProgram.of(compilation.executable(), compilation.scheduled, compilation.plan)
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, program.simulate([tuple(i) if isinstance(i, list) else i for i in inputs]))

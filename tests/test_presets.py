"""Known plans of training: what each sends, what each device holds, and equal results.

The counts are those of the papers. With n devices and weights of P bytes, each device sends, by rings, 2 P (n - 1) / n
under data parallelism, ZeRO-1 and ZeRO-2, and up to half as much again under ZeRO-3 (Rajbhandari and others, 2019,
section 7); the last weights, which the backward part begins with, are not gathered again.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from conftest import Run
from sharded import check_results, on_mesh, run_passes
from test_sharding import bytes_of, collectives

from intarsia.driver import laying_passes, parting_passes
from intarsia.dsl.library import load
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module
from intarsia.ir.ops import Collective
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import simulate
from intarsia.options import Options
from intarsia.passes.pipeline import Context, Pipeline, default_pipeline
from intarsia.passes.shard.memory import device_memory
from intarsia.passes.shard.presets.training import TrainingStep
from intarsia.passes.specialize import specialize
from intarsia.passes.verify.inputs import random_inputs

EXAMPLE = Path(__file__).parent.parent / "examples" / "sharded" / "training.ita"

STATE = ("p", "m", "v")
"""What a step gives the next of."""

ROWS = {"B": 16, "S": 16, "D": 16, "H": 4, "K": 4, "F": 32}
"""Many rows: weights are small beside what is computed."""

FILES: dict[str, str] = {}

WIDE = {"B": 4, "S": 8, "D": 64, "H": 4, "K": 16, "F": 256}
"""Few rows: weights are large."""

MIXTURE = """import "examples/optim.ita"
fn experts(x: f32[G, T, D], gate: f32[G, T, E, C], up: f32[E, D, F], down: f32[E, F, D]) -> f32[G, T, D] {
    sent = einsum("gtec,gtd->gecd", gate, x)
    made = einsum("gecf,efd->gecd", gelu(einsum("gecd,edf->gecf", sent, up)), down)
    return einsum("gtec,gecd->gtd", gate, made)
}
fn loss(x: f32[G, T, D], y: f32[G, T, D], gate: f32[G, T, E, C], up: f32[E, D, F], down: f32[E, F, D]) -> f32 {
    e = experts(x, gate, up, down) - y
    return mean(e * e)
}
fn step(x: f32[G, T, D], y: f32[G, T, D], gate: f32[G, T, E, C], up: f32[E, D, F], down: f32[E, F, D],
        m_up: f32[E, D, F], m_down: f32[E, F, D], rate: f32) {
    value, g_up, g_down = value_and_grad(loss, wrt=(up, down))(x, y, gate, up, down)
    n_up, k_up = sgd(up, g_up, m_up, rate)
    n_down, k_down = sgd(down, g_down, m_down, rate)
    return value, n_up, n_down, k_up, k_down
}
"""


def step_of(text: str, path: Path, **dims: int) -> Module:
    return specialize(load(Source(str(path), text)).build("step", dims=dims), dims)


def training(dims: dict[str, int]) -> Module:
    return step_of(EXAMPLE.read_text(), EXAMPLE, **dims)


def weight_bytes(module: Module) -> int:
    return sum(
        math.prod(p.tensor.static_shape) * 4 for p in (q.value for q in module.graph.parameters if "p." in q.label)
    )


def planned(module: Module, mesh: str, preset: str | None) -> Module:
    """The program of a device."""
    options = Options(preset=preset)
    passes = Pipeline((*laying_passes(options), *parting_passes(options)))
    return passes.run(on_mesh(module, Mesh.parse(mesh)), Context(options.resolve_target()))


def sent(node: Collective) -> float:
    """The bytes that a device sends, by a ring."""
    n = node.devices
    ring = {
        "all_gather": n - 1,
        "all_reduce": 2 * (n - 1) / n,
        "reduce_scatter": (n - 1) / n,
        "all_to_all": (n - 1) / n,
    }
    return ring[node.name] * bytes_of(node)


def check(module: Module, mesh: str, preset: str, wanted: dict[str, int]) -> Module:
    """All devices together compute what one does, and send this, but for numbers of a loss."""
    local = planned(module, mesh, preset)
    counts = Counter(n.name for n in collectives(local) if n.x.tensor.shape)
    assert counts == wanted
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))
    return local


def sent_in_all(module: Module) -> float:
    return sum(sent(n) for n in collectives(module) if n.x.tensor.shape)


def check_found(training_step: Module) -> TrainingStep:
    """What is what in a step of Adam on nine weights is found from the graph."""
    module, _ = run_passes(training_step, "canonicalize,cse,dce")
    step = TrainingStep(module.graph.body)
    labels = {p.value: p.label for p in module.graph.parameters}
    assert {labels[v].partition(".")[0] for v in step.weights} == {"p"} and len(step.weights) == 9
    assert {labels[v].partition(".")[0] for v in step.states} == {"m", "v"} and len(step.states) == 18
    assert {labels[v]: d for v, d in step.batch.items()} == {"x": 0, "y": 0}
    assert {labels[v]: d for v, d in step.sequence.items()} == {"x": 1, "y": 1}
    return step


def test_what_is_what_is_found_from_the_graph() -> None:
    check_found(training(ROWS))


DATA: dict[str, tuple[dict[str, int], float, float]] = {
    "data": ({"all_reduce": 9}, 2.0, 3.0),
    "zero1": ({"reduce_scatter": 9, "all_gather": 9}, 2.0, 1.0 + 2 / 4),
    "zero2": ({"reduce_scatter": 9, "all_gather": 9}, 2.0, 1.0 + 2 / 4),
    "zero3": ({"reduce_scatter": 9, "all_gather": 15}, 3.0, 3 / 4),
}
"""Collectives; the bytes sent as multiples of P (n - 1) / n, and those of weights and states held, of P."""


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["data", "zero1", "zero2", "zero3"])
def test_zero(preset: str) -> None:
    module = training(ROWS)
    counts, multiple, kept = DATA[preset]
    local = check(module, "data=4", preset, counts)
    total = weight_bytes(module)
    if preset == "zero3":
        assert 2.0 * total * 3 / 4 < sent_in_all(local) <= multiple * total * 3 / 4
    else:
        assert sent_in_all(local) == multiple * total * 3 / 4
    data = 2 * 16 // 4 * 16 * 16 * 4
    numbers = 8 + 4  # of steps, and the rate
    fused, _ = run_passes(local, str(default_pipeline().before("lower")))
    assert device_memory(fused, STATE).parameters == kept * total + data + numbers


@pytest.mark.slow
def test_split_gradients_take_less_memory_and_split_weights_less_still() -> None:
    held = {}
    for preset in ("data", "zero1", "zero2", "zero3"):
        local = planned(training({**WIDE, "B": 16}), "data=4", preset)
        held[preset] = device_memory(run_passes(local, str(default_pipeline().before("lower")))[0], STATE).peak
    assert held["data"] > held["zero1"] >= held["zero2"] > held["zero3"]


def test_megatron() -> None:
    """Two all-reduces of activations forwards, and one backwards: nobody asks for the gradient of the data. The other
    one is of the gradient of a norm's gain."""
    local = check(training(WIDE), "model=4", "megatron", {"all_reduce": 4})
    sizes = Counter(bytes_of(n) for n in collectives(local) if n.x.tensor.shape)
    assert sizes == {4 * 8 * 64 * 4: 3, 64 * 4: 1}


@pytest.mark.slow
def test_sequence() -> None:
    """In place of each all-reduce of Megatron's a gather and a reduce-scatter; gradients of gains are summed."""
    check(training(WIDE), "model=4", "sequence", {"all_gather": 4, "reduce_scatter": 4, "all_reduce": 2})


def test_experts() -> None:
    """Tokens go to their experts and come back; backwards only to them, for the data want no gradient."""
    path = EXAMPLE.parent.parent.parent / "mixture.ita"
    module = step_of(MIXTURE, path, G=4, T=4, D=8, E=4, C=2, F=16)
    check(module, "expert=4", "expert", {"all_to_all": 3})


@pytest.mark.slow
@pytest.mark.parametrize(
    "presets", ["data=data,model=megatron", "data=zero3,model=megatron", "data=zero1,model=sequence"]
)
def test_presets_of_several_axes_add_up(presets: str) -> None:
    module = training(ROWS)
    local = planned(module, "data=2,model=2", presets)
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


@pytest.mark.slow
def test_mistakes() -> None:
    module = training(ROWS)
    for preset, message in (
        ("zero4", "there is no plan 'zero4'"),
        ("pipe=data", "no axis 'pipe'"),
        ("data", "which axis is data for"),
        ("data,zero1", "which axes are the plans"),
        ("data=data,data=zero1", "'data' has 2 plans"),
    ):
        with pytest.raises(CompileError, match=message):
            planned(module, "data=2,model=2", preset)


def test_what_is_no_training_step_is_said_at_its_line_with_one_that_is() -> None:
    forward = specialize(load(Source(str(EXAMPLE), EXAMPLE.read_text())).build("loss", dims=ROWS), ROWS)
    with pytest.raises(CompileError, match="this is no training step") as raised:
        planned(forward, "data=2", "data")
    assert "training.ita:28" in str(raised.value)
    assert "value_and_grad(loss, wrt=p)(x, y, p)" in str(raised.value)


ODD = {"B": 6, "S": 3, "D": 7, "H": 3, "K": 5, "F": 11}
"""Sizes that four devices do not divide."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "counts"), [("zero1", DATA["zero1"][0]), ("zero3", {"reduce_scatter": 9, "all_gather": 9})]
)
def test_sizes_that_devices_do_not_divide_are_padded(preset: str, counts: dict[str, int]) -> None:
    module = training(ODD)
    local = planned(module, "data=4", preset)
    counts = Counter(n.name for n in collectives(local) if n.x.tensor.shape)
    assert counts["reduce_scatter"] == counts["all_gather"] == 9
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))
    held, whole = (
        sum(math.prod(p.value.tensor.static_shape) for p in m.graph.parameters if p.label.startswith("m."))
        for m in (local, module)
    )
    assert held < 0.35 * whole


def test_what_a_preset_cannot_split_is_said(ita: Run) -> None:
    dims = [word for name, size in ODD.items() for word in ("--dim", f"{name}={size}")]
    status, shown, _ = ita("shard", f"{EXAMPLE}:step", "--mesh", "model=4", "--preset", "megatron", *dims)
    assert status == 0
    assert "p.up is whole on each device: 4 devices do not divide the 11 of f32[7, 11]" in shown
    assert "nothing is sent" in shown

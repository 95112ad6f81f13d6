"""Training steps as pipelines on simulated devices: equal to the step of one device, and what is sent and held."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run
from sharded import check_results, on_mesh, run_passes
from test_presets import EXAMPLE, ROWS, step_of, training

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.ir.sharding import Mesh
from intarsia.passes.pipeline import Pipeline
from intarsia.passes.shard.presets import presets_of
from intarsia.passes.stages.cut import Cut, cut_in_stages, with_microbatches
from intarsia.passes.stages.program import PipelineProgram
from intarsia.passes.stages.schedules import GPipe, Interleaved, OneForwardOneBackward, Schedule, ZeroBubble, run
from intarsia.passes.stages.simulation import Simulation, simulate_pipeline
from intarsia.passes.verify.inputs import random_inputs

FILES: dict[str, str] = {}
LAPTOP = Cluster.read("laptop")


def layers(count: int, clip: bool = False) -> str:
    """A step of SGD of residual layers, perhaps with the norm of all gradients bounded."""
    names = range(count)
    weights = ", ".join(f"w{n}: f32[D, D]" for n in names)
    means = ", ".join(f"m{n}: f32[D, D]" for n in names)
    body = "\n".join(f"    h{n + 1} = h{n} + tanh(h{n} @ w{n})" for n in names)
    all_w, all_g = (", ".join(f"{letter}{n}" for n in names) for letter in "wg")
    squares = " + ".join(f"sum(g{n} * g{n})" for n in names)
    factor = f"clipping({squares}, 0.01)" if clip else "1.0"
    updates = "\n".join(f"    n{n}, k{n} = sgd(w{n}, g{n} * factor, m{n}, rate)" for n in names)
    return f"""import "../optim.ita"
fn loss(x: f32[B, D], y: f32[B, D], {weights}) -> f32 {{
    h0 = x
{body}
    e = h{count} - y
    return mean(e * e)
}}
fn step(x: f32[B, D], y: f32[B, D], {weights}, {means}, rate: f32) {{
    value, {all_g} = value_and_grad(loss, wrt=({all_w}))(x, y, {all_w})
    factor = {factor}
{updates}
    return value, {", ".join(f"n{n}, k{n}" for n in names)}
}}"""


def simple(text: str, **dims: int) -> Module:
    return run_passes(step_of(text, EXAMPLE, **dims), "canonicalize,cse,dce")[0]


def cut(module: Module, stages: int, microbatches: int, mesh: str = "", preset: str = "") -> Cut:
    module, context = run_passes(module, "canonicalize,cse,dce")
    if mesh:
        module = Pipeline(presets_of(preset)).run(on_mesh(module, Mesh.parse(mesh)), context)
    return cut_in_stages(with_microbatches(module, microbatches, context), stages, LAPTOP)


def check(module: Module, schedule: Schedule, mesh: str = "", preset: str = "") -> tuple[PipelineProgram, Simulation]:
    """A step of the pipeline gives what one device gives; so many micro-batches are in memory, and bytes sent, as it
    says."""
    program = PipelineProgram(cut(module, schedule.stages, schedule.microbatches, mesh, preset), schedule)
    inputs = random_inputs(module, {}, 0)
    found = simulate_pipeline(program, inputs)
    check_results(module, inputs, found.results)
    assert [d.watch.live for d in found.devices] == [
        n for n in run(schedule).held for _ in range(program.inner.devices)
    ]
    assert sum(d.watch.sent for d in found.devices) == program.bytes_sent
    return program, found


def test_equal_layers_are_cut_in_equal_stages_and_gradients_of_weights_may_wait() -> None:
    found = cut(simple(layers(8), B=16, D=8), 4, 4)
    stages = [[n for n in found.parts.forward if found.stage[n] == s] for s in range(4)]
    assert [sum(n.name == "matmul" for n in own) for own in stages] == [2, 2, 2, 2]
    assert [[v.node.label for v in found.weights(s)] for s in range(4)] == [
        [f"w{2 * s}", f"w{2 * s + 1}"] for s in range(4)
    ]
    waits = [[n for n in found.parts.backward if found.stage[n] == s and found.kind[n] == "W"] for s in range(4)]
    assert [len(own) for own in waits[1:]] == [2, 2, 2]  # a product for each weight
    assert {found.kind[n] for n in found.parts.backward if found.stage[n] == 0} == {"W"}  # nobody is before it
    summed = {n.x.node for n in found.parts.sums}
    assert all(n in summed for own in waits[1:] for n in own)


SLOWER = (ZeroBubble(3, 4), Interleaved(2, 2, 2))


@pytest.mark.parametrize(
    "schedule",
    [GPipe(3, 4), OneForwardOneBackward(3, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in SLOWER)],
)
def test_a_pipeline_gives_what_one_device_gives(schedule: Schedule) -> None:
    program, _ = check(simple(layers(4), B=8, D=4), schedule)
    assert program.bytes_sent == 2 * (schedule.stages - 1) * 8 * 4 * 4  # activations of a batch, and their gradients


@pytest.mark.slow
def test_less_is_in_memory_where_the_backward_part_begins_sooner() -> None:
    module = simple(layers(4), B=16, D=8)
    all_first, in_turns = (check(module, s) for s in (GPipe(4, 8), OneForwardOneBackward(4, 8)))
    for program, found in (all_first, in_turns):
        live = run(program.schedule).held
        assert [d.watch.held for d in found.devices] == [n * program.cut.kept(s) for s, n in enumerate(live)]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [GPipe(3, 4), OneForwardOneBackward(3, 4), ZeroBubble(3, 4)])
def test_a_transformer_block_with_adam(schedule: Schedule) -> None:
    check(training(ROWS), schedule)


@pytest.mark.slow
def test_micro_batches_that_the_batch_does_not_fill() -> None:
    check(simple(layers(4), B=10, D=8), OneForwardOneBackward(2, 4))


def test_a_norm_of_all_gradients_is_summed_over_devices() -> None:
    program, _ = check(simple(layers(4, clip=True), B=8, D=4), OneForwardOneBackward(2, 2))
    shared = [v for one in program.update.shared for v in one.fragment.outputs]
    assert shared and all(not v.tensor.shape for v in shared)  # numbers, and no gradient


IN_A_STAGE = (
    ("data=2", "zero1"),
    ("data=2", "data"),
    ("data=2", "zero3"),
    ("model=2", "megatron"),
    ("data=2,model=2", "data=zero1,model=megatron"),
)


@pytest.mark.parametrize(
    ("mesh", "preset"), [IN_A_STAGE[0], *(pytest.param(*m, marks=pytest.mark.slow) for m in IN_A_STAGE[1:])]
)
def test_several_devices_work_on_a_stage(mesh: str, preset: str) -> None:
    check(simple(layers(4, clip=True), B=10, D=4), OneForwardOneBackward(2, 2), mesh, preset)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "preset"), IN_A_STAGE)
def test_several_devices_work_on_a_stage_of_a_transformer(mesh: str, preset: str) -> None:
    check(training(ROWS), ZeroBubble(2, 4), mesh, preset)


def test_a_cluster_says_what_actions_take() -> None:
    """The model of the cluster says how long stages take; equal ones wait as the formula says, but for sending."""
    program = PipelineProgram(cut(simple(layers(8), B=1024, D=256), 4, 8), GPipe(4, 8))
    seconds = program.seconds(LAPTOP)
    assert seconds.forward[1] == pytest.approx(seconds.forward[2]) and seconds.sending[3] == 0
    assert run(program.schedule, seconds).bubble == pytest.approx(3 / 11, abs=0.06)


@pytest.mark.slow
def test_what_makes_no_pipeline() -> None:
    text = layers(2)
    for wrong, message in (
        (text.replace("return value, ", "return "), "does not give its loss"),
        (text.replace("return value, ", "return value, value * sum(x, axis=1), "), "single examples"),
        (text.replace("e = h2 - y", "e = h2 - mean(h2) - y"), "examples of the batch depend on each other"),
        (text.replace("h0 = x", "h0 = loop (h = x) for t < 2 { yield h - mean(h, axis=0) }"), "a step of a loop sums"),
    ):
        with pytest.raises(CompileError, match=message):
            check(simple(wrong, B=8, D=4), GPipe(2, 2))
    with pytest.raises(CompileError, match="too few for 40 stages"):
        cut(simple(text, B=8, D=4), 40, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mesh", "d=2", "--stages", "3"), "--stages goes with --pipeline"),
        (("--pipeline", "1f1b", "--chunks", "2"), "--chunks goes with --pipeline interleaved"),
        (("--pipeline", "gpipe", "--collectives", "ring"), "--collectives goes only without --pipeline"),
        (("--pipeline", "gpipe", "--search"), "--search goes only without --pipeline"),
    ],
)
def test_no_option_is_ignored(words: tuple[str, ...], message: str, ita: Run) -> None:
    status, _, report = ita("shard", "-e", "fn f(x: f32[4]) -> f32[4] { return x }", *words)
    assert status == 2 and message in report


def test_the_command_shows_the_schedule(ita: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "schedule.png"
    dims = [word for name, size in ROWS.items() for word in ("--dim", f"{name}={size}")]
    words = ("--pipeline", "1f1b", "--stages", "2", "--microbatches", "3", "--plot", str(picture), *dims)
    status, shown, _ = ita("shard", f"{EXAMPLE}:step", *words)
    assert status == 0 and picture.stat().st_size > 0
    assert "device 0  F0 F1 .. .. B0 B0 F2 B1 B1 .. B2 B2" in shown
    assert "device 1  .. F0 B0 B0 F1 B1 B1 F2 B2 B2 .. .." in shown
    assert "1f1b: devices wait 25.0% of the time" in shown and "at most: 2, 1" in shown

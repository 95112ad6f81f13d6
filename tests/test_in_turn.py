"""The devices along an axis as one that does their work in turn, and what that hides of what is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from sharded import SHARD, check_compiled, check_results, run_passes
from test_mesh import sharded
from test_sharding import built

from intarsia.driver import Compilation
from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.ir.random_graphs import random_inputs
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import simulate
from intarsia.options import Options
from intarsia.passes.collectives import InTurn
from intarsia.passes.collectives.timeline import Report, timeline
from intarsia.passes.pipeline import Pipeline

EXAMPLE = (Path(__file__).parent.parent / "examples" / "sharded" / "megatron_overlap.ita").read_text("utf-8")

PASSES = "in-turn{axis=part},overlap{cluster=nvlink-node}"


def in_turn(module: Module, axis: str) -> Module | None:
    """The program of a device with an axis in turn; None where its parts do not lie side by side."""
    local, _ = run_passes(module, SHARD)
    try:
        return run_passes(local, f"in-turn{{axis={axis}}}")[0]
    except CompileError as error:
        assert error.code == "E1912"
        return None


def check_random(seed: int) -> int:
    """How many axes of the mesh of a random program could go in turn."""
    module, plain, mesh = sharded(seed)
    inputs = random_inputs(plain, seed, {})
    programs = [p for name, _ in mesh.axes if (p := in_turn(module, name)) is not None]
    for program in programs:
        check_results(module, inputs, simulate(program, inputs), plain)
    return len(programs)


def test_random_programs() -> None:
    assert check_random(3) + check_random(4) > 0


def test_the_axis_has_no_devices_of_its_own() -> None:
    (pass_, *_) = Pipeline.parse(PASSES).passes
    assert isinstance(pass_, InTurn) and pass_.left(Mesh.parse("part=4,model=2")).devices == 2


@pytest.mark.slow
def test_many_random_programs() -> None:
    assert sum(map(check_random, range(200))) > 100


@pytest.mark.slow
def test_code_of_parts_in_turn() -> None:
    for seed in range(12):
        module, plain, mesh = sharded(seed)
        axis = mesh.axes[0][0]
        if in_turn(module, axis) is not None:
            inputs = random_inputs(plain, seed, {})
            check_compiled(module, inputs, plain, f"in-turn{{axis={axis}}},overlap")


def report(mesh: str, passes: str | None) -> Report:
    """The timeline of the example at the size of a large model."""
    module = built(EXAMPLE, B=1, S=4096, D=8192, H=64, K=128, F=32768)
    compilation = Compilation(module, {}, Options(devices="simulate", mesh=mesh, device_passes=passes))
    return timeline(compilation.fused, Cluster.read("nvlink-node"))


@pytest.mark.slow
def test_four_parts_of_the_tokens_hide_most_of_what_a_transformer_block_sends() -> None:
    """8 devices, 4096 tokens, width 8192, bf16. All but the last of eight all-reduces can be hidden."""
    alone = report("model=8,part=1", None)
    assert alone.hidden == 0.0
    together = report("model=8,part=4", PASSES)
    assert together.hidden >= 0.8 * together.sending
    assert together.seconds < 0.75 * alone.seconds
    assert together.computing < 1.05 * alone.computing


@pytest.mark.slow
def test_the_example_in_parts_is_the_example() -> None:
    module = built(EXAMPLE.replace("model=8", "model=2"), B=1, S=8, D=8, H=4, K=2, F=8)
    check_compiled(module, random_inputs(module, 0, {}), module, PASSES)

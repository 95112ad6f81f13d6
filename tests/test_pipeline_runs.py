"""Pipelines compiled, on simulated devices: equal to one device, also where several devices work on each stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from process_pipelines import arguments, function_of
from test_pipelines import LAPTOP, layers
from test_presets import EXAMPLE, ROWS

from intarsia import Options
from intarsia.ir.dtypes import F32
from intarsia.ir.errors import CompileError
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import Devices
from intarsia.ir.types import TensorType
from intarsia.passes.stages.schedules import run
from intarsia.pipeline_calls import PipelineCalls, SimulatedPipeline, pipeline_of
from intarsia.staged_program import StagedProgram

FILES: dict[str, str] = {}
DIMS = [word for name, size in ROWS.items() for word in ("--dim", f"{name}={size}")]
WORDS = ("--random", "--arg", "t=3", "--arg", "rate=0.01", "--arg", "v.norm1=ones", *DIMS)


def check(text: str, **options: Any) -> None:
    """A step is that of one device; devices send and hold what the pipeline says; the code comes back from bytes."""
    alone, function = function_of(text), function_of(text, **options)
    arrays = arguments(alone)
    for one, wanted in zip(function(**arrays), alone(**arrays), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
    assert isinstance(function.mesh, PipelineCalls)
    call = function.mesh.call_for(arrays, {}, {})
    assert isinstance(call, SimulatedPipeline)
    program = pipeline_of(function.lower(**arrays).compilation, LAPTOP)
    watches = call.watch()
    assert [w.live for w in watches[:: program.inner.devices]] == list(run(program.schedule).held)
    assert sum(w.sent for w in watches) == program.bytes_sent
    again = StagedProgram.from_bytes(call.program.to_bytes())
    assert again.agreed == call.program.agreed and again.script == call.program.script


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"pipeline": "gpipe", "stages": 3},
        {"pipeline": "1f1b"},
        {"pipeline": "zero-bubble", "stages": 4},
        {"pipeline": "interleaved", "stages": 4},
        {"pipeline": "interleaved", "stages": 2},  # all on one device
        {"pipeline": "1f1b", "stages": 2, "microbatches": 3},  # which the batch does not fill
        {"pipeline": "1f1b", "mesh": "data=2", "preset": "zero1"},
        {"pipeline": "zero-bubble", "mesh": "data=2,model=2", "preset": "data=zero3,model=megatron"},
        {"pipeline": "1f1b", "mesh": "model=2", "preset": "megatron", "device_passes": "overlap{cluster=multi-node}"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_compiled_pipelines(options: dict[str, Any]) -> None:
    check(layers(4, clip=True), **options)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble"])
def test_a_transformer_with_adam(schedule: str, ita: Run, tmp_path: Path) -> None:
    """On the command line, with the profile and its picture."""
    pytest.importorskip("matplotlib")
    picture, stages = tmp_path / "measured.png", "4" if schedule == "interleaved" else "2"
    watched = ("--profile", "--plot", str(picture))
    words = ("--pipeline", schedule, "--stages", stages, *WORDS, "--compare", *watched)
    status, _, report = ita("run", f"{EXAMPLE}:step", *words, "--out", str(tmp_path / "found.npz"))
    assert status == 0 and report.count("equal to the reference") == 28, report
    assert re.search(rf"{schedule}: a step took .* devices waited \d+\.\d%", report) and "device 1  " in report
    assert picture.stat().st_size > 0


@pytest.mark.slow
def test_the_example_of_the_page(ita: Run, tmp_path: Path) -> None:
    sizes = ("--dim", "B=16", "--dim", "D=8", "--arg", "t=1", "--arg", "rate=0.01")
    words = ("--pipeline", "1f1b", "--stages", "4", "--microbatches", "8", "--random", *sizes)
    path = f"{EXAMPLE.parent / 'deep.ita'}:step"
    status, _, report = ita("run", path, *words, "--out", str(tmp_path / "found.npz"), "--compare")
    assert status == 0 and report.count("equal to the reference") == 25


def test_what_no_pipeline_can_do(ita: Run) -> None:
    text = layers(2)
    for options in ({"stages": 3}, {"pipeline": "1f1b", "devices": "one"}, {"pipeline": "gpipe", "mesh": "stage=2"}):
        with pytest.raises(CompileError) as caught:
            function = function_of(text, **options)
            function(**arguments(function))
        assert caught.value.code == "E1901"
    function = function_of(text, pipeline="gpipe", collectives="ring", mesh="d=2")
    with pytest.raises(CompileError, match="E1906"):
        function(**arguments(function))
    words = ("run", "-e", text.replace('import "../optim.ita"', ""), "--random", "--dim", "B=4", "--dim", "D=4")
    pipeline = ("--pipeline", "gpipe")
    for more in (("--stages", "3"), (*pipeline, "--plot", "a.png"), (*pipeline, "--target", "plan")):
        assert ita(*words, *more)[0] == 2
    assert Options(pipeline="gpipe").on_devices("").devices == "simulate"


@pytest.mark.slow
def test_a_device_that_fails_ends_all() -> None:
    text = layers(2).replace("e = h2 - y", "e = h2 - y / f32(7 // i64(y))")
    function = function_of(text, pipeline="1f1b", microbatches=2, checks=True)
    with pytest.raises(CompileError, match=r"device 1: .*zero"):
        function(**{**arguments(function), "y": np.zeros((16, 8), np.float32)})


def test_devices_that_wait_for_each_other() -> None:
    kind = TensorType.of(F32, 2)
    with pytest.raises(AssertionError, match="devices wait for each other"):
        Devices(Mesh.parse("a=2")).run(lambda number, here: here.receive(kind, 1 - number, 0))
    with pytest.raises(AssertionError, match="devices wait for one that has ended"):
        Devices(Mesh.parse("a=2")).run(lambda number, here: here.receive(kind, 1 - number, 0) if number else None)

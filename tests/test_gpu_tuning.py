"""Measuring schedules on a GPU: on the device whose kernels are run by the interpreter, with a clock of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_gpu_calls import Torch
from test_gpu_plan import InterpretedDevice

from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.cli import main
from intarsia.commands import costmodel
from intarsia.costmodel.problems import Problem
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.gpu_program import GpuPlace
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.schedule.candidates import Candidate
from intarsia.runtime import cuda
from intarsia.tuning import gpu_bench
from intarsia.tuning.benches import bench_of
from intarsia.tuning.calls import ONCE
from intarsia.tuning.database import Database, ProblemRow, Row, compiler_name, machine_name
from intarsia.tuning.isolation import problem_key, random_inputs
from intarsia.tuning.measuring import REFUSED, Stopwatch, Timing, WrongResult
from intarsia.tuning.search import Budget, search
from intarsia.tuning.spaces import space_of

pytest.importorskip("triton")

TARGET = replace(TARGETS["gpu:sm_90"], caches=(256 << 10, 1 << 10), model="Interpreted GPU")
"""With a small last cache, so that emptying it takes no time."""

SUMS = "fn f(x: f32[2, 200]) -> f32[2] { return sum(x, axis=1) }"


class Chip(InterpretedDevice):
    """A device that takes longer for launches with more warps, and refuses those with sixteen."""

    def prepare(self, kernels: list[TritonKernel]) -> list[str | None]:  # type: ignore[override]
        return ["Insufficient registers" if k.warps == 16 else None for k in kernels]

    unit = 1e-6

    def seconds(self, start: int, end: int) -> float:
        return (end - start) * self.unit

    def launch(self, kernel: TritonKernel, grid: tuple[int, int, int], parameters: list[int]) -> None:  # type: ignore[override]
        super().launch(kernel, grid, parameters)
        self.clock += kernel.warps


class Place(GpuPlace):
    """Where tensors that are made of arrays are known to the device."""

    def of_array(self, array: object) -> object:
        return self.torch.add(super().of_array(array))  # type: ignore[arg-type]


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Chip:
    torch = pytest.importorskip("torch")
    device = Chip()
    place = Place(Torch(torch, device), device, torch.device("cpu"), lambda: 7)
    monkeypatch.setattr(gpu_bench, "REPEATS", 2)
    monkeypatch.setattr(GpuPlace, "current", staticmethod(lambda target: place))
    return device


def kernel_of(text: str) -> Kernel:
    compilation = Compilation(load(Source("p", text)).build("f"), {}, Options(target="gpu:sm_90"))
    (kernel,) = compilation.kernels.kernels
    return kernel


def with_warps(kernel: Kernel, *warps: str) -> list[Candidate]:
    space = space_of(kernel, TARGET)
    options = space.default.decisions["warps"]
    return [space.candidate({"warps": options.index(n)}) for n in warps]


def test_schedules_are_timed_by_the_chip_s_clock(chip: Chip) -> None:
    kernel = kernel_of(SUMS)
    timings = Stopwatch.of(kernel, TARGET).time(with_warps(kernel, "4", "1", "8", "16"))
    assert [round(t.seconds * 1e6, 3) for t in timings[:3]] == [5.0, 2.0, 9.0]
    assert all(t.is_quiet for t in timings[:3]) and timings[3] is REFUSED


def test_a_wrong_schedule_is_noticed_there_too(chip: Chip) -> None:
    kernel = kernel_of(SUMS)
    other = kernel_of("fn f(x: f32[2, 200]) -> f32[2] { return sum(x * 1.01, axis=1) }")
    wrong = replace(with_warps(other, "4")[0], choices={"warps": 3})
    with pytest.raises(WrongResult, match="warps: 4"):
        Stopwatch.of(kernel, TARGET).time([*with_warps(kernel, "4"), wrong])


def test_results_are_those_of_the_chip(chip: Chip) -> None:
    kernel = kernel_of(SUMS)
    (run,) = bench_of(kernel, TARGET, ONCE).compiled([space_of(kernel, TARGET).default.kernel])
    assert run is not None
    (x,) = random_inputs(kernel)
    for _ in range(2):
        np.testing.assert_allclose(run.results()[0], x.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_the_fastest_schedule_is_found_kept_and_used(
    chip: Chip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path))
    kernel = kernel_of(SUMS)
    database = Database(tmp_path / "schedules.sqlite", "gpu")
    result = search(kernel, TARGET, lambda kernels: [1.0 for _ in kernels], Budget(60, 4), database)
    assert result.gain > 1 and all(np.isfinite(t.timing.seconds) for t in result.trials)
    machine, key = machine_name(TARGET), problem_key(kernel, TARGET)
    assert machine == "Interpreted GPU sm_90" and database.machines() == [machine]
    (entry,) = database.entries()
    assert {known.compiler for known in entry.known} == {compiler_name("gpu")} and "triton" in compiler_name("gpu")
    best = database.best(machine)[key]
    for target, wanted in ((TARGET, best), (TARGETS["gpu:sm_90"], str(result.default.candidate.schedule))):
        compilation = Compilation(load(Source("p", SUMS)).build("f"), {}, Options(target="gpu:sm_90"))
        compilation.target = target
        assert list(compilation.schedules.values()) == [wanted]


@pytest.mark.slow
def test_the_commands_measure_there(
    chip: Chip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tune` with a check of the whole program, and `costmodel collect`, which goes on where it was."""
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda, "present_target", lambda: TARGET)
    chip.unit = 2e-3
    kernel = kernel_of(SUMS)
    (fast,) = with_warps(kernel, "1")
    row = Row(problem_key(kernel, TARGET), str(fast.schedule), fast.choices, Timing(1e-9, 0.0, 5))
    problem = ProblemRow(row.problem, "tuned", SUMS, print_kernel(kernel), TARGET.cores)
    Database(tmp_path / "schedules.sqlite", "gpu").add(problem, machine_name(TARGET), [row])
    assert main(["tune", "-e", SUMS, "--target", "gpu:sm_90", "--trials", "1"]) == 0
    assert capsys.readouterr().out.endswith("the program: 10 ms before, 4 ms tuned\n")
    assert main(["tune", "-e", SUMS, "--target", "gpu:sm_80"]) == 1
    assert "the GPU at hand, Interpreted GPU, is no gpu:sm_80" in capsys.readouterr().err
    monkeypatch.setattr(costmodel, "problems", lambda seed, count: iter([Problem("sum", SUMS)]))
    words = ["costmodel", "collect", str(tmp_path / "d.sqlite"), "--target", "gpu", "--samples", "3"]
    assert main(words) == 0 and re.search(r"1 kernels +\d rows  sum: some \d schedules", capsys.readouterr().out)
    assert main(words) == 0 and capsys.readouterr().out == ""
    assert Database(tmp_path / "d.sqlite").machines() == ["Interpreted GPU sm_90"]

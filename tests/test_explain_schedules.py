"""What `explain --about schedule` tells of each kernel: its schedule beside others, as predicted and as measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Golden

from intarsia.cli import main
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.schedule import STEPS
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.schedule.candidates import Space
from intarsia.tuning import known
from intarsia.tuning.database import Database, ProblemRow, Row, machine_name
from intarsia.tuning.isolation import problem_key
from intarsia.tuning.measuring import Timing

GOLDEN = Path(__file__).parent / "golden" / "explain" / "schedule.txt"
TARGET = TARGETS["cpu:x86-avx512"]


def measure(kernel: Kernel, times: tuple[float, ...]) -> None:
    """Say that the first options of the first decision were measured: the default one and two others."""
    key, space = problem_key(kernel, TARGET), Space(kernel, TARGET)
    name = next(iter(space.default.decisions))
    found = [(space.candidate({name: option}), seconds) for option, seconds in enumerate(times)]
    rows = [Row(key, str(c.schedule), c.choices, Timing(seconds, 0.0, 15)) for c, seconds in found]
    problem = ProblemRow(key, "tuned", "", print_kernel(kernel), TARGET.cores)
    Database(known.database_path()).add(problem, machine_name(TARGET), rows)


def test_schedules_beside_others(
    tmp_path: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path))
    text = golden.input(GOLDEN)
    compilation = Compilation(load(Source("f.ita", text)).build("f"), {}, Options(target=TARGET.name))

    def shown(title: str, *more: str) -> list[str]:
        assert main(["explain", "-e", text, "--about", "schedule", "--target", TARGET.name, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [f"# {title}", *(line for line in lines if line.split()[0] not in (*STEPS, "scratch"))]

    found = shown("nothing was measured")
    for kernel, times in zip(compilation.kernels.kernels, ((4e-4, 5e-4, 3e-4), (5e-5, 4e-5, 3e-5))):
        measure(kernel, times)
    found += shown("after tuning") + shown("given by hand", "--schedule", "kernel f_transpose: parallel i0")
    golden.check(GOLDEN, "\n".join(found))

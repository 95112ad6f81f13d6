"""From measurements to a model on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from intarsia.backends.cpu.compile import compile_kernel
from intarsia.backends.cpu.counting import count
from intarsia.cli import main
from intarsia.costmodel.dataset import load_file
from intarsia.costmodel.features import NAMES_BY_KIND
from intarsia.costmodel.learned import load_model
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.target import TARGETS
from intarsia.options import host_target
from intarsia.passes.schedule.candidates import Space
from intarsia.tuning.collecting import kernels_of
from intarsia.tuning.database import Database, ProblemRow, Row, machine_name
from intarsia.tuning.isolation import problem_key
from intarsia.tuning.measuring import Timing
from intarsia.tuning.spaces import space_of


@pytest.mark.slow
def test_collect_export_train_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, columns, model = (str(tmp_path / name) for name in ("d.sqlite", "c.npz", "m.npz"))
    words = ["costmodel", "collect", database, "--problems", "3", "--samples", "4", "--exhaustive", "4"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "3 kernels" in first and "matmul: " in first
    assert main(words) == 0 and capsys.readouterr().out == "", "what is finished is left out"
    assert main(["costmodel", "count", database]) == 0
    assert main(["costmodel", "export", database, "-o", columns]) == 0
    data = load_file(Path(columns))
    assert data.problems >= 2 and len(data) >= 6 and data.machine == machine_name(host_target())
    assert data.counts.shape == (len(data), 3) and (data.counts[:, 0] > 0).all()
    assert main(["costmodel", "train", columns, "-o", model]) == 0
    assert load_model(Path(model)) is not None
    capsys.readouterr()
    assert main(["costmodel", "show", columns]) == 0
    assert "rows of" in capsys.readouterr().out


def test_features_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["costmodel", "show"]) == 0
    assert "log2 s: the time that the analytic model predicts" in capsys.readouterr().out
    assert main(["costmodel", "show", "--target", "gpu"]) == 0
    assert "log2 warps a program" in capsys.readouterr().out


def test_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(tmp_path / "elsewhere.sqlite")
    database.finish("key", "machine", whole=False)
    for words in (["export", str(database.path), "-o", str(tmp_path / "c.npz")], ["count", str(database.path)]):
        assert main(["costmodel", *words]) == 1
        assert "error[E1803]" in capsys.readouterr().err


def test_counts_of_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each schedule is counted once, one that is no longer legal never; exported columns say what is known."""
    target = replace(host_target(), cores=1)
    (kernel,) = kernels_of("fn f(x: f32[64, 96]) -> f32[64, 96] { return exp(x) * 2.0 }", target)
    database, machine, key = Database(tmp_path / "d.sqlite"), machine_name(target), problem_key(kernel, target)
    problem = ProblemRow(key, "elementwise", "fn …", print_kernel(kernel), 1)
    found = Space(kernel, target).sample(3, Random(0))
    rows = [Row(key, str(c.schedule), c.choices, Timing(1e-6 * n, 0.0, 5)) for n, c in enumerate(found, start=1)]
    database.add(problem, machine, [*rows, Row(key, "split nothing 2", {"a": 9}, Timing(9e-6, 0.0, 5))])
    assert main(["costmodel", "count", str(database.path)]) == 0
    assert "elementwise: 3 schedules, 1 no longer legal" in capsys.readouterr().out
    counts = database.counts(key, machine)
    assert counts == {str(c.schedule): count(compile_kernel(c.kernel, target)) for c in found}
    assert all(c.instructions > 10 and c.live >= 1 for c in counts.values())
    assert database.uncounted(key, machine) == ["split nothing 2"]


@pytest.mark.slow
def test_what_a_gpu_measured_is_counted_exported_and_learned_elsewhere(tmp_path: Path) -> None:
    """By the architecture, where a database holds one GPU of it."""
    pytest.importorskip("triton")
    target = TARGETS["gpu:sm_90"]
    (kernel,) = kernels_of("fn f(x: f32[64, 96]) -> f32[64, 96] { return exp(x) * 2.0 }", target)
    database, key, machine = Database(tmp_path / "d.sqlite", "gpu"), problem_key(kernel, target), "NVIDIA H200 sm_90"
    problem = ProblemRow(key, "elementwise", "fn …", print_kernel(kernel), target.cores)
    found = space_of(kernel, target).sample(4, Random(0))
    rows = [Row(key, str(c.schedule), c.choices, Timing(1e-6 * n, 0.0, 5)) for n, c in enumerate(found, start=1)]
    database.add(problem, machine, rows)
    columns, model, named = str(tmp_path / "c.npz"), tmp_path / "m.npz", ["--target", target.name]
    assert main(["costmodel", "count", str(database.path), *named]) == 0
    assert all(c.instructions > 10 and c.live > 5 and not c.spills for c in database.counts(key, machine).values())
    assert main(["costmodel", "export", str(database.path), "-o", columns, *named]) == 0
    data = load_file(Path(columns))
    assert (data.machine, data.names, len(data)) == (machine, NAMES_BY_KIND["gpu"], 4)
    assert main(["costmodel", "train", columns, "-o", str(model)]) == 0
    learned = load_model(model)
    assert learned is not None and learned.names == NAMES_BY_KIND["gpu"]
    assert len(learned.seconds([c.kernel for c in found], target)) == 4

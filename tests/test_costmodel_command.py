"""From measurements to a model on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.cli import main
from intarsia.costmodel.dataset import load_file
from intarsia.costmodel.learned import load_model
from intarsia.options import host_target
from intarsia.tuning.database import Database, machine_name


@pytest.mark.slow
def test_collect_export_train_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, columns, model = (str(tmp_path / name) for name in ("d.sqlite", "c.npz", "m.npz"))
    words = ["costmodel", "collect", database, "--problems", "3", "--samples", "4", "--exhaustive", "4"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "3 kernels" in first and "matmul: " in first
    assert main(words) == 0 and capsys.readouterr().out == "", "what is finished is left out"
    assert main(["costmodel", "export", database, "-o", columns]) == 0
    data = load_file(Path(columns))
    assert data.problems >= 2 and len(data) >= 6 and data.machine == machine_name(host_target())
    assert main(["costmodel", "train", columns, "-o", model]) == 0
    assert load_model(Path(model)) is not None
    capsys.readouterr()
    assert main(["costmodel", "show", columns]) == 0
    assert "rows of" in capsys.readouterr().out


def test_features_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["costmodel", "show"]) == 0
    assert "log2 s: the time that the analytic model predicts" in capsys.readouterr().out


def test_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(tmp_path / "elsewhere.sqlite")
    database.finish("key", "machine", whole=False)
    assert main(["costmodel", "export", str(database.path), "-o", str(tmp_path / "c.npz")]) == 1
    assert "error[E1803]" in capsys.readouterr().err

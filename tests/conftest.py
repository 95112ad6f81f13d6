"""What all tests share: golden files, rewritten by `pytest --update-golden`.

A golden file is an input, a line `# ===== expected`, and the output it must give, whole.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.dsl.library import load
from intarsia.ir.dtypes import of_numpy
from intarsia.ir.errors import Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.ir.verifier import verify_module

EXPECTED = "# ===== expected\n"

# Tests run side by side, and threads of OpenMP that wait for each other do so by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files with what the tests give now")
    parser.addoption("--run-mypy", action="store_true", help="check the types of the whole package too")


def pytest_configure(config: pytest.Config) -> None:
    """Keep what is compiled in a folder that all processes of this run share, and that nobody else reads or writes."""
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist inherit the variable
        folder = tempfile.mkdtemp(prefix="intarsia-tests-")
        os.environ["INTARSIA_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of every garbage collection."""
    gc.collect()
    gc.freeze()


def check_golden(path: Path, actual: str, update: bool) -> None:
    """Compare `actual` with what the golden file `path` expects below its input, or rewrite that part of the file."""
    text, _, expected = path.read_text("utf-8").partition(EXPECTED)
    actual = actual.rstrip("\n") + "\n"
    if update and actual != expected:
        path.write_text(f"{text}{EXPECTED}{actual}", "utf-8")
    elif not update:
        assert actual == expected, f"{path} expects another output; if the new one is right, run pytest --update-golden"


@dataclass(frozen=True)
class Golden:
    """Reads and checks golden files."""

    update: bool

    def input(self, path: Path) -> str:
        """What stands above the line `# ===== expected`."""
        return path.read_text("utf-8").partition(EXPECTED)[0]

    def check(self, path: Path, actual: str) -> None:
        """Fail unless `actual` is what the file expects; see `check_golden`."""
        check_golden(path, actual, self.update)


Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def ita(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """Runs a command in a folder of its own, which has the `FILES` of the module of tests; gives the exit status,
    standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for name, text in request.module.FILES.items():
        Path(name).write_text(text)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return status, out, err

    return run


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(update=bool(request.config.getoption("--update-golden")))


def run_program(text: str, *arrays: Any, function: str | None = None, **options: Any) -> Any:
    """Build a program for arrays, verify the Graph and evaluate it; one result alone, several as a tuple.

    An argument may be None, a parameter that is left out, or a list of arrays. `options` are dimensions (`N=64`) and
    static values. Scalars are given as NumPy scalars.
    """
    library = load(Source("program.ita", text))
    entry = library.signature(function)
    types: dict[str, Type] = {}
    inputs: list[Any] = []
    for parameter, array in zip(entry.parameters, arrays):
        if array is None:
            continue
        items = array if isinstance(array, list) else [array]
        found = of_numpy(np.asarray(items[0]).dtype)
        assert found is not None
        tensor = TensorType.of(found, *np.shape(items[0]))
        types[parameter.label] = ListType(Size.of(len(items)), tensor) if isinstance(array, list) else tensor
        inputs.append(array)
    dims = {name: value for name, value in options.items() if name in entry.explicit_dims}
    statics = {name: value for name, value in options.items() if name not in dims}
    module = library.build(function, types, dims, statics)
    verify_module(module)
    results = evaluate(module, inputs, library.bind_sizes(function, types, dims))
    return results[0] if len(results) == 1 else results


@pytest.fixture
def run() -> Any:
    """See `run_program`."""
    return run_program

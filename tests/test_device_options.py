"""What is said about the devices of a mesh is done, or is an error: nothing of it is ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

import intarsia
from intarsia import Options
from intarsia.ir.errors import CompileError

PLAIN = "fn f(x: f32[N, 4], w: f32[4, M]) -> f32[N, M] { return x @ w }\n"
SPLIT = "mesh pod(a=2)\nfn f(x: f32[N@a, 4], w: f32[4, M@a]) -> f32[N@a, M] { return x @ w }\n"
FILES = {"plain.ita": PLAIN, "split.ita": SPLIT}
SIZES = ("--dim", "N=4", "--dim", "M=6")
NEEDING: tuple[dict[str, Any], ...] = (
    {"mesh": "a=2"},
    {"preset": "data"},
    {"device_passes": "overlap"},
    {"sharding": "strict"},
    {"collectives": "ring"},
)
"""Options that only several devices can honour."""


def words(settings: dict[str, Any]) -> list[str]:
    return [w for name, value in settings.items() for w in (f"--{name.replace('_', '-')}", str(value))]


def data() -> tuple[np.ndarray, np.ndarray]:
    return np.ones((4, 4), np.float32), np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize("settings", NEEDING, ids=lambda s: next(iter(s)))
def test_in_python_as_on_the_command_line(settings: dict[str, Any], ita: Run) -> None:
    """A mesh means all of its devices; without one, or on one device, what needs it is an error that names it."""
    given = Options(**settings)
    if given.mesh is None:
        with pytest.raises(CompileError, match="needs the devices of a mesh, and the program has none") as caught:
            intarsia.compile(PLAIN, given).f(*data())
        assert caught.value.code == "E1901"
        status, _, report = ita("run", "plain.ita", "--random", *SIZES, *words(settings))
        assert status == 1 and caught.value.diagnostics[0].message in report
    else:
        assert intarsia.compile(PLAIN, given).f.mesh is not None
    with pytest.raises(CompileError, match="is for several devices"):
        intarsia.compile(SPLIT, Options(devices="one", **settings)).f(*data())
    assert intarsia.compile(SPLIT, given).f.mesh is not None
    status, _, report = ita("run", "split.ita", "--random", *SIZES, *words(settings), "--target", "reference")
    assert status == 2 and "runs the program on one device" in report


def test_a_declared_mesh_means_its_devices(ita: Run) -> None:
    program = intarsia.compile(SPLIT)
    assert "all_gather" in program.f.lower(*data()).asm["partitioned"]
    alone = intarsia.compile(SPLIT, Options(devices="one"))
    assert alone.f.mesh is None
    np.testing.assert_array_equal(program.f(*data()), alone.f(*data()))
    assert "all_gather" in ita("emit", "split.ita", *SIZES, "--to", "plan")[1]
    assert "all_gather" not in ita("emit", "split.ita", *SIZES, "--to", "plan", "--devices", "one")[1]
    status, _, report = ita("emit", "split.ita", *SIZES, "--to", "header")
    assert status == 1 and "--devices one" in report
    assert ita("emit", "split.ita", *SIZES, "--to", "header", "--devices", "one")[0] == 0


def test_names_that_are_given_away() -> None:
    """A parameter that is not there, on one device and on several."""
    for devices in ("one", "simulate"):
        with pytest.raises(CompileError, match="no parameter is named 'v'") as caught:
            intarsia.compile(SPLIT, Options(devices=devices, donated=("v",))).f(*data())  # type: ignore[arg-type]
        assert caught.value.code == "E0610"


def test_more_devices_than_sensible(ita: Run) -> None:
    status, _, report = ita("run", "split.ita", "--random", *SIZES, "--mesh", "a=2048")
    assert status == 1 and "2048 devices are more than the 1024 that one process simulates" in report
    status, _, report = ita("run", "split.ita", "--random", *SIZES, "--mesh", "a=2048", "--devices", "mpi")
    assert status == 1 and "E1907" in report and "2048 processes are more than" in report


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("devices", ["simulate", "mpi"])
def test_ctrl_c_ends_all(devices: str, tmp_path: Path) -> None:
    """In the middle of a run, and no process is left."""
    if devices == "mpi":
        pytest.importorskip("mpi4py")
    step = "yield h / sum(h)"
    text = f"mesh pod(a=2)\nfn f(x: f32[N@a], s: i64) -> f32[N@a] {{ return loop (h = x) for i < s {{ {step} }} }}\n"
    (tmp_path / "loop.ita").write_text(text)
    words = ["run", "loop.ita", "--arg", "x=ones", "--dim", "N=64", "--arg", "s=1000000000", "--devices", devices]
    started = subprocess.Popen(
        [sys.executable, "-m", "intarsia", *words], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE
    )
    time.sleep(15)
    os.kill(started.pid, signal.SIGINT)
    _, report = started.communicate(timeout=60)
    assert started.returncode == 130, report
    time.sleep(2)
    with pytest.raises(ProcessLookupError):
        os.killpg(started.pid, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": "simulated"}, "devices 'simulated' is no choice"),
        ({"sharding": "lax"}, "sharding 'lax' is no choice"),
        ({"collectives": "rings"}, "collectives 'rings' is no choice"),
        ({"mesh": {"a": 2}}, "mesh {'a': 2} is no text"),
        ({"pipeline": "1f1b", "chunks": 4}, "chunks are those of the pipeline interleaved"),
        ({"target": "reference"}, "'reference' is a target of the command line alone"),
        ({"devices": "nccl"}, "E1907"),  # without PyTorch, a GPU or other processes
    ],
)
def test_what_cannot_be_in_python_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        intarsia.compile(SPLIT, Options(**settings)).f(*data())


def test_shardings_without_a_mesh_are_told(ita: Run) -> None:
    text = "fn f(x: f32[N@a, M@(b, ?)]) -> f32[N, M] { return x }"
    words = ("run", "-e", text, "--random", "--dim", "N=2", "--dim", "M=2", "--out", "x.npy")
    assert "note: there is no mesh, and one device runs everything; --mesh a=2,b=2 would split it" in ita(*words)[2]
    assert "note" not in ita(*words, "--devices", "one")[2] + ita(*words, "--mesh", "a=2,b=2")[2]
    assert "note" not in ita(*words, "--target", "reference")[2]


@pytest.mark.parametrize("verb", [("run", "--random"), ("shard", "--search"), ("emit", "--to", "graph")])
@pytest.mark.parametrize(
    ("meshes", "given", "message", "place"),
    [
        ("mesh pod(a=0)", (), "E0303]: the axis `a` has no size", "1:12"),
        ("mesh pod(a=N)", (), "E0303]: the axis `a` has no size", "1:12"),
        ("mesh pod(a=2, a=2)", (), "E0314]: the axis `a` is declared twice", "1:15"),
        ("mesh pod(a=2); mesh other(a=3)", (), "E0314]: a second mesh: a program has one", "1:16"),
        ("mesh pod(a=2)", ("--mesh", "b=2"), "E1901]: f32[N@a, 4]: the mesh has no axis 'a'", "2:6"),
    ],
)
def test_a_wrong_mesh_is_told_by_every_verb(
    verb: tuple[str, ...], meshes: str, given: tuple[str, ...], message: str, place: str, ita: Run
) -> None:
    name, *words = verb
    status, _, errors = ita(name, "-e", SPLIT.replace("mesh pod(a=2)", meshes), *words, *given, *SIZES)
    assert status == 1 and message in errors and f":{place}\n" in errors

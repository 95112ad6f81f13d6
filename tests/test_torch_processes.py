"""Devices that are processes of torch.distributed, by gloo; for NCCL, that there is no GPU is said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from process_programs import write
from test_mesh import MEGATRON

ROOT = Path(__file__).parent.parent
SIZES = ("--dim", "B=4", "--dim", "D=4", "--dim", "F=4")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch") is None, reason="there is no PyTorch"),
]


def run(*words: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    every = {**os.environ, "PYTHONPATH": paths, "INTARSIA_NUM_THREADS": "1", **environment}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=every, timeout=300, check=False)


def torchrun(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "torch.distributed.run", "--nproc-per-node", str(count), *words)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_collectives(count: int) -> None:
    found = torchrun(count, str(ROOT / "tests" / "process_collectives.py"), "gloo")
    assert found.returncode == 0, found.stderr
    assert "collectives are right" in found.stdout


def test_random_programs(tmp_path: Path) -> None:
    seeds = range(200, 210)
    write(tmp_path, seeds, 2)
    found = torchrun(2, str(ROOT / "tests" / "process_programs.py"), "gloo", str(tmp_path), *map(str, seeds))
    assert found.returncode == 0, found.stderr
    assert "10 programs are right" in found.stdout


def test_programs_for_gpus_exchange_their_tensors() -> None:
    """Without a GPU: kernels in Triton's interpreter, collectives by gloo."""
    pytest.importorskip("triton")
    found = torchrun(2, str(ROOT / "tests" / "process_gpu_programs.py"), *map(str, range(200, 206)))
    assert found.returncode == 0, found.stderr
    assert "2 examples and 6 programs are right" in found.stdout


def test_run_starts_the_processes(tmp_path: Path) -> None:
    (tmp_path / "mlp.ita").write_text(MEGATRON)
    words = ("run", "mlp.ita", "--random", *SIZES, "--devices", "gloo", "--compare")
    found = run("-m", "intarsia", *words, folder=tmp_path)
    assert found.returncode == 0 and found.stderr.count("equal to the reference") == 1, found.stderr


def test_a_pipeline(tmp_path: Path) -> None:
    sizes = ("--dim", "B=8", "--dim", "D=8", "--arg", "t=1", "--arg", "rate=0.01")
    path = f"{ROOT / 'examples' / 'sharded' / 'deep.ita'}:step"
    words = ("--pipeline", "interleaved", "--stages", "4", "--devices", "gloo", "--random", *sizes)
    found = run("-m", "intarsia", "run", path, *words, "--out", "step.npz", "--compare", "--profile", folder=tmp_path)
    assert found.returncode == 0 and found.stderr.count("equal to the reference") == 25, found.stderr
    assert "interleaved: a step took" in found.stderr


@pytest.mark.parametrize(
    "ends, told",
    [
        ("os.kill(os.getpid(), 9)", "device 1 of 4 failed: it was ended by signal 9"),
        ("raise OSError('the disk is full')", "device 1 of 4 failed\nerror: OSError: the disk is full"),
    ],
)
def test_a_process_that_fails_ends_all(ends: str, told: str, tmp_path: Path) -> None:
    """While the others wait for it: within seconds, with one error."""
    (tmp_path / "mlp.ita").write_text(MEGATRON)
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('RANK') == '1':\n"
        "    import intarsia.mesh_program as m\n"
        f"    def fail(*given):\n        {ends}\n    m.Exchanges._bound = fail\n"
    )
    words = ("-m", "intarsia", "run", "mlp.ita", "--random", *SIZES, "--devices", "gloo")
    start = time.monotonic()
    found = run(*words, folder=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    assert time.monotonic() - start < 90
    assert found.returncode != 0 and found.stderr.count(" failed") == 1 and told in found.stderr, found.stderr


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mlp.ita").write_text(MEGATRON)
    found = run("-m", "intarsia", "run", "mlp.ita", "--random", *SIZES, "--devices", "nccl", folder=tmp_path)
    assert found.returncode == 1 and "devices nccl are GPUs, and PyTorch finds none" in found.stderr

"""What is written for GPUs is not only interpreted but compiled: Triton's compiler takes less than its interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import EXPECTED
from op_programs import PROGRAMS
from test_gpu_emit import FOLDER, compilation

from intarsia.backends.gpu.toolchain import compile_kernels
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.ir.graph import Module
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.workers import map_in_workers

pytest.importorskip("triton")


FEW = 16
"""Bytes of local memory that ptxas may take of itself, so that more programs fit on a core."""


def launches(target: str) -> list[TritonKernel]:
    """Of every op, with known and with open sizes, and of the programs of the golden files; each once."""
    made = []
    for name in PROGRAMS:
        case = PROGRAMS[name]()
        for dynamic in ((), tuple(case.sizes)):
            made.append(Compilation(Module(case.graph), case.sizes, Options(target=target, dynamic=dynamic)))
    for path in sorted(FOLDER.glob("*.ita")):
        made.append(compilation(path.read_text().partition(EXPECTED)[0], target))
    return list(dict.fromkeys(k for c in made for kernels in c.launches.values() for k in kernels))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90", "gpu:sm_100"])
def test_every_kernel_compiles_into_registers(target: str, tmp_path: Path) -> None:
    kernels = launches(target)
    compiled = compile_kernels(kernels, TARGETS[target], tmp_path, each=map_in_workers)
    spilling = {k: c.usage for k, c in zip(kernels, compiled) if c.usage[1] > FEW}
    assert not spilling

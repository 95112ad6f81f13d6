"""What is written for GPUs is not only interpreted but compiled: Triton's compiler takes less than its interpreter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import EXPECTED
from op_programs import PROGRAMS
from test_gpu_emit import FOLDER, compilation, compilation_of

from intarsia.backends.gpu.toolchain import compile_kernels
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.ir.target import TARGETS
from intarsia.workers import map_in_workers

pytest.importorskip("triton")


FEW = 16
"""Bytes of local memory that ptxas may take of itself, so that more programs fit on a core."""


def launches(made: Iterable[Compilation]) -> list[TritonKernel]:
    """Of several programs, each once."""
    return list(dict.fromkeys(k for c in made for kernels in c.launches.values() for k in kernels))


@pytest.mark.slow
def test_every_kernel_compiles_into_registers(tmp_path: Path) -> None:
    """Of every op, and of the programs of the golden files. As small as these are, every chip has the same kernels;
    what is different where sizes stay open, the integers, all chips compute alike."""
    golden = [compilation(path.read_text().partition(EXPECTED)[0]) for path in sorted(FOLDER.glob("*.ita"))]
    fixed = launches([*(compilation_of(case()) for case in PROGRAMS.values()), *golden])
    opened = launches(compilation_of(case(), dynamic=True) for case in PROGRAMS.values())
    for target, kernels in {"gpu:sm_80": fixed, "gpu:sm_90": [*fixed, *opened], "gpu:sm_100": fixed}.items():
        compiled = compile_kernels(kernels, TARGETS[target], tmp_path, each=map_in_workers)
        spilling = {k: c.usage for k, c in zip(kernels, compiled) if c.usage[1] > FEW}
        assert not spilling, target

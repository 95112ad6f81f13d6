"""Programs for several GPUs without one: kernels in Triton's interpreter, collectives by gloo on the tensors of the
programs. `process_gpu_programs.py SEED…` is run by each of several processes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from process_programs import modules
from sharded import check_results
from test_gpu_calls import Torch
from test_gpu_plan import InterpretedDevice
from test_sharding import built

import intarsia
from intarsia import torch_processes
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.gpu_calls import as_array
from intarsia.gpu_mesh import GpuDevice, GpuMeshProgram
from intarsia.gpu_program import GpuPlace
from intarsia.ir.graph import Module
from intarsia.ir.random_graphs import random_inputs
from intarsia.options import Options
from intarsia.passes.verify.inputs import random_inputs as inputs_of
from intarsia.processes import digest_of, processes, world

FOLDER = Path(__file__).parent.parent / "examples" / "sharded"
TARGET = "gpu:sm_90"
CALLS = """
fn f(x: f32[N@d, K], w: f32[K, M]) -> f32[N@d, M] { return exp(x @ w) }
fn g(y: f32[N@d, M]) -> f32[N, M] { return 2.0 * y }
fn h(x: f32[N@d, K], const w: f32[K, K]) -> f32[N@d, K] { return x @ (w @ transpose(w)) }
"""
EXAMPLES: dict[str, tuple[str, dict[str, int]]] = {
    "megatron": ("data=1,model={}", {"B": 2, "S": 4, "D": 8, "H": 2, "K": 4, "F": 8}),
    "zero3": ("data={}", {"B": 8, "D": 4, "F": 8}),
}


class Device(InterpretedDevice):
    """One of several in this process, which take turns: Triton's interpreter runs one kernel at a time."""

    def __init__(self, turn: threading.RLock) -> None:
        super().__init__()
        self.turn = turn

    def launch(self, kernel: TritonKernel, grid: tuple[int, int, int], parameters: Sequence[int]) -> None:
        with self.turn:
            super().launch(kernel, grid, parameters)


class Place(GpuPlace):
    """Memory of the host as that of a device, which has to know all that it is given."""

    def __init__(self, turn: threading.RLock | None = None) -> None:
        device = Device(turn or threading.RLock())
        super().__init__(Torch(torch, device), device, torch.device("cpu"), lambda: 7)

    def ready(self, tensor: Any) -> Any:
        return self.torch.add(super().ready(tensor))


def without_gpu() -> None:
    """Have devices `nccl` be processes of gloo, whose programs run on the interpreted device."""
    place = Place()
    GpuPlace.current = staticmethod(lambda target: place)  # type: ignore[method-assign]
    torch_processes.distributed = lambda backend: torch.distributed
    torch_processes._take_gpu = lambda number: None
    world("nccl").backend = "gloo"  # type: ignore[attr-defined]


def compiled(module: Module, mesh: str | None = None, device_passes: str | None = None) -> GpuMeshProgram:
    """The program of one device of a mesh, by default that of the module."""
    options = Options(target=TARGET, devices="nccl", mesh=mesh, device_passes=device_passes)
    return GpuMeshProgram.compiled(Compilation(module, {}, options))


def checked(program: GpuMeshProgram, module: Module, inputs: list[Any], plain: Module | None = None) -> None:
    """The results of all processes are those of one device."""
    every, devices = world("nccl"), processes("nccl", program.placement.mesh)
    device = GpuDevice(program, devices.device, (), False)
    values = [tuple(i) if isinstance(i, list) else np.asarray(i) for i in inputs]
    laid = device.laid(dict(zip([i.label for i in program.inputs], values)), {})
    code, digest = device.code(devices), digest_of("", "", "", program.text)
    for _ in range(2):  # walked, then repeated
        results = devices.run(program, digest, lambda: list(map(devices.whole, code(laid), program.results)))
        found = [as_array(r, kind.dtype) for r, kind in zip(results, program.results)]
        if every.rank == 0:
            check_results(module, inputs, found, plain)


def check_example(name: str) -> None:
    mesh, sizes = EXAMPLES[name]
    module = built((FOLDER / f"{name}.ita").read_text(), **sizes)
    checked(compiled(module, mesh.format(world("nccl").size)), module, inputs_of(module, {}, 0))


def check_random(seed: int) -> None:
    module, plain = modules(seed, world("nccl").size)
    checked(compiled(module), module, random_inputs(plain, seed, {}), plain)


def check_calls() -> None:
    """Arrays, tensors and parts, whole and in pieces that the devices do not divide."""
    text = f"mesh pod(d={world('nccl').size})\n" + CALLS
    program = intarsia.compile(text, Options(target=TARGET, devices="nccl"), use_cache=False)
    generator = np.random.default_rng(0)
    x, w = (generator.standard_normal(s).astype(np.float32) for s in ((5, 6), (6, 4)))
    wanted = np.exp(x @ w)
    assert isinstance(program.f(x, w), np.ndarray)
    np.testing.assert_allclose(program.f(x, w), wanted, rtol=1e-5)
    for first in (x, torch.from_numpy(x), torch.from_numpy(x).T.contiguous().T):
        found = program.f(first, torch.from_numpy(w))
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5)
    part = program.f.local(x, w)
    assert isinstance(part.array, torch.Tensor)
    np.testing.assert_allclose(program.g(part), 2.0 * wanted, rtol=1e-5)
    np.testing.assert_allclose(program.f.bind(w=w)(x), wanted, rtol=1e-5)
    prepared = program.h.bind(w=w @ w.T)
    for _ in range(2):
        np.testing.assert_allclose(prepared(x), x @ (w @ w.T) @ (w @ w.T).T, rtol=1e-4)


def main() -> None:
    check_calls()
    for name in EXAMPLES:
        check_example(name)
    for seed in map(int, sys.argv[1:]):
        check_random(seed)
    if world("nccl").rank == 0:
        print(f"{len(EXAMPLES)} examples and {len(sys.argv[1:])} programs are right")


if __name__ == "__main__":
    without_gpu()
    world("nccl").or_end_all(main)

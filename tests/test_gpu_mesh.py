"""Programs for several GPUs, without one: each device is a thread whose kernels run in Triton's interpreter, and
exchanges its tensors with the others. `process_gpu_programs.py` runs the same in processes."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sharded import check_results

from intarsia import torch_processes
from intarsia.collectives import Transfer, Wait
from intarsia.driver import Compilation
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node
from intarsia.ir.spmd import Devices
from intarsia.options import Options

pytest.importorskip("torch")
pytest.importorskip("triton")

from process_gpu_programs import EXAMPLES, FOLDER, TARGET, Place, compiled, inputs_of
from process_programs import modules
from test_sharding import built

from intarsia.gpu_calls import as_array
from intarsia.gpu_mesh import GpuDevice, GpuMeshProgram
from intarsia.gpu_program import GpuPlace
from intarsia.ir.random_graphs import random_inputs


def check(
    program: GpuMeshProgram, module: Module, inputs: list[Any], monkeypatch: Any, plain: Module | None = None
) -> list[Node]:
    """Run on devices that are threads and compare with one device; gives what the first one exchanged."""
    turn = threading.RLock()  # Triton's interpreter runs one kernel at a time
    monkeypatch.setattr(GpuPlace, "current", staticmethod(lambda target: Place(turn)))
    exchanged: list[Node] = []
    values = [tuple(i) if isinstance(i, list) else np.asarray(i) for i in inputs]

    def run(number: int, meet: Callable[[Node, Array], Array]) -> list[Array]:
        device = GpuDevice(program, number, (), False)

        def bind(node: Node, given: Any, taken: Any) -> Transfer:
            def begin() -> Wait:
                if number == 0:
                    exchanged.append(node)
                own = given if isinstance(given, np.ndarray) else as_array(given, node.operands[0].tensor.dtype)
                found = meet(node, own.copy())
                return lambda: taken.copy_(device.place.of_array(found))

            return Transfer(lambda: begin()(), begin)

        laid = device.laid(dict(zip([i.label for i in program.inputs], values)), {})
        code = device.code(SimpleNamespace(bind=bind))  # type: ignore[arg-type]
        code(laid)
        return [as_array(r, t.dtype) for r, t in zip(code(laid), program.results)]  # walked, then repeated

    check_results(module, inputs, program.whole(Devices(program.placement.mesh).run(run)), plain)
    return exchanged


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_one_device_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, sizes = EXAMPLES[name]
    module = built((FOLDER / f"{name}.ita").read_text(), **sizes)
    assert check(compiled(module, mesh.format(2)), module, inputs_of(module, {}, 0), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [None, "overlap"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_random_programs_give_what_one_device_gives(
    count: int, passes: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is begun is there when it is waited for, and not before."""
    exchanged: set[str] = set()
    for seed in range(200, 212):
        module, plain = modules(seed, count)
        program = compiled(module, device_passes=passes)
        exchanged |= {n.name for n in program.exchanges}
        check(program, module, random_inputs(plain, seed, {}), monkeypatch, plain)
    assert ("done" in exchanged) == (passes is not None)


def test_a_file_for_triton_is_the_program_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    text = """mesh pod(r=2)
fn f(x: f32[N@r, D], w: f32[D, D]) -> (f32[N@r, D], f32[D, D]) {
    y = loop (h = x) for t < 2 { yield h @ w }
    z = tensor[n < N, d < D](where(n > 0, y[n - 1, d], 0.0))
    return z, transpose(y) @ y
}"""
    module = built(text, N=32, D=16)
    compilation = Compilation(module, {}, Options(target=TARGET, devices="nccl"))
    path = tmp_path / "device.py"
    path.write_text(compilation.text("triton"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    function = runpy.run_path(str(path))["f"]
    program, turn = GpuMeshProgram.compiled(compilation), threading.Lock()
    inputs = random_inputs(module, 0, {})

    def run(number: int, meet: Callable[[Node, Array], Array]) -> list[Array]:
        def exchange(node: int, source: Any, target: Any) -> None:
            given = np.empty(0) if source is None else source.numpy().copy()
            turn.release()
            found = meet(program.exchanges[node], given)
            turn.acquire()
            target.copy_(torch.from_numpy(np.asarray(found)))

        with turn:
            parts = map(np.asarray, program.parts(list(map(np.asarray, inputs)), number))
            return [r.numpy() for r in function(*map(torch.from_numpy, parts), exchange=exchange)]

    check_results(module, inputs, program.whole(Devices(program.placement.mesh).run(run)))


def test_it_runs_by_its_own_devices_only() -> None:
    module = built("mesh pod(d=2)\nfn f(x: f32[4@d]) -> f32 { return sum(x) }")
    choices: tuple[tuple[Any, str], ...] = (("simulate", TARGET), ("gloo", TARGET), ("nccl", "cpu:x86-avx2"))
    for devices, target in choices:
        with pytest.raises(CompileError, match=f"devices '{devices}' do not run programs for {target}") as caught:
            _ = Compilation(module, {}, Options(target=target, devices=devices)).partitioned
        assert caught.value.code == "E1906"
    assert Options(target=TARGET).on_devices("mesh pod(d=2)").devices == "nccl"


def test_a_process_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(CompileError, match="process 1 of this machine has no GPU: PyTorch finds 1") as caught:
        torch_processes._take_gpu(1)
    assert caught.value.code == "E1907"

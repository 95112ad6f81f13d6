"""Programs on a real GPU against what the graph gives, in memory that was poisoned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXPECTED
from op_programs import PROGRAMS
from test_gpu_emit import FOLDER, compilation

from intarsia.cache import cache_directory
from intarsia.driver import Compilation
from intarsia.gpu_program import GpuPlace, GpuProgram
from intarsia.ir.dtypes import Array
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.options import Options
from intarsia.runtime.cuda import CudaDevice, target_of_capability

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> tuple[Any, CudaDevice]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch, CudaDevice(0, target_of_capability(torch.cuda.get_device_capability()), cache_directory() / "triton")


def on_device(torch: Any, array: Array) -> Any:
    """An array as a tensor on the GPU; types that NumPy lacks cross as integers."""
    if array.dtype.kind != "V":
        return torch.from_numpy(np.array(array)).cuda()
    return torch.from_numpy(np.array(array).view(f"i{array.itemsize}")).cuda().view(getattr(torch, array.dtype.name))


def check(device: tuple[Any, CudaDevice], compilation: Compilation, inputs: list[Any], *, graph: bool = False) -> None:
    torch, cuda = device
    where = torch.device("cuda", 0)
    program = GpuProgram(compilation, GpuPlace(torch, cuda, where, lambda: torch.cuda.current_stream().cuda_stream))
    tensors = [[on_device(torch, t) for t in i] if isinstance(i, list) else on_device(torch, i) for i in inputs]
    call = program.call(compilation.sizes)
    made = torch.empty, torch.empty_like

    def poisoned(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        found = make(*arguments, **options)
        found.view(-1).view(torch.uint8).fill_(0xFF)
        return found

    torch.empty, torch.empty_like = (partial(poisoned, make) for make in made)
    try:
        addresses = call.addresses(tensors)
        if graph:
            replay, results = call.captured(addresses)
            replay()
        else:
            results = call(addresses)
    finally:
        torch.empty, torch.empty_like = made
    torch.cuda.synchronize()
    expected = evaluate(compilation.source_module, inputs, compilation.sizes)
    for a, e in zip(results, expected, strict=True):
        halves = e.dtype.itemsize == 2 and e.dtype.kind not in "iu"
        tolerance = 2e-2 if halves else 1e-4
        np.testing.assert_allclose(a.double().cpu().numpy(), e.astype(np.float64), rtol=tolerance, atol=tolerance)


def golden(path: Path, target: str) -> tuple[Compilation, list[Any]]:
    made = compilation(path.read_text().partition(EXPECTED)[0], target)
    random = np.random.default_rng(0)
    inputs: list[Any] = []
    for parameter in made.source_module.graph.parameters:
        kind = parameter.value.tensor
        shape, dtype = kind.static_shape, kind.dtype
        drawn = random.standard_normal(shape) if dtype.is_float else random.integers(0, 7, shape)
        inputs.append(np.asarray(drawn).astype(dtype.numpy))
    return made, inputs


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ita")), ids=lambda p: p.stem)
@pytest.mark.parametrize("graph", [False, True], ids=["launched", "captured"])
def test_golden_programs(device: tuple[Any, CudaDevice], path: Path, graph: bool) -> None:
    made, inputs = golden(path, device[1].target.name)
    check(device, made, inputs, graph=graph)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open"])
def test_every_op(device: tuple[Any, CudaDevice], name: str, dynamic: bool) -> None:
    case = PROGRAMS[name]()
    options = Options(target=device[1].target.name, dynamic=tuple(case.sizes) if dynamic else ())
    check(device, Compilation(Module(case.graph), case.sizes, options), list(case.inputs))

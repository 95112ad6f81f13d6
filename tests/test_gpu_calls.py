"""Calls on a GPU: PyTorch's tensors in and out, what is said where there is no GPU, and what the driver is asked."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gpu_plan import InterpretedDevice

import intarsia
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.gpu_calls import GpuCalls, GpuProgram
from intarsia.ir.errors import CompileError
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.runtime.cuda import CudaDevice

TARGET = "gpu:sm_90"
TEXT = """
fn f(x: f32[N, K], w: f32[K]) -> (f32[N, K], f32[N]) { return x * w, sum(exp(x * w), axis=1) }
fn prepared(const w: f32[16, 16], x: f32[N, 16]) -> f32[N, 16] { return x @ (transpose(w) @ w) }
fn scaled(x: i32[N], s: i32) -> i32[N] { return x * s }
"""
PROGRAM = intarsia.compile(TEXT, Options(target=TARGET), use_cache=False)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_what_is_missing() -> None:
    with pytest.raises(CompileError) as caught:
        PROGRAM.f(np.zeros((3, 4), np.float32), np.zeros(4, np.float32))
    assert caught.value.code == ("E1716" if find_spec("torch") else "E1703")


class Torch:
    """PyTorch whose memory on a device is that of the host, poisoned, and known to the device."""

    def __init__(self, torch: Any, device: InterpretedDevice) -> None:
        self.torch = torch
        self.known = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.torch, name)

    def add(self, tensor: Any) -> Any:
        self.known.add(tensor.view(self.torch.uint8).numpy() if tensor.numel() and tensor.ndim else tensor.numpy())
        return tensor

    def empty(self, *arguments: Any, **options: Any) -> Any:
        made = self.torch.empty(*arguments, **options)
        made.view(-1).view(self.torch.uint8).fill_(0xFF)
        return self.add(made)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Torch:
    """Functions run on the interpreted device."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    device = InterpretedDevice()
    shim = Torch(torch, device)

    def of(function: intarsia.Function) -> GpuCalls:
        place = torch.device("cpu")
        made = GpuCalls(function, shim, place, lambda c: GpuProgram(c, device, shim, place, lambda: 7))
        known = made._moved
        array, ready = made._of_array, made._is_ready
        made._is_ready = lambda t: ready(t) and shim.add(t) is t  # type: ignore[method-assign]
        made._moved = lambda *a: shim.add(known(*a))  # type: ignore[method-assign]
        made._of_array = lambda a: shim.add(array(a))  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(GpuCalls, "of", staticmethod(of))
    return shim


def fresh() -> intarsia.Program:
    return intarsia.compile(TEXT, Options(target=TARGET), use_cache=False)


def test_tensors_in_and_out(calls: Torch) -> None:
    program = fresh()
    for rows in (3, 5, 3):
        x, w = calls.torch.randn(rows, 4), calls.torch.randn(4)
        product, total = program.f(x, w)
        calls.torch.testing.assert_close(product, x * w)
        calls.torch.testing.assert_close(total, (x * w).exp().sum(1))
    x = calls.torch.randn(4, 3).T
    calls.torch.testing.assert_close(program.f(x, w=w)[0], x * w)


def test_arrays_are_moved_with_a_warning(calls: Torch) -> None:
    x, w = np.ones((3, 4), np.float32), np.full(4, 2, np.float32)
    with pytest.warns(UserWarning, match="x is copied to the GPU in every call"):
        product, _ = fresh().f(x, w)
    assert isinstance(product, np.ndarray)
    np.testing.assert_array_equal(product, x * w)


def test_numbers_are_scalars(calls: Torch) -> None:
    x = calls.torch.arange(5, dtype=calls.torch.int32)
    calls.torch.testing.assert_close(fresh().scaled(x, 3), x * 3)


def test_constants_are_prepared_once(calls: Torch) -> None:
    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    function = fresh().prepared.bind(w=w)
    for _ in range(2):
        x = calls.torch.randn(3, 16)
        expected = x @ calls.torch.from_numpy(w.T @ w)
        calls.torch.testing.assert_close(function(x), expected, rtol=1e-4, atol=1e-4)


def test_the_command_runs_it(calls: Torch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from intarsia.cli import main

    (tmp_path / "f.ita").write_text(TEXT)
    function = f"{tmp_path / 'f.ita'}:f"
    status = main(["run", function, "--random", "--dim", "N=3", "--dim", "K=4", "--target", TARGET, "--compare"])
    printed = capsys.readouterr().err
    assert status == 0, printed
    assert "note: the arguments are copied to the GPU, and the results back" in printed
    assert "result0: " in printed


def test_wrong_arguments_are_the_same_errors(calls: Torch) -> None:
    with pytest.raises(CompileError) as caught:
        fresh().f(calls.torch.zeros(3, 4), calls.torch.zeros(5))
    assert caught.value.code == "E0307"


# ---------------------------------------------------------------------- the driver


class Driver:
    """What the driver is asked, and a code that one function gives."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.asked.append(name)
            if name == "cuGetErrorString":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_char_p))[0] = b"invalid"
            return 200 if name == self.refused else 0

        return function


def one_kernel() -> TritonKernel:
    function = intarsia.jit("fn f(x: f32[64]) -> f32[64] { return x * 2.0 }", Options(target=TARGET), use_cache=False)
    ((kernel,),) = function.compilation({"x": np.zeros(64, np.float32)}).launches.values()
    return kernel


def test_a_kernel_is_loaded_once_and_launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    start = CudaDevice(0, TARGETS[TARGET], tmp_path).load(one_kernel())
    assert driver.asked[:3] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    driver.asked.clear()
    start((1, 1, 1), [64, 128], 0)
    start((1, 1, 1), [64, 128], 0)
    assert driver.asked == ["cuCtxSetCurrent", "cuLaunchKernel"] * 2


def test_what_the_driver_refuses_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver("cuModuleLoadData"))
    with pytest.raises(CompileError, match="refuses cuModuleLoadData: invalid") as caught:
        CudaDevice(0, TARGETS[TARGET], tmp_path).load(one_kernel())
    assert caught.value.code == "E1717"


def test_a_driver_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(CompileError, match="cannot open shared object file") as caught:
        CudaDevice(0, TARGETS[TARGET], tmp_path)
    assert caught.value.code == "E1716"

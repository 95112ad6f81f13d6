"""Calls on a GPU: PyTorch's tensors in and out, what is said where there is no GPU, and what the driver is asked."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_driver
import ml_dtypes
import numpy as np
import pytest
from test_gpu_plan import InterpretedDevice

import intarsia
from intarsia.backends.gpu.triton_kernel import Scalar, TritonKernel
from intarsia.gpu_calls import GpuCalls, RepeatedCall
from intarsia.gpu_program import GpuPlace, GpuProgram
from intarsia.ir.errors import CompileError
from intarsia.ir.sizes import Size
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.runtime.cuda import CudaDevice

TARGET = "gpu:sm_90"
TEXT = """
fn f(x: f32[N, K], w: f32[K]) -> (f32[N, K], f32[N]) { return x * w, sum(exp(x * w), axis=1) }
fn prepared(const w: f32[16, 16], x: f32[N, 16]) -> f32[N, 16] { return x @ (transpose(w) @ w) }
fn scaled(x: i32[N], s: i32) -> i32[N] { return x * s }
"""
SEVERAL = """fn g(x: f32[N], y: f32[M]) -> (f32[N], f32[M]) {
    return x * 2.0, exp(y)
}"""
PROGRAM = intarsia.compile(TEXT, Options(target=TARGET), use_cache=False)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_what_is_missing() -> None:
    with pytest.raises(CompileError) as caught:
        PROGRAM.f(np.zeros((3, 4), np.float32), np.zeros(4, np.float32))
    assert caught.value.code == ("E1716" if find_spec("torch") else "E1703")


class Cuda:
    """Graphs of what was done on the interpreted device. As on a chip, what is captured is done when it is replayed."""

    def __init__(self, device: InterpretedDevice) -> None:
        self.device = device

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace(steps=[])

    @contextmanager
    def graph(self, graph: SimpleNamespace) -> Iterator[None]:
        self.device.captured = graph.steps
        yield
        self.device.captured = None
        graph.replay = lambda: [step() for step in graph.steps]


class Torch:
    """PyTorch whose memory on a device is that of the host, poisoned, and known to the device."""

    def __init__(self, torch: Any, device: InterpretedDevice) -> None:
        self.torch = torch
        self.known = device
        self.repeated = 0
        self.cuda = Cuda(device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.torch, name)

    def add(self, tensor: Any) -> Any:
        memory = tensor.reshape(tensor.shape or 1)
        self.known.add(memory.view(self.torch.uint8).numpy() if tensor.numel() else memory.numpy())
        return tensor

    def empty(self, *arguments: Any, **options: Any) -> Any:
        return self.poisoned(self.torch.empty(*arguments, **options))

    def empty_like(self, *arguments: Any, **options: Any) -> Any:
        return self.poisoned(self.torch.empty_like(*arguments, **options))

    def poisoned(self, made: Any) -> Any:
        made.view(-1).view(self.torch.uint8).fill_(0xFF)
        return self.add(made)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Torch:
    """Functions run on the interpreted device."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    device = InterpretedDevice()
    shim = Torch(torch, device)

    place = GpuPlace(shim, device, torch.device("cpu"), lambda: 7)

    def of(function: intarsia.Function) -> GpuCalls:
        made = GpuCalls(function, place)
        known, array = made._moved, made._of_array
        made._moved = lambda *a: shim.add(known(*a))  # type: ignore[method-assign]
        made._of_array = lambda a: shim.add(array(a))  # type: ignore[method-assign]
        return made

    repeat = RepeatedCall.__call__

    def repeated(call: RepeatedCall, positional: Sequence[Any]) -> Any:
        for tensor in positional:
            if isinstance(tensor, torch.Tensor) and tensor.is_contiguous():
                shim.add(tensor)
        found = repeat(call, positional)
        shim.repeated += found is not None
        return found

    monkeypatch.setattr(RepeatedCall, "__call__", repeated)
    monkeypatch.setattr(GpuCalls, "of", staticmethod(of))
    monkeypatch.setattr(GpuPlace, "current", staticmethod(lambda target: place))
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
    assert calls.repeated == 1
    x = calls.torch.randn(4, 3).T
    calls.torch.testing.assert_close(program.f(x, w=w)[0], x * w)
    calls.torch.testing.assert_close(program.f(x, w)[0], x * w)  # is looked at again, as it is not contiguous
    assert calls.repeated == 1


def test_calls_are_repeated_where_constants_are_bound(calls: Torch) -> None:
    w = calls.torch.randn(4)
    function = fresh().f.bind(w=w.numpy())
    for _ in range(3):
        x = calls.torch.randn(3, 4)
        calls.torch.testing.assert_close(function(x)[0], x * w)
    assert calls.repeated == 2


def test_arrays_are_moved_with_a_warning(calls: Torch) -> None:
    x, w = np.ones((3, 4), np.float32), np.full(4, 2, np.float32)
    with pytest.warns(UserWarning, match="x is copied to the GPU in every call"):
        product, _ = fresh().f(x, w)
    assert isinstance(product, np.ndarray)
    np.testing.assert_array_equal(product, x * w)


@pytest.mark.slow
def test_codes_are_tensors_of_bytes(calls: Torch) -> None:
    """PyTorch has some floats of 8 bits, and of other narrow types the codes."""
    text = "fn f(x: i4[N], s: f8e5m2[N]) -> (f32[N], i4[N], f8e5m2[N]) {\n"
    text += "    return f32(x) * f32(s), i4(x), f8e5m2(f32(s))\n}"
    program, torch = intarsia.compile(text, Options(target=TARGET), use_cache=False), calls.torch
    x, s = torch.arange(-8, 8, dtype=torch.int8), torch.randn(16).to(torch.float8_e5m2)
    product, same, scale = program.f(x, s)
    torch.testing.assert_close(product, x * s.float())
    torch.testing.assert_close(same, x)
    assert (scale.view(torch.uint8) == s.view(torch.uint8)).all()
    with pytest.warns(UserWarning, match="copied to the GPU"):
        arrays = program.f(x.numpy().astype(ml_dtypes.int4), s.view(torch.uint8).numpy().view(ml_dtypes.float8_e5m2))
    assert [a.dtype for a in arrays] == [np.float32, ml_dtypes.int4, ml_dtypes.float8_e5m2]
    assert (arrays[1].astype(int) == x.numpy()).all()


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


def test_other_commands_run_there_too(calls: Torch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from intarsia.cli import main

    text = TEXT + 'test "right" { assert sum(ones(f32[3])) == 3.0 }\ntest "wrong" { assert sum(ones(f32[3])) == 4.0 }\n'
    (tmp_path / "f.ita").write_text(text)
    assert main(["test", str(tmp_path / "f.ita"), "--target", TARGET]) == 1
    assert "1 passed, 1 failed" in capsys.readouterr().out
    sizes = ["--dim", "N=3", "--dim", "K=4"]
    assert main(["reduce", f"{tmp_path / 'f.ita'}:f", "--while", "wrong", *sizes, "--target", TARGET]) == 1
    assert "the outcome is right" in capsys.readouterr().err
    assert calls.known.loaded


@pytest.mark.filterwarnings("ignore:.* is copied to the GPU")
def test_time_is_the_gpu_s_own(calls: Torch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a device whose launches take a microsecond, and whose memory carries a terabyte a second."""
    from intarsia.cli import main

    (tmp_path / "g.ita").write_text(SEVERAL)
    words = [f"{tmp_path / 'g.ita'}", "--dim", "N=2048", "--dim", "M=512", "--target", TARGET]
    assert main(["run", *words, "--random", "--time", "--profile"]) == 0
    printed = capsys.readouterr().err
    assert re.search(r"run: median 2 us on the GPU, quartiles 0 us apart, \d+ runs", printed), printed
    assert "GFLOP/s, 10.2 GB/s (1% of its memory's)" in printed, printed
    assert re.search(r"^ 50.0% +1 +1 us +16 KiB +16 KiB +16.4 +2%  g_mul  \S+g.ita:2:", printed, re.MULTILINE), printed
    assert main(["bench", *words, "--seconds", "0.1", "--against", "numpy"]) == 0
    assert re.search(r"^intarsia +0.0020 ms .*\nnumpy +[\d.]+ ms", capsys.readouterr().out), printed


def test_a_check_that_fails_is_an_error(calls: Torch) -> None:
    """Of that call only."""
    text = "fn f(x: f32[N], i: i64[M]) -> f32[M] { return tensor[a](x[i[a]]) }"
    function = intarsia.jit(text, Options(target=TARGET, checks=True), use_cache=False)
    x, i = calls.torch.randn(5), calls.torch.tensor([0, 3, 4])
    for _ in range(2):
        calls.torch.testing.assert_close(function(x, i), x[i])
        for wrong in (9, -1):
            with pytest.raises(CompileError, match=f"subscript {wrong} is outside 0..5") as caught:
                function(x, calls.torch.tensor([0, wrong, 7]))
            assert caught.value.code == "E0801"


def test_graphs_are_started_again(calls: Torch) -> None:
    """With scratch memory of their own, and run-time checks of each run."""
    text = "fn f(x: f32[N], i: i64[M]) -> f32[M] { return tensor[a](x[i[a]] * 2.0) }"
    function = intarsia.jit(text, Options(target=TARGET, checks=True), use_cache=False)
    x, i = calls.torch.randn(5), calls.torch.tensor([0, 3, 4])
    assert function.gpu is not None
    call, tensors, _ = function.gpu.call_for((x, i), {})
    start, (result,) = call.captured(call.addresses(tensors))
    for wrong in (2, 9, 1):
        i[1] = wrong
        if wrong < 5:
            start()
            calls.torch.testing.assert_close(result, x[i] * 2)
            continue
        with pytest.raises(CompileError, match=r"subscript 9 is outside 0\.\.5"):
            start()


def test_a_second_shape_compiles_nothing(calls: Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sizes stay open; but for whether they are multiples of 16."""
    text = TEXT.strip().splitlines()[0]
    function = intarsia.jit(text, Options(target=TARGET, dynamic=("N", "K")), use_cache=False)
    made: list[object] = []
    known = GpuProgram.__init__

    def counted(program: GpuProgram, *arguments: Any) -> None:
        made.append(program)
        known(program, *arguments)

    monkeypatch.setattr(GpuProgram, "__init__", counted)
    loaded = []
    for shape in ((3, 5), (4, 6), (7, 33), (32, 64), (16, 16), (2, 48)):
        x, w = calls.torch.randn(shape), calls.torch.randn(shape[1])
        calls.torch.testing.assert_close(function(x, w)[0], x * w)
        loaded.append(len(calls.known.loaded))
    launches = loaded[0]
    assert len(made) == 1
    assert loaded == [launches, launches, launches, 2 * launches, 2 * launches, 3 * launches]


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


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    pytest.importorskip("triton")
    return fake_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL, tmp_path: Path) -> CudaDevice:
    """The first GPU of a driver that only takes down what it is told."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    for name in ("parameters", "wide", "launches", "events", "destroyed", "refused"):
        fake_driver.number(library, name).value = 0
    return CudaDevice(0, TARGETS[TARGET], tmp_path)


def test_a_kernel_is_loaded_once_and_launched(library: ctypes.CDLL, cuda: CudaDevice) -> None:
    kernel = one_kernel()
    kernel = replace(kernel, parameters=(*kernel.parameters, Scalar("n", Size.of("N"))))
    kernel = replace(kernel, text=kernel.text.replace("y_ptr,", "y_ptr, n: tl.int32,"))
    step = cuda.load(kernel)((3, 2, 1), [(1, 16), (0, 0), -5])
    fake_driver.number(library, "parameters").value, fake_driver.number(library, "wide").value = 5, 0b11011
    last = fake_driver.Launch.in_dll(library, "last")
    for base, stream in ((1 << 40, 0), (1 << 41, (1 << 46) + 8)):
        cuda.run((step,), [base, base + 4096], stream)
        assert list(last.values)[:5] == [base + 4112, base, -5, 0, 0]
        assert (list(last.grid), list(last.block)) == ([3, 2, 1], [kernel.warps * 32, 1, 1])
        assert (last.stream or 0, last.attribute_count, last.shared) == (stream, 0, 0)
    assert fake_driver.number(library, "launches").value == 2


def test_the_context_of_the_caller_comes_back(library: ctypes.CDLL, cuda: CudaDevice) -> None:
    """Where another GPU is the current one, PyTorch must find it so afterwards; also where a launch fails."""
    step, current = cuda.load(one_kernel())((1, 1, 1), [(0, 0), (1, 0)]), ctypes.c_void_p()
    for context in (None, 0x7F0000001001, 0x7F0000001000):
        library.cuCtxPushCurrent_v2(ctypes.c_void_p(context))
        cuda.run((step,), [64, 128], 0)
        fake_driver.number(library, "refused").value = 719
        with pytest.raises(CompileError, match="refuses cuLaunchKernelEx: unspecified launch failure"):
            cuda.run((step,), [64, 128], 0)
        fake_driver.number(library, "refused").value = 0
        library.cuCtxGetCurrent(ctypes.byref(current))
        assert current.value == context
        library.cuCtxPopCurrent_v2(ctypes.byref(current))


def test_memory_and_time_are_the_driver_s(library: ctypes.CDLL, cuda: CudaDevice) -> None:
    source, target = ctypes.create_string_buffer(b"abcdefgh"), ctypes.create_string_buffer(9)
    cuda.run((cuda.copy((1, 1), (0, 2), 3),), [ctypes.addressof(source), ctypes.addressof(target)], 0)
    assert cuda.read(ctypes.addressof(target), 4, 0) == b"\0cde"
    start, middle, end = (cuda.moment(1 << 46) for _ in range(3))
    assert cuda.seconds(start, end) == pytest.approx(2e-3)
    del start, middle, end
    assert fake_driver.number(library, "destroyed").value == fake_driver.number(library, "events").value == 3
    assert cuda.bandwidth() == pytest.approx(4.917e12, rel=1e-3)


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

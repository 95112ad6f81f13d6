"""NVIDIA's driver: kernels loaded from their code and launched, without a library in between."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.backends.gpu.toolchain import CompiledKernel, ToolchainError, compile_kernel
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.ir.errors import CompileError
from intarsia.ir.target import TARGETS, Target
from intarsia.runtime.gpu import Launcher, Place, Step
from intarsia.workers import map_in_workers

_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: more than 48 KiB have to be asked for."""

_PLAIN_SHARED = 48 << 10

_PREFER_SHARED = 1
"""CU_FUNC_CACHE_PREFER_SHARED: what is not shared memory is the first cache, which then is small."""

_MEMORY_CLOCK, _BUS_WIDTH = 36, 37
"""CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, in kHz, and CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, in bits."""


def require_torch() -> Any:
    """PyTorch with a GPU. Raises CompileError E1703 where it is not installed, E1716 where it sees no GPU."""
    try:
        import torch
    except ImportError:
        hint = "pip install torch, whose tensors programs on a GPU take"
        raise CompileError("E1703", "PyTorch is not installed beside Intarsia", hint=hint) from None
    if not torch.cuda.is_available():
        built = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no NVIDIA GPU"
        hint = "see nvidia-smi, and torch.cuda.is_available(); without a GPU: --target triton-interpret, or cpu"
        raise CompileError("E1716", f"there is no GPU to run on: {built}", hint=hint)
    return torch


def present_target() -> Target:
    """The target that is nearest to the GPU at hand, with its name. Raises CompileError E1703 or E1716."""
    cuda = require_torch().cuda
    return replace(target_of_capability(cuda.get_device_capability()), model=cuda.get_device_name())


def target_of_capability(capability: tuple[int, int]) -> Target:
    """The target whose code a GPU runs best. Raises CompileError E1716 for a chip that is too old."""
    number = capability[0] * 10 + capability[1]
    known = {int(t.cpu.removeprefix("sm_")): t for t in TARGETS.values() if t.kind == "gpu"}
    found = [n for n in known if n // 10 == capability[0] and n <= number]
    if not found:
        names = ", ".join(t.name for t in known.values())
        message = f"there is no code for this GPU, which is sm_{number}"
        raise CompileError("E1716", message, hint=f"targets for GPUs: {names}")
    return known[max(found)]


class CudaDevice:
    """A GPU by its number: compiles kernels for it, loads and launches them. Calls of several threads may use it."""

    def __init__(self, number: int, target: Target, cache_directory: Path) -> None:
        self.number = number
        self.target = target
        self.cache_directory = cache_directory
        self.driver = _driver()
        self._call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), number)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.device = device
        self.context = context
        self._lock = threading.Lock()
        self._current = ctypes.c_void_p()
        self._ask_current = partial(self.driver.cuCtxGetCurrent, ctypes.byref(self._current))

    # ------------------------------------------------------------------ kernels

    def prepare(self, kernels: Sequence[TritonKernel]) -> list[str | None]:
        """Compile kernels in several processes, each into Triton's cache."""
        work = partial(_refusal_of, target=self.target, cache_directory=self.cache_directory)
        return list(map_in_workers(work, kernels))

    def load(self, kernel: TritonKernel) -> Launcher:
        """Compile a kernel and load its code."""
        compiled = compile_kernel(kernel, self.target, self.cache_directory)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        with self._entered():
            self._call("cuModuleLoadData", ctypes.byref(module), compiled.cubin)
            self._call("cuModuleGetFunction", ctypes.byref(function), module, compiled.entry.encode())
            if compiled.shared > _PLAIN_SHARED:
                self._call("cuFuncSetCacheConfig", function, _PREFER_SHARED)
                self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, compiled.shared)
        return partial(self._launch, compiled, function)

    def _launch(
        self,
        compiled: CompiledKernel,
        function: ctypes.c_void_p,
        grid: tuple[int, int, int],
        parameters: Sequence[int | Place],
    ) -> Step:
        """A step that starts a kernel. Its parameters lie in cells of 8 bytes, of which the driver reads as many as
        each has; those that are addresses are written anew in every call, under the lock."""
        given = [*parameters, 0, 0]  # and two pointers, see `CompiledKernel`
        numbers = [p if isinstance(p, int) else 0 for p in given]
        places = tuple((cell, *p) for cell, p in enumerate(given) if not isinstance(p, int))
        cells = (ctypes.c_int64 * len(given))(*numbers)
        pointers = (ctypes.c_void_p * len(given))(*(ctypes.addressof(cells) + 8 * n for n in range(len(given))))
        config = _LaunchConfig(*grid, compiled.warps * 32, 1, 1, compiled.shared)
        launch = partial(self.driver.cuLaunchKernelEx, ctypes.byref(config), function, pointers, None)
        scratch = compiled.global_scratch * math.prod(grid)

        def step(addresses: Sequence[int], stream: int) -> None:
            for cell, number, start in places:
                cells[cell] = addresses[number] + start
            if scratch:
                held = self._scratch(scratch)  # until the launch is under way
                cells[len(parameters)] = held.data_ptr()
            config.stream = stream
            if code := launch():
                raise self._refusal("cuLaunchKernelEx", code)

        return step

    def _scratch(self, size: int) -> Any:
        """Memory for what the programs of a launch write for themselves, tensor descriptors. PyTorch gives it to others
        once it is let go, for what comes later on the same stream."""
        torch = require_torch()
        return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", self.number))

    def run(self, steps: Sequence[Step], addresses: Sequence[int], stream: int) -> None:
        with self._lock:
            if not self._ask_current() and self._current.value == self.context.value:
                for step in steps:
                    step(addresses, stream)
                return
            with self._entered():
                for step in steps:
                    step(addresses, stream)

    # ------------------------------------------------------------------ memory

    def copy(self, target: Place, source: Place, size: int) -> Step:
        def step(addresses: Sequence[int], stream: int) -> None:
            (to, skip), (of, start) = target, source
            places = (addresses[to] + skip, addresses[of] + start)
            self._call("cuMemcpyDtoDAsync_v2", *map(ctypes.c_uint64, places), ctypes.c_size_t(size), _handle(stream))

        return step

    def read(self, address: int, size: int, stream: int) -> bytes:
        found = ctypes.create_string_buffer(size)
        place = (ctypes.c_uint64(address), ctypes.c_size_t(size), _handle(stream))
        with self._entered():
            self._call("cuMemcpyDtoHAsync_v2", found, *place)
            self._call("cuStreamSynchronize", _handle(stream))
        return found.raw

    # ------------------------------------------------------------------ time

    def moment(self, stream: int) -> CudaEvent:
        event = ctypes.c_void_p()
        with self._entered():
            self._call("cuEventCreate", ctypes.byref(event), 0)
            found = CudaEvent(self.driver, event)
            self._call("cuEventRecord", event, _handle(stream))
        return found

    def seconds(self, start: CudaEvent, end: CudaEvent) -> float:
        milliseconds = ctypes.c_float()
        with self._entered():
            self._call("cuEventSynchronize", end.handle)
            self._call("cuEventElapsedTime", ctypes.byref(milliseconds), start.handle, end.handle)
        return milliseconds.value * 1e-3

    def bandwidth(self) -> float | None:
        """Twice in each cycle of its clock, memory of this kind gives or takes as many bits as its bus is wide."""
        clock, width = self._attribute(_MEMORY_CLOCK), self._attribute(_BUS_WIDTH)
        return 2 * clock * 1e3 * width / 8 or None

    def _attribute(self, number: int) -> int:
        found = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(found), number, self.device)
        return found.value

    # ------------------------------------------------------------------ the driver

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Speak for this GPU in this thread, and afterwards for the one that the caller had chosen."""
        self._call("cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self.driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        if code := getattr(self.driver, name)(*arguments):  # which `ctypes` keeps as an attribute
            raise self._refusal(name, code)

    def _refusal(self, name: str, code: int) -> CompileError:
        text = ctypes.c_char_p()
        self.driver.cuGetErrorString(code, ctypes.byref(text))
        said = (text.value or b"").decode() or f"error {code}"
        return CompileError("E1717", f"the GPU's driver refuses {name}: {said}", hint="see docs/errors/E1717.md")


class CudaEvent:
    """An event of the driver, which goes with the object."""

    def __init__(self, driver: Any, handle: ctypes.c_void_p) -> None:
        self.driver = driver
        self.handle = handle

    def __del__(self) -> None:
        self.driver.cuEventDestroy_v2(self.handle)


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of the driver: programs along each axis, threads of each, bytes of shared memory, where."""

    _fields_ = (
        *((f"{what}_{axis}", ctypes.c_uint) for what in ("grid", "block") for axis in "xyz"),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )
    stream: int


def _refusal_of(kernel: TritonKernel, target: Target, cache_directory: Path) -> str | None:
    """Why a kernel cannot be compiled; None if it can, and then it is found in the cache from now on."""
    try:
        compile_kernel(kernel, target, cache_directory)
    except ToolchainError as error:
        return str(error)
    return None


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        hint = "install NVIDIA's driver"
        raise CompileError("E1716", f"there is no GPU to run on: {error}", hint=hint) from None


def _handle(stream: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(stream)

"""NVIDIA's driver: kernels loaded from their code and launched, without a library in between."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intarsia.backends.gpu.toolchain import CompiledKernel, compile_kernel
from intarsia.backends.gpu.triton_kernel import Pointer, TritonKernel
from intarsia.ir.errors import CompileError
from intarsia.ir.target import TARGETS, Target
from intarsia.runtime.gpu import Launch

_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: more than 48 KiB have to be asked for."""

_PLAIN_SHARED = 48 << 10


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
    """The target that is nearest to the GPU at hand. Raises CompileError E1703 or E1716."""
    return target_of_capability(require_torch().cuda.get_device_capability())


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
    """A GPU by its number: compiles kernels for it, loads and launches them."""

    def __init__(self, number: int, target: Target, cache_directory: Path) -> None:
        self.number = number
        self.target = target
        self.cache_directory = cache_directory
        try:
            self.driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            hint = "install NVIDIA's driver"
            raise CompileError("E1716", f"there is no GPU to run on: {error}", hint=hint) from None
        self._call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), number)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.context = context

    def load(self, kernel: TritonKernel) -> Launch:
        """Compile a kernel and load its code."""
        compiled = compile_kernel(kernel, self.target, self.cache_directory)
        self._enter()
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), compiled.cubin)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, compiled.entry.encode())
        if compiled.shared > _PLAIN_SHARED:
            self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, compiled.shared)
        return self._launch(kernel, compiled, function)

    def _launch(self, kernel: TritonKernel, compiled: CompiledKernel, function: ctypes.c_void_p) -> Launch:
        wide = [isinstance(p, Pointer) or p.type == "i64" for p in kernel.parameters]
        types = [ctypes.c_int64 if w else ctypes.c_int32 for w in wide] + [ctypes.c_int64, ctypes.c_int64]
        threads, shared = compiled.warps * 32, compiled.shared
        pointers = ctypes.c_void_p * len(types)

        def start(grid: tuple[int, int, int], parameters: Sequence[int], stream: int) -> None:
            scratch = self._scratch(compiled.global_scratch * math.prod(grid)) if compiled.global_scratch else None
            hidden = (0 if scratch is None else scratch.data_ptr(), 0)
            cells = [kind(value) for kind, value in zip(types, (*parameters, *hidden), strict=True)]
            places = pointers(*[ctypes.addressof(c) for c in cells])
            self._enter()
            where = ctypes.c_void_p(stream)
            self._call("cuLaunchKernel", function, *grid, threads, 1, 1, shared, where, places, None)

        return start

    def _scratch(self, size: int) -> Any:
        """Memory for what the programs of a launch write for themselves, tensor descriptors. PyTorch gives it to others
        once it is let go, for what comes later on the same stream."""
        torch = require_torch()
        return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", self.number))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self._enter()
        places = (ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(size))
        self._call("cuMemcpyDtoDAsync_v2", *places, ctypes.c_void_p(stream))

    def read(self, address: int, size: int, stream: int) -> bytes:
        self._enter()
        found = ctypes.create_string_buffer(size)
        place = (ctypes.c_uint64(address), ctypes.c_size_t(size), ctypes.c_void_p(stream))
        self._call("cuMemcpyDtoHAsync_v2", found, *place)
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))
        return found.raw

    def _enter(self) -> None:
        """Speak for this GPU in this thread."""
        self._call("cuCtxSetCurrent", self.context)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self.driver, name)(*arguments)  # which `ctypes` keeps as an attribute
        if code:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(text))
            said = (text.value or b"").decode() or f"error {code}"
            raise CompileError("E1717", f"the GPU's driver refuses {name}: {said}", hint="see docs/errors/E1717.md")

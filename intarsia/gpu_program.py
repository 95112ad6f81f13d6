"""A compilation on a device: from tensors of PyTorch that lie there to tensors of PyTorch."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from intarsia.backends.gpu.torch_types import torch_type
from intarsia.cache import cache_directory
from intarsia.driver import checks_of
from intarsia.ir.dtypes import BF16, U8, Array, of_numpy
from intarsia.ir.types import TensorType
from intarsia.mesh_program import array_at
from intarsia.runtime.cuda import CudaDevice, require_torch
from intarsia.runtime.gpu import RECORD_BYTES, Device, DevicePlan, Exchanger, PlanCall, Watch, addresses

if TYPE_CHECKING:
    from intarsia.driver import Compilation
    from intarsia.ir.dtypes import DType
    from intarsia.ir.target import Target


_KNOWN_PREPARATIONS = 16
"""Arrangements of the constants that are kept for sizes to come; calls keep their own."""


class GpuPlace:
    """Where programs run: a device, and where PyTorch makes the tensors for it.

    place: as PyTorch takes it; index: as PyTorch counts it. stream: gives the stream of the caller.
    """

    def __init__(self, torch: Any, device: Device, place: Any, stream: Callable[[], int]) -> None:
        self.torch = torch
        self.device = device
        self.place = place
        self.index = -1 if place.type == "cpu" else place.index
        self.stream = stream

    @staticmethod
    def current(target: Target) -> GpuPlace:
        """The GPU that is PyTorch's current one. Raises CompileError E1703 or E1716 where there is none."""
        torch = require_torch()
        number = torch.cuda.current_device()
        place = torch.device("cuda", number)
        device = CudaDevice(number, target, cache_directory() / "triton")
        return GpuPlace(torch, device, place, _stream_of(torch, place))

    def kind(self, dtype: DType) -> Any:
        """The element type as PyTorch has it."""
        return getattr(self.torch, torch_type(dtype).removeprefix("torch."))

    def is_ready(self, tensor: Any) -> bool:
        """Can kernels take a tensor as it is?"""
        here = tensor.get_device() == self.index and tensor.is_contiguous()
        return here and not tensor.data_ptr() & 15

    def ready(self, tensor: Any) -> Any:
        """A tensor as kernels can take it: itself, or a copy."""
        if self.is_ready(tensor):
            return tensor
        moved = tensor.detach().to(self.place)
        return moved if self.is_ready(moved) else moved.clone(memory_format=self.torch.contiguous_format)

    def at(self, address: int, type_: TensorType) -> Any:
        """The memory at an address as a tensor, not a copy."""
        dtype, shape = type_.dtype, type_.static_shape
        if not (size := math.prod(shape) * dtype.bytes):
            return self.torch.empty(shape, dtype=self.kind(dtype), device=self.place)
        if self.index < 0:
            codes = self.torch.from_numpy(array_at(address, TensorType.of(U8, size)))
        else:
            codes = self.torch.as_tensor(_Bytes(address, size), device=self.place)
        return codes.view(self.kind(dtype)).view(shape)

    def of_array(self, array: Array) -> Any:
        """An array as a tensor that lies there."""
        element = of_numpy(array.dtype)
        assert element is not None, array.dtype
        plain = np.array(array, order="C")
        bits = np.dtype(np.int16) if element == BF16 else np.dtype(np.uint8) if element.is_narrow else plain.dtype
        codes = plain.view(bits)  # of what NumPy knows by ml_dtypes only
        return self.torch.from_numpy(codes).view(self.kind(element)).to(self.place)

    def wait(self) -> None:
        """Wait until all that was launched is done."""
        if self.index >= 0:
            self.torch.cuda.synchronize(self.place)


class _Bytes:
    """Memory of a GPU, as libraries for arrays there ask for it of each other."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


class Scratch:
    """Memory that programs work in. There is one piece for each stream, on which calls come one after the other: a
    thread holds `lock` until all that a call does with it is under way."""

    def __init__(self, place: GpuPlace) -> None:
        self.place = place
        self.lock = threading.RLock()
        self._held: dict[tuple[str, int], Any] = {}

    def workspace(self, size: int, stream: int) -> int:
        """The address of so many bytes."""
        held = self._held.get(("workspace", stream))
        if held is None or held.numel() < size:
            torch = self.place.torch
            held = torch.empty(size, dtype=torch.uint8, device=self.place.place)
            self._held["workspace", stream] = held
        return int(held.data_ptr())

    def record(self, stream: int) -> int:
        """The address of what run-time checks write. It is zeros at first."""
        held = self._held.get(("record", stream))
        if held is None:
            torch = self.place.torch
            held = self._held["record", stream] = torch.empty(RECORD_BYTES, dtype=torch.uint8, device=self.place.place)
            held.zero_()
        return int(held.data_ptr())

    def clear_records(self) -> None:
        """Forget what checks wrote."""
        for (what, _), held in self._held.items():
            if what == "record":
                held.zero_()


class GpuProgram:
    """A compilation on a device: on one of several, the program of one of them."""

    def __init__(self, compilation: Compilation, place: GpuPlace, exchange: Exchanger | None = None) -> None:
        """exchange: what it does with other devices."""
        self.compilation = compilation
        self.place = place
        self.plans = [DevicePlan(p, compilation.launches, place.device, exchange) for p in compilation.plan.whole]
        self.preparation = compilation.plan.preparation
        graph = compilation.source_module.graph
        self.labels, self.result_labels = [p.label for p in graph.parameters], graph.labels
        self.checks = checks_of(compilation.plan)
        self.scratch = Scratch(place)
        self._prepared: dict[tuple[int, ...], list[Any]] = {}

    def call(self, sizes: Mapping[str, int]) -> GpuCall:
        """The program for concrete sizes."""
        return GpuCall(self, sizes, self.scratch)

    def prepared(self, tensors: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
        """What is made of the constants among the tensors, once: they are bound."""
        if (once := self.preparation) is None:
            return []
        values = tuple(sizes[name] for name in once.plan.sizes)
        found = self._prepared.get(values)
        if found is None:
            call = Launched(PlanCall(self.plans[0], sizes), self.place, self.scratch)
            found = call([a for n in once.inputs for a in addresses(tensors[n])])
            self.place.wait()  # later calls may be on other streams
            if len(self._prepared) >= _KNOWN_PREPARATIONS:
                self._prepared.clear()
            self._prepared[values] = found
        return found


class Launched:
    """A plan for concrete sizes whose results PyTorch makes. has_record: are there run-time checks?"""

    def __init__(self, plan: PlanCall, place: GpuPlace, scratch: Scratch, has_record: bool = False) -> None:
        self.plan = plan
        self.place = place
        self.scratch = scratch
        self.has_record = has_record
        self._stream = place.stream
        self._templates = [self._template(place, shape, dtype) for shape, dtype in plan.shapes]
        self._new = partial(place.torch.empty_like, memory_format=place.torch.contiguous_format)

    @staticmethod
    def _template(place: GpuPlace, shape: tuple[int, ...], dtype: DType) -> Any:
        """A tensor of a result's type, all of whose elements are one: PyTorch makes others like it in two thirds of the
        time that it takes by a type."""
        return place.torch.empty((), dtype=place.kind(dtype), device=place.place).expand(shape)

    def __call__(self, given: Sequence[int], watch: Watch | None = None) -> list[Any]:
        """The results for the addresses of the inputs, without waiting for them."""
        stream = self._stream()
        results = [self._new(t) for t in self._templates]
        found = [*given, *[r.data_ptr() for r in results]]
        if not self.plan.workspace and not self.has_record:
            self._run(found, stream, watch)
            return results
        with self.scratch.lock:
            found.append(self.scratch.workspace(self.plan.workspace, stream) if self.plan.workspace else 0)
            found.append(self.scratch.record(stream) if self.has_record else 0)
            self._run(found, stream, watch)
        return results

    def _run(self, found: Sequence[int], stream: int, watch: Watch | None) -> None:
        if watch is None:
            self.plan.run(found, stream)
        else:
            self.plan.watched(found, stream, watch)


class GpuCall:
    """A program for concrete sizes. What a call takes beside the addresses of its tensors is made once."""

    def __init__(self, program: GpuProgram, sizes: Mapping[str, int], scratch: Scratch) -> None:
        self.program = program
        self.sizes = dict(sizes)
        self.scratch = scratch
        self._prepared: list[Any] | None = None
        self.launch = Launched(PlanCall(program.plans[-1], sizes), program.place, scratch, bool(program.checks))

    def addresses(self, tensors: Sequence[Any]) -> list[int]:
        """Where tensors, or lists of them, lie, in the order of the graph's parameters, and what constants became."""
        if self._prepared is None:
            self._prepared = self.program.prepared(tensors, self.sizes)
        return [a for t in (*tensors, *self._prepared) for a in addresses(t)]

    def __call__(self, given: Sequence[int]) -> list[Any]:
        """The results for what `addresses` gives. Waits for them only where there are run-time checks, and raises the
        error of the first that failed."""
        if not self.launch.has_record:
            return self.launch(given)
        with self.scratch.lock:
            results = self.launch(given)
            self.require(self.scratch.record(self.program.place.stream()))
        return results

    def require(self, record: int) -> None:
        """Raise the error of the first check that failed, by what lies at an address."""
        device, stream = self.program.place.device, self.program.place.stream()
        number, count, *values = struct.unpack(f"<{RECORD_BYTES // 8}q", device.read(record, RECORD_BYTES, stream))
        if number:
            self.scratch.clear_records()
            raise self.program.checks[number].error(values[:count])

    def captured(self, given: Sequence[int]) -> tuple[Callable[[], None], list[Any]]:
        """The launches of a call as one CUDA graph: what starts it again, and the results, which it overwrites.
        The tensors are read anew in every run. A plan that waits for a number cannot be captured."""
        torch = self.program.place.torch
        self(given)  # loads what is loaded on first use
        own = GpuCall(self.program, self.sizes, Scratch(self.program.place))  # whose memory the graph alone uses
        graph, record = torch.cuda.CUDAGraph(), 0
        with torch.cuda.graph(graph):
            results = own.launch(given)
            if own.launch.has_record:
                record = own.scratch.record(self.program.place.stream())

        def start() -> None:
            graph.replay()
            if own.launch.has_record:
                own.require(record)

        return start, results


def _stream_of(torch: Any, place: Any) -> Callable[[], int]:
    """What gives the caller's stream. Triton asks the same, which takes a tenth of the time of making an object."""
    if (raw := getattr(torch._C, "_cuda_getCurrentRawStream", None)) is not None:
        return partial(raw, place.index)
    return lambda: int(torch.cuda.current_stream(place).cuda_stream)

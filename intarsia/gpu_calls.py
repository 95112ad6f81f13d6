"""Calls of a function on a GPU: with tensors that lie there, on the caller's stream, without copies or waiting.

What lies elsewhere (NumPy's arrays, numbers) is moved to the GPU first, with a warning for arrays that are no scalars.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intarsia.backends.gpu.torch_types import torch_type
from intarsia.cache import cache_directory
from intarsia.deep_stack import with_deep_stack
from intarsia.ir.dtypes import DType, of_numpy
from intarsia.ir.errors import CompileError
from intarsia.runtime.cuda import CudaDevice, require_torch
from intarsia.runtime.gpu import Device, DevicePlan, addresses
from intarsia.tensors import Tensors, kind_of

if TYPE_CHECKING:
    from intarsia.driver import Compilation
    from intarsia.function import Function


class GpuProgram:
    """A compilation on a device: from tensors of PyTorch to tensors of PyTorch.

    place: where results are made, as PyTorch takes it. stream: gives the stream of the caller. Scratch memory is kept
    for each stream, on which calls come one after the other.
    """

    def __init__(
        self, compilation: Compilation, device: Device, torch: Any, place: object, stream: Callable[[], int]
    ) -> None:
        self.torch = torch
        self.place = place
        self.stream = stream
        self.sizes = compilation.sizes
        plans = compilation.plan.whole
        self.plans = [DevicePlan(p, compilation.launches, device) for p in plans]
        self.preparation = compilation.plan.preparation
        self.labels = [p.label for p in compilation.source_module.graph.parameters]
        self.prepared: list[Any] | None = None
        self._workspaces: dict[tuple[int, int], Any] = {}

    def __call__(self, tensors: Sequence[Any]) -> list[Any]:
        """The results for tensors, or lists of them, in the order of the graph's parameters."""
        if self.preparation is not None:
            if self.prepared is None:  # constants are bound: what is made of them stays
                self.prepared = self._run(0, [tensors[n] for n in self.preparation.inputs])
            tensors = [*tensors, *self.prepared]
        return self._run(len(self.plans) - 1, tensors)

    def captured(self, tensors: Sequence[Any]) -> tuple[Callable[[], None], list[Any]]:
        """The launches of a call as one CUDA graph: what starts it again, and the results, which it overwrites.
        The tensors are read anew in every run. A plan that waits for a number cannot be captured."""
        self(tensors)  # loads what is loaded on first use
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            results = self(tensors)
        return graph.replay, results

    def _run(self, number: int, tensors: Sequence[Any]) -> list[Any]:
        plan = self.plans[number]
        sizes = {name: self.sizes[name] for name in plan.plan.sizes}
        results = [self._empty(plan.shape(s, sizes), s.dtype) for s in plan.outputs]
        stream = self.stream()
        workspace = self._workspace(number, plan.workspace(sizes), stream)
        plan.run([*map(addresses, tensors)], [r.data_ptr() for r in results], workspace, sizes, stream)
        return results

    def _empty(self, shape: tuple[int, ...], dtype: DType) -> Any:
        kind = getattr(self.torch, torch_type(dtype).removeprefix("torch."))
        return self.torch.empty(shape, dtype=kind, device=self.place)

    def _workspace(self, number: int, size: int, stream: int) -> int:
        if not size:
            return 0
        key = (number, stream)
        if key not in self._workspaces:
            self._workspaces[key] = self.torch.empty(size, dtype=self.torch.uint8, device=self.place)
        return int(self._workspaces[key].data_ptr())


class GpuCalls:
    """What a function keeps for its calls on one GPU."""

    def __init__(
        self, function: Function, torch: Any, place: object, make: Callable[[Compilation], GpuProgram]
    ) -> None:
        self.function = function
        self.torch = torch
        self.place = place
        self.make = make
        self._programs: dict[object, GpuProgram] = {}
        self._repeated: dict[object, GpuProgram] = {}
        self._bound: dict[int, tuple[object, Any]] = {}

    @staticmethod
    def of(function: Function) -> GpuCalls:
        """For the current GPU. Raises CompileError E1703 or E1716 where there is none."""
        torch = require_torch()
        number = torch.cuda.current_device()
        device = CudaDevice(number, function.program.options.resolve_target(), cache_directory() / "triton")
        place = torch.device("cuda", number)

        def stream() -> int:
            return int(torch.cuda.current_stream(place).cuda_stream)

        return GpuCalls(function, torch, place, lambda c: GpuProgram(c, device, torch, place, stream))

    def __call__(self, positional: Sequence[object], named: Mapping[str, object]) -> Any:
        """Run; results are tensors of PyTorch, or arrays where no argument is a tensor."""
        types = [(type(v), getattr(v, "dtype", None), getattr(v, "shape", None)) for v in positional]
        kinds = None if named or self.function.bound else tuple(types)
        ready = kinds is not None and all(self._is_ready(t) for t in positional)
        if ready and (known := self._repeated.get(kinds)) is not None:
            results = known(positional)
            return results[0] if len(results) == 1 else tuple(results)
        program, tensors, foreign = self.program_for(positional, named)
        if ready and len(tensors) == len(positional):  # parameters are in the order of the signature
            self._repeated[kinds] = program
        results = program(tensors)
        if not foreign:
            results = [as_array(r) for r in results]
        return results[0] if len(results) == 1 else tuple(results)

    def _is_ready(self, value: Any) -> bool:
        """Is it a tensor that kernels can take as it is?"""
        if not isinstance(value, self.torch.Tensor):
            return False
        return bool(value.device == self.place and value.is_contiguous() and value.data_ptr() % 16 == 0)

    def repeated(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int], *, graph: bool
    ) -> Callable[[], list[Any]]:
        """A callable that runs on arguments which are on the GPU when this returns, and waits until it is done. Its
        results lie there too. `graph`: all launches are one CUDA graph, and every run gives the same tensors."""
        program = self._compiled(tensors, statics, dims, ())
        placed = [self._placed(tensors[label]) for label in program.labels]
        start, results = program.captured(placed) if graph else (None, [])

        def run() -> list[Any]:
            found = results
            if start is None:
                found = program(placed)
            else:
                start()
            self.synchronize()
            return found

        return run

    def _placed(self, value: Any) -> Any:
        return [self._of_array(v) for v in value] if isinstance(value, tuple) else self._of_array(value)

    def synchronize(self) -> None:
        """Wait until all that was launched is done."""
        if self.torch.device(self.place).type == "cuda":
            self.torch.cuda.synchronize(self.place)

    def program_for(
        self, positional: Sequence[object], named: Mapping[str, object]
    ) -> tuple[GpuProgram, list[Any], bool]:
        """The compiled program, its arguments on the GPU, and whether any of them was a tensor already."""
        given, dims = self.function.arrange(positional, named)
        real: dict[int, Any] = {}
        statics, tensors = self.function.split({n: self._stand_in(v, real) for n, v in given.items()})
        program = self._compiled(tensors, statics, dims, self.function.fixed(given))
        found: list[Any] = []
        for label in program.labels:
            found.append(self._moved(tensors[label], real, label))
        return program, found, bool(real)

    def _compiled(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int], constants: tuple[str, ...]
    ) -> GpuProgram:
        """The program for these types, of whose constants some will not change between calls."""
        kinds = tuple((n, *kind_of(v)) for n, v in tensors.items())
        key = (kinds, repr(sorted(statics.items())), tuple(dims.items()), constants)
        program = self._programs.get(key)
        if program is None:
            compilation = self.function.compilation(tensors, statics, dims, constants)
            program = self._programs[key] = with_deep_stack(lambda: self.make(compilation))
        return program

    def _stand_in(self, value: object, real: dict[int, Any]) -> object:
        """An array of the type of a tensor, without its elements; `real` keeps the tensor by the array's identity."""
        if isinstance(value, Mapping):
            return {n: self._stand_in(v, real) for n, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._stand_in(v, real) for v in value)
        if isinstance(value, self.torch.Tensor):
            dtype = _numpy_type(str(value.dtype))
            array = np.broadcast_to(np.zeros((), dtype), tuple(value.shape))
            real[id(array)] = (array, value)
            return array
        return value

    def _moved(self, value: Any, real: Mapping[int, Any], label: str) -> Any:
        """An argument as a tensor on the GPU, in one piece and at a multiple of 16 bytes."""
        if isinstance(value, tuple):
            return [self._moved(v, real, label) for v in value]
        if id(value) in real:
            tensor = real[id(value)][1].detach()
        elif id(value) in self._bound:
            return self._bound[id(value)][1]
        else:
            tensor = self._of_array(value)
            if label.partition(".")[0] in self.function.bound:
                self._bound[id(value)] = (value, tensor)
            elif value.ndim:
                message = f"{label} is copied to the GPU in every call: give a tensor that lies there"
                warnings.warn(message, stacklevel=5)
        if tensor.device != self.torch.device(self.place):
            message = f"{label} is on {tensor.device}, and the program runs on {self.place}"
            raise CompileError("E0604", message, hint=f"{label}.to('{self.place}')")
        tensor = tensor.contiguous()
        return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()

    def _of_array(self, array: Any) -> Any:
        element = of_numpy(array.dtype)
        assert element is not None, array.dtype
        kind = getattr(self.torch, torch_type(element).removeprefix("torch."))
        plain = np.array(array, order="C")
        codes = plain.view(np.int16 if plain.itemsize == 2 else np.uint8) if plain.dtype.kind == "V" else plain
        return self.torch.from_numpy(codes).view(kind).to(self.place)


def _numpy_type(name: str) -> np.dtype[Any]:
    """NumPy's type for one of PyTorch. Raises CompileError E0601 for one that the language lacks."""
    import ml_dtypes

    plain = name.removeprefix("torch.")
    try:
        return np.dtype(getattr(ml_dtypes, plain, plain))
    except TypeError:
        raise CompileError("E0601", f"there is no element type for {name}") from None


def as_array(tensor: Any) -> Any:
    """A tensor as an array of NumPy."""
    name = str(tensor.dtype).removeprefix("torch.")
    host = tensor.cpu()
    if name.startswith(("bfloat", "float8")):
        import torch

        return host.view(torch.int16 if name == "bfloat16" else torch.uint8).numpy().view(_numpy_type(name))
    return host.numpy()

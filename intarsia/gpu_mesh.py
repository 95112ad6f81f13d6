"""The program of one device of a mesh on the GPU of this process: launches, and exchanges between them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation, executable_of
from intarsia.gpu_calls import as_array, stand_in
from intarsia.gpu_program import GpuPlace, GpuProgram
from intarsia.ir.dtypes import Array
from intarsia.ir.spmd import other_part, piece
from intarsia.ir.text import print_module
from intarsia.mesh_calls import MeshCalls, MeshDevice, Parts, ProcessCall
from intarsia.mesh_program import Exchanges, MeshProgram, outline
from intarsia.parts import Part, Unmade
from intarsia.processes import Processes
from intarsia.tensors import Tensors, declared_types


@dataclass(frozen=True, eq=False)
class GpuMeshProgram(MeshProgram):
    """A program whose `local` says only what it takes and gives: its code are the launches of a compilation."""

    compilation: Compilation

    @staticmethod
    def compiled(compilation: Compilation) -> GpuMeshProgram:
        graph, plan = compilation.source_module.graph, compilation.plan
        local = replace(executable_of(plan, (), [p.label for p in graph.parameters]), labels=graph.labels)
        return GpuMeshProgram(local, print_module(outline(compilation.scheduled, plan)), compilation)


class GpuDeviceProgram:
    """The code of a program on a GPU. One run at a time."""

    def __init__(self, program: GpuMeshProgram, place: GpuPlace, here: Processes) -> None:
        self._exchanges = Exchanges(program.exchanges, here.bind, place.at)
        made = GpuProgram(program.compilation, place, self._exchanges)
        self._call = made.call(program.compilation.sizes)

    def __call__(self, laid: Sequence[Any]) -> list[Any]:
        """Run on this device's parts of the arguments, tensors there; gives its parts of the results. Waits for them
        only where there are run-time checks. Raises CompileError where one fails."""
        self._exchanges.begin()
        return self._call(self._call.addresses(laid))


class GpuDevice(MeshDevice):
    """A program on the GPU of this process. Of an argument that lies elsewhere this device's part is brought there."""

    def __init__(self, program: GpuMeshProgram, number: int, bound: Collection[str], constants_stay: bool) -> None:
        super().__init__(program, number, bound, constants_stay)
        self.compiled = program
        self.place = GpuPlace.current(program.compilation.target)

    def made(self, here: Processes) -> GpuDeviceProgram:
        return with_deep_stack(lambda: GpuDeviceProgram(self.compiled, self.place, here))

    def laid(self, tensors: Tensors, parts: Parts) -> list[Any]:
        """What the code takes for these arguments. It computes what is made of constants when it runs first."""
        return [self.part(n, tensors, parts) for n in range(len(self.program.inputs))]

    def cut(self, number: int, tensors: Tensors) -> Any:
        own = self.program.part(number, tensors[self.program.inputs[number].label], self.number)
        return tuple(map(self._placed, own)) if isinstance(own, tuple) else self._placed(own)

    def given(self, number: int, held: Any) -> Any:
        """A part, or this device's part of a tensor."""
        wanted, placement = self.wanted(number), self.program.placement
        if isinstance(held, Unmade):
            return self._placed(super().given(number, held))
        if isinstance(held, Part):
            layout = self.program.local.inputs[number]
            array = self._placed(held.array) if isinstance(held.array, np.ndarray) else held.array
            own = replace(held, array=array)
            kind = self.place.kind(wanted.dtype)
            return self.place.ready(own.of(placement.mesh, layout.label, wanted, layout.concrete_shape({}), kind))
        places, shape = piece(placement.mesh, tuple(held.shape), wanted.sharding, self.number)
        if (neutral := other_part(placement.mesh, wanted.sharding, self.number)) is not None:
            return self.place.ready(held.new_full(shape, neutral))
        found = held.detach()[places]
        if tuple(found.shape) != shape:
            padded = found.new_zeros(shape)
            padded[tuple(map(slice, found.shape))] = found
            found = padded
        return self.place.ready(found)

    def _placed(self, array: Array) -> Any:
        return self.place.ready(self.place.of_array(array))


class GpuProcessCall(ProcessCall):
    """With the GPU of this process; whole results are brought to the host unless tensors were given."""

    def __call__(self) -> list[Array]:
        return [as_array(r, kind.dtype) for r, kind in zip(self.whole(), self.program.results)]

    def returned(self, library: ModuleType | None) -> list[Any]:
        return self() if library is None else self.whole()


class GpuMeshCalls(MeshCalls):
    """What a function keeps for its calls on several GPUs, one of which is that of this process."""

    def stand_in(self, value: object) -> Array | None:
        torch = sys.modules.get("torch")  # before there is a tensor, it is imported
        return stand_in(value) if torch and isinstance(value, torch.Tensor) else super().stand_in(value)

    @property
    def process_call(self) -> type[ProcessCall]:
        return GpuProcessCall

    def device(self, program: MeshProgram, number: int, constants_stay: bool) -> MeshDevice:
        assert isinstance(program, GpuMeshProgram)
        return GpuDevice(program, number, self.function.bound, constants_stay)

    def compiled(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int], constants: tuple[str, ...]
    ) -> MeshProgram:
        """The program, compiled by each process for itself; Triton keeps the code of its kernels."""
        types = declared_types(self.function.form, tensors, dims, codes=True)
        compilation = self.function.compilation_of_types(types, statics, dims, constants=constants)
        return with_deep_stack(lambda: GpuMeshProgram.compiled(compilation))

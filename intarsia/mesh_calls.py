"""Calls of a function on the devices of a mesh, with whole arguments and whole results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from intarsia.arguments import flatten
from intarsia.deep_stack import with_deep_stack
from intarsia.files import Weights
from intarsia.ir.dtypes import Array
from intarsia.mesh_program import MeshProgram
from intarsia.options import require_host
from intarsia.results import in_form
from intarsia.runtime import dlpack
from intarsia.tensors import Tensors, adapted, declared_types, kind_of

if TYPE_CHECKING:
    from intarsia.function import Function
    from intarsia.mpi import MpiDevices

_KNOWN_PROGRAMS = 1024


class MeshCalls:
    """What a function keeps for its calls on a mesh."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._programs: dict[object, MeshProgram] = {}
        self._devices: MpiDevices | None = None

    def __call__(self, positional: Sequence[object], named: Mapping[str, object]) -> Any:
        """Run; results are of the arguments' kind."""
        given, dims = self.function.arrange(positional, named)
        statics, tensors = self.function.split(given)
        call, labels = self.call_for(tensors, statics, dims)
        values = (v for v in given.values() if not isinstance(v, Weights))
        library = dlpack.library_of([leaf for v in values for leaf in flatten(v).values()])
        return in_form(labels, [dlpack.to_library(r, library) for r in call()])

    def call_for(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int]
    ) -> tuple[Callable[[], list[Array]], tuple[str, ...]]:
        """What runs the program on these arguments, compiled, and the labels of its results."""
        program = self.program(tensors, statics, dims)
        arguments = adapted(program.inputs, tensors, {})
        if self.function.program.options.devices == "simulate":
            return lambda: program.simulate(arguments), program.local.labels
        about = self.function.program.source.text, str(self.function.name), repr(sorted(statics.items()))
        devices = self._mpi(program)
        return lambda: devices.run(program, arguments, *about), program.local.labels

    def _mpi(self, program: MeshProgram) -> MpiDevices:
        if self._devices is None:
            from intarsia.mpi import MpiDevices

            self._devices = MpiDevices(program.placement.mesh)
        return self._devices

    def program(self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int]) -> MeshProgram:
        """The program for the types of these arguments, from memory, the cache or the compiler.

        Raises CompileError for what is wrong with it, E1906 where devices cannot run it.
        """
        kinds = tuple((n, *kind_of(v)) for n, v in tensors.items())
        key = kinds, repr(sorted(statics.items())), tuple(dims.items())
        if key not in self._programs:
            if len(self._programs) >= _KNOWN_PROGRAMS:
                self._programs.clear()
            self._programs[key] = self._compiled(tensors, statics, dims)
        return self._programs[key]

    def _compiled(self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int]) -> MeshProgram:
        function, source = self.function, self.function.program
        require_host(source.options.resolve_target())
        types = declared_types(function.form, tensors, dims)
        code, _ = function.code_key(types, statics, dims, ())
        key = source.key("mesh", *code)
        if (data := source.recall("mesh", key)) is not None:
            return MeshProgram.from_bytes(data)
        compilation = function.compilation_of_types(types, statics, dims, constants=())

        def build() -> MeshProgram:
            made = compilation.executable(source.kernel_store)
            return MeshProgram.of(made, compilation.scheduled, compilation.plan)

        program = with_deep_stack(build)
        source.remember("mesh", key, program.to_bytes())
        return program

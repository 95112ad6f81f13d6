"""Calls of a function on the devices of a mesh: all of them in this process, or one in each of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from intarsia.arguments import flatten
from intarsia.cache import compiler_digest
from intarsia.deep_stack import with_deep_stack
from intarsia.files import Weights
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.types import ListType
from intarsia.mesh_program import Argument, DeviceProgram, MeshProgram
from intarsia.options import require_host
from intarsia.parts import Part
from intarsia.processes import Processes, digest_of, processes, world
from intarsia.results import in_form
from intarsia.runtime import dlpack
from intarsia.tensors import Tensors, adapted, declared_types, kind_of

if TYPE_CHECKING:
    from intarsia.function import Function

T = TypeVar("T")

Parts: TypeAlias = "dict[int, tuple[Array, Part]]"
"""What is here of some arguments, by the identity of the array that stands for the whole."""

_KNOWN_PROGRAMS = 1024


class MeshCalls:
    """What a function keeps for its calls on a mesh."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._programs: dict[object, MeshProgram] = {}
        self._devices: dict[MeshProgram, list[_Device]] = {}

    def __call__(self, positional: Sequence[object], named: Mapping[str, object]) -> Any:
        """Run; results are of the arguments' kind."""
        call, given = self._arranged(positional, named)
        values = (v for v in given.values() if not isinstance(v, Weights))
        library = dlpack.library_of([leaf for v in values for leaf in flatten(v).values()])
        return in_form(call.labels, [dlpack.to_library(r, library) for r in call()])

    def local(self, positional: Sequence[object], named: Mapping[str, object]) -> Any:
        """Run; results are this process's parts."""
        call, _ = self._arranged(positional, named)
        return in_form(call.labels, call.parts())

    def _arranged(
        self, positional: Sequence[object], named: Mapping[str, object]
    ) -> tuple[MeshCall, Mapping[str, object]]:
        given, dims = self.function.arrange(positional, named)
        parts: Parts = {}
        whole = {n: v if n in self.function.bound else _without_parts(v, parts) for n, v in given.items()}
        statics, tensors = self.function.split(whole)
        return self.call_for(tensors, statics, dims, self.function.fixed(given), parts), whole

    def call_for(
        self,
        tensors: Tensors,
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        constants: Collection[str] | None = None,
        parts: Parts | None = None,
    ) -> MeshCall:
        """What runs the program, compiled, on these arguments. `constants` are the parameters that will not change
        between calls, by default all that are declared so; those of a function called in Python are bound."""
        kind = self.function.program.options.devices
        is_simulated = kind is None or kind == "simulate"
        if not is_simulated:
            world(kind)  # from now on an error in one process ends all of them
        program = self.program(tensors, statics, dims, constants)
        here = None if is_simulated else processes(kind, program.placement.mesh)
        if program not in self._devices:
            numbers = range(program.placement.mesh.devices) if here is None else [here.device]
            self._devices[program] = [_Device(program, n, self.function.bound, constants is not None) for n in numbers]
        devices = self._devices[program]
        laid = {device.number: device.laid(tensors, parts or {}) for device in devices}
        if here is None:
            return SimulatedCall(program, laid)
        about = repr((self.function.program.source.text, self.function.name, sorted(statics.items()), here.mesh))
        digest = digest_of(self._version, about, ", ".join(map(str, program.inputs)), program.text)
        return ProcessCall(program, laid, here, devices[0].code(here), digest)

    @cached_property
    def _version(self) -> str:
        return compiler_digest(self.function.program.cache)

    def program(
        self,
        tensors: Tensors,
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        constants: Collection[str] | None = None,
    ) -> MeshProgram:
        """The program for the types of these arguments, from memory, the cache or the compiler.

        Raises CompileError for what is wrong with it, E1906 where devices cannot run it.
        """
        kinds = tuple((n, *kind_of(v)) for n, v in tensors.items())
        fixed = self.function.constants if constants is None else tuple(constants)
        key = kinds, repr(sorted(statics.items())), tuple(dims.items()), fixed
        if key not in self._programs:
            if len(self._programs) >= _KNOWN_PROGRAMS:
                self._programs.clear()
                self._devices.clear()
            self._programs[key] = self._compiled(tensors, statics, dims, fixed)
        return self._programs[key]

    def _compiled(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int], constants: tuple[str, ...]
    ) -> MeshProgram:
        function, source = self.function, self.function.program
        require_host(source.options.resolve_target())
        types = declared_types(function.form, tensors, dims)
        code, _ = function.code_key(types, statics, dims, constants)
        key = source.key("mesh", *code)
        if (data := source.recall("mesh", key)) is not None:
            return MeshProgram.from_bytes(data)
        compilation = function.compilation_of_types(types, statics, dims, constants=constants)

        def build() -> MeshProgram:
            made = compilation.executable(source.kernel_store)
            return MeshProgram.of(made, compilation.scheduled, compilation.plan)

        program = with_deep_stack(build)
        source.remember("mesh", key, program.to_bytes())
        return program


class MeshCall(ABC):
    """A program on the arguments of one call, for as many runs as are wanted. `laid` is what the code of each device
    takes that is in this process, by its number."""

    def __init__(self, program: MeshProgram, laid: Mapping[int, Sequence[Argument]]) -> None:
        self.program = program
        self.laid = laid

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of the results, where some are tensors of structs."""
        return self.program.local.labels

    @abstractmethod
    def __call__(self) -> list[Array]:
        """Run; gives whole results, in every process."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """Run; gives this process's parts of the results."""


class SimulatedCall(MeshCall):
    """With all devices in this process."""

    def __call__(self) -> list[Array]:
        return self.program.whole(self.program.run_all([*self.laid.values()]))

    def parts(self) -> list[Part]:
        raise CompileError("E1911", "parts are for devices that are processes", hint="such as devices='mpi'")


class ProcessCall(MeshCall):
    """With one device in this process. `digest` is what all have to agree on."""

    def __init__(
        self,
        program: MeshProgram,
        laid: Mapping[int, Sequence[Argument]],
        here: Processes,
        code: DeviceProgram,
        digest: bytes,
    ) -> None:
        super().__init__(program, laid)
        self.processes = here
        self._code = code
        self._digest = digest

    def __call__(self) -> list[Array]:
        return self.together(lambda: list(map(self.processes.whole, self._results(), self.program.results)))

    def parts(self) -> list[Part]:
        found = self.together(self._results)
        return [Part(array, str(kind)) for array, kind in zip(found, self.program.results)]

    def together(self, run: Callable[[], T]) -> T:
        """What all processes do together, when they have agreed on the program; one that fails ends all."""
        return self.processes.run(self.program, self._digest, run)

    def _results(self) -> list[Array]:
        return self._code(self.laid[self.processes.device])


class _Device:
    """A program on one device. What bound arguments come to there is kept, and what is computed from constants if
    these stay."""

    def __init__(self, program: MeshProgram, number: int, bound: Collection[str], constants_stay: bool) -> None:
        self.program = program
        self.number = number
        self._bound = bound
        self._constants_stay = constants_stay
        self._kept: dict[str, tuple[object, Argument]] = {}
        self._prepared: list[Array] | None = None
        self._code: DeviceProgram | None = None

    def code(self, here: Processes) -> DeviceProgram:
        """The code, with its collectives between processes."""
        if self._code is None:
            self._code = DeviceProgram(self.program, here.bind)
        return self._code

    def laid(self, tensors: Tensors, parts: Parts) -> list[Argument]:
        """What the code takes for these arguments."""
        own = [self._part(n, tensors, parts) for n in range(len(self.program.inputs))]
        prepared = self._prepared
        if prepared is None:
            prepared = self.program.local.prepared(own, {})
            if self._constants_stay:
                self._prepared = prepared
        return [*own, *prepared]

    def _part(self, number: int, tensors: Tensors, parts: Parts) -> Argument:
        layout = self.program.inputs[number]
        label, value = layout.label, tensors[layout.label]
        kept, same = self._kept.get(label, (None, None))
        if kept is value and same is not None:
            return same
        if isinstance(value, tuple) and value and id(value[0]) in parts:
            own: Argument = tuple(self._given(number, parts[id(v)][1]) for v in value)
        elif not isinstance(value, tuple) and id(value) in parts:
            own = self._given(number, parts[id(value)][1])
        else:
            own = self.program.part(number, adapted([layout], tensors, {})[0], self.number)
        if label.partition(".")[0] in self._bound:
            self._kept[label] = value, own
        return own

    def _given(self, number: int, part: Part) -> Array:
        """A part that was given, if it is the one that the code takes."""
        layout, kind = self.program.local.inputs[number], self.program.placement.parameters[number]
        wanted = kind.element if isinstance(kind, ListType) else kind
        return part.of(self.program.placement.mesh, layout.label, wanted, layout.concrete_shape({}))


def _without_parts(value: object, parts: Parts) -> Any:
    """An argument in which arrays without memory stand for the whole of each part, which is put into `parts`."""
    if isinstance(value, Part):
        array = value.stand_in()
        parts[id(array)] = array, value
        return array
    if isinstance(value, dict):
        return {name: _without_parts(item, parts) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_parts(item, parts) for item in value]
    return value

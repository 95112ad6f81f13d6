"""Calls of a function on the devices of a mesh: all of them in this process, or one in each of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from intarsia.arguments import flatten
from intarsia.cache import compiler_digest
from intarsia.deep_stack import with_deep_stack
from intarsia.files import Weights
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.types import TensorType
from intarsia.mesh_program import Argument, DeviceProgram, MeshProgram
from intarsia.options import require_host
from intarsia.parts import Part, Unmade
from intarsia.processes import Processes, digest_of, processes, world
from intarsia.results import in_form
from intarsia.runtime import dlpack
from intarsia.tensors import Tensors, adapted, declared_types, kind_of

if TYPE_CHECKING:
    from intarsia.driver import Compilation
    from intarsia.function import Function

T = TypeVar("T")

Parts: TypeAlias = "dict[int, tuple[Array, Any]]"
"""What is here of some arguments, a `Part`, an `Unmade` array or, for GPUs, a tensor, by the identity of the array that
stands for the whole."""

Code: TypeAlias = "Callable[[Sequence[Any]], list[Any]]"
"""Runs on what a device has of the arguments; gives what it has of the results."""

MOST_SIMULATED = 1024
"""Devices in threads of one process: the time of a collective grows with the square of their number."""

_KNOWN_PROGRAMS = 1024


class MeshCalls:
    """What a function keeps for its calls on a mesh."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self._programs: dict[object, MeshProgram] = {}
        self._devices: dict[MeshProgram, list[MeshDevice]] = {}

    def __call__(self, positional: Sequence[object], named: Mapping[str, object]) -> Any:
        """Run; results are of the arguments' kind."""
        call, given, parts = self._arranged(positional, named)
        values = (v for v in given.values() if not isinstance(v, Weights))
        leaves = [leaf for v in values for leaf in flatten(v).values()]
        held = [h.array if isinstance(h, Part) else h for _, h in parts.values()]
        return in_form(call.labels, call.returned(dlpack.library_of([*leaves, *held])))

    def local(self, positional: Sequence[object], named: Mapping[str, object]) -> Any:
        """Run; results are this process's parts."""
        call, _, _ = self._arranged(positional, named)
        return in_form(call.labels, call.parts())

    def _arranged(
        self, positional: Sequence[object], named: Mapping[str, object]
    ) -> tuple[MeshCall, Mapping[str, object], Parts]:
        given, dims = self.function.arrange(positional, named)
        parts: Parts = {}
        whole = {n: v if n in self.function.bound else self._held(v, parts) for n, v in given.items()}
        statics, tensors = self.function.split(whole)
        return self.call_for(tensors, statics, dims, self.function.fixed(given), parts), whole, parts

    def stand_in(self, value: object) -> Array | None:
        """An array of the type of the whole, without its elements, for what is not to be read as a whole."""
        return value.stand_in() if isinstance(value, Part) else None

    def _held(self, value: object, parts: Parts) -> Any:
        """An argument in which arrays stand for what is put into `parts`."""
        if (array := self.stand_in(value)) is not None:
            parts[id(array)] = array, value
            return array
        if isinstance(value, dict):
            return {name: self._held(item, parts) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._held(item, parts) for item in value]
        return value

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
        kind = self.function.options.devices
        is_simulated = kind is None or kind == "simulate"
        if is_simulated and any(isinstance(held, Part) for _, held in (parts or {}).values()):
            raise Part.without_processes()
        if not is_simulated:
            world(kind)  # from now on an error in one process ends all of them
        program = self.program(tensors, statics, dims, constants)
        if is_simulated and (count := program.placement.mesh.devices) > MOST_SIMULATED:
            message = f"{count} devices are more than the {MOST_SIMULATED} that one process simulates"
            hint = "what they send and hold needs no run: intarsia shard, or explain --about sharding"
            raise CompileError("E1906", message, hint=hint)
        here = None if is_simulated else processes(kind, program.placement.mesh)
        if program not in self._devices:
            numbers = range(program.placement.mesh.devices) if here is None else [here.device]
            self._devices[program] = [self.device(program, n, constants is not None) for n in numbers]
        devices = self._devices[program]
        laid = {device.number: device.laid(tensors, parts or {}) for device in devices}
        if here is None:
            return self.simulated_call(program, laid)
        options = self.function.program.options
        about = repr((self.function.program.source.text, self.function.name, sorted(statics.items()), options))
        types = ", ".join(map(str, program.inputs))
        # How often devices meet may hang on them; of larger arguments not all are in each process.
        single = repr([a.tobytes() for a in laid[here.device] if isinstance(a, np.ndarray) and not a.ndim])
        digest = digest_of(self._version, about, types, program.agreed, single)
        return self.process_call(program, laid, here, devices[0].code(here), digest)

    @property
    def simulated_call(self) -> type[SimulatedCall]:
        """What a call with all devices in this process is."""
        return SimulatedCall

    @property
    def process_call(self) -> type[ProcessCall]:
        """What a call with one device in this process is."""
        return CpuProcessCall

    def device(self, program: MeshProgram, number: int, constants_stay: bool) -> MeshDevice:
        """A program on a device that is in this process."""
        return MeshDevice(program, number, self.function.bound, constants_stay)

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
            self._programs[key] = self.compiled(tensors, statics, dims, fixed)
        return self._programs[key]

    def compiled(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int], constants: tuple[str, ...]
    ) -> MeshProgram:
        """The program, from the cache or the compiler."""
        function, source = self.function, self.function.program
        require_host(function.options.resolve_target())
        types = declared_types(function.form, tensors, dims)
        code, _ = function.code_key(types, statics, dims, constants)
        key = source.key("mesh", *code)
        if (data := source.recall("mesh", key)) is not None:
            return self.read(data)
        compilation = function.compilation_of_types(types, statics, dims, constants=constants)
        program = with_deep_stack(lambda: self.build(compilation))
        source.remember("mesh", key, program.to_bytes())
        return program

    def read(self, data: bytes) -> MeshProgram:
        """A program from the cache."""
        return MeshProgram.from_bytes(data)

    def build(self, compilation: Compilation) -> MeshProgram:
        """The program, compiled."""
        made = compilation.executable(self.function.program.kernel_store)
        return MeshProgram.of(made, compilation.scheduled, compilation.plan)


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

    def returned(self, library: ModuleType | None) -> list[Any]:
        """Run; gives whole results as tensors of a library, or arrays."""
        return [dlpack.to_library(r, library) for r in self()]


class SimulatedCall(MeshCall):
    """With all devices in this process."""

    def __call__(self) -> list[Array]:
        return self.program.whole(self.program.run_all([*self.laid.values()]))

    def parts(self) -> list[Part]:
        raise Part.without_processes()


class ProcessCall(MeshCall):
    """With one device in this process. `digest` is what all have to agree on."""

    def __init__(
        self,
        program: MeshProgram,
        laid: Mapping[int, Sequence[Argument]],
        here: Processes,
        code: Code,
        digest: bytes,
    ) -> None:
        super().__init__(program, laid)
        self.processes = here
        self.code = code
        self._digest = digest

    def __call__(self) -> list[Array]:
        return self.whole()

    def whole(self) -> list[Any]:
        """Run; gives whole results."""
        return self.together(lambda: self.joined(self._results()))

    def joined(self, results: Sequence[Any]) -> list[Any]:
        """The results of which each device has a part."""
        return list(map(self.processes.whole, results, self.program.results))

    def parts(self) -> list[Part]:
        found = self.together(self._results)
        return [Part(array, str(kind)) for array, kind in zip(found, self.program.results)]

    def together(self, run: Callable[[], T]) -> T:
        """What all processes do together, when they have agreed on the program; one that fails ends all."""
        return self.processes.run(self.program, self._digest, run)

    def _results(self) -> list[Any]:
        return self.code(self.laid[self.processes.device])


class CpuProcessCall(ProcessCall):
    """On a CPU: parts of results are made in their place in the whole ones, and not copied."""

    code: DeviceProgram

    def whole(self) -> list[Array]:
        def run() -> list[Array]:
            here, kinds = self.processes, self.program.results
            rooms = [here.room(kind) for kind in kinds]
            places = {n: room.place for n, room in enumerate(rooms) if room is not None}
            found = self.code(self.laid[here.device], places)
            return [here.whole(part, kind, room) for part, kind, room in zip(found, kinds, rooms)]

        return self.together(run)


class MeshDevice:
    """A program on one device. What bound arguments come to there is kept, and what is computed from constants if
    these stay."""

    def __init__(self, program: MeshProgram, number: int, bound: Collection[str], constants_stay: bool) -> None:
        self.program = program
        self.number = number
        self._bound = bound
        self._constants_stay = constants_stay
        self._kept: dict[str, tuple[object, Argument]] = {}
        self._prepared: list[Array] | None = None
        self._code: Code | None = None

    def code(self, here: Processes) -> Code:
        """The code, with its collectives between processes."""
        if self._code is None or not self._constants_stay:  # on a GPU it keeps what is computed from constants
            self._code = self.made(here)
        return self._code

    def made(self, here: Processes) -> Code:
        """The code, anew."""
        return DeviceProgram(self.program, here.bind)

    def laid(self, tensors: Tensors, parts: Parts) -> list[Argument]:
        """What the code takes for these arguments."""
        own = [self.part(n, tensors, parts) for n in range(len(self.program.inputs))]
        prepared = self._prepared
        if prepared is None:
            prepared = self.program.local.prepared(own, {})
            if self._constants_stay:
                self._prepared = prepared
        return [*own, *prepared]

    def part(self, number: int, tensors: Tensors, parts: Parts) -> Argument:
        """This device's part of an argument."""
        layout = self.program.inputs[number]
        label, value = layout.label, tensors[layout.label]
        kept, same = self._kept.get(label, (None, None))
        if kept is value and same is not None:
            return same
        if isinstance(value, tuple) and value and id(value[0]) in parts:
            own: Argument = tuple(self.given(number, parts[id(v)][1]) for v in value)
        elif not isinstance(value, tuple) and id(value) in parts:
            own = self.given(number, parts[id(value)][1])
        else:
            own = self.cut(number, tensors)
        if label.partition(".")[0] in self._bound:
            self._kept[label] = value, own
        return own

    def cut(self, number: int, tensors: Tensors) -> Argument:
        """What the device has of a whole argument."""
        layout = self.program.inputs[number]
        return self.program.part(number, adapted([layout], tensors, {})[0], self.number)

    def given(self, number: int, held: Any) -> Any:
        """A part that was given, if it is the one that the code takes, or this device's part of what is not made."""
        if isinstance(held, Unmade):
            return self.program.part(number, held, self.number)
        layout, wanted = self.program.local.inputs[number], self.wanted(number)
        mesh, shape = self.program.placement.mesh, layout.concrete_shape({})
        return np.ascontiguousarray(held.of(mesh, layout.label, wanted, shape, wanted.dtype.numpy))

    def wanted(self, number: int) -> TensorType:
        """The type of an argument, or of each of a list."""
        kind = self.program.placement.parameters[number]
        found = kind.tensor
        assert isinstance(found, TensorType)
        return found

"""Compiled code of a training step as a pipeline: what each of its devices runs, on threads of this process or as one
of several processes."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from intarsia.collectives import Memory, Transfer
from intarsia.executable import Executable, TensorLayout
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Graph, Module, Node, Region
from intarsia.ir.ops.collective import AllSlice, Collective, DeviceIndex
from intarsia.ir.sharding import Mesh
from intarsia.ir.sizes import ZERO
from intarsia.ir.spmd import Devices, Here, Placement, alone, part, whole
from intarsia.ir.text import print_module
from intarsia.ir.text_parts import read_type
from intarsia.ir.types import ListType, TensorType
from intarsia.mesh_program import Argument, Bind, DeviceProgram, MeshProgram, bind_by
from intarsia.parts import Unmade
from intarsia.passes.stages.cut import without_microbatches
from intarsia.passes.stages.program import AXIS, PipelineProgram
from intarsia.passes.stages.running import Link, Piece, Script, StageDevice, Watch
from intarsia.passes.stages.schedules import SCHEDULES

_HEAD = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class StagedProgram(MeshProgram):
    """A pipeline whose `local` says only what a device takes and gives: its code is that of the pieces of the script.

    Of a parameter of data a device takes a part for each micro-batch, and nothing of one that it does not read.
    """

    script: Script
    codes: tuple[MeshProgram, ...]

    @staticmethod
    def compiled(program: PipelineProgram, compile_: Callable[[Module], MeshProgram]) -> StagedProgram:
        script, fragments = Script.of(program)
        module = program.cut.module
        inputs = tuple(_layout(p.label, p.type) for p in module.graph.parameters)
        outputs = tuple(_layout("", v.type) for v in module.graph.results)
        local = Executable("", (), inputs, outputs, (), ZERO, labels=module.graph.labels)
        header = Module(Graph("pipeline", Region((), (), ())), header=module.header)
        return StagedProgram(local, print_module(header), script, tuple(compile_(f.module) for f in fragments))

    def to_bytes(self) -> bytes:
        """The form in the cache: the text, the script, what it takes and gives, and the codes, each after its
        length."""
        parts = [self.text.encode(), _script_text(self.script).encode(), self.local.to_bytes()]
        parts += [code.to_bytes() for code in self.codes]
        return b"".join(_HEAD.pack(len(part)) + part for part in parts)

    @staticmethod
    def from_bytes(data: bytes) -> StagedProgram:
        parts: list[bytes] = []
        start = 0
        while start < len(data):
            (length,) = _HEAD.unpack_from(data, start)
            start += _HEAD.size + length
            parts.append(data[start - length : start])
        text, script, local, *codes = parts
        made = tuple(map(MeshProgram.from_bytes, codes))
        return StagedProgram(Executable.from_bytes(local), text.decode(), _read_script(script), made)

    @property
    def agreed(self) -> str:
        return "\n".join((self.text, _script_text(self.script), *(code.text for code in self.codes)))

    @cached_property
    def micro(self) -> Placement:
        """How parameters lie on micro-batches and the devices of a stage."""
        return Placement.of(self._outline)

    @cached_property
    def placement(self) -> Placement:
        """How they lie on all devices, each of which has those of its stage."""
        mesh = Mesh(((AXIS, self.script.schedule.devices), *self.micro.mesh.axes[1:]))
        parameters = tuple(map(without_microbatches, self.micro.parameters))
        return Placement(mesh, parameters, self.micro.results)

    @property
    def collectives(self) -> tuple[Collective, ...]:
        return tuple(node for code in self.codes for node in code.collectives)

    def part(self, number: int, value: Argument | Unmade, device: int) -> Argument:
        """What a device has of argument `number`; of data, for each micro-batch."""
        if number not in self.script.data:
            return super().part(number, value, device)
        assert not isinstance(value, tuple)
        sharding = self.micro.parameters[number].sharding
        numbers = (self.micro_device(device, m) for m in range(self.script.schedule.microbatches))
        return tuple(part(self.micro.mesh, value, sharding, n) for n in numbers)

    def reads(self, device: int) -> frozenset[int]:
        """The parameters that a device takes: those that it needs, and numbers, which all processes compare."""
        numbers = (n for n, type_ in enumerate(self.local.inputs) if not type_.shape and type_.length is None)
        return self.script.reads(device) | frozenset(numbers)

    def parts(self, arguments: Sequence[Argument], device: int) -> list[Argument]:
        reads = self.reads(device)
        return [self.part(n, value, device) if n in reads else () for n, value in enumerate(arguments)]

    def micro_device(self, device: int, microbatch: int) -> int:
        """The number of a device on the mesh of micro-batches and devices of a stage, while it works on one."""
        return microbatch * self.script.devices + device % self.script.devices

    def watch_all(self, laid: Sequence[Sequence[Argument]]) -> list[tuple[list[Array], Watch]]:
        """Run all devices in threads of this process; gives what each has of the results, and what it did when.

        Raises CompileError where a run-time check fails on a device, which ends all of them.
        """

        def run(number: int, here: Here) -> tuple[list[Array], Watch]:
            device = StagedDevice(self, number, bind_by(here), here)
            return device(laid[number]), device.watch

        for code in self.codes:
            _ = code.local.native
        return Devices(self.placement.mesh).run(run)

    def run_all(self, laid: Sequence[Sequence[Argument]], devices: Devices | None = None) -> list[list[Array]]:
        return [results for results, _ in self.watch_all(laid)]

    def whole(self, results: Sequence[Sequence[Array]]) -> list[Array]:
        """The results of the program for those of each device."""
        mesh, each = self.placement.mesh, self.script.devices
        inner = Mesh(mesh.axes[1:])
        return [
            whole(inner, [own[n] for own in results[owner * each : (owner + 1) * each]], type_)
            for n, ((_, owner), type_) in enumerate(zip(self.script.results, self.results))
        ]


class StagedDevice:
    """One device of a pipeline: the code of its pieces, and what carries values to the others. One run at a time.

    watch: what the last run did when.
    """

    def __init__(self, program: StagedProgram, number: int, bind: Bind, link: Link) -> None:
        self.program = program
        self.number = number
        self.watch = Watch()
        self._outer = bind
        self.link = link
        self._microbatch = 0
        codes = {piece.code for piece in program.script.pieces(number)}
        self._codes = {n: DeviceProgram(program.codes[n], self._bind) for n in codes}

    def __call__(self, laid: Sequence[Argument]) -> list[Any]:
        """Run on what `StagedProgram.parts` gives; gives this device's parts of the results, None for those that
        devices of other stages have."""
        device = StageDevice(self.program.script, self.number, laid, self._call, self.link)
        made = device.step()
        self.watch = device.watch
        return [made.get(value) for value, _ in self.program.script.results]

    def _call(self, piece: Piece, arrays: Sequence[Array], microbatch: int) -> Sequence[Array]:
        self._microbatch = microbatch
        return self._codes[piece.code](arrays)

    def _bind(self, node: Node, given: Memory, taken: Memory) -> Transfer:
        """Which micro-batch it is, and the part of it, is known here; else the devices of the stage meet."""
        if not isinstance(node, DeviceIndex | AllSlice):
            return self._outer(node, given, taken)

        def fill() -> None:
            number = self.program.micro_device(self.number, self._microbatch)
            taken[...] = alone(self.program.micro.mesh, node, number, given)

        return Transfer.at_once(fill)


def _layout(label: str, kind: Any) -> TensorLayout:
    element: TensorType = kind.tensor
    return TensorLayout(label, element.dtype, element.shape, kind.length if isinstance(kind, ListType) else None)


def _script_text(script: Script) -> str:
    """The script as JSON; mappings as lists of pairs."""
    own: dict[str, Any] = {f.name: getattr(script, f.name) for f in dataclasses.fields(script)}
    own["schedule"] = [script.schedule.name, *dataclasses.astuple(script.schedule)]
    own["data"] = sorted(script.data)
    own["types"] = [(n, str(type_)) for n, type_ in script.types.items()]
    own["sent"] = [*script.sent.items()]
    own["actions"] = [*script.actions.items()]
    return json.dumps(own, default=dataclasses.astuple)


def _read_script(data: bytes) -> Script:
    def fixed(value: Any) -> Any:
        return tuple(map(fixed, value)) if isinstance(value, list) else value

    own = {name: fixed(value) for name, value in json.loads(data).items()}
    kind, *sizes = own["schedule"]
    own["schedule"] = SCHEDULES[kind](*sizes)
    own["data"] = frozenset(own["data"])
    own["actions"] = {place: Piece(*piece) for place, piece in own["actions"]}
    own["sent"] = dict(own["sent"])
    own["shared"] = tuple((Piece(*piece), owner, readers) for piece, owner, readers in own["shared"])
    own["last"] = tuple(Piece(*piece) for piece in own["last"])
    own["types"] = {n: read_type(Source("type", text)) for n, text in own["types"]}
    return Script(**own)

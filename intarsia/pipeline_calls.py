"""Calls of a training step as a pipeline: stages on devices in this process, or in several."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from intarsia.driver import Compilation
from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.ir.spmd import mesh_of
from intarsia.mesh_calls import MeshCalls, MeshDevice, Parts, ProcessCall, SimulatedCall
from intarsia.mesh_program import Argument, MeshProgram
from intarsia.options import Options
from intarsia.parts import Part
from intarsia.passes.pipeline import Pipeline
from intarsia.passes.shard.presets import presets_of
from intarsia.passes.stages.cut import cut_in_stages, with_microbatches
from intarsia.passes.stages.program import AXIS, PipelineProgram
from intarsia.passes.stages.running import Watch
from intarsia.passes.stages.schedules import SCHEDULES, Interleaved, Schedule
from intarsia.processes import Letters, Processes
from intarsia.staged_program import StagedDevice, StagedProgram
from intarsia.tensors import Tensors


def schedule_of(options: Options) -> Schedule:
    """The schedule that is wanted. Raises CompileError E1913 where there is none."""
    name, stages, chunks = str(options.pipeline), options.stages, options.chunks
    if name not in SCHEDULES:
        raise CompileError("E1913", f"there is no schedule '{name}'", hint=", ".join(SCHEDULES))
    try:
        if name != Interleaved.name:
            return SCHEDULES[name](stages, options.microbatches)
        if stages % chunks:
            raise ValueError(f"{stages} stages are not {chunks} for each device")
        return Interleaved(stages // chunks, options.microbatches, chunks)
    except ValueError as error:
        raise CompileError("E1913", str(error)) from None


def pipeline_of(compilation: Compilation, cluster: Cluster) -> PipelineProgram:
    """A training step as the pipeline that its options want; its mesh, if it has one, is that of the devices which
    work on a stage together.

    Raises CompileError E1901, E1910 and E1913.
    """
    options, context = compilation.options, compilation.context
    schedule = schedule_of(options)
    simple = Pipeline.parse("canonicalize,cse,dce")
    passes = simple if options.preset is None else Pipeline(presets_of(options.preset))
    module = passes.run(compilation.graph, context)
    if (inner := mesh_of(module)) is not None and AXIS in inner.sizes:
        raise CompileError("E1901", f"the axis '{AXIS}' is that of a pipeline", hint="give it another name")
    micro = with_microbatches(module, schedule.microbatches, context)
    return PipelineProgram(cut_in_stages(micro, schedule.stages, cluster), schedule)


class PipelineCalls(MeshCalls):
    """What a function keeps for its calls as a pipeline."""

    def read(self, data: bytes) -> StagedProgram:
        return StagedProgram.from_bytes(data)

    def build(self, compilation: Compilation) -> StagedProgram:
        """Each stage's parts are compiled as programs of one device of several, which they are."""
        options, store = compilation.options, self.function.program.kernel_store
        if options.sharding == "strict" or options.collectives != "gather":
            raise CompileError("E1906", "stages of a pipeline are not split with sharding strict, nor with rings")
        own = replace(options, pipeline=None, mesh=None, preset=None, devices="simulate")

        def compiled(module: Module) -> MeshProgram:
            part = Compilation(module, {}, own, measured=compilation.measured)
            return MeshProgram.of(part.executable(store), part.scheduled, part.plan)

        return StagedProgram.compiled(pipeline_of(compilation, Cluster.read(options.cluster)), compiled)

    def device(self, program: MeshProgram, number: int, constants_stay: bool) -> MeshDevice:
        assert isinstance(program, StagedProgram)
        return PipelineDevice(program, number, self.function.bound, constants_stay)

    @property
    def simulated_call(self) -> type[SimulatedCall]:
        return SimulatedPipeline

    @property
    def process_call(self) -> type[ProcessCall]:
        return PipelineProcess


class PipelineDevice(MeshDevice):
    """A pipeline on one device, which takes what its stages read."""

    program: StagedProgram

    def made(self, here: Processes) -> StagedDevice:
        return StagedDevice(self.program, self.number, here.bind, Letters(here.world))

    def laid(self, tensors: Tensors, parts: Parts) -> list[Argument]:
        reads = self.program.reads(self.number)
        return [self.part(n, tensors, parts) if n in reads else () for n in range(len(self.program.inputs))]

    def given(self, number: int, held: Any) -> Any:
        if number in self.program.script.data and isinstance(held, Part):
            label = self.program.inputs[number].label
            raise CompileError("E1911", f"{label} is data, of which a pipeline takes the whole", hint="give the array")
        return super().given(number, held)


class SimulatedPipeline(SimulatedCall):
    """With all devices in this process."""

    program: StagedProgram

    def watch(self) -> list[Watch]:
        """Run; gives what each device did when."""
        return [watch for _, watch in self.program.watch_all([*self.laid.values()])]


class PipelineProcess(ProcessCall):
    """With one device in this process."""

    program: StagedProgram
    code: StagedDevice

    def joined(self, results: Sequence[Any]) -> list[Any]:
        """Whole results: the devices of a stage join what they have, and send it to all others."""
        script, here, link = self.program.script, self.processes, self.code.link
        own, found = here.device // script.devices, []
        for n, ((_, owner), type_, result) in enumerate(zip(script.results, self.program.results, results)):
            if owner == own:
                result = here.whole(result, type_)
                for other in range(script.schedule.devices):
                    if other != own:
                        link.send(result, script.device(other, here.device), n)
            else:
                result = link.receive(type_, script.device(owner, here.device), n)
            found.append(result)
        link.finish()
        return found

    def watch(self) -> list[Watch]:
        """Run; gives what each device did when, in each process."""
        self.together(self._results)
        own = self.code.watch
        times = [seconds for span in own.times for seconds in span]
        form = struct.Struct(f"<d{len(times)}dqqq")  # as many on all devices
        every = self.processes.world.share(form.pack(own.end, *times, own.live, own.held, own.sent))
        found: list[Watch] = []
        for data in every:
            end, *spans, live, held, sent = form.unpack(data)
            found.append(Watch(0.0, [*zip(spans[::2], spans[1::2])], end, live, held, sent))
        return found

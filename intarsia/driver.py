"""Strings the stages together: a module from `dsl` becomes fused, lowered, scheduled, planned and compiled.

A `Compilation` holds one program with concrete sizes (but for those that `--dynamic` keeps) and makes each stage when
it is asked for, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from intarsia.costmodel.predictor import predict
from intarsia.effort import effort_of
from intarsia.executable import CheckText, Executable, TensorLayout
from intarsia.ir.conditions import Condition
from intarsia.ir.errors import CompileError, Remarks, ScheduleError
from intarsia.ir.graph import Module
from intarsia.ir.mapping import Mapper
from intarsia.ir.plan import Plan, Repeat
from intarsia.ir.plan_text import print_plan
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import is_partitioned, mesh_of
from intarsia.ir.target import Target
from intarsia.ir.text import print_module
from intarsia.options import Options as Options
from intarsia.options import resolve_target as resolve_target
from intarsia.passes.collectives import DeepHalos, Overlap, ScatterRows
from intarsia.passes.exchange import Exchange
from intarsia.passes.lower.checks import check_messages
from intarsia.passes.pipeline import Context, Instrument, Pass, Pipeline, default_pipeline
from intarsia.passes.plan_memory import plan
from intarsia.passes.shard import (
    GatherAgain,
    Partition,
    Preset,
    PropagateSharding,
    Reshard,
    Rings,
    SplitScans,
    WholeUpdates,
)
from intarsia.passes.shard.meshes import check_shardings, with_mesh
from intarsia.passes.shard.presets import presets_of
from intarsia.passes.specialize import Specialize
from intarsia.tuning.known import known_schedules
from intarsia.workers import map_in_workers

if TYPE_CHECKING:
    from intarsia.backends.cpu.compile import Compiled
    from intarsia.backends.cpu.library import Interface
    from intarsia.backends.cpu.pieces import ObjectStore
    from intarsia.backends.gpu.toolchain import CompiledKernel
    from intarsia.backends.gpu.triton_kernel import TritonKernel
    from intarsia.ir.kernel import Kernel
    from intarsia.ir.plan_interpreter import Memory

SHARDED_STAGES = ("sharded", "partitioned")
"""Further stages of a program for several devices, after `graph`."""

MODULE_STAGES = ("graph", *SHARDED_STAGES, "fused", "kernels", "scheduled")
"""The stages that are modules: their text is valid input of `intarsia opt`."""

STAGES = (*MODULE_STAGES, "plan", "llvm", "llvm-opt", "asm")
"""The stages that have a text, in order, for a CPU."""

CHIP_STAGES = ("ttir", "ttgir", "llvm", "ptx", "sass")
"""The stages of a GPU that Triton and its tools make."""

GPU_STAGES = (*MODULE_STAGES, "plan", "triton", *CHIP_STAGES)
"""The stages for a GPU."""

MESH_HINT = "declare a mesh, mesh pod(data=2), or give --mesh data=2, and leave out --devices one"

ONE_DEVICE = "or drop the mesh: --devices one"

LONG = 10_000_000
"""Nanoseconds of a program that a user may want to interrupt."""

BRIEF = 10_000
"""Nanoseconds that other Python threads can be made to wait."""


@dataclass
class Compilation:
    """One program on its way to machine code. Every stage is a property, made on first use.

    conditions: what must hold of sizes that stay open. seconds: how long each stage took that was made, without those
    before it. remarks: the decisions of the passes. measured: the schedules to take, by kernel; None: those that tuning
    found.
    """

    source_module: Module
    sizes: Mapping[str, int]
    options: Options
    conditions: tuple[Condition, ...] = ()
    instruments: Sequence[Instrument] = ()
    remarks: Remarks = field(default_factory=Remarks)
    seconds: dict[str, float] = field(default_factory=dict)
    measured: Callable[[Kernel], str | None] | None = None

    @cached_property
    def target(self) -> Target:
        return self.options.resolve_target()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have a text for the target, in order."""
        if self.options.pipeline is not None:  # after it there are several programs
            return ("graph",)
        every = STAGES if self.target.kind == "cpu" else GPU_STAGES
        return tuple(s for s in every if s not in SHARDED_STAGES or self.options.devices is not None)

    @cached_property
    def context(self) -> Context:
        target = self.target
        return Context(
            target=target,
            remarks=self.remarks,
            dynamic=frozenset(self.options.dynamic),
            checks=self.options.checks,
            unordered=self.options.unordered,
            pinned_schedule=self.options.schedule,
            predict=partial(predict, target=target),
            predict_alone=partial(predict, target=replace(target, cores=1)),
            measured=self.measured or known_schedules(target),
            writable=partial(writable, dimensions=self.source_module.graph.dimensions),
            each=map_in_workers,
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """Specialise first, then make the program of one of several devices, then the chosen passes. What reorders is
        last before `lower`, for the order is that of execution from there on."""
        sizes = {n: v for n, v in self.sizes.items() if n not in self.options.dynamic}
        if self.options.passes is None:
            specialize, *own = default_pipeline(sizes, self.options.memory_budget).passes
        else:
            specialize, own = Specialize(tuple(sizes.items())), [*Pipeline.parse(self.options.passes).passes]
        names = [p.name for p in own]
        end = names.index("lower") if "lower" in names else len(own)
        own[end:end] = [p for p in self._device_passes if isinstance(p, Overlap)]
        return Pipeline((specialize, *self._laying, *self._parting, *own))

    @cached_property
    def _laying(self) -> tuple[Pass, ...]:
        """The passes that lay out tensors on the devices of a mesh, where the program is not that of one already."""
        own = self.options
        if own.devices is None or own.pipeline is not None or is_partitioned(self.source_module):
            return ()
        return (*laying_passes(own), *(p for p in self._device_passes if isinstance(p, ScatterRows)))

    @cached_property
    def _parting(self) -> tuple[Pass, ...]:
        """The passes that make the program of one of several devices, and better what it sends."""
        own = parting_passes(self.options) if self._laying else ()
        return (*own, *(p for p in self._device_passes if not isinstance(p, Overlap | ScatterRows)))

    @cached_property
    def _device_passes(self) -> tuple[Pass, ...]:
        return Pipeline.parse(self.options.device_passes or "").passes if self.options.devices is not None else ()

    @cached_property
    def graph(self) -> Module:
        """The program as written, dimensions as numbers."""
        return self._passes("graph", on_mesh(self.source_module, self.options), self.pipeline.first(1))

    @cached_property
    def sharded(self) -> Module:
        """Where the elements of every tensor of the program live; without devices the program as it was."""
        return self._passes("sharded", self.graph, Pipeline(self._laying)) if self._laying else self.graph

    @cached_property
    def partitioned(self) -> Module:
        """The program of one device; without devices the program as it was."""
        return self._passes("partitioned", self.sharded, Pipeline(self._parting)) if self._parting else self.sharded

    @cached_property
    def fused(self) -> Module:
        """After the passes on the graph."""
        done = 1 + len(self._laying) + len(self._parting)
        return self._passes("fused", self.partitioned, self._between(done, "lower"))

    @cached_property
    def kernels(self) -> Module:
        """One naive kernel for each group."""
        done = len(self.pipeline.before("lower").passes)
        return self._passes("kernels", self.fused, self._between(done, "schedule"))

    @cached_property
    def scheduled(self) -> Module:
        """The kernels tiled, vectorised and parallel. Raises CompileError E1602 where a pinned step does not fit."""
        done = len(self.pipeline.before("schedule").passes)
        return self._passes("scheduled", self.kernels, Pipeline(self.pipeline.passes[done:]))

    @cached_property
    def schedules(self) -> dict[str, str]:
        """The schedule of each kernel, as text."""
        kernels = self.scheduled.kernels
        return {k.name: str(self.context.schedules[k.name]) for k in kernels if k.name in self.context.schedules}

    @cached_property
    def plan(self) -> Plan:
        """Calls, loops and copies over buffers with offsets."""
        module = self.scheduled
        if all(p.name != "lower" for p in self.pipeline.passes):
            raise CompileError("E1405", f"the pipeline {self.pipeline} makes no kernels", hint="end it with lower")
        with self._timed("plan"):
            return plan(module, self.remarks, self.target.kind, self._donated)

    @property
    def _donated(self) -> tuple[str, ...]:
        return self.options.donated if self.target.kind == "cpu" and self.options.devices is None else ()

    @cached_property
    def launches(self) -> dict[str, tuple[TritonKernel, ...]]:
        """What each kernel is on a GPU, by its name."""
        from intarsia.gpu_launches import launches_of_plan

        return launches_of_plan(self.plan)

    @cached_property
    def chip_code(self) -> dict[str, tuple[CompiledKernel, ...]]:
        """The launches of each kernel compiled ahead of time. Raises CompileError E1704 where Triton is missing."""
        from intarsia.backends.gpu.toolchain import compile_kernels
        from intarsia.cache import cache_directory

        launches = self.launches
        every = list(dict.fromkeys(launch for found in launches.values() for launch in found))
        with self._timed("triton"):
            made = compile_kernels(every, self.target, cache_directory() / "triton", each=map_in_workers)
        code = dict(zip(every, made))
        return {name: tuple(code[launch] for launch in found) for name, found in launches.items()}

    @cached_property
    def counted_code(self) -> dict[str, tuple[CompiledKernel, ...]]:
        """The same, disassembled and counted."""
        from intarsia.backends.gpu.toolchain import counted

        every = list(dict.fromkeys(code for found in self.chip_code.values() for code in found))
        with self._timed("sass"):
            known = dict(zip(every, map_in_workers(counted, every)))
        return {name: tuple(known[code] for code in found) for name, found in self.chip_code.items()}

    def interpret_launches(self, kernel: Kernel, arrays: Mapping[str, Memory], sizes: Mapping[str, int]) -> None:
        """Run a kernel for a GPU in Triton's interpreter, on NumPy arrays. Raises CheckFailed as the kernel would."""
        from intarsia.gpu_launches import interpret

        interpret(self.launches[kernel.name], arrays, sizes)

    @cached_property
    def code(self) -> Compiled:
        """LLVM IR, and object code when it is asked for."""
        from intarsia.backends.cpu.compile import compile_plan

        plan = self.plan
        with self._timed("llvm"):
            return compile_plan(plan, self.target)

    @cached_property
    def _code_with_lines(self) -> Compiled:
        from intarsia.backends.cpu.compile import compile_plan

        return compile_plan(self.plan, self.target, debug_info=True)

    def executable(self, store: ObjectStore | None = None) -> Executable:
        """The compiled program, ready to call or to keep. Kernels that `store` has are not compiled again."""
        plan, graph = self.plan, self.source_module.graph
        with self._timed("code"):
            labels = [p.label for p in graph.parameters]
            made = executable_for(plan, self.target, labels, store, map_in_workers)
            return replace(made, labels=graph.labels)

    def text(self, stage: str, debug_info: bool = False) -> str:
        """The text of one of `STAGES`."""
        if stage not in self.stages:
            hint = f"its stages: {', '.join(self.stages)}"
            if stage in SHARDED_STAGES:
                hint = f"it is one of programs for several devices: {MESH_HINT}"
            elif self.target.kind == "cpu" and stage in GPU_STAGES:
                hint = "give a GPU, such as --target gpu:sm_90; none has to be there"
            raise CompileError("E1702", f"there is no stage {stage} for {self.target.name}", hint=hint)
        if stage in MODULE_STAGES:
            return print_module(getattr(self, stage), debug_info)
        if stage == "plan":
            return print_plan(self.plan)
        if stage == "triton":
            from intarsia.backends.gpu.program_file import program_text

            checks = {number: check.summary for number, check in checks_of(self.plan).items()}
            return program_text(self.plan, self.partitioned.graph, self.launches, self.sizes, checks)
        if self.target.kind == "gpu":
            found = self.counted_code if stage == "sass" else self.chip_code
            return _chip_text(stage, [code for codes in found.values() for code in codes])
        return (self._code_with_lines if debug_info else self.code).text(stage)

    def _between(self, done: int, name: str) -> Pipeline:
        return Pipeline(self.pipeline.before(name).passes[done:])

    def _passes(self, stage: str, module: Module, pipeline: Pipeline) -> Module:
        try:
            with self._timed(stage):
                return pipeline.run(module, self.context, self.instruments)
        except ScheduleError as error:
            raise CompileError("E1602", str(error), hint="the kernels before it: emit --to kernels") from None

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def laying_passes(options: Options) -> tuple[Pass, ...]:
    """The passes that lay out tensors on the devices of a mesh."""
    presets = presets_of(options.preset) if options.preset is not None else ()
    return (*presets, WholeUpdates(), PropagateSharding(options.sharding == "strict"), SplitScans(), Reshard())


def parting_passes(options: Options) -> tuple[Pass, ...]:
    """The passes that make the program of a device, and better what it sends, by a model of the cluster."""
    presets = presets_of(options.preset) if options.preset is not None else ()
    again = (GatherAgain(p.axis) for p in presets if isinstance(p, Preset) and p.plan == "zero3")
    rings = () if options.collectives == "gather" else (Exchange(), Rings(options.collectives, options.cluster))
    named = Pipeline.parse(options.device_passes or "").passes
    halos = () if any(isinstance(p, DeepHalos) for p in named) else (DeepHalos(cluster=options.cluster),)
    return (Partition(), *again, *rings, *halos)


def on_mesh(module: Module, options: Options) -> Module:
    """The program with the mesh of the options. Raises CompileError E1901 where it has none but is for devices, or one
    that its types do not fit, E1906 where these cannot run it."""
    if options.mesh is not None:
        try:
            module = with_mesh(module, Mesh.parse(options.mesh))
        except ValueError as error:
            raise CompileError("E1901", str(error), hint="a mesh is data=2,model=4") from None
    mesh = mesh_of(module)
    if mesh is not None:
        check_shardings(module, mesh)
    if options.devices is not None:
        if mesh is None and options.pipeline is None:
            hint = "declare a mesh, mesh pod(data=2), or give --mesh data=2"
            message = f"devices '{options.devices}' are those of a mesh, and the program has none"
            raise CompileError("E1901", message, hint=hint)
        if options.dynamic:
            message = f"a program for several devices needs a number for {', '.join(options.dynamic)}"
            raise CompileError("E1906", message, hint=f"leave out --dynamic, {ONE_DEVICE}")
        if options.pipeline is not None and options.devices == "nccl":
            raise CompileError("E1906", "pipelines run on CPUs", hint="see --devices mpi")
        if ((target := options.resolve_target()).kind == "gpu") != (options.devices == "nccl"):
            message = f"devices '{options.devices}' do not run programs for {target.name}"
            hint = f"several GPUs are --devices nccl; else leave out --target, {ONE_DEVICE}"
            raise CompileError("E1906", message, hint=hint)
    return module


def writable(kernel: Kernel, dimensions: Collection[str] = ()) -> str | None:
    """Why a kernel cannot be written in Triton; None if it can. `dimensions` have values before anything runs."""
    from intarsia.gpu_launches import writing_problem

    return writing_problem(kernel, dimensions)


def _chip_text(stage: str, kernels: Sequence[CompiledKernel]) -> str:
    """A stage of several kernels, each after its name."""
    comment = ";" if stage == "llvm" else "//"
    parts = [f"{comment} {k.name} for {k.target}\n{getattr(k, stage).strip()}\n" for k in kernels]
    return "\n".join(parts)


class _Nothing:
    """A store that keeps nothing."""

    def get(self, key: str) -> bytes | None:
        return None

    def put(self, key: str, code: bytes) -> None:
        pass


def executable_for(
    plan: Plan, target: Target, labels: Sequence[str], store: ObjectStore | None = None, each: Mapper = map
) -> Executable:
    """A plan compiled, with what prepares its constants. labels: those of the program's inputs, in order. Kernels that
    `store` has are not compiled again; `each` is how the others are."""
    from intarsia.backends.cpu.pieces import compile_pieces

    compiled = [compile_pieces(part, target, store or _Nothing(), each) for part in plan.whole]
    if (once := plan.preparation) is None:
        return executable_of(plan, compiled[0], labels)
    preparation = executable_of(once.plan, compiled[0], [labels[n] for n in once.inputs])
    return replace(executable_of(plan, compiled[1], labels), preparation=preparation)


def executable_of(plan: Plan, pieces: tuple[bytes, ...], parameters: Sequence[str]) -> Executable:
    """A plan and its code, in pieces, as something to call. The layouts are those of the plan's input and output slots;
    `parameters` are the labels of the inputs in order, without what a preparation gives."""

    from intarsia.backends.cpu.plan import entry_name

    effort = effort_of(plan)
    several = len(plan.body) > 1 or any(isinstance(s, Repeat) for s in plan.body)

    taken = {s.name: s.index for s in plan.slots if s.place == "input"}

    def layouts(place: str) -> list[TensorLayout]:
        slots = sorted((s for s in plan.slots if s.place == place), key=lambda s: s.index)
        return [TensorLayout(s.name, s.dtype, s.shape, s.length, taken.get(s.takes, -1)) for s in slots]

    return Executable(
        entry_name(plan),
        pieces,
        tuple(replace(layout, label=label) for layout, label in zip(layouts("input"), parameters)),
        tuple(layouts("output")),
        plan.sizes,
        plan.workspace_bytes,
        checks_of(plan),
        several and (effort is None or effort > LONG),
        effort is not None and effort < BRIEF,
    )


def checks_of(plan: Plan) -> dict[int, CheckText]:
    """The checks of all kernels by their numbers."""
    kernels = [k for part in plan.whole for k in part.kernels]
    return {m.number: CheckText.of(m.code, m.message, m.span) for m in check_messages(kernels)}


def interface_of(compilation: Compilation) -> Interface:
    """What a C library of a program offers."""
    from intarsia.backends.cpu.library import Interface

    if compilation.options.devices is not None:
        hint = "leave out --mesh; --devices one drops the mesh that the program declares"
        raise CompileError("E1906", "a C library runs on one device", hint=hint)
    if compilation.options.donated:  # in C, the caller says where results lie
        compilation = replace(compilation, options=replace(compilation.options, donated=()))
    parameters = compilation.source_module.graph.parameters
    constants = frozenset(index for index, parameter in enumerate(parameters) if parameter.constant)
    checks = tuple((m.number, m.message.format(*"…" * 14), m.span) for m in check_messages(compilation.plan.kernels))
    return Interface(compilation.plan, constants, compilation.conditions, checks)

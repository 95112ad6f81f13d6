"""Strings the stages together: a module from `dsl` becomes fused, lowered, scheduled, planned and compiled.

A `Compilation` holds one program with concrete sizes (but for those that `--dynamic` keeps) and makes each stage when
it is asked for, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from intarsia.ir.errors import CompileError, Remarks
from intarsia.ir.graph import Module
from intarsia.ir.plan import Plan
from intarsia.ir.target import TARGETS, Target
from intarsia.ir.text import print_module
from intarsia.passes.pipeline import Context, Instrument, Pipeline, default_pipeline
from intarsia.passes.specialize import Specialize

if TYPE_CHECKING:
    from intarsia.backends.cpu.compile import Compiled
    from intarsia.executable import Executable

STAGES = ("graph", "fused", "kernels", "scheduled", "plan", "llvm", "llvm-opt", "asm")
"""The stages that have a text, in order; the first four are valid input of `intarsia opt`."""


@dataclass(frozen=True)
class Options:
    """What a user may choose about a compilation.

    target: a CPU target's name, or None for this machine. dynamic: dimension names kept as run-time values.
    passes: the pipeline after `specialize` in place of the default one. schedule: a pinned schedule, as text.
    verify_each: `types`, `text` or `exec`, checked after every pass.
    """

    target: str | None = None
    dynamic: tuple[str, ...] = ()
    passes: str | None = None
    schedule: str | None = None
    checks: bool = False
    unordered: bool = False
    verify_each: str | None = None

    def resolve_target(self) -> Target:
        return resolve_target(self.target)


def resolve_target(name: str | None) -> Target:
    """The target of a name such as `cpu`, `cpu:host` or `cpu:x86-avx2`. Raises CompileError E1701 for others."""
    if name in (None, "cpu", "cpu:host"):
        from intarsia.backends.cpu.compile import host_target

        return host_target()
    assert name is not None
    if name not in TARGETS:
        names = ", ".join(["cpu", *TARGETS])
        raise CompileError("E1701", f"no target is named '{name}'", hint=f"targets: {names}, reference, kernels")
    return TARGETS[name]


@dataclass
class Compilation:
    """One program on its way to machine code. Every stage is a property, made on first use."""

    source_module: Module
    sizes: Mapping[str, int]
    options: Options
    instruments: Sequence[Instrument] = ()
    remarks: Remarks = field(default_factory=Remarks)

    @cached_property
    def target(self) -> Target:
        return self.options.resolve_target()

    @cached_property
    def context(self) -> Context:
        return Context(
            target=self.target,
            remarks=self.remarks,
            dynamic=frozenset(self.options.dynamic),
            checks=self.options.checks,
            unordered=self.options.unordered,
            pinned_schedule=self.options.schedule,
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """Specialise first, then the chosen passes; the kernels are scheduled as pinned."""
        sizes = {n: v for n, v in self.sizes.items() if n not in self.options.dynamic}
        if self.options.passes is None:
            return default_pipeline(sizes)
        own = Pipeline.parse(self.options.passes)
        return Pipeline((Specialize(tuple(sizes.items())), *own.passes))

    def _upto(self, name: str) -> Pipeline:
        return self.pipeline.before(name)

    @cached_property
    def graph(self) -> Module:
        """The program as written, dimensions as numbers."""
        return self.pipeline.first(1).run(self.source_module, self.context, self.instruments)

    @cached_property
    def fused(self) -> Module:
        """After the passes on the graph."""
        rest = Pipeline(self._upto("lower").passes[1:])
        return rest.run(self.graph, self.context, self.instruments)

    @cached_property
    def kernels(self) -> Module:
        """One naive kernel for each group."""
        done = len(self._upto("lower").passes)
        rest = Pipeline(self._upto("schedule").passes[done:])
        return rest.run(self.fused, self.context, self.instruments)

    @cached_property
    def scheduled(self) -> Module:
        """The kernels tiled, vectorised and parallel."""
        done = len(self._upto("schedule").passes)
        return Pipeline(self.pipeline.passes[done:]).run(self.kernels, self.context, self.instruments)

    @cached_property
    def plan(self) -> Plan:
        """Calls, loops and copies over buffers with offsets."""
        from intarsia.passes.plan_memory import plan

        return plan(self.scheduled, remarks=self.remarks)

    @cached_property
    def code(self) -> Compiled:
        """LLVM IR and object code."""
        from intarsia.backends.cpu.compile import compile_plan

        return compile_plan(self.plan, self.target)

    def executable(self) -> Executable:
        """The compiled program, ready to call or to keep."""
        from intarsia.executable import CheckText, Executable
        from intarsia.passes.lower.checks import check_messages

        found = check_messages(self.plan.kernels)
        return Executable.of(
            self.plan, self.code, [CheckText(m.code, m.message, str(m.span) if m.span else "") for m in found]
        )

    def text(self, stage: str, debug_info: bool = False) -> str:
        """The text of one of `STAGES`."""
        if stage in ("graph", "fused", "kernels", "scheduled"):
            return print_module(getattr(self, stage), debug_info)
        if stage == "plan":
            from intarsia.ir.plan_text import print_plan

            return print_plan(self.plan)
        return self.code.text(stage)


def schedule_text(argument: str | None) -> str | None:
    """The text of `--schedule FILE|TEXT`."""
    if argument is None or not Path(argument).is_file():
        return argument
    return Path(argument).read_text(encoding="utf-8")

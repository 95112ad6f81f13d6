"""From LLVM IR text to machine code.

Scheduled kernels need none of LLVM's passes: what they find there is already shared, hoisted and in registers, and code
generation alone gives full speed in half the time. A module with a kernel that no schedule has touched goes through
them, vectorisation included, which makes an elementwise loop over f32 ten times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import llvmlite.binding as llvm

from intarsia.backends.cpu.llvm import Module
from intarsia.backends.cpu.machine import OPTIMISATION, machine, parse
from intarsia.backends.cpu.machine import LoadedFunction as LoadedFunction
from intarsia.backends.cpu.machine import host_target as host_target
from intarsia.backends.cpu.machine import load as load
from intarsia.backends.cpu.plan import emit_plan, entry_name, kernel_plan
from intarsia.backends.cpu.workarounds import without_single_lane_stores
from intarsia.ir.kernel import Kernel
from intarsia.ir.plan import Plan
from intarsia.ir.target import Target


def verified(text: str) -> llvm.ModuleRef:
    """LLVM's own form of a module. An error in the text is ours."""
    module = parse(text)
    module.verify()
    return module


def optimise(module: llvm.ModuleRef, target: Target) -> None:
    """Run LLVM's passes in place. Loops of scheduled kernels are marked so that they stay as the schedule made them."""
    options = llvm.create_pipeline_tuning_options(speed_level=OPTIMISATION)
    options.loop_vectorization = True
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine(target), options)
    builder.getModulePassManager().run(module, builder)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A plan for a target: every form of its code, each made when it is asked for.

    source: the LLVM IR as it was emitted. entry: the symbol of the entry function. passes: does it profit from LLVM's
    passes?
    """

    source: str
    target: Target
    entry: str
    passes: bool

    @cached_property
    def module(self) -> llvm.ModuleRef:
        """LLVM's module, after its passes if they are of use."""
        module = verified(self.source)
        if not self.passes:
            return module
        optimise(module, self.target)
        text = str(module)
        mended = without_single_lane_stores(text)
        return module if mended == text else verified(mended)

    @property
    def optimised(self) -> str:
        """LLVM IR as code is generated from it."""
        return str(self.module)

    @cached_property
    def assembly(self) -> str:
        text: str = machine(self.target).emit_assembly(self.module)
        return text

    def text(self, stage: str) -> str:
        """The text of a stage by its name on the command line: `llvm`, `llvm-opt`, `asm`."""
        return {"llvm": lambda: self.source, "llvm-opt": lambda: self.optimised, "asm": lambda: self.assembly}[stage]()

    @cached_property
    def object_code(self) -> bytes:
        code: bytes = machine(self.target).emit_object(self.module)
        return code


def compile_module(module: Module, target: Target, entry: str) -> Compiled:
    return Compiled(module.text(), target, entry, module.has_plain_loops)


def compile_plan(plan: Plan, target: Target, *, debug_info: bool = False) -> Compiled:
    """A plan as code for a CPU target, which need not be this machine. `debug_info` keeps the lines of the program."""
    return compile_module(emit_plan(plan, target, debug_info=debug_info), target, entry_name(plan))


def compile_kernel(kernel: Kernel, target: Target) -> Compiled:
    """One kernel as a program of its own (`kernel_plan`), to be measured or tested."""
    return compile_plan(kernel_plan(kernel), target)

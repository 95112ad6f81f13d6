"""From LLVM IR text to machine code, and from machine code to functions that can be called.

The text is good as it is for scheduled kernels: code generation alone gives full speed. Naive kernels profit from
LLVM's own loop passes (`OPTIMISATION`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import llvmlite.binding as llvm

from intarsia.backends.cpu.plan import emit_plan, entry_name, kernel_plan
from intarsia.ir.kernel import Kernel
from intarsia.ir.plan import Plan
from intarsia.ir.target import Target

OPTIMISATION = 2
"""The level (1 to 3) of LLVM's passes and of its code generation."""


def host_target() -> Target:
    """This machine."""
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    kept = tuple(sorted(n for n, on in features.items() if on))
    triple = llvm.get_process_triple()
    bits = 512 if features.get("avx512f") else 256 if features.get("avx2") else 128
    return Target("cpu:host", "cpu", triple, name, kept, bits, 32 if bits == 512 or "aarch64" in triple else 16)


@cache
def _initialise() -> None:
    """Make every target of LLVM known to this process."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


def _machine(target: Target) -> llvm.TargetMachine:
    _initialise()
    features = ",".join(f if f[0] in "+-" else f"+{f}" for f in target.features)
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=features, opt=OPTIMISATION, reloc="pic", codemodel="small"
    )


def parse(text: str) -> llvm.ModuleRef:
    """LLVM's own form of a module. An error in the text is ours."""
    _initialise()
    module = llvm.parse_assembly(text, llvm.create_context())
    module.verify()
    return module


def optimise(module: llvm.ModuleRef, target: Target, level: int = OPTIMISATION) -> None:
    """Run LLVM's passes in place. Vectors and unrolling are the schedule's business."""
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    builder = llvm.create_pass_builder(_machine(target), options)
    builder.getModulePassManager().run(module, builder)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A plan for a target: every form of its code, each made when it is asked for.

    source: the LLVM IR as it was emitted. entry: the symbol of the entry function.
    """

    source: str
    target: Target
    entry: str

    @cached_property
    def module(self) -> llvm.ModuleRef:
        """LLVM's module after its passes."""
        module = parse(self.source)
        optimise(module, self.target)
        return module

    @property
    def optimised(self) -> str:
        """LLVM IR after LLVM's passes."""
        return str(self.module)

    @cached_property
    def assembly(self) -> str:
        text: str = _machine(self.target).emit_assembly(self.module)
        return text

    def text(self, stage: str) -> str:
        """The text of a stage by its name on the command line: `llvm`, `llvm-opt`, `asm`."""
        return {"llvm": lambda: self.source, "llvm-opt": lambda: self.optimised, "asm": lambda: self.assembly}[stage]()

    @cached_property
    def object_code(self) -> bytes:
        code: bytes = _machine(self.target).emit_object(self.module)
        return code


def compile_plan(plan: Plan, target: Target) -> Compiled:
    """A plan as code for a CPU target, which need not be this machine."""
    return Compiled(emit_plan(plan, target), target, entry_name(plan))


def compile_kernel(kernel: Kernel, target: Target) -> Compiled:
    """One kernel as a program of its own (`kernel_plan`), to be measured or tested."""
    return compile_plan(kernel_plan(kernel), target)


@dataclass(frozen=True, eq=False)
class LoadedFunction:
    """A function in this process. `owner` keeps its code alive."""

    address: int
    owner: object


def load(code: bytes, entry: str, symbols: Mapping[str, int]) -> LoadedFunction:
    """Link object code into this process; `symbols` are addresses of names that it refers to besides libc and libm."""
    _initialise()
    jit = llvm.create_lljit_compiler(use_jit_link=True)
    builder = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(entry).add_current_process()
    for name, address in sorted(symbols.items()):
        builder.import_symbol(name, address)
    tracker = builder.link(jit, f"program {entry}")
    return LoadedFunction(tracker[entry], (tracker, jit))

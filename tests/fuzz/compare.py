"""Runs one program at every level and compares each with the reference."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from guarded_memory import GuardedMemory

from intarsia.backends.cpu.compile import compile_plan
from intarsia.backends.cpu.compile import load as load_code
from intarsia.backends.cpu.machine import LoadedFunction
from intarsia.backends.gpu.guard import MemoryFault
from intarsia.backends.gpu.interpreter import InterpreterError
from intarsia.backends.gpu.toolchain import ToolchainError, compile_kernel
from intarsia.driver import Compilation
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, ScheduleError, Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.plan import Plan
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.points import Operand
from intarsia.ir.tolerance import Expected, expected
from intarsia.options import Options, resolve_target
from intarsia.program import Program
from intarsia.runtime.native import NativeFunction, address_of, native_symbols, pointer_table
from intarsia.runtime.threads import THREADS

LEVELS = ("reference", "fused", "kernels", "plan", "cpu")
"""What is run of a program. There is also `scheduled`: the kernels of `plan`, called by the graph interpreter."""

GPU_LEVELS = ("plan", "triton")
"""What is run of a program for a GPU; `cubin` compiles its kernels, and is slow."""

CHIPS = ("gpu:sm_80", "gpu:sm_90")
OPTIONS = Options()
NOT_YET = "E0901"
"""What the compiler says it cannot compile yet; the interpreters run it."""

FAILURES = (
    AssertionError, ArithmeticError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError,
    CompileError, InterpreterError, MemoryFault, ScheduleError, ToolchainError,
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """What went wrong: at which level, and how. `kind` groups failures that look alike."""

    level: str
    message: str

    @property
    def kind(self) -> str:
        return f"{self.level}: {self.message.splitlines()[0][:60]}" if self.message else self.level


def compare(
    text: str,
    arguments: Mapping[str, object],
    levels: Sequence[str] = LEVELS,
    options: Options = OPTIONS,
    name: str | None = None,
) -> Failure | None:
    """The first level at which the result of a function differs from the reference in f64 beyond its error bound, or
    that fails. It is the entry point if it has no `name`.

    Arguments that the program does not have are left out.
    """
    level = "build"
    try:
        compilation, inputs = arranged(text, arguments, options, name)
        wanted = expected(compilation.source_module, inputs, compilation.sizes)
        for level in levels:
            for results in _run(level, compilation, inputs):
                if (message := mismatch(wanted, results)) is not None:
                    return Failure(level, message)
    except FAILURES as error:
        return failed(level, error)
    return None


def arranged(
    text: str, arguments: Mapping[str, object], options: Options, name: str | None
) -> tuple[Compilation, list[Operand]]:
    """A function of a program, to be compiled for these arguments, and what its graph takes."""
    function = Program(Source("fuzz.ita", text), options, use_cache=False).entry(name)
    known = {p.name for p in function.form.parameters}
    given, dims = function.arrange((), {n: a for n, a in arguments.items() if n in known})
    statics, tensors = function.split(given)
    compilation = function.compilation(tensors, statics, dims)
    return compilation, [_plain(tensors[p.label]) for p in compilation.source_module.graph.parameters]


def failed(level: str, error: Exception) -> Failure | None:
    """An error as a failure, but for what the compiler says it cannot do."""
    if isinstance(error, CompileError):
        return None if error.code == NOT_YET else Failure(level, f"{error.code}: {error}")
    return Failure(level, f"{type(error).__name__}: {error}")


def _plain(tensor: object) -> Operand:
    return [np.asarray(a) for a in tensor] if isinstance(tensor, (list, tuple)) else np.asarray(tensor)


def _run(level: str, compilation: Compilation, inputs: list[Operand]) -> list[Sequence[Array]]:
    """The results of one level; of machine code with one thread and with several, which must be the same."""
    sizes = compilation.sizes
    match level:
        case "reference":
            return [evaluate(compilation.source_module, inputs, sizes)]
        case "fused" | "kernels" | "scheduled":
            return [evaluate(getattr(compilation, level), inputs, sizes)]
        case "plan":
            return [run_plan(compilation.plan, inputs, sizes)]
        case "triton":
            return [run_plan(compilation.plan, inputs, sizes, compilation.interpret_launches)]
        case "cubin":
            _compile_for_chips(compilation)
            return []
    loaded = [_loaded(part, compilation) for part in compilation.plan.whole]
    found = []
    before = THREADS.get()
    for threads in (1, 3):
        THREADS.set(threads)
        prepared: list[Array] = []
        if (once := compilation.plan.preparation) is not None:
            prepared = _run_native(once.plan, sizes, loaded[0], [inputs[n] for n in once.inputs])
        found.append(_run_native(compilation.plan, sizes, loaded[-1], [*inputs, *prepared]))
    THREADS.set(before)
    for one, other in zip(*found):
        assert one.tobytes() == other.tobytes(), "the number of threads changes a result"
    return found[:1]


def _compile_for_chips(compilation: Compilation) -> None:
    """The code of every launch, which must keep what it computes with in registers."""
    launches = [launch for found in compilation.launches.values() for launch in found]
    for chip in CHIPS:
        for launch in launches:
            with tempfile.TemporaryDirectory() as folder:
                made = compile_kernel(launch, resolve_target(chip), Path(folder))
            assert made.resources.spilled == 0, f"{launch.name} spills {made.resources.spilled} bytes on {chip}"


def _loaded(plan: Plan, compilation: Compilation) -> LoadedFunction:
    code = compile_plan(plan, compilation.target)
    return load_code(code.object_code, code.entry, native_symbols())


def _run_native(plan: Plan, known: Mapping[str, int], loaded: LoadedFunction, inputs: Sequence[Operand]) -> list[Array]:
    """Machine code on guarded memory: arguments, poisoned results and workspace each end at a page without access."""
    sizes = {name: known[name] for name in plan.sizes}
    memory = GuardedMemory()
    outputs = [
        memory.array(np.full(tuple(s.evaluate(sizes) for s in slot.shape), 85, slot.dtype.numpy))
        for slot in sorted((s for s in plan.slots if s.place == "output"), key=lambda s: s.index)
    ]
    guarded = [[memory.array(a) for a in i] if isinstance(i, list) else memory.array(i) for i in inputs]
    tables = [pointer_table(g) if isinstance(g, list) else g for g in guarded]
    workspace = memory.array(np.full(-(-plan.workspace_bytes.evaluate(sizes) // 64) * 64, 0x7F, np.uint8))
    function = NativeFunction(loaded.address, len(inputs), len(outputs), len(sizes), owner=loaded)
    addresses = ([address_of(t) for t in tables], [address_of(a) for a in outputs])
    status = function.call(*addresses, list(sizes.values()), workspace=address_of(workspace))
    assert status == 0, f"the entry function returned {status}"
    for given, kept in zip(_flat(inputs), _flat(guarded)):
        assert given.tobytes() == kept.tobytes(), "an input was written"
    return outputs


def _flat(operands: Sequence[Operand]) -> list[Array]:
    return [a for o in operands for a in (o if isinstance(o, list) else [o])]


def mismatch(wanted: Sequence[Expected], results: Sequence[Array]) -> str | None:
    for index, (reference, result) in enumerate(zip(wanted, results)):
        if (message := reference.mismatch(np.asarray(result))) is not None:
            return f"result{index}: {message}"
    return None

"""Runs one program at every level and compares each with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from guarded_memory import GuardedMemory

from intarsia.backends.cpu.compile import load as load_code
from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.tolerance import Expected, expected
from intarsia.program import type_of
from intarsia.runtime.native import NativeFunction, address_of, native_symbols

Arrays = Mapping[str, npt.NDArray[np.generic]]

LEVELS = ("reference", "fused", "kernels", "scheduled", "plan", "cpu")
SLOW_WORK = 200_000
"""Scalar operations beyond which kernels are not interpreted one element at a time."""


@dataclass(frozen=True)
class Failure:
    """What went wrong: at which level, and how. `kind` groups failures that look alike."""

    level: str
    message: str

    @property
    def kind(self) -> str:
        return f"{self.level}: {self.message.splitlines()[0][:60]}" if self.message else self.level


def compare(text: str, arguments: Arrays, levels: Sequence[str] = LEVELS) -> Failure | None:
    """The first level whose result differs from the reference in f64 beyond its error bound, or that fails."""
    level = "build"
    try:
        library = load(Source("fuzz.ita", text))
        types = {name: type_of(np.asarray(a)) for name, a in arguments.items()}
        sizes = library.bind_sizes(None, types, {})
        module = library.build(None, types=types, dims=sizes, statics={})
        inputs = [np.asarray(arguments[p.label]) for p in module.graph.parameters]
        wanted = expected(module, inputs, sizes)
        compilation = Compilation(module, sizes, Options())
        for level in levels:
            results = _run(level, compilation, inputs, sizes)
            if (message := _mismatch(wanted, results)) is not None:
                return Failure(level, message)
    except CompileError as error:
        return Failure(level, f"{error.code}: {error}")
    except (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return Failure(level, f"{type(error).__name__}: {error}")
    return None


def _run(
    level: str, compilation: Compilation, inputs: list[npt.NDArray[np.generic]], sizes: Mapping[str, int]
) -> Sequence[npt.NDArray[np.generic]]:
    match level:
        case "reference":
            return evaluate(compilation.source_module, inputs, sizes)
        case "fused" | "kernels" | "scheduled":
            return evaluate(getattr(compilation, level), inputs, sizes)
        case "plan":
            return run_plan(compilation.plan, inputs, sizes)
        case _:
            return _run_native(compilation, inputs)


def _run_native(compilation: Compilation, inputs: list[npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
    """Machine code on guarded memory: arguments, poisoned results and workspace each end at a page without access."""
    plan, code = compilation.plan, compilation.code
    loaded = load_code(code.object_code, code.entry, native_symbols())
    memory = GuardedMemory()
    outputs = [
        memory.array(np.full(tuple(map(int, s.shape)), 85, s.dtype.numpy))
        for s in sorted((s for s in plan.slots if s.place == "output"), key=lambda s: s.index)
    ]
    guarded = [memory.array(np.ascontiguousarray(a)) for a in inputs]
    workspace = memory.array(np.full(-(-int(plan.workspace_bytes) // 64) * 64, 0x7F, np.uint8))
    function = NativeFunction(loaded.address, len(guarded), len(outputs), owner=loaded)
    addresses = ([address_of(a) for a in guarded], [address_of(a) for a in outputs])
    status = function.call(*addresses, workspace=address_of(workspace))
    assert status == 0, f"the entry function returned {status}"
    for given, kept in zip(inputs, guarded):
        assert given.tobytes() == kept.tobytes(), "an input was written"
    return outputs


def _mismatch(wanted: Sequence[Expected], results: Sequence[npt.NDArray[np.generic]]) -> str | None:
    for index, (reference, result) in enumerate(zip(wanted, results)):
        if (message := reference.mismatch(np.asarray(result))) is not None:
            return f"result{index}: {message}"
    return None

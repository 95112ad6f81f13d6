"""Runs the default pipeline with one place of the passes broken, each pass verified by execution.

What the passes give as they are is recorded once. A mutant differs from that in few modules of few examples, and only
those are executed: a pass that gives what it gives unbroken, to a module that is what it is unbroken, has passed.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent))

from corpus import ROOT, Example
from mutate import Mutant

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, ScheduleError
from intarsia.ir.graph import Module
from intarsia.ir.points import Operand
from intarsia.ir.text import print_module
from intarsia.ir.tolerance import Expected

PASSES = "intarsia.passes"
"""Imported anew in the child process of each mutant, which sees it broken; nowhere here at the top of a module."""

SECONDS = 60
"""What one example may take with a broken pass."""

TARGET = "cpu:x86-avx2"

Kind = Literal["found", "crashed", "late", "idle", "survived"]


@dataclass(frozen=True)
class Step:
    """A pass as it is, what it gives for an example as text, and what that computes for each run."""

    name: str
    text: str
    results: list[tuple[Array, ...]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An example with its inputs, every step of the pipeline as it is, and the lines of the passes that it reaches.

    A run is a choice of sizes, inputs and what they should give.
    """

    example: Example
    runs: list[tuple[Mapping[str, int], list[Operand], tuple[Expected, ...] | None]]
    first: list[tuple[Array, ...]]
    steps: list[Step]
    lines: frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; `pass_` is the one that was running or is blamed, `example` shows it."""

    kind: Kind
    pass_: str = ""
    example: str = ""
    detail: str = ""


# ---------------------------------------------------------------------- the passes as they are


def prepare(examples: Sequence[Example]) -> list[Prepared]:
    """The examples that the passes as they are compile."""
    found = isolated(lambda: [_recorded(e) for e in examples], 3600, quiet=False)
    assert found is not None, "the passes as they are fail"
    parts: list[tuple[Any, ...] | None] = found
    return [Prepared(e, *part) for e, part in zip(examples, parts) if part is not None]


def _recorded(example: Example) -> tuple[Any, ...] | None:
    from intarsia.passes.pipeline import Instrument
    from intarsia.passes.verify import VerifyExec

    steps: list[Step] = []
    first: list[list[tuple[Array, ...]]] = []
    verify = VerifyExec(reduce=False)

    class Record(Instrument):
        def after(self, pass_: Any, index: int, old: Module, new: Module, context: Any) -> None:
            if not first:
                first.append(list(verify.results))
            verify.after(pass_, index, old, new, context)
            steps.append(Step(pass_.name, print_module(new), list(verify.results)))

    try:
        _compile(example, [Record()])
    except (CompileError, ScheduleError):
        return None
    runs = [(run.sizes, run.inputs, run.expected) for run in verify.runs]
    return runs, first[0], steps, _lines(lambda: _compile(example, []))


def _compile(example: Example, instruments: Sequence[Any]) -> Module:
    from intarsia.ir.target import TARGETS
    from intarsia.passes.pipeline import Context, default_pipeline

    pipeline = default_pipeline(dict(example.sizes))
    return pipeline.run(example.module, Context(TARGETS[TARGET]), instruments)


def _lines(work: Callable[[], object]) -> frozenset[tuple[str, int]]:
    """The lines of the passes that run, as paths below the root and numbers."""
    reached: set[tuple[str, int]] = set()

    @functools.cache
    def place(file: str) -> str:
        path = Path(os.path.realpath(file))
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT / "passes") else ""

    def inside(frame: FrameType, event: str, argument: object) -> object:
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return inside

    def called(frame: FrameType, event: str, argument: object) -> object:
        return inside if place(frame.f_code.co_filename) else None

    sys.settrace(called)
    work()
    sys.settrace(None)
    return frozenset((place(file), line) for file, line in reached)


# ---------------------------------------------------------------------- the passes broken


def outcome_of(mutant: Mutant, prepared: Sequence[Prepared]) -> Outcome:
    """What becomes of one mutant: the first example, in the order given, that shows it."""
    code = compile(mutant.tree(), mutant.path, "exec")

    def work() -> Outcome:
        for name in [n for n in sys.modules if n.startswith(PASSES)]:
            del sys.modules[name]
        sys.meta_path.insert(0, MutatingFinder(module_name(mutant.path), code))
        changed: Outcome | None = None
        for one in prepared:
            signal.alarm(SECONDS)
            outcome = _tried(one)
            if outcome.kind in ("found", "crashed"):
                return outcome
            changed = changed or (outcome if outcome.kind == "survived" else None)
        return changed or Outcome("idle")

    found = isolated(work, SECONDS)
    return found if isinstance(found, Outcome) else Outcome("late", detail=f"more than {SECONDS} seconds")


def _tried(prepared: Prepared) -> Outcome:
    """What becomes of one example while a pass is broken."""
    try:
        from intarsia.passes.pipeline import PassError

        watch = _watch(prepared)
    except Exception as error:  # not even the import of the broken module works
        return Outcome("crashed", "import", detail=_text(error))
    name = prepared.example.name
    try:
        _compile(prepared.example, [watch])
    except PassError as error:
        return Outcome("found", error.pass_.name, name, error.message)
    except Exception as error:  # whatever a broken compiler raises is what we ask for
        return Outcome("crashed", watch.running, name, _text(error))
    return Outcome("survived", watch.differs, name, watch.diff) if watch.differs else Outcome("idle")


def _watch(prepared: Prepared) -> Any:
    """The instrument that verifies each pass whose module is not what it is unbroken."""
    from intarsia.passes.pipeline import Instrument
    from intarsia.passes.verify import Run, VerifyExec, VerifyText, VerifyTypes

    class Watch(Instrument):
        running = differs = diff = ""
        verify: list[Instrument] = []

        def before(self, pass_: Any, index: int, module: Module, context: Any) -> None:
            self.running = pass_.name

        def after(self, pass_: Any, index: int, old: Module, new: Module, context: Any) -> None:
            step = prepared.steps[index]
            if not self.differs:
                if print_module(new) == step.text:
                    return
                self.differs, self.diff = pass_.name, difference(step.text, print_module(new))
                before = prepared.steps[index - 1].results if index else prepared.first
                runs = [Run(*run) for run in prepared.runs]
                execute = VerifyExec(reduce=False, current=old, real=old, runs=runs, results=before)
                self.verify = [execute, VerifyText(), VerifyTypes()]
            for instrument in self.verify:
                instrument.after(pass_, index, old, new, context)

    return Watch()


def difference(before: str, after: str) -> str:
    import difflib

    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "unbroken", "broken", n=2, lineterm="")
    return "\n".join(list(lines)[:40])


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


# ---------------------------------------------------------------------- processes and imports


class MutatingFinder(importlib.abc.MetaPathFinder):
    """Imports one module from a changed syntax tree, all others as they are."""

    def __init__(self, name: str, code: CodeType) -> None:
        self.name = name
        self.code = code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader)
        code = self.code

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        spec.loader = Loader(fullname, spec.loader.path)
        return spec


def module_name(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return ".".join(("intarsia", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def isolated(work: Callable[[], object], seconds: int, quiet: bool = True) -> Any:
    """What `work` gives in a process of its own, or None if it fails or takes too long; it may set the alarm anew."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(read)
            signal.alarm(seconds)
            sys.setrecursionlimit(20_000)
            if quiet:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(pickle.dumps(work()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else None

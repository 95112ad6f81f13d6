"""Runs the default pipeline with one place of the passes broken, each pass verified by execution.

What the passes give as they are is recorded once. A mutant differs from that in few modules of few examples, and only
those are executed: a pass that gives what it gives unbroken, to a module that is what it is unbroken, has passed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent))

from corpus import ROOT, Example
from equivalence import Change, are_equivalent, pipeline_and_context
from mutate import Mutant

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, ScheduleError
from intarsia.ir.graph import Module
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.plan_liveness import verify_plan
from intarsia.ir.plan_text import print_plan
from intarsia.ir.points import Operand
from intarsia.ir.text import print_module

PASSES = "intarsia.passes"
"""Imported anew in the child process of each mutant, which sees it broken; nowhere here at the top of a module."""

SECONDS = 60
"""What one example may take with a broken pass."""

PLAN = "plan-memory"
"""What comes after the passes, and is verified like one."""

REFUSED = "refused"
"""In place of the text of what a pass refuses: a schedule that is not legal, a size that does not fit."""

Kind = Literal["found", "crashed", "late", "accepted", "idle", "equivalent", "survived"]

PARTS = {
    "specialize": ("specialize.py",),
    "canonicalize": ("canonicalize",),
    "cse": ("cse.py",),
    "dce": ("dce.py",),
    "legalize-dtype": ("legalize_dtype",),
    "sample": ("sample.py",),
    "contract": ("contract.py",),
    "exchange": ("exchange.py",),
    "fuse": ("fuse",),
    "skip-rounding": ("skip_rounding.py",),
    "lower": ("lower",),
    "schedule": ("schedule",),
    PLAN: ("plan_memory",),
}
"""The code of each pass, below passes/."""


@dataclass(frozen=True)
class Step:
    """A pass as it is, what it gives for an example as text, and what that computes for each run."""

    name: str
    text: str
    results: list[tuple[Array, ...]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An example with its inputs, every step of the pipeline as it is, and the lines of the passes that it reaches.

    A run is a module, a choice of sizes and inputs. The last step may be that a pass refuses it.
    """

    example: Example
    runs: list[tuple[Module, Mapping[str, int], list[Operand]]]
    first: list[tuple[Array, ...]]
    steps: list[Step]
    lines: frozenset[tuple[str, int]]

    @property
    def is_refused(self) -> bool:
        return self.steps[-1].text == REFUSED


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; `pass_` is the one that is blamed: by verification, or by the last line of the passes in
    the traceback. `example` shows it. `changes`: what each pass made of the example since the first that differs."""

    kind: Kind
    pass_: str = ""
    example: str = ""
    detail: str = ""
    changes: tuple[Change, ...] = field(default=(), repr=False)


# ---------------------------------------------------------------------- the passes as they are


def prepare(examples: Sequence[Example]) -> list[Prepared]:
    """The examples that the passes as they are compile."""
    found = isolated(lambda: [_recorded(e) for e in examples], 3600, quiet=False)
    assert found is not None, "the passes as they are fail"
    parts: list[tuple[Any, ...] | None] = found
    return [Prepared(e, *part) for e, part in zip(examples, parts) if part is not None]


def _recorded(example: Example) -> tuple[Any, ...] | None:
    from intarsia.passes.pipeline import Instrument, PassError
    from intarsia.passes.verify import Run, VerifyExec

    steps: list[Step] = []
    first: dict[Run, tuple[Array, ...]] = {}
    verify = VerifyExec(reduce=False)

    class Record(Instrument):
        running = ""

        def before(self, pass_: Any, index: int, module: Module, context: Any) -> None:
            self.running = pass_.name

        def after(self, pass_: Any, index: int, old: Module, new: Module, context: Any) -> None:
            if not steps:
                verify.start(pass_, old, context)
                verify.real = old
                first.update(zip(verify.runs, verify.results))
            verify.after(pass_, index, old, new, context)
            steps.append(Step(pass_.name, print_module(new), list(verify.results)))

    record = Record()
    try:
        module, _ = _compile(example, [record])
        steps.append(Step(PLAN, _plan_text(example, module), list(verify.results)))
    except ScheduleError:
        return _refused(example)
    except CompileError:
        return [], [], [Step(record.running, REFUSED, [])], _lines(lambda: _attempt(example))
    except PassError:
        if example.schedule:  # a step may be used where it is sound for some numbers only, as a user may
            return None
        raise
    runs = [(run.module, run.sizes, run.inputs) for run in verify.runs]
    return (
        runs,
        [first[run] for run in verify.runs],
        steps,
        _lines(lambda: _plan_text(example, _compile(example, [])[0])),
    )


def _refused(example: Example) -> tuple[Any, ...]:
    """What is recorded of a kernel whose schedule is not legal: what it computes. A broken step may allow it."""
    from intarsia.passes.verify import VerifyExec

    pipeline, context = pipeline_and_context(example)
    verify = VerifyExec(reduce=False)
    verify.start(pipeline.passes[0], example.module, context)
    runs = [(run.module, run.sizes, run.inputs) for run in verify.runs]
    return runs, verify.results, [Step("schedule", REFUSED, verify.results)], _lines(lambda: _attempt(example))


def _attempt(example: Example) -> None:
    """Compile what is refused."""
    with contextlib.suppress(CompileError, ScheduleError):
        _compile(example, [])


def _compile(example: Example, instruments: Sequence[Any]) -> tuple[Module, Any]:
    """The scheduled module, and the context of the passes."""
    pipeline, context = pipeline_and_context(example)
    return pipeline.run(example.module, context, instruments), context


def _plan_text(example: Example, module: Module) -> str:
    """The plan of a module of which kernels are left, else nothing."""
    from intarsia.passes.plan_memory import plan

    return print_plan(plan(module)) if is_planned(example) else ""


def is_planned(example: Example) -> bool:
    """Do its passes leave nothing but kernels and calls?"""
    return example.passes in ("", "schedule")


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
        _forget_passes()
        sys.meta_path.insert(0, MutatingFinder(module_name(mutant.path), code))
        changed: list[tuple[Prepared, Outcome]] = []
        for one in prepared:
            signal.alarm(SECONDS)
            outcome = _tried(one)
            if outcome.kind in ("found", "crashed"):
                return outcome
            if outcome.kind in ("accepted", "survived"):
                changed.append((one, outcome))
        signal.alarm(10 * SECONDS)
        if not changed:
            return Outcome("idle")
        for _, outcome in changed:
            if outcome.kind == "accepted":
                return outcome
        unexplained = isolated(lambda: _unexplained(changed), 10 * SECONDS) or 0
        if unexplained < 0:
            return replace(changed[0][1], kind="equivalent", changes=())
        return replace(changed[unexplained][1], changes=())

    found = isolated(work, SECONDS)
    return found if isinstance(found, Outcome) else Outcome("late", detail=f"more than {SECONDS} seconds")


def _forget_passes() -> None:
    for name in [n for n in sys.modules if n.startswith(PASSES)]:
        del sys.modules[name]


def _unexplained(changed: Sequence[tuple[Prepared, Outcome]]) -> int:
    """The first example of which the passes as they are do not show that what the broken ones left is the same, or -1.

    A plan needs nothing more: `verify_plan` looks at it alone, with a liveness analysis of its own.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, MutatingFinder)]
    _forget_passes()
    for position, (one, outcome) in enumerate(changed):
        if not are_equivalent(outcome.changes, one.example):
            return position
    return -1


def _tried(prepared: Prepared) -> Outcome:
    """What becomes of one example while a pass is broken."""
    try:
        from intarsia.passes.pipeline import PassError

        watch = _watch(prepared)
    except Exception as error:  # not even the import of the broken module works
        return Outcome("crashed", _culprit(error), detail=_text(error))
    name = prepared.example.name
    if not prepared.runs and prepared.is_refused:
        return _refusal(prepared)
    try:
        watch.planned(*_compile(prepared.example, [watch]))
    except PassError as error:
        return Outcome("found", error.pass_.name, name, error.message)
    except BadPlan as error:
        return Outcome("found", PLAN, name, str(error))
    except ScheduleError as error:
        return Outcome("idle") if prepared.is_refused else Outcome("crashed", watch.running, name, _text(error))
    except Exception as error:  # whatever a broken compiler raises is what we ask for
        return Outcome("crashed", _culprit(error) or watch.running, name, _text(error))
    if not watch.differs:
        return Outcome("idle")
    kind: Kind = "accepted" if prepared.is_refused else "survived"
    return Outcome(kind, watch.differs, name, watch.diff, tuple(watch.changes))


def _refusal(prepared: Prepared) -> Outcome:
    """What becomes of an example that means nothing, which a pass has to say."""
    name = prepared.example.name
    try:
        _compile(prepared.example, [])
    except CompileError:
        return Outcome("idle")
    except Exception as error:  # whatever a broken compiler raises is what we ask for
        return Outcome("crashed", _culprit(error), name, _text(error))
    return Outcome("accepted", prepared.steps[-1].name, name)


class BadPlan(Exception):
    """A plan that is not sound, or computes something else."""


def _culprit(error: BaseException) -> str:
    """The pass whose code is the last of the passes in the traceback of a crash."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        _, inside, path = frame.filename.rpartition("passes/")
        for part, places in PARTS.items():
            found = part if inside and any(path == p or path.startswith(f"{p}/") for p in places) else found
    return found


def _watch(prepared: Prepared) -> Any:
    """The instrument that verifies each pass whose module is not what it is unbroken."""
    from intarsia.passes.pipeline import Instrument
    from intarsia.passes.verify import Run, VerifyExec, VerifyText, VerifyTypes

    class Watch(Instrument):
        running = differs = diff = ""
        results: list[tuple[Array, ...]] = prepared.steps[-1].results
        changes: list[Change] = []
        execute: VerifyExec | None = None

        def before(self, pass_: Any, index: int, module: Module, context: Any) -> None:
            self.running = pass_.name

        def after(self, pass_: Any, index: int, old: Module, new: Module, context: Any) -> None:
            self.running = pass_.name  # as far as what it left can be looked at
            step, text = prepared.steps[index], print_module(new)
            if not self.differs:
                if text == step.text:
                    return
                self.differs, self.diff = pass_.name, difference(step.text, text)
                before = prepared.steps[index - 1].results if index else prepared.first
                runs = [Run(*run) for run in prepared.runs]
                self.execute = VerifyExec(reduce=False, current=old, real=old, runs=runs, results=before)
            assert self.execute is not None
            for instrument in (self.execute, VerifyText(), VerifyTypes()):
                instrument.after(pass_, index, old, new, context)
            self.results = self.execute.results
            schedules = {name: str(schedule) for name, schedule in context.schedules.items()}
            self.changes = [*self.changes, Change(index, print_module(old), text, schedules)]

        def planned(self, module: Module, context: Any) -> None:
            """Verifies the plan of what the passes left."""
            from intarsia.passes.plan_memory import plan

            if not is_planned(prepared.example):
                return
            self.running = PLAN
            made = plan(module)
            text, wanted = print_plan(made), prepared.steps[-1].text
            if text == wanted:
                return
            if not self.differs:
                self.differs, self.diff = PLAN, difference(wanted, text)
            try:
                verify_plan(made)
                found = [run_plan(made, inputs, sizes) for _, sizes, inputs in prepared.runs]
            except (AssertionError, LookupError, ValueError) as error:
                raise BadPlan(_text(error)) from error
            for run, before in zip(found, self.results):
                for position, (a, b) in enumerate(zip(before, run)):
                    if a.tobytes() != b.tobytes() or a.shape != b.shape:
                        raise BadPlan(f"result {position} changed")

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

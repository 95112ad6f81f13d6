"""Passes as data, pipelines as text, and the runner with its instruments.

A pass is a frozen dataclass; its fields are its options, so that `fuse{max-ops=8}` prints and parses by itself. A
pipeline is passes separated by commas. Options are separated by spaces and the items of a list by commas, as in MLIR.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from intarsia.ir.errors import CompileError, Remark, Remarks, Span
from intarsia.ir.graph import Module
from intarsia.ir.kernel import Kernel
from intarsia.ir.mapping import Mapper
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import Target
from intarsia.passes import all_passes

if TYPE_CHECKING:
    from intarsia.passes.schedule.builder import Applied, Builder

PASSES: dict[str, type[Pass]] = {}
"""Every pass whose module has been imported, by name; `intarsia.passes.all_passes` imports them all."""

OPEN = {"open": True}
"""Metadata of the field, a tuple of (name, number) pairs, that takes every option which no other field names."""


@dataclass(frozen=True)
class Context:
    """What a compilation hands to every pass: the machine, where remarks go, and what the user asked for.

    dynamic: dimension names that stay run-time values. checks: subscripts and divisors are checked at run time.
    unordered: float atomics are allowed. pinned_schedule: the text of schedules that the user pins. predict: seconds of
    schedules of one kernel on the target, the default one first; without it, every decision is the likeliest one.
    predict_alone: the same on one core of it.
    measured: the text of the fastest schedule that is known of a naive kernel, None if none is. writable: why the back
    end of a GPU cannot write a scheduled kernel, None if it can. schedules: the one that each kernel got, filled in by
    `schedule`. tried: naive kernels without their names that were scheduled on the way; applied: steps that were taken
    when schedules were weighed, which `schedule` need not take again. each: how work that is the same for many kernels
    is done.
    """

    target: Target
    remarks: Remarks = field(default_factory=Remarks)
    dynamic: frozenset[str] = frozenset()
    checks: bool = False
    unordered: bool = False
    pinned_schedule: str | None = None
    predict: Callable[[Sequence[Kernel]], Sequence[float]] | None = None
    predict_alone: Callable[[Sequence[Kernel]], Sequence[float]] | None = None
    measured: Callable[[Kernel], str | None] = lambda kernel: None
    writable: Callable[[Kernel], str | None] = lambda kernel: None
    schedules: dict[str, Schedule] = field(default_factory=dict)
    tried: dict[Kernel, Builder] = field(default_factory=dict)
    applied: Applied = field(default_factory=dict)
    each: Mapper = map


@dataclass(frozen=True)
class Pass:
    """A step from one module to the next. The fields of a subclass are its options.

    `name` is its name in text. `exact`: the results stay the same bit for bit, so `--verify-each=exec` compares them
    without a tolerance. `moves_factors`: it moves factors across sums, and where one is infinite a result may be an
    infinity in place of NaN, or the reverse (language.md, Numerics). `lossy`: results are coarser, as its user wants.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    moves_factors: ClassVar[bool] = False
    lossy: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            PASSES[cls.name] = cls

    def run(self, module: Module, context: Context) -> Module:
        """The new module; the same object where nothing changes."""
        raise NotImplementedError(self.name)

    def remark(self, context: Context, about: str, message: str, span: Span | None, done: bool = True) -> None:
        """Record a decision of this pass for `intarsia explain`."""
        context.remarks.add(Remark(self.name, about, message, span, done))

    def __str__(self) -> str:
        options = [text for f in dataclasses.fields(self) for text in _option_text(f, getattr(self, f.name))]
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name


class PassError(Exception):
    """A pass made a module that is not what it was: our bug, found by verification after a pass.

    `reproducer` is a text that `intarsia opt` runs.
    """

    def __init__(self, pass_: Pass, message: str, diff: str = "", reproducer: str = "") -> None:
        self.pass_ = pass_
        self.message = message
        self.diff = diff
        self.reproducer = reproducer
        super().__init__("\n".join(part for part in (f"pass {pass_}: {message}", diff, reproducer) if part))


class Instrument:
    """Watches a pipeline. Subclasses override what they need; `index` counts the passes from 0.

    Of several, the last one is nearest to the pass: its `before` is the last to run, its `after` the first.
    """

    def before(self, pass_: Pass, index: int, module: Module, context: Context) -> None:
        """Called before each pass."""

    def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
        """Called after each pass; `new is old` where it changed nothing."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order."""

    passes: tuple[Pass, ...]

    @staticmethod
    def parse(text: str) -> Pipeline:
        """Read `canonicalize,fuse{max-ops=8}`. Raises CompileError: E1401 no such pass, E1402 no such option, E1403
        a value that does not fit, E1404 text that is no pipeline."""
        all_passes()
        return Pipeline(tuple(_parse_pass(part) for part in _split(text)))

    def run(self, module: Module, context: Context, instruments: Sequence[Instrument] = ()) -> Module:
        for index, pass_ in enumerate(self.passes):
            for instrument in instruments:
                instrument.before(pass_, index, module, context)
            new = pass_.run(module, context)
            for instrument in reversed(instruments):
                instrument.after(pass_, index, module, new, context)
            module = new
        return module

    def first(self, count: int) -> Pipeline:
        """The first `count` passes, for bisecting."""
        return Pipeline(self.passes[:count])

    def before(self, name: str) -> Pipeline:
        """The passes before the first one with this name; all of them if there is none."""
        names = [p.name for p in self.passes]
        return Pipeline(self.passes[: names.index(name)] if name in names else self.passes)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))


DEFAULT = (
    "drop-sharding,canonicalize,cse,dce,expand-sorts,legalize-dtype,canonicalize,cse,sink-scales,sample,dce,contract,"
    "exchange,checkpoint,hoist,merge,recompute,fuse,skip-rounding,dce,lower,join,layout,schedule"
)


def default_pipeline(sizes: Mapping[str, int] | None = None, memory_budget: int | None = None) -> Pipeline:
    """What the driver runs: names become numbers first, then the graph passes, then kernels and their schedules."""
    specialize = [f"{name}={number}" for name, number in (sizes or {}).items()]
    passes = DEFAULT
    if memory_budget is not None:
        for name in ("checkpoint", "recompute"):
            passes = passes.replace(name, f"{name}{{budget={memory_budget}}}")
    return Pipeline.parse(",".join((f"specialize{{{' '.join(specialize)}}}" if specialize else "specialize", passes)))


# ---------------------------------------------------------------------- text


def _split(text: str) -> list[str]:
    """The passes of a pipeline: commas outside braces separate."""
    if re.sub(r"\{[^{}]*\}", "", text).count("{") or re.sub(r"\{[^{}]*\}", "", text).count("}"):
        raise CompileError("E1404", f"the braces of the pipeline {text!r} do not match")
    parts = [p.strip() for p in re.split(r",(?![^{}]*\})", text)]
    if parts == [""]:
        return []
    return parts


def _parse_pass(text: str) -> Pass:
    parts = re.fullmatch(r"([A-Za-z][\w-]*)\s*(?:\{([^{}]*)\})?", text)
    if not parts:
        raise CompileError(
            "E1404", f"{text!r} is no pass", hint="a pipeline is `name,name{option=value option=value},…`"
        )
    name, options = parts[1], parts[2] or ""
    if name not in PASSES:
        raise CompileError("E1401", f"no pass is named '{name}'", hint=_close("passes", name, PASSES))
    cls = PASSES[name]
    known, open_field = _fields(cls)
    values: dict[str, Any] = {}
    extra: list[tuple[str, int]] = []
    for option in options.split():
        key, equals, value = option.partition("=")
        if key in known:
            f = known[key]
            found = _parse_value(typing.get_type_hints(cls)[f.name], value if equals else "true", option, name)
            if isinstance(found, int) and found < (least := f.metadata.get("least", 0)):
                raise CompileError("E1403", f"pass {name}: {option}: the least is {least}")
            values[f.name] = found
        elif open_field is not None:
            extra.append((key, _parse_value(int, value, option, name)))
        else:
            raise CompileError("E1402", f"pass {name} has no option '{key}'", hint=_close("options", key, known))
    if open_field is not None:
        values[open_field.name] = tuple(extra)
    return cls(**values)


def _fields(cls: type[Pass]) -> tuple[dict[str, dataclasses.Field[Any]], dataclasses.Field[Any] | None]:
    """The options of a pass by their spelling, and the field that takes all others."""
    found = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}
    open_field = next((f for f in found.values() if f.metadata.get("open")), None)
    return {key: f for key, f in found.items() if f is not open_field}, open_field


def _parse_value(kind: Any, text: str, option: str, name: str) -> Any:
    """A value of a field: bool, int, float, str, a literal, a tuple of one of them (items separated by commas)."""
    if isinstance(kind, types.UnionType):
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_parse_value(arguments[0], item, option, name) for item in text.split(",") if item)
    if origin is typing.Literal:
        if text in arguments:
            return text
        raise CompileError("E1403", f"pass {name}: {option}: not one of {', '.join(arguments)}")
    if kind is bool:
        if text in ("true", "false"):
            return text == "true"
        raise CompileError("E1403", f"pass {name}: {option}: not true or false")
    try:
        return kind(text)
    except ValueError:
        hint = "options are separated by spaces" if "=" in text else ""
        raise CompileError(
            "E1403", f"pass {name}: {option}: {text!r} is not of type {kind.__name__}", hint=hint
        ) from None


def _option_text(f: dataclasses.Field[Any], value: Any) -> Iterable[str]:
    """The text of an option that differs from its default."""
    if f.metadata.get("open"):
        return [f"{key}={number}" for key, number in value]
    if value == f.default:
        return []
    match value:
        case bool():
            text = str(value).lower()
        case tuple():
            text = ",".join(map(str, value))
        case _:
            text = str(value)
    return [f"{f.name.replace('_', '-')}={text}"]


def _close(what: str, name: str, known: Iterable[str]) -> str:
    """A hint that shows the nearest names, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"{what}: {', '.join(names)}" if names else f"it has no {what}"

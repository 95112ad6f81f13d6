"""Options and small helpers that several verbs share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from intarsia.arguments import check_names
from intarsia.files import read_source
from intarsia.function import Function
from intarsia.ir.errors import CompileError, Source
from intarsia.options import CHOICES, Options
from intarsia.runtime.threads import THREADS
from intarsia.signature import SignatureForm

INTERPRETERS = ("reference", "kernels", "plan", "triton-interpret")
"""Targets that run a stage with NumPy in place of machine code."""

INTERPRETED_GPU = "gpu:sm_90"
"""The GPU whose code `--target triton-interpret` runs."""

WRONG = 3
"""The exit status where the compiler is wrong: a result, a schedule or a pass that changes a program."""

F = TypeVar("F", bound=Callable[..., Any])


def read_text(name: str) -> Source:
    """The text of a program or IR file; `-` is standard input. Raises CompileError E0701 or E0102."""
    return Source.decoded("<stdin>", sys.stdin.buffer.read()) if name == "-" else read_source(name)


def split_function(name: str) -> tuple[str, str | None]:
    """`FILE:FN` to the file and the function, which may be a derivative: `FILE:grad(FN, wrt=w)`. A file alone gives
    None."""
    file, colon, function = name.rpartition(":")
    if colon and file and (function.isidentifier() or function.endswith(")")) and not Path(name).exists():
        return file, function
    return name, None


def program_argument(function: F) -> F:
    """FILE[:FN] or `-e TEXT`."""
    function = click.option("-e", "text", metavar="TEXT", help="The program itself, in place of FILE.")(function)
    return click.argument("file", metavar="FILE[:FN]", required=False)(function)


def open_program(file: str | None, text: str | None) -> tuple[Source, str | None]:
    """The source and the function's name that `program_argument` gave. With -e, FILE may name a function."""
    if text is not None:
        return Source("<command line>", text), (file or "").lstrip(":") or None
    if file is None:
        raise click.UsageError("give a FILE, or a program with -e")
    path, function = split_function(file)
    return read_text(path), function


class ByteCount(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: `512MB` is 512 million, `512MiB` 512 times 2**20."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?", str(value))
        if found is None:
            self.fail(f"{value!r} is no number of bytes, such as 512MB", param, ctx)
        number, unit, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kMGT".index(unit.replace("K", "k") or " "))


_COMPILE_OPTIONS: dict[str, dict[str, Any]] = {
    "--dim": {"multiple": True, "metavar": "B=128", "help": "Size of a dimension that no argument fixes."},
    "--dynamic": {"multiple": True, "metavar": "B,…", "help": "Keep these dimensions run-time values."},
    "--target": {
        "metavar": "TARGET",
        "help": "cpu, gpu:sm_90, …, reference, kernels, plan, triton-interpret  [default: cpu]",
    },
    "--passes": {"metavar": "TEXT", "help": "The passes to run in place of the default ones."},
    "--schedule": {"metavar": "FILE|TEXT", "help": "Pin a schedule."},
    "--no-cache": {"is_flag": True, "help": "Neither read nor write the cache."},
    "--checks": {"is_flag": True, "help": "Check subscripts and divisors at run time."},
    "--unordered": {"is_flag": True, "help": "Let float scatter-adds use atomics."},
    "--memory-budget": {
        "type": ByteCount(),
        "metavar": "512MB",
        "help": "Compute values again rather than keep more than these bytes of them.",
    },
    "--threads": {"type": click.IntRange(1), "help": "Threads to use  [default: all cores]"},
}


_MESH_OPTIONS: dict[str, dict[str, Any]] = {
    "--mesh": {"metavar": "data=2,…", "help": "Devices in place of the mesh of the program."},
    "--preset": {
        "metavar": "PLAN|data=PLAN,…",
        "help": "Split a training step as data, zero1, zero2, zero3, megatron, sequence or expert say.",
    },
    "--sharding": {
        "type": click.Choice(CHOICES["sharding"]),
        "default": "auto",
        "help": "strict: a choice between shardings is an error  [default: auto]",
    },
    "--collectives": {
        "type": click.Choice(CHOICES["collectives"]),
        "default": "gather",
        "help": "ring: work on blocks as they come round the devices; auto: where that is faster  [default: gather]",
    },
    "--cluster": {
        "default": "laptop",
        "metavar": "NAME|FILE.json",
        "help": "What devices and links can do: laptop, nvlink-node, multi-node, torus  [default: laptop]",
    },
}

_DEVICE_OPTIONS: dict[str, dict[str, Any]] = {
    **_MESH_OPTIONS,
    "--devices": {
        "type": click.Choice(CHOICES["devices"]),
        "help": "Where the devices of a mesh are: in this process, or one in each; one: no mesh  "
        "[default: simulate, for a GPU nccl]",
    },
    "--device-passes": {"metavar": "TEXT", "help": "Passes on the program of a device: overlap{cluster=NAME}, …"},
}

_SIMULATED_OPTIONS: dict[str, dict[str, Any]] = {
    **_DEVICE_OPTIONS,
    "--devices": {
        "type": click.Choice(["one", "simulate"]),
        "help": "All devices of a mesh in this process, or one, which drops the mesh  [default: simulate]",
    },
}


_PIPELINE_OPTIONS: dict[str, dict[str, Any]] = {
    "--pipeline": {
        "type": click.Choice(["gpipe", "1f1b", "interleaved", "zero-bubble"]),
        "help": "Run a training step in stages, of which each device has one, or several, by this schedule.",
    },
    "--stages": {"type": click.IntRange(1), "default": 2, "help": "With --pipeline: stages in all  [default: 2]"},
    "--microbatches": {"type": click.IntRange(1), "default": 4, "help": "With --pipeline  [default: 4]"},
    "--chunks": {"type": click.IntRange(1), "default": 2, "help": "Stages of a device, if interleaved  [default: 2]"},
}


def compile_options(function: F) -> F:
    """The options that run, emit, bench, explain and reduce have in common."""
    return _with_options(function, _COMPILE_OPTIONS)


def device_options(function: F) -> F:
    """The options about a mesh of devices, which run, emit and explain have in common."""
    return _with_options(function, _DEVICE_OPTIONS)


def simulated_options(function: F) -> F:
    """The same for verbs that start no processes: bench, tune and reduce."""
    return _with_options(function, _SIMULATED_OPTIONS)


def mesh_options(function: F) -> F:
    """Those of them that say how a program is split, without where it runs."""
    return _with_options(function, _MESH_OPTIONS)


def pipeline_options(function: F) -> F:
    """The options about a pipeline, which run and shard have in common."""
    return _with_options(function, _PIPELINE_OPTIONS)


def require_pipeline(schedule: str | None, only_with: Collection[str], only_without: Collection[str]) -> None:
    """Raise UsageError for an option that would be ignored: one about pipelines without one, or one that is not for
    pipelines."""
    with_, without = {"stages", "microbatches", "chunks", *only_with}, {"sharding", "collectives", *only_without}
    context = click.get_current_context()
    for option in context.command.params:
        if context.get_parameter_source(option.name or "") is not ParameterSource.COMMANDLINE:
            continue
        if option.name in (with_ if schedule is None else without):
            raise click.UsageError(f"{option.opts[0]} goes {'with' if schedule is None else 'only without'} --pipeline")
        if option.name == "chunks" and schedule != "interleaved":
            raise click.UsageError("--chunks goes with --pipeline interleaved")


def _with_options(function: F, options: dict[str, dict[str, Any]]) -> F:
    for name, settings in reversed(options.items()):
        function = click.option(name, _field(name), **settings)(function)
    return function


def _field(option: str) -> str:
    return "dims" if option == "--dim" else option.lstrip("-").replace("-", "_")


def option_words(settings: Mapping[str, Any]) -> list[str]:
    """The command-line words that give the settings of `compile_options` and, where there are any, `device_options`."""
    words: list[str] = []
    for name, about in (_COMPILE_OPTIONS | _DEVICE_OPTIONS | _PIPELINE_OPTIONS).items():
        match settings.get(_field(name)):
            case value if value == about.get("default"):
                pass
            case tuple() as values:
                words += [w for value in values for w in (name, value)]
            case True:
                words.append(name)
            case None | False:
                pass
            case value:
                words += [name, str(value)]
    return words


def options_of(settings: Mapping[str, Any]) -> tuple[Options, bool, str | None]:
    """What `compile_options` gave: options, whether to use the cache, and the target as it was named.

    Sets the number of threads until the command ends.
    """
    if settings["threads"] is not None:
        THREADS.set(settings["threads"])
        click.get_current_context().call_on_close(lambda: THREADS.set(None))
    target = settings["target"]
    options = Options(
        target=compiled_target(target),
        dynamic=tuple(name.strip() for names in settings["dynamic"] for name in names.split(",")),
        passes=settings["passes"],
        schedule=_schedule_text(settings["schedule"]),
        checks=settings["checks"] or target == "reference",
        unordered=settings["unordered"],
        mesh=settings.get("mesh"),
        sharding=settings.get("sharding", "auto"),
        collectives=settings.get("collectives", "gather"),
        cluster=settings.get("cluster", "laptop"),
        devices=settings.get("devices"),
        device_passes=settings.get("device_passes"),
        preset=settings.get("preset"),
        pipeline=settings.get("pipeline"),
        stages=settings.get("stages", 2),
        microbatches=settings.get("microbatches", 4),
        chunks=settings.get("chunks", 2),
        memory_budget=settings["memory_budget"],
    )
    return options, not settings["no_cache"], target


def on_devices(function: Function, target: str | None) -> Function:
    """The function as `device_options` want it: NumPy runs the program of one device, for which nothing that is about
    several may be asked for."""
    options = function.program.options
    if target not in INTERPRETERS:
        return function
    if options.devices not in (None, "one") or options.needing_devices is not None:
        asked = options.needing_devices or f"devices {options.devices}"
        raise click.UsageError(f"--target {target} runs the program on one device, and {asked} is for several")
    return function.program.with_options(replace(options, devices="one")).entry(function.name)


def donated_names(text: str, form: SignatureForm) -> tuple[str, ...]:
    """The parameters that `--donate` names, or tensors of them. Raises CompileError E0610 for another name."""
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    check_names(names, form.labels, complete=False)
    return names


def compiled_target(target: str | None) -> str | None:
    """The target that a program is compiled for where `--target` names it, or an interpreter."""
    return INTERPRETED_GPU if target == "triton-interpret" else None if target in INTERPRETERS else target


def _schedule_text(argument: str | None) -> str | None:
    """The text of `--schedule FILE|TEXT`."""
    if argument is None or not Path(argument).is_file():
        return argument
    return read_source(argument).text


def write_output(output: str, content: str | bytes) -> None:
    """Write a result to a file, or to standard output for `-`. Raises CompileError E0709."""
    try:
        if output == "-":
            sys.stdout.flush()
            sys.stdout.buffer.write(content if isinstance(content, bytes) else content.encode())
            sys.stdout.buffer.flush()
        else:
            Path(output).write_bytes(content if isinstance(content, bytes) else content.encode())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CompileError("E0709", f"cannot write {output}: {error.strerror or error}") from None

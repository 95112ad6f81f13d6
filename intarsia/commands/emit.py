"""`intarsia emit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from intarsia.commands.binding import bind_types, type_options
from intarsia.commands.options import (
    compile_options,
    device_options,
    on_devices,
    open_program,
    options_of,
    program_argument,
    write_output,
)
from intarsia.commands.resources import resource_lines
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import CHIP_STAGES, GPU_STAGES, STAGES, Compilation, interface_of
from intarsia.function import Function
from intarsia.ir.errors import CompileError
from intarsia.program import Program

SUFFIXES = {
    "plan": "plan", "llvm": "ll", "llvm-opt": "ll", "asm": "s", "ast": "txt", "triton": "py", "ttir": "mlir",
    "ttgir": "mlir", "ptx": "ptx", "sass": "sass",
}  # fmt: skip
BINARY = ("obj", "so")
CHOICES = ("ast", *dict.fromkeys((*STAGES, *GPU_STAGES)), "cubin", "obj", "so", "header", "dot")
UNSIZED = ("ast", "graph", "dot")
"""Stages that need no sizes."""


@click.command("emit")
@program_argument
@click.option("--to", "stage", type=click.Choice(CHOICES), default=None)
@click.option("--all", "folder", default=None, metavar="DIR", help="Write every stage, numbered, into a folder.")
@click.option("--debug-info", is_flag=True, help="Keep the user's file:line:column on every line that can carry it.")
@click.option("-o", "output", default="-", metavar="FILE", help="Where the stage goes  [default: standard output]")
@type_options
@compile_options
@device_options
def command(
    file: str | None,
    text: str | None,
    stage: str | None,
    folder: str | None,
    debug_info: bool,
    output: str,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    **settings: Any,
) -> None:
    """Show or write a stage of a program.

    Stages up to `scheduled` are valid input of `intarsia opt`. `ast`, `graph` and `dot` need no sizes; the others
    take those that --dim, --arg and --weights give.
    """
    if (stage is None) == (folder is None):
        raise click.UsageError("give either --to STAGE or --all DIR")
    source, name = open_program(file, text)
    options, use_cache, target = options_of(settings)
    program = Program(source, options, use_cache=use_cache)
    if stage == "ast":
        from intarsia.dsl.show import show

        write_output(output, show(program.library.program))
        return
    function = on_devices(program.entry(name), target)
    compilation = _compilation(function, arguments, weights, settings, sized=stage not in UNSIZED)
    if stage == "cubin":
        _write_cubins(compilation, output)
    elif folder is not None:
        _write_all(Path(folder), compilation, debug_info)
    elif stage in BINARY:
        if output == "-" and sys.stdout.isatty():
            raise click.UsageError("this stage is binary: give a file with -o")
        write_output(output, with_deep_stack(lambda: _binary(compilation, stage)))
    else:
        assert stage is not None
        write_output(output, with_deep_stack(lambda: _text(compilation, stage, debug_info)))
    if stage in (*CHIP_STAGES, "cubin") and compilation.target.kind == "gpu":
        for line in resource_lines(compilation, counted=stage == "sass"):
            click.echo(line, err=True)


def _compilation(
    function: Function, arguments: tuple[str, ...], weights: tuple[str, ...], settings: dict[str, Any], *, sized: bool
) -> Compilation:
    """The compilation for the sizes that are given. Raises CompileError E0614 naming those that lack."""
    bound = bind_types(function, arguments, weights, settings["dims"], required=sized)
    return function.compilation_of_types(bound.types, bound.statics, bound.dims)


def _text(compilation: Compilation, stage: str, debug_info: bool) -> str:
    if stage == "dot":
        from intarsia.commands.drawing import dot

        return dot(compilation.graph)
    if stage == "header":
        from intarsia.backends.cpu.library import header

        return header(interface_of(compilation))
    return compilation.text(stage, debug_info)


def _binary(compilation: Compilation, stage: str | None) -> bytes:
    if stage == "obj":
        return compilation.code.object_code
    from intarsia.backends.cpu.library import shared_library

    return shared_library(interface_of(compilation), compilation.target)


def _write_cubins(compilation: Compilation, output: str) -> None:
    """The code of each kernel for the chip: into a file if there is one kernel, else into a folder."""
    if compilation.target.kind != "gpu":
        hint = "give --target gpu:sm_80, gpu:sm_90 or gpu:sm_100"
        raise CompileError("E1702", f"there is no stage cubin for {compilation.target.name}", hint=hint)
    kernels = with_deep_stack(lambda: [k for codes in compilation.chip_code.values() for k in codes])
    if len(kernels) == 1 and not Path(output).is_dir():
        if output == "-" and sys.stdout.isatty():
            raise click.UsageError("this stage is binary: give a file with -o")
        write_output(output, kernels[0].cubin)
        return
    if output == "-":
        raise click.UsageError(f"there are {len(kernels)} kernels: give a folder with -o")
    _make_folder(Path(output))
    for kernel in kernels:
        path = Path(output) / f"{kernel.name}.cubin"
        write_output(str(path), kernel.cubin)
        click.echo(f"wrote {path}", err=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError("E0709", f"cannot make the folder {folder}: {error.strerror}") from None


def _write_all(folder: Path, compilation: Compilation, debug_info: bool) -> None:
    """`00-graph.ir`, `01-fused.ir`, …"""
    _make_folder(folder)
    for number, stage in enumerate(compilation.stages):
        text = with_deep_stack(lambda stage=stage: compilation.text(stage, debug_info))  # type: ignore[misc]
        path = folder / f"{number:02}-{stage}.{SUFFIXES.get(stage, 'ir')}"
        write_output(str(path), text)
        click.echo(f"wrote {path}", err=True)

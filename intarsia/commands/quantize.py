"""`intarsia quantize`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import click
import numpy as np

from intarsia.commands.options import read_text
from intarsia.commands.progress import ProgressLine
from intarsia.compensated_rounding import compensated_codes
from intarsia.files import ArrayFile, open_arrays, write_results
from intarsia.ir.dtypes import Array, DType, of_numpy
from intarsia.ir.errors import CompileError
from intarsia.measurement import size_text
from intarsia.packed_checkpoints import PackedLayer, Packing, layer_names, other_names, read_layer
from intarsia.plotting import pyplot
from intarsia.program import Program
from intarsia.quantization import conversions, definition, part_types, quantized
from intarsia.quantization_error import QuantizationError, channel_axis, error_histogram, measured_error


@click.command("quantize")
@click.argument("file", metavar="FILE[:KEY]")
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write: .npz or .safetensors.")
@click.option("--format", "format_", metavar="FORMAT", help="mxfp4, 'quant(i4, scale=f16, axis=0)', …")
@click.option("--from", "packing", type=click.Choice(get_args(Packing)), help="Unpack a checkpoint of this kind.")
@click.option("--program", "program", metavar="FILE", help="A program that declares the format.")
@click.option("--tensor", "patterns", multiple=True, metavar="PATTERN", help="Which tensors: 'layer.*.weight'.")
@click.option("--moments", metavar="FILE", help="Round for products with inputs, from the sums of products of these.")
@click.option("--per-channel", is_flag=True, help="The signal-to-noise ratio of every channel.")
@click.option("--plot", metavar="FILE", help="Draw how the errors are distributed (.png, .svg).")
def command(
    file: str,
    output: str,
    format_: str | None,
    packing: Packing | None,
    program: str | None,
    patterns: tuple[str, ...],
    moments: str | None,
    per_channel: bool,
    plot: str | None,
) -> None:
    """Store tensors of a file in a block format.

    Without --tensor these are all floats of two dimensions and more, or the only tensor of the file. The others are
    copied as they are. The tensor `w` becomes `w.codes`, `w.scale` and so on, which `run --arg w=FILE` takes. Prints
    how much is lost. With --moments, `w` in that file is the sum over inputs of `outer(input, input)`, and codes are
    such that products with such inputs lose little (GPTQ). With --from it reads a checkpoint of packed layers instead,
    which loses nothing.
    """
    if (format_ is None) == (packing is None):
        raise click.UsageError("give either --format or --from")
    if packing is not None:
        if program or patterns or moments or per_channel or plot:
            raise click.UsageError("--program, --tensor, --moments, --per-channel and --plot go with --format")
        _unpack_layers(open_arrays(file), packing, output)
        return
    assert format_ is not None
    if plot is not None:
        pyplot()  # an error now, not after the work
    arrays, names = _open(file)
    declared = None if program is None else Program(read_text(program))
    work = _Quantization(format_, declared, None if moments is None else open_arrays(moments))
    chosen = _chosen(arrays, names, patterns)
    results: dict[str, Array] = {}
    types: dict[str, DType] = {}
    reports: list[_Report] = []
    progress = ProgressLine()
    for name in names:
        if name not in chosen:
            results[name] = arrays.read(name)
            continue
        progress.show(f"{len(reports) + 1} of {len(chosen)}: {name}")
        parts, own_types, report = work.of(arrays.read(name), name, draws=plot is not None)
        for part, array in parts.items():
            label = f"{name}.{part}" if name else part
            if label in arrays.names:
                raise CompileError("E0710", f"{name or file}: {arrays.path} has a tensor {label} already")
            results[label], types[label] = array, own_types[part]
        reports.append(report)
    progress.show()
    _write(output, results, types)
    _print_table(reports)
    if per_channel:
        _print_channels(reports)
    if plot is not None:
        _draw(reports, plot)


def _unpack_layers(file: ArrayFile, packing: Packing, output: str) -> None:
    """Write a checkpoint of packed layers with these in block formats, and print the formats."""
    names, progress = layer_names(file), ProgressLine()
    layers: list[PackedLayer] = []
    for name in names:
        progress.show(f"{len(layers) + 1} of {len(names)}: {name}")
        layers.append(read_layer(file, name, packing))
    progress.show()
    results = {name: file.read(name) for name in other_names(file)}
    types: dict[str, DType] = {}
    ordered = any(layer.order is not None for layer in layers)
    for layer in layers:
        tensors, own = layer.named(ordered)
        results |= tensors
        types |= own
    _write(output, results, types)
    labels = [f"{layer.name}.weight".lstrip(".") for layer in layers]
    shapes = [_shape_text(layer.tensors["codes"].shape) for layer in layers]
    widths = [max(map(len, column)) for column in (labels, shapes)]
    for layer, label, shape in zip(layers, labels, shapes):
        note = "" if layer.order is None else ", its inputs in another order"
        click.echo(f"{label:<{widths[0]}}  {shape:<{widths[1]}}  {layer.format}{note}")


def _write(output: str, results: Mapping[str, Array], types: Mapping[str, DType]) -> None:
    write_results(output, results, types)
    click.echo(f"wrote {output}, {size_text(Path(output).stat().st_size)}", err=True)


@dataclass(frozen=True)
class _Report:
    """What the table says of a tensor. axis: that of its channels."""

    name: str
    shape: tuple[int, ...]
    before: int
    bits: int
    error: QuantizationError
    axis: int | None
    histogram: tuple[Array, Array] | None


class _Quantization:
    """Quantizes tensors to one format."""

    def __init__(self, format_: str, program: Program | None, moments: ArrayFile | None) -> None:
        self.definition = definition(format_, program)
        self._moments = moments
        self._format, self._program = format_, program
        self._conversions: dict[int, Program] = {}

    def of(self, x: Array, name: str, draws: bool) -> tuple[Mapping[str, Array], Mapping[str, DType], _Report]:
        """The tensors that store one, their types, and what is lost. Raises CompileError E0303, E0704 or E0710."""
        wide = _finite(x, name)
        axis = self.definition.axis
        if axis is not None and not -x.ndim <= axis < x.ndim:
            message = f"'{name}' has {x.ndim} dimensions, and the format is along axis {axis}"
            raise CompileError("E0303", message, hint="choose tensors with --tensor")
        if x.ndim not in self._conversions:
            self._conversions[x.ndim] = conversions(self._format, x.ndim, self._program, None)
        program = self._conversions[x.ndim]
        types = part_types(program)
        parts, dequantized = quantized(wide, program), program.entry("dequantized_")
        if self._moments is not None:
            sums = self._moments.read(self._moments.resolve(name or None))
            parts["codes"] = compensated_codes(wide, parts, self.definition, dequantized, sums, name)
        back = dequantized(parts)
        bits = sum(array.size * types[part].bits for part, array in parts.items())
        histogram = error_histogram(wide, back) if draws else None
        channels = channel_axis(self.definition, x.ndim)
        error = measured_error(wide, back, channels)
        return parts, types, _Report(name, x.shape, x.nbytes, bits, error, channels, histogram)


def _finite(x: Array, name: str) -> Array:
    """A tensor in f32. Raises CompileError E0710 unless its elements are numbers there."""
    label = f"'{name}'" if name else "the array"
    element = of_numpy(x.dtype)
    if element is None or not element.is_float or not x.size:
        raise CompileError("E0710", f"{label} is {element or x.dtype} of {x.size}: there are no floats to quantize")
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(x, np.float32).reshape(x.shape)
    if bad := x.size - int(np.isfinite(wide).sum()):
        nans = int(np.isnan(wide).sum())
        message = f"{label} is NaN at {nans} and infinite at {bad - nans} of {x.size} elements, in f32"
        first = ", ".join(str(int(i[0])) for i in np.nonzero(~np.isfinite(wide.reshape(x.shape or (1,)))))
        raise CompileError("E0710", message, hint=f"the first one is at [{first}]")
    return wide


def _open(file: str) -> tuple[ArrayFile, tuple[str, ...]]:
    """The file, and the names of its tensors that are asked for: all, or the one of FILE:KEY."""
    path, colon, key = file.rpartition(":")
    if colon and path and not Path(file).exists():
        arrays = open_arrays(path)
        return arrays, (arrays.resolve(key),)
    arrays = open_arrays(file)
    return arrays, arrays.names


def _chosen(arrays: ArrayFile, names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The tensors to quantize. Raises CompileError E0704 for a pattern that no name fits, E0710 for none at all."""
    if len(names) == 1 and not patterns:
        return set(names)
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise CompileError("E0704", f"{arrays.path} has no array named '{pattern}'", hint=f"it has {shown}")
    if patterns:
        return {n for n in names if any(fnmatchcase(n, p) for p in patterns)}
    found = {n for n in names if _is_matrix(arrays, n) and not _is_part(arrays, n)}
    if not found:
        hint = "choose tensors with --tensor"
        raise CompileError("E0710", f"{arrays.path} has no floats of two dimensions or more", hint=hint)
    return found


def _is_matrix(arrays: ArrayFile, name: str) -> bool:
    stored = arrays.type_of(name)
    return stored.dtype is not None and stored.dtype.is_float and len(stored.shape) > 1 and math.prod(stored.shape) > 0


def _is_part(arrays: ArrayFile, name: str) -> bool:
    """Is it the scale or the like of a tensor that is in a format already?"""
    *before, _ = name.split(".")
    return ".".join([*before, "codes"]) in arrays.names


# ---------------------------------------------------------------------- what is printed


_HEAD = ("tensor", "shape", "bits", "before", "after", "max error", "rms error", "SNR", "worst channel")


def _print_table(reports: Sequence[_Report]) -> None:
    rows = [_HEAD, *map(_row, reports)]
    if len(reports) > 1:
        elements, bits = sum(r.error.count for r in reports), sum(r.bits for r in reports)
        before = sum(r.before for r in reports)
        rows.append(("total", "", f"{bits / elements:.2f}", size_text(before), size_text(_bytes(bits)), *[""] * 4))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    aligned: list[Callable[[str, int], str]] = [str.ljust, str.ljust, *[str.rjust] * (len(_HEAD) - 2)]
    for row in rows:
        click.echo("  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths)).rstrip())


def _row(report: _Report) -> tuple[str, ...]:
    error = report.error
    return (
        report.name or "-",
        _shape_text(report.shape),
        f"{report.bits / error.count:.2f}",
        size_text(report.before),
        size_text(_bytes(report.bits)),
        f"{error.most:.3g}",
        f"{error.rms:.3g}",
        _decibels_text(error.decibels),
        _decibels_text(min(error.by_channel)),
    )


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _decibels_text(ratio: float) -> str:
    return "exact" if ratio == math.inf else f"{ratio:.1f} dB"


def _print_channels(reports: Sequence[_Report]) -> None:
    for report in reports:
        along = "" if report.axis is None else f", along axis {report.axis}"
        click.echo(f"channels of {report.name or '-'}{along}:")
        for number, ratio in enumerate(report.error.by_channel):
            click.echo(f"  {number:>6}  {_decibels_text(ratio)}")


def _draw(reports: Sequence[_Report], path: str) -> None:
    """The distribution of the errors of each tensor, as parts of its root mean square. Raises CompileError E0709."""
    figure, axes = pyplot().subplots(figsize=(7, 4))
    for report in reports:
        assert report.histogram is not None
        shares, middles = report.histogram
        axes.step(middles, shares, where="mid", label=f"{report.name or '-'}: {_decibels_text(report.error.decibels)}")
    axes.set_xlabel("error / root mean square of the tensor")
    axes.set_ylabel("share of the elements")
    axes.set_yscale("log")
    if len(reports) <= 12:
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise CompileError("E0709", f"cannot write {path}: {error}") from None

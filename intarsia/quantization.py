"""Arrays in block formats, from Python: `quantize` gives what an argument of a format takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.formats import BUILT_IN
from intarsia.options import Options
from intarsia.program import Program


def quantize(x: Any, format: str, program: Program | None = None, options: Options | None = None) -> dict[str, Array]:
    """An array of floats as the tensors that store it in a format: `codes`, `scale`, perhaps `zero` and others.

    format: a built-in one (`"mxfp4"`), one that `program` declares (`"w4"`), or what a declaration says
    (`"quant(i4, scale=f16, group=128, axis=0)"`).

    Raises CompileError where there is no such format, or the array lacks its axis.
    """
    array = np.ascontiguousarray(x)
    program = conversions(format, np.ndim(array), program, options)
    names = [leaf.name for leaf in program.entry("dequantized_").form.parameters[0].leaves]
    wide = array if array.dtype == np.float32 else array.astype(np.float32)
    return dict(zip(names, program.entry("quantized_")(wide), strict=True))


def dequantize(
    parts: Mapping[str, Any], format: str, program: Program | None = None, options: Options | None = None
) -> Array:
    """The values, in f32, of the tensors that store them in a format. The inverse of `quantize`, up to its rounding."""
    program = conversions(format, np.ndim(parts["codes"]), program, options)
    result: Array = program.entry("dequantized_")(parts)
    return result


def conversions(format: str, rank: int, program: Program | None, options: Options | None) -> Program:
    """A program with the two conversions of a format, for tensors of a rank."""
    shape = f"[{', '.join(f'D{d}_' for d in range(rank))}]" if rank else ""
    declared = format in BUILT_IN or (program is not None and "(" not in format)
    name = format if declared else "stored_"
    lines = [
        *([] if program is None else [program.source.text]),
        *([] if declared else [f"format {name} = {format}"]),
        f"fn quantized_(x: f32{shape}) -> {name}{shape} {{ return quantize(x, {name}) }}",
        f"fn dequantized_(w: {name}{shape}) -> f32{shape} {{ return dequantize(w) }}",
    ]
    return Program(Source("<format>" if program is None else program.source.name, "\n".join(lines)), options)

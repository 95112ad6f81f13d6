"""Arrays in block formats, from Python: `quantize` gives what an argument of a format takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intarsia.compensated_rounding import compensated_codes
from intarsia.ir.dtypes import Array, DType
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.formats import BUILT_IN, BlockFormat
from intarsia.options import Options
from intarsia.program import Program


def quantize(
    x: Any, format: str, program: Program | None = None, options: Options | None = None, *, moments: Any = None
) -> dict[str, Array]:
    """An array of floats as the tensors that store it in a format: `codes`, `scale`, perhaps `zero` and others.

    format: a built-in one (`"mxfp4"`), one that `program` declares (`"w4"`), or what a declaration says
    (`"quant(i4, scale=f16, group=128, axis=0)"`). moments: of weights for products along the axis of the groups, the
    sum over inputs of `outer(input, input)`, or a multiple of it; codes are then such that products with inputs like
    these, and not the weights, are near (GPTQ).

    Raises CompileError E0303 where there is no such format, or the array lacks its axis, E0710 for wrong moments.
    """
    array = np.ascontiguousarray(x).reshape(np.shape(x))  # which makes a vector of a scalar
    converting = conversions(format, np.ndim(array), program, options)
    wide = array if array.dtype == np.float32 else array.astype(np.float32)
    parts = quantized(wide, converting)
    if moments is not None:
        known = definition(format, program)
        parts["codes"] = compensated_codes(wide, parts, known, converting.entry("dequantized_"), moments, format)
    return parts


def dequantize(
    parts: Mapping[str, Any], format: str, program: Program | None = None, options: Options | None = None
) -> Array:
    """The values, in f32, of the tensors that store them in a format. The inverse of `quantize`, up to its rounding."""
    program = conversions(format, np.ndim(parts["codes"]), program, options)
    result: Array = program.entry("dequantized_")(parts)
    return result


def quantized(x: Array, program: Program) -> dict[str, Array]:
    """The tensors that store an array in f32, for a program of `conversions`."""
    return dict(zip(part_types(program), program.entry("quantized_")(x), strict=True))


def conversions(format: str, rank: int, program: Program | None, options: Options | None) -> Program:
    """A program with the two conversions of a format, for tensors of a rank.

    Raises CompileError E0303 for a name that no format has.
    """
    shape = f"[{', '.join(f'D{d}_' for d in range(rank))}]" if rank else ""
    is_name = "(" not in format
    if is_name and format not in BUILT_IN and (program is None or program.library.root.format(format) is None):
        file = None if program is None else program.library.root
        own = [] if file is None else [n for n in file.names() if file.format(n) is not None]
        known = ", ".join([*own, *BUILT_IN, *([] if own else ["one that a program declares"])])
        hint = f"{known}, or quant(i4, scale=f16, group=128, axis=0)"
        raise CompileError("E0303", f"no format is named `{format}`", hint=hint)
    name = format if is_name else "stored_"
    lines = [
        *([] if program is None else [program.source.text]),
        *([] if is_name else [f"format {name} = {format}"]),
        f"fn quantized_(x: f32{shape}) -> {name}{shape} {{ return quantize(x, {name}) }}",
        f"fn dequantized_(w: {name}{shape}) -> f32{shape} {{ return dequantize(w) }}",
    ]
    return Program(Source("<format>" if program is None else program.source.name, "\n".join(lines)), options)


def part_types(program: Program) -> dict[str, DType]:
    """The element types of the tensors that store one, for a program of `conversions`."""
    parameter = program.entry("dequantized_").form.parameters[0]
    found = {leaf.name: tensor.dtype for leaf, tensor in zip(parameter.leaves, parameter.tensors)}
    return {name: element for name, element in found.items() if element is not None}


def definition(format: str, program: Program | None = None) -> BlockFormat:
    """What a format says, given as for `quantize`. Raises CompileError E0303."""
    from intarsia.dsl.semantics.values import Format

    own = conversions(format, 0, program, None).library.root
    name = "stored_" if "(" in format else format
    return Format(name, own.format(name)).definition

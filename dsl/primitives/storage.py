"""Low-bit data: quantised formats and rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intarsia.dsl.primitives.arguments import Arguments, Primitive
from intarsia.dsl.primitives.formats import Blocks
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import EXPRESSIONS, Format, FormatElement, FormatTensor, Item
from intarsia.ir.dtypes import F32
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.ops import Cast
from intarsia.ir.scalar import cast

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def _quantize(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    x, found = arguments.tensor(builder, "x"), arguments.item("format")
    if not isinstance(found, Format):
        raise arguments.wrong(
            "format", "a format such as mxfp4", "declare one: format w4 = quant(i4, scale=f16, group=128)"
        )
    if not x.dtype.is_float or x.dtype.is_narrow:
        raise CompileError("E0202", f"quantize of {x.type}: it is for floats of 16 bits or more", span)
    shape = x.tensor.shape
    found.leaves(shape, "x")  # has it the dimension of the groups?
    wide = x if x.dtype == F32 else builder.add(Cast(x, F32, span=span)).value
    return FormatTensor(found, shape, Blocks(builder, found.definition, shape, span).codes(wide))


def _dequantize(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    item = arguments.item("q")
    if isinstance(item, FormatElement):
        x = item.tensor
        return Blocks(builder, x.format.definition, x.shape, span).value(x.parts, item.indices)
    if not isinstance(item, FormatTensor):
        hint = "a plain narrow tensor is cast: f32(w)"
        raise arguments.wrong("q", "a tensor of a format", hint)
    return Blocks(builder, item.format.definition, item.shape, span).values(item.parts)


def _round_to(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """The nearest values of a narrower float, in the dtype of x."""
    item, narrow = arguments.item("x"), arguments.dtype("dtype")
    argument = arguments["x"]
    if isinstance(item, (int, float, *EXPRESSIONS)):
        element = builder.element(item, argument.span)
        return cast(element.dtype, cast(narrow, element))
    x = arguments.tensor(builder, "x")
    rounded = builder.add(Cast(x, narrow, span=span)).value
    return builder.add(Cast(rounded, x.dtype, span=span)).value


STORAGE = (
    Primitive("quantize", "x; format", _quantize),
    Primitive("dequantize", "q", _dequantize),
    Primitive("round_to", "x; dtype", _round_to),
)

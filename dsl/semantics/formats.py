"""Formats that programs declare or name, as data (`ir/formats.py`)."""

from __future__ import annotations

from intarsia.dsl import ast
from intarsia.ir.dtypes import DType, dtype
from intarsia.ir.errors import CompileError
from intarsia.ir.formats import BUILT_IN, BlockFormat, ZeroMeans, block_format

OPTIONS = ("scale", "group", "axis", "zero", "zero_means")
_ZERO_MEANS: tuple[ZeroMeans, ...] = ("code", "value", "quantized")


def read_format(call: ast.Call) -> BlockFormat:
    """The format that `quant(…)` or `mxfp4(axis=0)` makes. Raises CompileError E0303."""
    name = call.function.text
    if name != "quant" and name not in BUILT_IN:
        hint = f"quant(…), or one of {', '.join(BUILT_IN)}"
        raise CompileError("E0303", f"no format is made by `{name}`", call.function.span, hint=hint)
    options = OPTIONS if name == "quant" else ("axis",)
    for keyword in call.keywords:
        if keyword.name.text not in options:
            message = f"a format has no option `{keyword.name}`"
            raise CompileError("E0303", message, keyword.span, hint=", ".join(options))
    given = {k.name.text: k.value for k in call.keywords}
    axis = _integer(given["axis"], "an axis is a number") if "axis" in given else -1
    if name != "quant":
        if call.positional:
            raise CompileError("E0303", f"{name} is given codes", call.span, hint=f"it has its own: {name}(axis=0)")
        return BUILT_IN[name].along(axis)
    codes = _codes(call)
    if "scale" not in given:
        raise CompileError("E0303", "a format has a scale", call.span, hint="its dtype: scale=f16")
    group = _integer(given["group"], "a group is a number of elements, or none") if "group" in given else None
    if group is not None and group < 1:
        raise CompileError("E0303", "a group is a number of elements, or none", given["group"].span)
    zero = _zero(given["zero"]) if "zero" in given else None
    means = _zero_means(given["zero_means"]) if "zero_means" in given else "code"
    if means == "quantized" and not (zero is not None and zero.is_integer):
        hint = "zero=u4, say"
        raise CompileError("E0303", "a quantized zero point is an integer", given["zero_means"].span, hint=hint)
    return block_format(codes, _scale(given["scale"]), group, axis, zero, means)


def _codes(call: ast.Call) -> str:
    names = [value.name for value in call.positional if isinstance(value, ast.Name)]
    found = dtype(names[0]) if names else None
    if len(call.positional) != 1 or len(names) != 1 or (found is None and names[0] != "ternary"):
        raise CompileError(
            "E0303", "a format has one type of codes", call.span, hint="quant(i4, scale=f16, group=128, axis=0)"
        )
    if found is not None and (found.bits > 8 or found.kind == "bool" or found.specials == "scale"):
        hint = "an integer or a float of 8 bits or fewer"
        raise CompileError("E0303", f"codes of type {found}", call.positional[0].span, hint=hint)
    return names[0]


def _scale(value: ast.Expression) -> DType | BlockFormat:
    if isinstance(value, ast.Call):
        found = read_format(value)
        if found.tensor_scale is not None or found.zero is not None:
            raise CompileError("E0303", "scales are stored without zero points", value.span)
        return found
    element = dtype(value.name) if isinstance(value, ast.Name) else None
    if element is None or not element.is_float:
        raise CompileError("E0303", "a scale is a float", value.span, hint="scale=f16, or scale=quant(u8, scale=f32)")
    return element


def _zero(value: ast.Expression) -> DType | None:
    if isinstance(value, ast.NoneLiteral):
        return None
    element = dtype(value.name) if isinstance(value, ast.Name) else None
    if element is None or element.kind == "bool" or element.specials == "scale":
        raise CompileError("E0303", "a zero point has a number type", value.span, hint="zero=u4")
    return element


def _zero_means(value: ast.Expression) -> ZeroMeans:
    text = value.value if isinstance(value, ast.String) else ""
    for means in _ZERO_MEANS:
        if text == means:
            return means
    raise CompileError("E0303", f'zero_means is "{text}"', value.span, hint='"code", "value" or "quantized"')


def _integer(value: ast.Expression, wanted: str) -> int | None:
    match value:
        case ast.NoneLiteral():
            return None
        case ast.Number(_, int() as number):
            return number
        case ast.Unary("-", ast.Number(_, int() as number)):
            return -number
    raise CompileError("E0303", wanted, value.span)

"""Sums of products: einsum."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from intarsia.dsl.evaluation.operators import sharing_hint
from intarsia.dsl.primitives.arguments import Arguments, Primitive
from intarsia.dsl.primitives.reductions import require_reducible
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import Item
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.ops.reduction import accumulated
from intarsia.ir.scalar import Apply, Expr, Load, cast
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def _einsum(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """Einstein's convention in NumPy's notation: letters that the result lacks are summed over."""
    where = arguments["equation"].span
    values = [arguments.tensor(builder, n) for n in ("x", "y", "z", "w") if arguments.item(n) is not None]
    inputs, output = _parse(arguments.text("equation"), len(values), where)
    for value in values:
        require_reducible("sum", value.dtype, span)
        if value.dtype != values[0].dtype:
            types = " and ".join(str(v.type) for v in values)
            hint = "nothing is converted unasked: cast one of them"
            raise CompileError("E0202", f"einsum of {types}: the dtypes differ", span, hint=hint)
    sizes = _sizes(builder, inputs, values, where)
    missing = [letter for letter in output if letter not in sizes]
    if missing or len(set(output)) < len(output):
        raise CompileError("E0210", f"einsum: `{output}` is not made of different letters of the operands", where)
    names = {letter: builder.axis_symbol(letter, None) for letter in sizes}
    axes = [Axis.of(names[letter], sizes[letter]) for letter in output]
    reduced = tuple(Axis.of(names[letter], sizes[letter]) for letter in sizes if letter not in output)
    factors: list[Expr] = [
        Load(builder.buffer(v), tuple(Size.of(names[letter]) for letter in letters), v.dtype)
        for letters, v in zip(inputs, values)
    ]
    body = factors[0]
    for factor in factors[1:]:
        body = Apply("mul", (body, factor))
    summed, dtype = accumulated("sum", body)
    if reduced:
        return builder.compute(Space(tuple(axes), summed, dtype, reduced, "sum"), span)
    return builder.compute(Space(tuple(axes), cast(dtype, body), dtype), span)


def _parse(equation: str, operands: int, span: Span) -> tuple[list[str], str]:
    """The letters of each operand and of the result; without `->` those that occur once, in alphabetical order."""
    text = equation.replace(" ", "")
    if not re.fullmatch(r"[A-Za-z,]*(->[A-Za-z]*)?", text):
        hint = 'letters, commas and one arrow, as in "ij,jk->ik"'
        raise CompileError("E0210", f'einsum: "{equation}" is not an equation', span, hint=hint)
    left, arrow, output = text.partition("->")
    inputs = left.split(",")
    if len(inputs) != operands:
        raise CompileError("E0210", f'einsum: "{equation}" has {len(inputs)} operands, and {operands} are given', span)
    if not arrow:
        output = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    return inputs, output


def _sizes(builder: Builder, inputs: list[str], values: list[Value], span: Span) -> dict[str, Size]:
    """The size of each letter, in order of first use."""
    sizes: dict[str, Size] = {}
    for letters, value in zip(inputs, values):
        if len(letters) != value.tensor.rank:
            message = f"einsum: `{letters}` is for {len(letters)} dimensions, and the operand is {value.type}"
            raise CompileError("E0210", message, span)
        for letter, extent in zip(letters, value.tensor.shape):
            first = sizes.setdefault(letter, extent)
            if builder.bounds.compare(first, extent) is False:
                show = builder.bounds.show
                message = f"einsum: {letter} is {show(first)} and {show(extent)}"
                raise CompileError("E0203", message, span, hint=sharing_hint(first, extent))
    return sizes


CONTRACTIONS = (Primitive("einsum", "equation, x, y=none, z=none, w=none", _einsum),)

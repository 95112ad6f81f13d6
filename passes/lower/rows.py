"""Ops that run along a row in order: prefix scans, and sorts by an opaque routine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intarsia.ir.functions import COMBINERS
from intarsia.ir.kernel import COMBINER_OPERATORS, Alloc, Call, Statement
from intarsia.ir.ops import Argsort, Cumulative, Sort
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.ops.reduction import accumulated
from intarsia.ir.scalar import Const, Load, cast
from intarsia.ir.sizes import Size
from intarsia.passes.lower.stages import Scope, subscripts

if TYPE_CHECKING:
    from intarsia.passes.lower.kernel import GroupLowering


def lower_cumulative(group: GroupLowering, node: Cumulative) -> None:
    """A running value for each row, in the dtype of the accumulation.

        for i { alloc run; for j { run[j] = 0 }; for k { for j { run[j] += x[i, k, j]; y[i, k, j] = run[j] } } }

    The axes outside of the scanned one stay outside of it, those inside are inside, where they can become lanes.
    """
    writer, span = group.writer, node.span
    axes = axes_for(node.x.tensor.shape)
    outer, along, inner = axes[: node.axis], axes[node.axis], axes[node.axis + 1 :]
    element, dtype = accumulated(node.combiner, group.definition(node.x).at(subscripts(axes)))
    assert dtype == node.value.dtype
    target = group.storage(node.value)
    alloc = writer.temporary("run", element.dtype, tuple(a.extent for a in inner))
    if not inner:
        alloc = Alloc(replace(alloc.buffer, memory="register"))
    run, row = alloc.buffer.name, subscripts(inner)
    # -0.0 is what leaves every float as it is; a sum that began at 0.0 would lose the sign of a first -0.0.
    start_at = -0.0 if dtype.is_float and node.combiner == "sum" else COMBINERS[node.combiner].neutral(element.dtype)
    neutral = Const(start_at, element.dtype)
    operator = COMBINER_OPERATORS[node.combiner]

    def start(scope: Scope) -> tuple[Statement, ...]:
        return (writer.put(scope, run, row, "=", neutral, span),)

    def step(scope: Scope) -> tuple[Statement, ...]:
        total = cast(dtype, Load(run, row, element.dtype))
        return (
            writer.put(scope, run, row, operator, element, span),
            writer.put(scope, target.name, subscripts(axes), "=", total, span),
        )

    def rows(scope: Scope) -> tuple[Statement, ...]:
        return (alloc, *writer.loops(inner, start, scope), *writer.loops((along, *inner), step, scope))

    writer.body += writer.loops(outer, rows)


def lower_sort(group: GroupLowering, node: Sort | Argsort) -> None:
    """`for i { call sort(x[i, :]) -> y[i, :] }`: whole rows are sorted. An operand that no buffer holds, such as a
    literal, is written to one first."""
    writer = group.writer
    definition = group.definition(node.x)
    axes = axes_for(node.x.tensor.shape)
    target = group.storage(node.value)
    source = definition.buffer
    if source is None:
        alloc = writer.temporary("row", node.x.dtype, node.x.tensor.shape)
        source = alloc.buffer.name
        value = definition.at(subscripts(axes))

        def copy(scope: Scope) -> tuple[Statement, ...]:
            return (writer.put(scope, alloc.buffer.name, subscripts(axes), "=", value, node.span),)

        writer.body += (alloc, *writer.loops(axes, copy))
    rows = source

    def row(scope: Scope) -> tuple[Statement, ...]:
        where: tuple[Size, ...] = tuple(i.substitute(scope.names) for i in subscripts(axes[:-1]))
        return (Call(node.name, ((rows, where),), ((target.name, where),), axes[-1].extent),)

    writer.body += writer.loops(axes[:-1], row)

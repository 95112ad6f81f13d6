"""Computes in normal form, and one space put into another: the algebra of spaces that passes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import Compute
from intarsia.ir.scalar import Expr, Load, transform
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand, operand_position

Rule: TypeAlias = Callable[[Expr], "Expr | None"]


def compute(arguments: Sequence[Value], space: Space, origin: Node) -> Compute:
    """A `Compute` in normal form: operands distinct, in the order in which the space first reads them, none unread.

    The spans are those of `origin`; `origin` itself is given back where it is that node already.
    """
    order: dict[Value, int] = {}
    for load in space.loads():
        order.setdefault(arguments[operand_position(load.buffer)], len(order))
    names = {operand(p): operand(order[v]) for p, v in enumerate(arguments) if v in order}
    if tuple(order) != tuple(arguments) or any(a != b for a, b in names.items()):
        space = rename_operands(space, names)
    elif isinstance(origin, Compute) and origin.definition == space and origin.arguments == tuple(arguments):
        return origin
    return Compute(tuple(order), space, span=origin.span, more_spans=origin.more_spans)


def rename_operands(space: Space, names: Mapping[str, str]) -> Space:
    """The space with operands under other names."""

    def rename(e: Expr) -> Expr | None:
        return dataclasses.replace(e, buffer=names[e.buffer]) if isinstance(e, Load) and e.buffer in names else None

    return map_space(space, rename)


def map_space(space: Space, rule: Rule) -> Space:
    """Apply a rule (see `transform`) to the body and to the data-dependent bounds of a space."""

    def bound(size: Size) -> Size:
        return size.substitute({}, lambda value: Size.opaque(transform(value, rule=rule)))

    def axis(a: Axis) -> Axis:
        return Axis(a.name, bound(a.lower), bound(a.upper))

    return dataclasses.replace(
        space,
        axes=tuple(map(axis, space.axes)),
        reduced=tuple(map(axis, space.reduced)),
        body=transform(space.body, rule=rule),
    )

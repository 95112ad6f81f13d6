"""Ops that only move elements, and the one op that several are together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops.index import Compute
from intarsia.ir.scalar import Apply, Const, Expr, Load, cast, loads, transform
from intarsia.ir.sizes import Size
from intarsia.ir.space import Space, operand, operand_position, size_loads
from intarsia.passes.canonicalize.spaces import facts_of, simplify_body


def only_moves(space: Space) -> bool:
    """Is every element of the result one of an operand, or a constant, as those of a slice, a pad and a concat are?"""
    return space.combiner is None and space.body.dtype == space.dtype and _is_moved(space.body)


def _is_moved(e: Expr) -> bool:
    match e:
        case Load(indices=indices):
            return not any(i.opaques for i in indices)
        case Const():
            return True
        case Apply("where", (condition, a, b)):
            return not any(True for _ in loads(condition)) and _is_moved(a) and _is_moved(b)
    return False


def moved(space: Space) -> Load | None:
    """Where a space reads the operand of which it gives elements, and nothing else; None where there is more."""
    body = simplify_body(space.body, facts_of(space.axes)) if space.combiner is None else None
    plain = isinstance(body, Load) and body.dtype == space.dtype and not any(i.opaques for i in body.indices)
    return body if isinstance(body, Load) and plain else None


def composed(region: Region) -> Compute:
    """The op that the nodes of a region are together, the last of which gives its only result."""
    (result,) = region.results
    space, values = _composed(result.node, region.nodes)
    return Compute(tuple(values), space)


def _composed(node: Node, inside: Collection[Node]) -> tuple[Space, list[Value]]:
    assert isinstance(node, Structured)
    space, values = node.space, list(node.operands)
    for position, value in enumerate(node.operands):
        if value.node in inside:
            inner, more = _composed(value.node, inside)
            inner = inner.rename_operands({operand(p): operand(len(values) + p) for p in range(len(more))})
            space, values = _of(space, position, inner), values + more
    return space, values


def _of(space: Space, position: int, inner: Space) -> Space:
    """A space in which the elements of one operand are those of another space. Where that one reduces, nothing but its
    elements may be given."""

    def at(load: Load) -> dict[str, Size]:
        return {a.name: i for a, i in zip(inner.axes, load.indices)}

    if inner.combiner is None:

        def element(e: Expr) -> Expr | None:
            if not isinstance(e, Load) or e.buffer != operand(position):
                return None
            return cast(inner.dtype, transform(inner.body, at(e)))

        return replace(space, body=transform(space.body, rule=element))
    load = moved(space)
    assert load is not None and operand_position(load.buffer) == position
    taken = {a.name for a in (*space.axes, *inner.axes)}
    inner = inner.rename_axes({a.name: _fresh(a.name, taken) for a in inner.reduced})
    reduced = tuple(a.substitute(at(load)) for a in inner.reduced)
    return Space(space.axes, transform(inner.body, at(load)), inner.dtype, reduced, inner.combiner)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def reads_in_sizes(space: Space, position: int) -> bool:
    """Do bounds or subscripts depend on the elements of an operand?"""
    bounds = [b for a in space.all_axes for b in (a.lower, a.upper)]
    inside = [i for load in space.loads() for i in load.indices]
    return any(load.buffer == operand(position) for load in size_loads([*bounds, *inside]))

"""Updates that read their neighbours, as stencils written in place do, as computations of all elements: each device
then takes from its neighbours what it lacks, where an update of a part of a split dimension would need all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.graph import Module, Region
from intarsia.ir.kernel import PUT_FUNCTIONS
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.scalar import Expr, Index, Load, apply, loads, transform, where
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.spmd import is_partitioned, mesh_of
from intarsia.passes.lower.stages import Names
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_nodes, change_regions


@dataclass(frozen=True)
class WholeUpdates(Pass):
    """Compute all elements of tensors of which a part is changed, place by place, from what is beside each place.

    Before:  %1 = update %x[i] = [i in 1..7] (%x[i - 1] + %x[i + 1]) : f32[8]
    After:   %1 = compute [i < 8] (where(i >= 1 and i < 7, %x[i - 1] + %x[i + 1], %x[i])) : f32[8]

    The other updates of its region too, as of boundaries. Those whose places data or counters say stay as they are.

    Keeps: values, bit for bit. Needs: a mesh of several devices in the header; without one it does nothing, nor does it
    where subscripts are checked at run time.
    """

    name: ClassVar[str] = "whole-updates"

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None or mesh.devices == 1 or is_partitioned(module) or context.checks:
            return module

        def whole(region: Region) -> Region:
            region = change_regions(region, lambda _, inner: whole(inner))
            found = next((n for n in region.nodes if isinstance(n, Update) and _reads_beside(n)), None)
            if found is None:
                return region
            self.remark(
                context, "sharding", "updates that read beside what they write compute all elements", found.span
            )
            return change_nodes(region, lambda n: ((_computed(n) or n) if isinstance(n, Update) else n,))

        body = whole(module.graph.body)
        return module.with_body(body)


def _places(node: Update) -> tuple[tuple[str, int] | None, ...] | None:
    """For each dimension the axis along which an update writes, and what is added to it, or nothing where that is a
    number; None where it does not write each element of a box once."""
    if node.base.dtype.is_narrow or node.body.dtype != node.base.dtype:
        return None
    left = {a.name for a in node.axes}
    if any(b.opaques for a in node.axes for b in (a.lower, a.upper)):
        return None
    places: list[tuple[str, int] | None] = []
    for target in node.targets:
        name = (target - target.offset).as_name
        if target.constant is None and name not in left:
            return None
        places.append(None if name is None or target.constant is not None else (name, target.offset))
        left.discard(name or "")
    return None if left else tuple(places)


def _reads_beside(node: Update) -> bool:
    """Does an update read elements at a distance from the one it writes?"""
    places = _places(node)
    axes = dict(p for p in places or () if p is not None)
    for load in loads(node.body):
        for index in load.indices:
            name = (index - index.offset).as_name
            if name in axes and index.offset != axes[name]:
                return True
    return False


def _computed(node: Update) -> Compute | None:
    """An update as a computation of all elements."""
    places = _places(node)
    if places is None:
        return None
    names = Names({a.name for a in node.axes} | node.body.symbols | _bounds(node.axes))
    own = [place[0] if place is not None else names.fresh("d") for place in places]
    axes = tuple(Axis.of(name, extent) for name, extent in zip(own, node.base.tensor.shape))
    moved = {place[0]: Size.of(place[0]) - place[1] for place in places if place is not None}
    inside: Expr | None = None
    of_axis = {a.name: a for a in node.axes}
    for axis, place, target in zip(axes, places, node.targets):
        here = Size.of(axis.name)
        if place is None:
            conditions = [apply("eq", Index(here), Index(target))]
        else:
            lower, upper = (b.substitute(moved) + place[1] for b in (of_axis[place[0]].lower, of_axis[place[0]].upper))
            conditions = [apply("ge", Index(here), Index(lower))] if lower != ZERO else []
            conditions += [apply("lt", Index(here), Index(upper))] if upper != axis.upper else []
        for condition in conditions:
            inside = condition if inside is None else apply("and", inside, condition)
    old = Load(operand(0), tuple(map(Size.of, own)), node.base.dtype)
    value = transform(node.body, moved)
    if node.operator != "=":
        value = apply(PUT_FUNCTIONS[node.operator], old, value)
    body = value if inside is None else where(inside, value, old)
    values = (node.base, *node.arguments)
    space = Space(axes, body, node.base.dtype)
    return Compute(values, space, **node.spans, shardings=node.shardings)


def _bounds(axes: Sequence[Axis]) -> frozenset[str]:
    return frozenset().union(*(b.symbols for a in axes for b in (a.lower, a.upper)))

"""Whether a contraction is summed in groups, as a factor such as the scale of codes is the same within each of them."""

from __future__ import annotations

from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Group
from intarsia.ir.sizes import Quotient
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.nests import Contraction
from intarsia.passes.schedule.products import Product
from intarsia.passes.schedule.shape import UNKNOWN


def groups_of(b: Builder, c: Contraction) -> Group | None:
    """The groups in which a contraction is summed, if a factor of its summands is the same within each of them."""
    reduced = {axis: b.loop(axis) for axis in c.main.reduced}
    sizes: dict[str, int] = {}
    for factor in Product.of(c.put.value).factors:
        for index in (i for x in loads(factor) for i in x.indices):
            for atom in index.atoms():
                if isinstance(atom, Quotient) and (axis := atom.numerator.as_name) in reduced:
                    sizes[str(axis)] = min(atom.denominator.constant or 0, sizes.get(str(axis), UNKNOWN**2))
    if len(sizes) != 1:
        return None
    ((axis, size),) = sizes.items()
    return Group(c.put.buffer, axis, size, b.fresh(c.put.buffer)) if size > 1 else None

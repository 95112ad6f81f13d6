"""Whether a contraction is summed in groups, as a factor such as the scale of codes is the same within each of them."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.dots import dots_of
from intarsia.ir.dtypes import I32
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Apply, Cast, Expr, loads
from intarsia.ir.schedule import Group
from intarsia.ir.sizes import Quotient
from intarsia.ir.target import Target
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.nests import NARROW, Contraction
from intarsia.passes.schedule.products import Product
from intarsia.passes.schedule.shape import UNKNOWN


def groups_of(b: Builder, c: Contraction) -> tuple[Group, ...]:
    """The ways to sum a contraction in groups, the best first, if a factor of its summands is the same within each: as
    integers, if those are what is left, and as they are."""
    if c.summed:
        return ()
    reduced = {axis: b.loop(axis) for axis in c.main.reduced}
    sizes: dict[str, int] = {}
    for factor in Product.of(c.put.value).factors:
        for index in (i for x in loads(factor) for i in x.indices):
            for atom in index.atoms():
                if isinstance(atom, Quotient) and (axis := atom.numerator.as_name) in reduced:
                    sizes[str(axis)] = min(atom.denominator.constant or 0, sizes.get(str(axis), UNKNOWN**2))
    if not sizes and len(reduced) == 1 and _has_fixed_part(b, c):
        ((axis, loop),) = reduced.items()
        sizes[axis] = trips(loop).constant or 0
    if len(sizes) != 1:
        return ()
    ((axis, size),) = sizes.items()
    if size < 2:
        return ()
    step = Group(c.put.buffer, axis, size, b.fresh(c.put.buffer))
    integral = has_dots(b.target) and sum(map(is_integer, Product.of(c.put.value).above)) > 1
    return (replace(step, total=I32.name), step) if integral else (step,)


def is_integer(factor: Expr) -> bool:
    """Is a factor an integer that was cast, or the difference of two?"""
    match factor:
        case Cast(_, value):
            return value.dtype.is_integer
        case Apply("sub", (left, right)):
            return is_integer(left) and is_integer(right)
    return False


def _has_fixed_part(b: Builder, c: Contraction) -> bool:
    """Is some factor of a sum over codes, or what is taken from one, the same along the whole reduction?"""
    changing = {*c.main.reduced}
    parts: list[Expr] = []
    for factor in Product.of(c.put.value).factors:
        parts += factor.arguments[1:] if isinstance(factor, Apply) and factor.function == "sub" else [factor]
    is_code = b.kernel.buffers()[c.right.buffer].dtype.bits <= NARROW
    return is_code and any(not part.symbols & changing and any(loads(part)) for part in parts)


def has_dots(target: Target) -> bool:
    """Does a target sum products of integers faster than those of floats?"""
    return any(dot.total == I32 for dot in dots_of(target))

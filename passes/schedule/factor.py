"""The step `factor`: what does not change along a sum is multiplied once, after it."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import For, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.scalar import Expr, Load, apply, constant, loads
from intarsia.ir.schedule import Factor
from intarsia.passes.schedule.accumulate import require_neutral_start
from intarsia.passes.schedule.products import Product
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    blocks,
    facts_for,
    find_buffer,
    perfect_around,
    rename_axes,
    replace_block,
)


def factor(kernel: Kernel, step: Factor) -> Kernel:
    """See `Factor`."""
    name = step.buffer
    find_buffer(kernel, name)
    put, nest = _sum(kernel, name)
    block, around = next((body, loops) for body, loops in blocks(kernel) if nest[0] in body)
    here = block.index(nest[0])
    kept = tuple(loop for loop in nest if any(loop.axis in i.symbols for i in put.indices))
    changing = {loop.axis for loop in nest if loop not in kept}
    written = written_in(nest)

    def is_fixed(e: Expr) -> bool:
        return not e.symbols & changing and not any(load.buffer in written for load in loads(e))

    product = Product.of(put.value)
    fixed = product.where(is_fixed)
    if not fixed.factors:
        raise ScheduleError(f"every factor of {put.value} changes along {', '.join(sorted(changing)) or 'no axis'}")
    before = [n for n in range(here) if any(a.buffer == name for a in accesses((block[n],)))]
    if not before:
        raise ScheduleError(f"no statement before it sets {name}")
    require_neutral_start(kernel, name, block[before[-1]], kept, put, around)
    rest = product.where(lambda e: not is_fixed(e))
    summed = replace(put, value=rest.value(put.value.dtype))
    mask = tuple(m for m in put.mask if not m.symbols & changing)
    facts = facts_for(kernel, (*around, *kept))
    extents = [loop.upper - loop.lower for loop in nest if loop not in kept]
    if any(extent.symbols & changing for extent in extents):
        raise ScheduleError("whether the sum is empty depends on what is summed")
    mask += tuple(extent for extent in extents if not facts.proves(extent - 1))  # a sum of nothing stays 0
    total = Load(name, put.indices, put.value.dtype)
    value = apply("add", fixed.times(total), constant(0.0, total.dtype))  # sums are never -0.0
    after: Body = (replace(put, operator="=", value=value, mask=mask),)
    for loop in reversed(kept):
        after = (replace(loop, body=after),)
    names = NameSource(kernel)
    after = rename_axes(after, {loop.axis: names.derived(loop.axis) for loop in kept})
    inner: Body = (summed,)
    for loop in reversed(nest):
        inner = (replace(loop, body=inner),)
    return replace_block(kernel, block, (*block[:here], *inner, *after, *block[here + 1 :]))


def _sum(kernel: Kernel, name: str) -> tuple[Put, tuple[For, ...]]:
    """The only statement that adds to a buffer, and the perfect nest around it."""
    found = [(s, around) for s, around in walk(kernel.body) if isinstance(s, Put) and s.buffer == name]
    sums = [(s, around) for s, around in found if s.operator == "+=" and s.value.dtype.is_float]
    if len(sums) != 1:
        raise ScheduleError(f"{len(sums)} statements add floats to it")
    put, around = sums[0]
    nest = perfect_around(around)
    if not nest:
        raise ScheduleError("no loop adds to it alone")
    return put, nest

"""The step `group`: what does not change within groups of a sum is multiplied once for each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from intarsia.ir.dots import widened_factors
from intarsia.ir.dtypes import F32, I32, DType
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Cast, Const, Expr, Load, apply, constant, loads, transform
from intarsia.ir.schedule import Group
from intarsia.ir.sizes import ZERO, Size
from intarsia.passes.schedule.accumulate import require_neutral_start
from intarsia.passes.schedule.products import Product
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    blocks,
    facts_for,
    find_buffer,
    perfect_around,
    puts_in,
    rename_axes,
    replace_block,
)


def group(kernel: Kernel, step: Group) -> Kernel:
    """See `Group`."""
    found = _find_sum(kernel, step)
    block, here, put, nest = found.block, found.here, found.put, found.nest
    names = NameSource(kernel)
    names.claim(step.new)
    split = next(loop for loop in nest if loop.axis == step.axis)
    length = trips(split).constant
    if length is None or split.lower != ZERO or split.step != 1 or length < step.size:
        raise ScheduleError(f"{step.axis} has no groups of {step.size}, of a number that is known")
    outer = For(names.derived(step.axis), ZERO, Size.of(length // step.size), ())
    inner = For(names.derived(step.axis), ZERO, Size.of(step.size), ())
    kept = tuple(loop for loop in nest if any(loop.axis in i.symbols for i in put.indices))
    reduced = tuple(inner if loop is split else loop for loop in nest if loop not in kept)
    facts = facts_for(kernel, (*found.around, *kept, outer, *reduced))
    within = _within(put.value, step.axis, Size.of(outer.axis) * step.size + inner.axis, facts)
    changing = {loop.axis for loop in reduced}
    product = Product.of(within)
    fixed = product.where(lambda e: not e.symbols & changing)
    rest = product.where(lambda e: bool(e.symbols & changing))
    if not fixed.factors:
        raise ScheduleError(f"every factor of {put.value} changes within groups of {step.axis}")
    summand = _summand(step, rest, math.prod(trips(loop).constant or 0 for loop in reduced), put.value.dtype)
    by_index = {str(index): index for index in put.indices if index.constant is None}
    dims = tuple(next(loop for loop in kept if loop.axis == name) for name in by_index)
    sums = Buffer(step.new, summand.dtype, tuple(map(trips, (outer, *dims))))
    place = tuple(Size.of(loop.axis) for loop in (outer, *dims))
    total: Expr = Load(step.new, place, summand.dtype)
    total = total if summand.dtype == put.value.dtype else Cast(put.value.dtype, total)
    stages: Body = (
        _nest((outer, *kept), Put(step.new, place, "=", constant(0, summand.dtype)), names),
        _nest((outer, *kept, *reduced), Put(step.new, place, "+=", summand), names),
        _nest((outer, *kept), replace(put, value=fixed.times(total)), names),
    )
    if last := length % step.size:  # a shorter last group keeps its factors
        tail = replace(split, lower=Size.of(length - last))
        loops = (*kept, *(tail if loop is split else loop for loop in nest if loop not in kept))
        stages += (_nest(loops, put, names),)
    return replace_block(kernel, block, (*block[:here], Alloc(sums), *stages, *block[here + 1 :]))


@dataclass(frozen=True)
class _Sum:
    """The statement that adds to a buffer, in the nest that stands at a place of a block."""

    put: Put
    nest: tuple[For, ...]
    block: Body
    here: int
    around: tuple[For, ...]


def _find_sum(kernel: Kernel, step: Group) -> _Sum:
    """The sum that is formed in groups. It begins with 0.0: one that begins with -0.0 could remain that."""
    find_buffer(kernel, step.buffer)
    added = [
        (s, a) for s, a in walk(kernel.body) if isinstance(s, Put) and s.buffer == step.buffer and s.operator != "="
    ]
    if len(added) != 1 or added[0][0].operator != "+=" or not added[0][0].value.dtype.is_float:
        raise ScheduleError(f"{step.buffer} is not added to by one statement, floats")
    put, loops = added[0]
    nest = perfect_around(loops)
    if step.axis not in [loop.axis for loop in nest] or any(step.axis in i.symbols for i in put.indices):
        raise ScheduleError(f"{step.buffer} is not summed over {step.axis}, in a nest of its own")
    names = {loop.axis for loop in nest}
    if put.mask or any(names & (x.lower.symbols | x.upper.symbols) or x.kind != "seq" for x in nest):
        raise ScheduleError("different elements sum over different ranges")
    plain = [i.as_name for i in put.indices if i.constant is None]
    if any(name not in names for name in plain) or len(set(plain)) != len(plain):
        raise ScheduleError(f"elements of {step.buffer} are not named by axes alone")
    if any(x.buffer == step.buffer for x in loads(put.value)):
        raise ScheduleError(f"what is added to {step.buffer} depends on it")
    block, around = next((body, outside) for body, outside in blocks(kernel) if nest[0] in body)
    here = block.index(nest[0])
    before = [n for n in range(here) if any(a.buffer == step.buffer for a in accesses((block[n],)))]
    if not before:
        raise ScheduleError(f"no statement before it sets {step.buffer}")
    kept = tuple(loop for loop in nest if loop.axis in plain)
    require_neutral_start(kernel, step.buffer, block[before[-1]], kept, put, around)
    (start,) = puts_in((block[before[-1]],))
    if isinstance(start.value, Const) and math.copysign(1.0, float(start.value.value)) < 0:
        raise ScheduleError(f"{step.buffer} begins with -0.0")
    return _Sum(put, nest, block, here, around)


def _within(value: Expr, axis: str, place: Size, facts: Facts) -> Expr:
    """A summand at a place in a group."""

    def rule(e: Expr) -> Expr | None:
        return replace(e, indices=tuple(simplify(i, facts) for i in e.indices)) if isinstance(e, Load) else None

    return transform(transform(value, {axis: place}), rule=rule)


def _summand(step: Group, rest: Product, count: int, dtype: DType) -> Expr:
    """What is summed within a group: in i32, if that is wanted, the product of two integers."""
    value = rest.value(dtype)
    if not step.total:
        return value
    pair = widened_factors(Put("", (), "+=", value))
    if step.total != I32.name or dtype != F32 or pair is None or not all(e.dtype.is_integer for e in pair):
        raise ScheduleError(f"{value} is no product of two integers")
    if not fits(pair, count):
        raise ScheduleError(f"the sum of {count} products of {pair[0].dtype} and {pair[1].dtype} may exceed i32")
    return apply("mul", *(Cast(I32, e) for e in pair))


def fits(pair: tuple[Expr, Expr], count: int) -> bool:
    """Is the sum of so many products of two integers always an i32?"""
    left, right = (max(abs(int(e.dtype.least)), int(e.dtype.greatest)) for e in pair)
    return left * right * count <= int(I32.greatest)


def _nest(loops: tuple[For, ...], put: Put, names: NameSource) -> For:
    """Loops like these, with names of their own, around a write."""
    body: Body = (put,)
    for loop in reversed(loops):
        body = (replace(loop, body=body),)
    (made,) = rename_axes(body, {loop.axis: names.derived(loop.axis) for loop in loops})
    assert isinstance(made, For)
    return made

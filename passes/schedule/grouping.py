"""The step `group`: what does not change within groups of a sum is multiplied once for each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import F32, I32, DType
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.narrowing import as_byte
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Load, apply, constant, loads, transform
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
    block, here = found.block, found.here
    names = NameSource(kernel)
    names.claim(step.new)
    split = next(loop for loop in found.nest if loop.axis == step.axis)
    length = trips(split).constant
    if length is None or split.lower != ZERO or split.step != 1 or length < step.size:
        raise ScheduleError(f"{step.axis} has no groups of {step.size}, of a number that is known")
    outer = For(names.derived(step.axis), ZERO, Size.of(length // step.size), ())
    stages = _in_groups(kernel, step, found, step.new, (outer,), step.size, Size.of(outer.axis) * step.size, names)
    if last := length % step.size:  # the only one that is shorter
        stages += _in_groups(kernel, step, found, names.derived(step.new), (), last, Size.of(length - last), names)
    return replace_block(kernel, block, (*block[:here], *stages, *block[here + 1 :]))


def _in_groups(
    kernel: Kernel,
    step: Group,
    of: _Sum,
    name: str,
    groups: tuple[For, ...],
    size: int,
    first: Size,
    names: NameSource,
) -> Body:
    """The sums of groups of a size, in a buffer of this name, and what adds them up with what is the same in each.
    groups: the loop over them, or nothing for a single one. first: where one begins."""
    put, nest = of.put, of.nest
    inner = For(names.derived(step.axis), ZERO, Size.of(size), ())
    kept = tuple(loop for loop in nest if any(loop.axis in i.symbols for i in put.indices))
    reduced = tuple(inner if loop.axis == step.axis else loop for loop in nest if loop not in kept)
    facts = facts_for(kernel, (*of.around, *kept, *groups, *reduced))
    within = _within(put.value, step.axis, first + inner.axis, facts)
    changing = {loop.axis for loop in reduced}
    product = Product.of(within)
    fixed = product.where(lambda e: not e.symbols & changing)
    rest = product.where(lambda e: bool(e.symbols & changing))
    count = math.prod(trips(loop).constant or 1 << 31 for loop in reduced)
    summand = _summand(step, rest, changing, count, put.value.dtype)
    zeros = [z for z in summand.less if z is not None]
    if not fixed.factors and not zeros:
        raise ScheduleError(f"every factor of {put.value} changes within groups of {step.axis}")
    by_index = {str(index): index for index in put.indices if index.constant is None}
    dims = (*groups, *(next(loop for loop in kept if loop.axis == axis) for axis in by_index))
    stages: Body = ()

    def summed(name: str, value: Expr, dims: tuple[For, ...] = dims) -> Load:
        """The sums of a value in a buffer of their own, which is filled once if nothing but constants decides them."""
        nonlocal stages
        place = tuple(Size.of(loop.axis) for loop in dims)
        start = Put(name, place, "=", constant(0, value.dtype))
        add = Put(name, place, "+=", value)
        once = not of.around and all(kernel.buffers()[x.buffer].constant for x in loads(value))
        sums = Buffer(name, value.dtype, tuple(map(trips, dims)), "prepared" if once else "global")
        stages += (Alloc(sums), *_nest(dims, start, names), *_nest((*dims, *reduced), add, names))
        return Load(name, place, value.dtype)

    def others(zero: Expr | None, factor: Expr) -> Expr | None:
        """What is taken from one factor, times the sums of the other one."""
        own = tuple(loop for loop in dims if loop in groups or loop.axis in factor.symbols)
        return None if zero is None else apply("mul", zero, summed(names.derived(name), factor, own))

    corrections = [others(z, e) for z, e in zip(summand.less, reversed(summand.factors))]
    total: Expr = summed(name, summand.value)
    for correction in corrections:
        total = total if correction is None else apply("sub", total, correction)
    if len(zeros) > 1:
        total = apply("add", total, apply("mul", apply("mul", *zeros), constant(count, I32)))
    total = total if total.dtype == put.value.dtype else Cast(put.value.dtype, total)
    # Factors are multiplied with each other first, as they are element by element: once for all rows.
    scale = replace(fixed, above=(replace(fixed, below=()).value(put.value.dtype),)) if fixed.above else fixed
    return (*stages, *_nest((*groups, *kept), replace(put, value=scale.times(total)), names))


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


@dataclass(frozen=True)
class _Summand:
    """What is summed within a group, of two factors from which something is taken that is the same within the group:
    (a - y) * (b - z) sums up to sum(a * b) - y * sum(b) - z * sum(a) + count * y * z."""

    value: Expr
    factors: tuple[Expr, ...] = ()
    less: tuple[Expr | None, ...] = ()


def _summand(step: Group, rest: Product, changing: set[str], count: int, dtype: DType) -> _Summand:
    """What is summed within a group: in i32, if that is wanted, the product of two integers."""
    value = rest.value(dtype)
    if not step.total:
        return _Summand(value)
    taken = [without_zero(factor, changing) for factor in rest.above]
    pair = integers([number for number, _ in taken]) if not rest.below else None
    if step.total != I32.name or dtype != F32 or pair is None:
        raise ScheduleError(f"{value} is no product of two integers")
    less = tuple(zero for _, zero in taken)
    if not fits(pair, count, less):
        raise ScheduleError(f"the sum of {count} products of {pair[0].dtype} and {pair[1].dtype} may exceed i32")
    wide = tuple(Cast(I32, e) for e in pair)
    return _Summand(apply("mul", *wide), wide, tuple(None if e is None else Cast(I32, e) for e in less))


def without_zero(factor: Expr, changing: set[str]) -> tuple[Expr, Expr | None]:
    """A factor as a number and, if that is taken from it, an integer that does not change."""
    match factor:
        case Apply("sub", (number, Cast(_, zero))) if zero.dtype.is_integer and not zero.symbols & changing:
            return number, as_byte(zero) or zero
    return factor, None


def integers(factors: Sequence[Expr]) -> tuple[Expr, Expr] | None:
    """Two factors as integers, of 8 bits where they are no larger, if they are two integers that were cast."""
    match factors:
        case [Cast(_, a), Cast(_, b)] if a.dtype.is_integer and b.dtype.is_integer:
            return as_byte(a) or a, as_byte(b) or b
    return None


def fits(pair: tuple[Expr, Expr], count: int, less: Sequence[Expr | None] = (None, None)) -> bool:
    """Is the sum of so many products of two integers always an i32, also where others are taken from them?"""
    left, right = (_largest(e) + (0 if z is None else _largest(z)) for e, z in zip(pair, less))
    return left * right * count <= int(I32.greatest)


def _largest(e: Expr) -> int:
    return max(-int(e.dtype.least), int(e.dtype.greatest))


def _nest(loops: tuple[For, ...], put: Put, names: NameSource) -> Body:
    """Loops like these, with names of their own, around a write."""
    body: Body = (put,)
    for loop in reversed(loops):
        body = (replace(loop, body=body),)
    return rename_axes(body, {loop.axis: names.derived(loop.axis) for loop in loops})

"""The step `multiply`: the factors of a sum of products in types of which the target has a dot instruction."""

from __future__ import annotations

from dataclasses import dataclass, replace

from intarsia.ir.conversion import is_exact
from intarsia.ir.dots import widened_factors
from intarsia.ir.dtypes import I32, U8, DType, dtype
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, If, Kernel, Put, walk
from intarsia.ir.kernel_access import accesses, trips, written_in
from intarsia.ir.narrowing import as_byte, bounds
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Load, apply, constant, loads
from intarsia.ir.schedule import Multiply
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    blocks,
    change_loads,
    find_buffer,
    loops_in,
    perfect_around,
    rename_axes,
    replace_block,
)


@dataclass(frozen=True)
class Factor:
    """A factor in another type; `added` is by how much it is greater than it was, `free` whether that saves work."""

    value: Expr
    added: int = 0
    free: bool = False


def narrow_factors(put: Put) -> tuple[Expr, Expr] | None:
    """The two factors of a statement that adds products, before they were widened; what is taken from an integer of few
    bits may be one too, as a zero point is from a code."""
    match put.operator, put.value:
        case "+=", Apply("mul", (left, right)) if put.value.dtype.is_float:
            pair = _before_widening(left), _before_widening(right)
            return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])
    return widened_factors(put)


def _before_widening(factor: Expr) -> Expr | None:
    match factor:
        case Cast(_, value):
            return as_byte(value) or value if value.dtype.is_integer else value
        case Apply("sub", (Cast(_, left), Cast(_, right))) if left.dtype.is_integer and right.dtype.is_integer:
            return as_byte(apply("sub", Cast(I32, left), Cast(I32, right)))
    return None


def in_type(value: Expr, wanted: DType) -> Factor | None:
    """A factor in another type, if that holds it, or, of integers, all of it but for a shift of half the range."""
    own = value.dtype
    if own == wanted:
        return Factor(value)
    if wanted.is_float and own.is_integer and own.bits <= wanted.mantissa + 1:
        return Factor(Cast(wanted, value))
    if not (own.is_integer and wanted.is_integer):
        return None
    if is_exact(own, wanted):
        return Factor(Cast(wanted, value))
    if own.bits != wanted.bits:
        return None
    match value:
        case Bitcast(_, Apply("sub", (inner, Const(offset)))) if inner.dtype == wanted == U8:
            if (found := bounds(value)) is not None and 0 <= found[0] + int(offset) <= found[1] + int(offset) <= 255:
                return Factor(inner, int(offset), free=True)  # a code that stands for itself less a number
    half = 1 << (own.bits - 1)
    flipped = apply("bit_xor", Bitcast(wanted, value), constant(-half if wanted.is_signed else half, wanted))
    return Factor(flipped, half if own.is_signed else -half)


def multiply(kernel: Kernel, step: Multiply) -> Kernel:
    """See `Multiply`."""
    put, nest = _sum(kernel, step.buffer)
    pair = narrow_factors(put)
    if pair is None:
        raise ScheduleError(f"{put.value} is no product of two widened numbers")
    factors = tuple(in_type(e, _dtype(name)) for e, name in zip(pair, (step.left, step.right)))
    left, right = factors
    if left is None or right is None or (left.added and right.added):
        raise ScheduleError(f"{' and '.join(str(e.dtype) for e in pair)} do not become {step.left} and {step.right}")
    total = put.value.dtype
    new = replace(put, value=apply("mul", *(Cast(total, f.value) for f in (left, right))))
    if not (left.added or right.added):
        return _with_put(kernel, put, new)
    if not step.new or find_buffer(kernel, step.buffer).role != "temp":
        raise ScheduleError("a factor is shifted: the sums of the other one need a name, and the result a temporary")
    other = Cast(total, pair[1] if left.added else pair[0])
    return _corrected(_with_put(kernel, put, new), step, new, nest, other, left.added or right.added)


def _dtype(name: str) -> DType:
    found = dtype(name)
    if found is None:
        raise ScheduleError(f"{name} is no element type")
    return found


def _with_put(kernel: Kernel, old: Put, new: Put) -> Kernel:
    """The kernel with another statement in the place of one."""
    block = next(body for body, _ in blocks(kernel) if any(s is old for s in body))
    return replace_block(kernel, block, tuple(new if s is old else s for s in block))


def _corrected(kernel: Kernel, step: Multiply, put: Put, nest: tuple[For, ...], other: Expr, added: int) -> Kernel:
    """The kernel with the sums of the other factor, which make up for what was added to this one."""
    block, around = next((body, loops) for body, loops in blocks(kernel) if any(_holds(s, put) for s in body))
    users = [n for n, s in enumerate(block) if any(a.buffer == step.buffer for a in accesses((s,), around))]
    here = next(n for n, s in enumerate(block) if _holds(s, put))
    if len([n for n in users if n < here]) != 1:
        raise ScheduleError(f"{step.buffer} is used before it is complete")
    changed = written_in(block[users[0] :])
    if any(load.buffer in changed for load in loads(other)):
        raise ScheduleError(f"{other} changes")
    dims = tuple(loop for loop in nest if loop.axis in other.symbols and _place(put, loop) is not None)
    summed = tuple(loop for loop in nest if _place(put, loop) is None)
    names = {loop.axis for loop in nest}
    if any(names & (x.symbols) for loop in (*dims, *summed) for x in (loop.lower, loop.upper)):
        raise ScheduleError("different elements sum over different ranges")
    if other.symbols & {loop.axis for loop in loops_in((block[here],))} - names:
        raise ScheduleError(f"{other} changes with loops in which there is more than the sum")
    beside = (s for s, _ in walk((block[here],)) if s is not put and not isinstance(s, For | If))
    if any(x.buffer == step.buffer for s in beside for x in accesses((s,), around)):
        raise ScheduleError(f"{step.buffer} is read in the loop in which it is summed")
    if put.mask or any(loop.lower.constant != 0 or loop.step != 1 for loop in dims):
        raise ScheduleError("the sum is masked, or does not begin with the first element")
    is_constant = not around and all(kernel.buffers()[x.buffer].constant for x in loads(other))
    total = put.value.dtype
    sums = Buffer(step.new, total, tuple(map(trips, dims)), "prepared" if is_constant else "cache")
    place = tuple(Size.of(loop.axis) for loop in dims)
    source = NameSource(kernel)
    source.claim(step.new)
    stages = (
        *_nest(dims, Put(step.new, place, "=", constant(0, total)), source),
        *_nest((*dims, *summed), Put(step.new, place, "+=", other), source),
    )
    positions = [_place(put, loop) for loop in dims]
    factor = constant(-added % (1 << total.bits) if not total.is_signed else -added, total)

    def read(e: Expr) -> Expr | None:
        if not isinstance(e, Load) or e.buffer != step.buffer:
            return None
        if e.mask:
            raise ScheduleError(f"{e} is read under a mask")
        at = tuple(e.indices[p] for p in positions if p is not None)
        return apply("add", e, apply("mul", Load(step.new, at, total), factor))

    after = change_loads(block[here + 1 :], read)
    return replace_block(kernel, block, (*block[: users[0]], Alloc(sums), *stages, *block[users[0] : here + 1], *after))


def _sum(kernel: Kernel, name: str) -> tuple[Put, tuple[For, ...]]:
    """The only statement that adds to a buffer, and the perfect nest around it."""
    found = [(s, around) for s, around in walk(kernel.body) if isinstance(s, Put) and s.buffer == name]
    sums = [(s, around) for s, around in found if s.operator != "="]
    if len(sums) != 1:
        raise ScheduleError(f"{len(sums)} statements add to {name}")
    put, around = sums[0]
    return put, perfect_around(around)


def _place(put: Put, loop: For) -> int | None:
    """The dimension of the result that a loop runs along, if it is just that."""
    return next((n for n, index in enumerate(put.indices) if index.as_name == loop.axis), None)


def _holds(statement: object, put: Put) -> bool:
    return any(s is put for s, _ in walk((statement,)))  # type: ignore[arg-type]


def _nest(loops: tuple[For, ...], put: Put, names: NameSource) -> Body:
    """Loops like these, with names of their own, around a write."""
    body: Body = (put,)
    for loop in reversed(loops):
        body = (For(loop.axis, loop.lower, loop.upper, body, "seq", loop.step),)
    return rename_axes(body, {loop.axis: names.derived(loop.axis) for loop in loops})

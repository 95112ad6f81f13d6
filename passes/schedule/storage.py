"""Steps that change where values live: localize, pack, inline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import gcd

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, Call, For, Kernel, Put, Statement, walk
from intarsia.ir.kernel import Prefetch as PrefetchStatement
from intarsia.ir.kernel_access import Access, accesses, expressions, written_in
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Expr, Index, Load, Mask, apply, constant, loads, transform, where
from intarsia.ir.schedule import ROOT, Inline, Localize, Pack, Stage
from intarsia.ir.sizes import ONE, ZERO, Extremum, Quotient, Size, maximum, minimum
from intarsia.passes.schedule.dependence import describe, may_meet
from intarsia.passes.schedule.masks import join
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    blocks,
    change_loads,
    extreme,
    facts_for,
    find_buffer,
    find_loop,
    perfect_nest,
    rename_buffers,
    replace_block,
    replace_loop,
    rewrite,
    substitute,
)

# ---------------------------------------------------------------------- localize


def localize(kernel: Kernel, step: Localize) -> Kernel:
    """See `Localize`."""
    name = step.buffer
    buffer = find_buffer(kernel, name)
    loop, around = find_loop(kernel, step.axis)
    if buffer.role != "temp":
        raise ScheduleError("it is a parameter")
    inside = [a for a in accesses(loop.body, (*around, loop)) if a.buffer == name]
    if len(inside) != sum(a.buffer == name for a in accesses(kernel.body)):
        raise ScheduleError(f"it is used outside {step.axis}")
    if any(isinstance(a.statement, Call) for a in inside):
        raise ScheduleError("a call uses it")
    outside = next(loops for s, loops in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.name == name)
    if len(outside) > len(around) + 1:
        raise ScheduleError(f"it lives inside {outside[-1].axis}")
    if not _is_set_first(loop.body, inside, buffer.shape):
        _require_local(kernel, str(step), inside, (*around, loop), len(outside))
    tile = box_of(kernel, buffer, inside, len(around) + 1)
    shape = tuple(map(most, tile.shape))

    def load(e: Expr) -> Expr | None:
        return replace(e, indices=tile.subscripts(e.indices)) if isinstance(e, Load) and e.buffer == name else None

    def change(statement: Statement) -> Statement | Body | None:
        match statement:
            case Alloc(found) if found.name == name:
                return ()
            case Put() | PrefetchStatement() if statement.buffer == name:
                return replace(statement, indices=tile.subscripts(statement.indices))
        return None

    if step.memory == "register" and any(extent.constant is None for extent in shape):
        raise ScheduleError(f"the shape [{', '.join(map(str, shape))}] of a register tile has to be known")
    kernel = kernel.with_body(rewrite(change_loads(kernel.body, load), change))
    alloc = Alloc(replace(buffer, shape=shape, memory=step.memory))
    return replace_loop(kernel, step.axis, lambda found: replace(found, body=(alloc, *found.body)))


def _is_set_first(body: Body, inside: Sequence[Access], shape: Sequence[Size]) -> bool:
    """Does each iteration of a loop set all of a buffer that it uses before it reads any of it? Then nothing is left of
    what iterations before it, of whatever loop, wrote: one element, or all along some dimensions."""
    put = inside[0].statement
    first = next(s for s in body if any(a.buffer == inside[0].buffer for a in accesses((s,))))
    nest, block = perfect_nest(first) if isinstance(first, For) else ((), (first,))
    if not isinstance(put, Put) or put not in block or put.operator != "=" or put.mask or not inside[0].writes:
        return False
    own = {x.axis: x for x in nest}
    same = [a for a in inside if any(x in a.loops for x in nest)]
    if any(a.indices != put.indices for a in same):
        return False
    for dimension, (index, extent) in enumerate(zip(put.indices, shape)):
        if (loop := own.pop(str(index.as_name), None)) is not None:
            if (loop.lower, loop.upper, loop.step) != (ZERO, extent, 1):
                return False
        elif index.opaques or any(a.indices[dimension] != index for a in inside):
            return False
    return not own


def _require_local(kernel: Kernel, what: str, inside: list[Access], loops: tuple[For, ...], outside: int) -> None:
    """No iteration of the loops from `outside` on may read what an earlier one wrote."""
    volatile = written_in(loops[-1].body)
    for depth in range(outside, len(loops)):
        for write in (a for a in inside if a.writes):
            for read in (a for a in inside if a.reads):
                if may_meet(kernel, write, read, {loops[depth].axis: "<"}, loops[:depth], volatile):
                    pair = describe((write, read))
                    raise ScheduleError(f"{pair} carries values between iterations of {loops[depth].axis}")


@dataclass(frozen=True)
class Box:
    """The box of a buffer that an iteration touches: its first element, and for each dimension that is kept its
    number and extent."""

    first: tuple[Size, ...]
    kept: tuple[tuple[int, Size], ...]

    @property
    def shape(self) -> tuple[Size, ...]:
        return tuple(extent for _, extent in self.kept)

    def subscripts(self, indices: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(indices[d] - self.first[d] for d, _ in self.kept)


def box_of(kernel: Kernel, buffer: Buffer, inside: list[Access], depth: int) -> Box:
    """The box that accesses span, over the loops inside the first `depth` around them."""
    first: list[Size] = []
    kept: list[tuple[int, Size]] = []
    facts = facts_for(kernel, inside[0].loops[:depth])
    for dimension, extent in enumerate(buffer.shape):
        indices = [(a.indices[dimension], a.loops[depth:]) for a in inside]
        bases = {_outer_part(index, loops) for index, loops in indices}
        if len(bases) > 1:
            raise ScheduleError(f"it is used at {' and at '.join(sorted(map(str, bases)))}")
        (base,) = bases
        span = None if base is None else _span([(index - base, loops) for index, loops in indices], facts)
        if base is None or span is None or (span[1].constant is None and extent.constant is not None and base == ZERO):
            base, span = ZERO, (ZERO, extent)
        first.append(base + span[0])
        if span[1] != ONE:
            kept.append((dimension, span[1]))
    return Box(tuple(first), tuple(kept))


def _outer_part(index: Size, loops: Sequence[For]) -> Size | None:
    """What does not change inside `loops`, without the constant; None where that cannot be told apart."""
    for loop in loops:
        coefficient = index.coefficient(loop.axis)
        if coefficient is None:
            return None
        index = index - Size.of(loop.axis) * coefficient
    return index - index.offset


def _span(parts: list[tuple[Size, Sequence[For]]], facts: Facts) -> tuple[Size, Size] | None:
    """The least value and the number of values from there to the greatest one."""
    ends = [(extreme(part, loops, greatest=False), extreme(part, loops, greatest=True)) for part, loops in parts]
    low, high = ends[0]
    for least, most in ends:
        if least is None or most is None or low is None or high is None:
            return None
        if not facts.proves(least - low):
            low = least if facts.proves(low - least) else minimum(low, least)
        if not facts.proves(high - most):
            high = most if facts.proves(most - high) else maximum(high, most)
    return None if low is None or high is None else (low, high - low + 1)


# ---------------------------------------------------------------------- stage


def stage(kernel: Kernel, step: Stage) -> Kernel:
    """See `Stage`."""
    buffer = find_buffer(kernel, step.buffer)
    if buffer.role != "out":
        raise ScheduleError("it is no result that the kernel makes")
    if any(isinstance(s, Call) and any(name == buffer.name for name, _ in s.writes) for s, _ in walk(kernel.body)):
        raise ScheduleError("a call writes it")
    names = NameSource(kernel)
    names.claim(step.new)
    axes = [names.derived(f"d{n}") for n in range(len(buffer.shape))]
    place = tuple(map(Size.of, axes))
    copy: Statement = Put(buffer.name, place, "=", Load(step.new, place, buffer.dtype))
    for axis, extent in reversed(list(zip(axes, buffer.shape))):
        copy = For(axis, ZERO, extent, (copy,))
    alloc = Alloc(Buffer(step.new, buffer.dtype, buffer.shape))
    return kernel.with_body((alloc, *rename_buffers(kernel.body, {buffer.name: step.new}), copy))


# ---------------------------------------------------------------------- pack


def pack(kernel: Kernel, step: Pack) -> Kernel:
    """See `Pack`."""
    if step.axis == ROOT:
        around: tuple[For, ...] = ()
        body = kernel.body
    else:
        loop, outer = find_loop(kernel, step.axis)
        around, body = (*outer, loop), loop.body
    buffer = find_buffer(kernel, step.buffer)
    if any(isinstance(s, Alloc) and s.buffer is buffer for s, _ in walk(body)):
        raise ScheduleError(f"it is allocated inside {step.axis}")
    load, inner = _load_along(step, buffer, body, len(around))
    _require_unchanged(kernel, load, body, around)
    names = NameSource(kernel)
    names.claim(step.new)
    dimensions = _dimensions(step, load, inner)
    loops = tuple(d.loop for d in dimensions)
    renamed = {loop.axis: Size.of(names.derived(loop.axis)) for loop in loops}
    shape = never_negative(kernel, (_greatest(most_trips(loop), loops) for loop in loops), around)
    holds = _conditions(body, load)
    source = _copied(load, [d for d in dimensions if d.is_joint], holds)
    to = tuple(d.place(Size.of(d.loop.axis)) for d in dimensions)
    copy: Body = (Put(step.new, to, "=", _within_bounds(kernel, source, (*around, *loops))),)
    for loop in reversed(loops):
        copy = (replace(loop, body=copy),)
    copy = substitute(copy, renamed)
    copy = rewrite(copy, lambda s: replace(s, axis=str(renamed[s.axis])) if isinstance(s, For) else None)
    places = tuple(d.place(d.value) for d in dimensions)

    def read(e: Expr) -> Expr | None:
        return Load(step.new, places, load.dtype) if e == load else None

    alloc = Alloc(Buffer(step.new, buffer.dtype, shape, step.memory))
    new = (alloc, *copy, *change_loads(body, read))
    if step.axis == ROOT:
        return kernel.with_body(new)
    return replace_loop(kernel, step.axis, lambda found: replace(found, body=new))


def never_negative(kernel: Kernel, shape: Iterable[Size], around: tuple[For, ...]) -> tuple[Size, ...]:
    """Extents of a temporary inside loops; those of a range that may be empty are at least 0."""
    facts = facts_for(kernel, around)
    return tuple(extent if facts.proves(extent) else maximum(0, extent) for extent in shape)


def _load_along(step: Pack, buffer: Buffer, body: Body, depth: int) -> tuple[Load, tuple[For, ...]]:
    """The way in which statements read a buffer along the axes of the layout, and the loops around it below the first
    `depth`. A buffer that is read in one way only is read in that one."""
    found: dict[Load, tuple[For, ...]] = {}
    for statement, around in walk(body):
        for expression in expressions(statement):
            for load in loads(expression):
                if load.buffer == buffer.name:
                    found.setdefault(load, around)
    along = [load for load in found if _names(step, _axes_used(load, found[load]))]
    chosen = along if len(found) > 1 else list(found)
    if len(chosen) != 1:
        ways = ", ".join(map(str, along or found)) or "nowhere"
        raise ScheduleError(f"it is read in {len(along or found)} ways: {ways}")
    return chosen[0], found[chosen[0]]


def _require_unchanged(kernel: Kernel, load: Load, body: Body, around: tuple[For, ...]) -> None:
    """No statement may change what the copy holds, nor where it is read."""
    written = written_in(body)
    for value in (o for size in (*load.indices, *load.mask) for o in size.opaques):
        if any(inner.buffer in written for inner in loads(value)):
            raise ScheduleError(f"its subscript {value} changes")
    own = [a for a in accesses(body, around) if a.buffer == load.buffer]
    reads = [a for a in own if not a.writes and a.indices == load.indices]
    for write in (a for a in own if a.writes):
        if any(may_meet(kernel, write, read, {}, around, written) for read in reads):
            raise ScheduleError(f"it is written at {describe((write, write))}")


def _axes_used(load: Load, loops: tuple[For, ...]) -> list[str]:
    """The axes of loops that a load's subscripts depend on."""
    return [loop.axis for loop in loops if any(loop.axis in index.symbols for index in load.indices)]


def _names(step: Pack, axes: list[str]) -> bool:
    """Does the layout of a copy name just these axes?"""
    return sorted(axes) == sorted(axis for joint in step.dimensions for axis in joint)


@dataclass(frozen=True)
class _Dimension:
    """A dimension of a copy: what it is the place of, an axis or a sum of several, and the loop that goes through it,
    named after the first of them."""

    axes: tuple[str, ...]
    value: Size
    loop: For

    @property
    def is_joint(self) -> bool:
        return len(self.axes) > 1

    def place(self, value: Size) -> Size:
        return (value - self.loop.lower) // self.loop.step


def _dimensions(step: Pack, load: Load, inner: tuple[For, ...]) -> tuple[_Dimension, ...]:
    """The dimensions of the copy, in order."""
    by_axis = {loop.axis: loop for loop in inner}
    used = _axes_used(load, inner)
    if not _names(step, used):
        raise ScheduleError(f"the layout has to name {', '.join(used) or 'no axis'}")
    other = [axis for m in load.mask for axis in by_axis if axis in m.symbols and axis not in used]
    if other:
        raise ScheduleError(f"the mask of {load} needs {other[0]}")
    found: list[_Dimension] = []
    for axes in step.dimensions:
        if len(axes) > 1:
            found.append(_joint(axes, load, inner))
            continue
        loop = by_axis[axes[0]]
        hull = _hull(loop, inner, tuple(by_axis[d.axes[0]] for d in found if not d.is_joint))
        if loop.step > 1 and loop.lower != hull.lower:
            raise ScheduleError(f"the steps of {loop.axis} begin elsewhere in every iteration around it")
        found.append(_Dimension(axes, Size.of(loop.axis), hull))
    return tuple(found)


def _joint(axes: tuple[str, ...], load: Load, inner: tuple[For, ...]) -> _Dimension:
    """The dimension of axes that make up one subscript: what that subscript is but for what stays the same."""
    index = next((i for i in load.indices if i.symbols >= set(axes)), None)
    factors = None if index is None else [index.coefficient(axis) for axis in axes]
    if factors is None or any(factor is None for factor in factors):
        raise ScheduleError(f"no subscript is a sum of {' and '.join(axes)}")
    common = gcd(*(factor for factor in factors if factor is not None))
    value = sum((Size.of(a) * (f // common) for a, f in zip(axes, factors) if f is not None), Size.of(0))
    lower, upper = (_widest(value, inner, greatest) for greatest in (False, True))
    if lower is None or upper is None:
        raise ScheduleError(f"the range of {value} changes inside")
    return _Dimension(axes, value, For(axes[0], lower, upper + 1, ()))


def _conditions(body: Body, load: Load) -> frozenset[Size]:
    """What holds wherever a load is made and matters: the masks that all statements with it have."""
    masks = [s.mask for s, _ in walk(body) if isinstance(s, Put) and load in loads(s.value)]
    alone = all(isinstance(s, Put) for s, _ in walk(body) for e in expressions(s) if load in loads(e))
    return frozenset.intersection(*map(frozenset, masks)) if masks and alone else frozenset()


def _copied(load: Load, joint: Sequence[_Dimension], holds: frozenset[Size]) -> Load:
    """The load in the axes of the copy: an axis stands for each sum of them. Conditions that hold anyway are left out
    where they are about parts of a sum."""

    def change(size: Size) -> Size | None:
        for d in joint:
            factors = [(size.coefficient(axis), d.value.coefficient(axis)) for axis in d.axes]
            one, of = factors[0]
            if not one and all(f == 0 for f, _ in factors):
                continue
            if not one or not of or one % of or any(f is None or o is None or f * of != one * o for f, o in factors):
                return None
            size = size + (Size.of(d.loop.axis) - d.value) * (one // of)
        return size

    def required(size: Size) -> Size:
        if (changed := change(size)) is None:
            raise ScheduleError(f"{size} is not made of {' and '.join(str(d.value) for d in joint)}")
        return changed

    mask = tuple(required(m) for m in load.mask if change(m) is not None or m not in holds)
    return replace(load, indices=tuple(map(required, load.indices)), mask=mask)


def _hull(loop: For, inner: tuple[For, ...], earlier: tuple[For, ...]) -> For:
    """The loop with bounds that hold for all iterations of the loops that the copy does not have."""
    gone = tuple(other for other in inner if other not in earlier)
    lower, upper = _widest(loop.lower, gone, greatest=False), _widest(loop.upper, gone, greatest=True)
    if lower is None or upper is None:
        raise ScheduleError(f"the range {loop.lower}..{loop.upper} of {loop.axis} changes inside")
    return For(loop.axis, lower, upper, (), "seq", loop.step)


def _widest(bound: Size, loops: tuple[For, ...], greatest: bool) -> Size | None:
    """The extreme of a bound over loops. Of a minimum that is an upper bound, parts that cannot be told are dropped."""
    if not any(loop.axis in bound.symbols for loop in loops):
        return bound
    match bound.terms:
        case ((((Extremum(name, arguments)),), 1),) if (name == "min") == greatest:
            known = [w for a in arguments if (w := _widest(a, loops, greatest)) is not None]
            return None if not known else minimum(*known) if greatest else maximum(*known)
    return extreme(bound, loops, greatest)


def _greatest(extent: Size, loops: tuple[For, ...]) -> Size:
    """The extent of a dimension whose range depends on those of others: the greatest one."""
    most = extreme(extent, loops, greatest=True)
    if most is None or any(loop.axis in most.symbols for loop in loops):
        raise ScheduleError(f"the extent {extent} changes inside")
    return most


def most_trips(loop: For) -> Size:
    """How many iterations a loop makes at most; a number where the bound says one."""
    return (most(loop.upper - loop.lower) + (loop.step - 1)) // loop.step


def most(extent: Size) -> Size:
    """A number that an extent is at most, where minima in it say one, also in quotients; else the extent."""
    total = Size.of(0)
    for monomial, coefficient in extent.terms:
        match monomial:
            case (Extremum("min", arguments),) if coefficient > 0:
                numbers = [found for a in arguments if (found := most(a).constant) is not None]
                if numbers:
                    total = total + coefficient * min(numbers)
                    continue
            case (Quotient(numerator, Size(constant=int() as divisor)),) if coefficient > 0 and divisor > 0:
                if (bound := most(numerator).constant) is not None:
                    total = total + coefficient * (bound // divisor)
                    continue
            case ():
                total = total + coefficient
                continue
        return extent
    return total


def _within_bounds(kernel: Kernel, load: Load, loops: tuple[For, ...]) -> Load:
    """The load as the copy makes it: under a mask where its subscripts could be outside, as they are in iterations that
    the loops around the old load do not have."""
    buffers = kernel.buffers()
    mask = load.mask
    for inner in loads(load):
        facts = facts_for(kernel, loops, inner.mask)
        for index, extent in zip(inner.indices, buffers[inner.buffer].extents):
            conditions = [c for c in (index + 1, extent - index) if not facts.proves(c - 1)]
            if conditions and (inner != load or index.opaques):
                raise ScheduleError(f"{index} may be outside 0..{extent} where it is copied")
            mask = (*mask, *conditions)
    return replace(load, mask=mask)


# ---------------------------------------------------------------------- inline


def inline(kernel: Kernel, step: Inline) -> Kernel:
    """See `Inline`."""
    name = step.buffer
    if find_buffer(kernel, name).role != "temp":
        raise ScheduleError("it is a parameter")
    writes = [(s, loops) for s, loops in walk(kernel.body) if isinstance(s, Put) and s.buffer == name]
    if len(writes) != 1:
        raise ScheduleError(f"{len(writes)} statements write it")
    (put, loops) = writes[0]
    block = next(
        body for body, _ in blocks(kernel) if any(isinstance(s, Alloc) and s.buffer.name == name for s in body)
    )
    place = next(n for n, s in enumerate(block) if s is put or (isinstance(s, For) and s in loops))
    definition = block[place]
    own, inside = perfect_nest(definition) if isinstance(definition, For) else ((), (definition,))
    axes = tuple(index.as_name for index in put.indices)
    names = sorted(loop.axis for loop in own)
    if put.operator != "=" or put.mask or inside != (put,) or sorted(map(str, axes)) != names:
        raise ScheduleError(f"{name}[{', '.join(map(str, put.indices))}] {put.operator} … does not define it")
    changed = written_in(block[place:]) & {load.buffer for load in loads(put.value)}
    if changed:
        raise ScheduleError(f"{', '.join(sorted(changed))} changes")
    if any(a.buffer == name and a.writes is False and isinstance(a.statement, Call) for a in accesses(block)):
        raise ScheduleError("a call reads it")

    def read(e: Expr) -> Expr | None:
        if not isinstance(e, Load) or e.buffer != name:
            return None
        value = put.value.substitute({str(a): i for a, i in zip(axes, e.indices)})
        return _masked(value, e.mask, e.other) if e.mask else value

    def forget(statement: Statement) -> Body | None:
        return () if isinstance(statement, PrefetchStatement) and statement.buffer == name else None

    rest = (s for n, s in enumerate(block) if n != place)
    kept = tuple(s for s in rest if not (isinstance(s, Alloc) and s.buffer.name == name))
    return replace_block(kernel, block, change_loads(rewrite(kept, forget), read))


def _masked(value: Expr, mask: Mask, other: Expr | None) -> Expr:
    """`value` where the mask holds, touching no memory elsewhere; else `other`, or 0."""

    def load(e: Expr) -> Expr | None:
        return replace(e, mask=join(e.mask, mask)) if isinstance(e, Load) else None

    holds = [apply("gt", Index(m), Index(ZERO)) for m in mask]
    condition: Expr = reduce(lambda a, b: apply("and", a, b), holds)
    return where(condition, transform(value, rule=load), other or constant(0, value.dtype))

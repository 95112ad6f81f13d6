"""The step `accumulate`: reduce into a tile, of registers or cache, and combine after the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, If, Kernel, Put, Statement
from intarsia.ir.kernel_access import accesses, written_in
from intarsia.ir.scalar import Const, Expr, Load, Mask, loads
from intarsia.ir.schedule import Accumulate
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.dependence import Order, describe, may_meet
from intarsia.passes.schedule.masks import neutral
from intarsia.passes.schedule.storage import most_trips, never_negative
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    facts_for,
    find_buffer,
    find_loop,
    perfect_nest,
    puts_in,
    rename_axes,
    replace_block,
    replace_loop,
    rewrite,
)


def accumulate(kernel: Kernel, step: Accumulate) -> Kernel:
    """See `Accumulate`."""
    loop, around = find_loop(kernel, step.axis)
    reduction = _find_reduction(step, loop)
    put = reduction.put
    if step.keep and step.mode != "add":
        raise ScheduleError(f"partial results cannot be kept with mode {step.mode}")
    start: Expr = _start(kernel, put)
    if step.mode in ("set", "first"):
        kernel = _drop_initial(kernel, step, reduction, around)
        loop, around = find_loop(kernel, step.axis)
    names = NameSource(kernel)
    names.claim(step.new)
    dims = reduction.dims
    for dim in dims:
        if (late := {d.axis for d in dims} | {loop.axis}) & (dim.lower.symbols | dim.upper.symbols):
            raise ScheduleError(f"the range {dim.lower}..{dim.upper} of {dim.axis} needs {', '.join(late)}")
    buffer = find_buffer(kernel, step.buffer)
    if step.memory == "register" and any(most_trips(dim).constant is None for dim in dims):
        raise ScheduleError("the shape of a register tile has to be known")
    tile = Buffer(step.new, buffer.dtype, never_negative(kernel, map(most_trips, dims), around), step.memory)
    place = tuple((Size.of(dim.axis) - dim.lower) // dim.step for dim in dims)
    kept = tuple(m for m in put.mask if m not in reduction.conditions)
    held = Load(step.new, place, put.value.dtype)
    if step.mode == "load":
        start = Load(put.buffer, put.indices, put.value.dtype, kept)
    first = _nest(dims, Put(step.new, place, "=", start), names)
    again = replace(put, operator="=", value=held, mask=kept, numbers=False) if step.mode != "add" else None
    add = replace(put, value=held, mask=kept)
    last = _nest(dims, again or add, names)
    if step.mode == "first":
        outer, beyond = find_loop(kernel, step.outer)
        if not facts_for(kernel, beyond).proves(outer.upper - outer.lower - 1):
            raise ScheduleError(f"{step.outer} may run no iteration, and nothing would set {step.buffer}")
        last = (If((outer.lower + 1 - outer.axis,), last, _nest(dims, add, names)),)

    inside = (*reduction.conditions, *(m for m in kept if m.symbols & reduction.bounds))

    def into_tile(statement: Statement) -> Statement | None:
        return replace(put, buffer=step.new, indices=place, mask=inside) if statement is put else None

    inner = replace(loop, body=rewrite(loop.body, into_tile))
    return replace_loop(kernel, step.axis, lambda _: (Alloc(tile), *first, inner, *last))


@dataclass(frozen=True)
class _Reduction:
    """An accumulating write inside a loop: the loops from that one inward, those that are dimensions of the tile, and
    the conditions of the write on axes that are reduced here."""

    put: Put
    loops: tuple[For, ...]
    dims: tuple[For, ...]
    conditions: Mask

    @property
    def bounds(self) -> frozenset[str]:
        """What the lengths of these loops depend on. Where a condition on that fails, a loop may run on, beyond what
        may be read."""
        return frozenset().union(*(b.symbols for loop in self.loops for b in (loop.lower, loop.upper)))


def _find_reduction(step: Accumulate, loop: For) -> _Reduction:
    uses = [a for a in accesses((loop,)) if a.buffer == step.buffer]
    if len(uses) != 1 or not uses[0].writes or not isinstance(uses[0].statement, Put):
        raise ScheduleError(f"{step.axis} has to hold one write of {step.buffer} and no other use")
    put, loops = uses[0].statement, uses[0].loops
    if put.operator == "=":
        raise ScheduleError(f"{step.buffer} is not accumulated")
    used = frozenset().union(*(i.symbols for i in put.indices))
    names = [inner.axis for inner in loops]
    unknown = [axis for axis in step.keep if axis not in names or axis in used]
    if unknown:
        raise ScheduleError(f"{unknown[0]} is no reduction axis of it")
    written = written_in((loop,))
    for value in (o for index in put.indices for o in index.opaques):
        if any(load.buffer in written for load in loads(value)):
            raise ScheduleError(f"its subscript {value} changes")
    if step.axis in used:
        raise ScheduleError(f"{step.buffer}[{', '.join(map(str, put.indices))}] is not reduced over {step.axis}")
    dims = tuple(inner for inner in loops if inner.axis in used or inner.axis in step.keep)
    reduced = {inner.axis for inner in loops if inner.axis not in used}
    conditions = tuple(m for m in put.mask if m.symbols & reduced or m.opaques)
    return _Reduction(put, loops, dims, conditions)


def _start(kernel: Kernel, put: Put) -> Const:
    """The neutral element: the zero with which the buffer begins, so that a sum of nothing but -0.0 keeps its sign."""
    usual = neutral(put.operator, put.value)
    begins = [p.value for p in puts_in(kernel.body) if p.buffer == put.buffer and p.operator == "="]
    return next((v for v in begins if isinstance(v, Const) and v.value == usual.value), usual)


def _nest(dims: tuple[For, ...], put: Put, names: NameSource) -> Body:
    """Loops like `dims`, with names of their own, around a write."""
    body: Body = (put,)
    for dim in reversed(dims):
        body = (replace(dim, body=body),)
    return rename_axes(body, {dim.axis: names.derived(dim.axis) for dim in dims})


# ---------------------------------------------------------------------- the initial value


def _drop_initial(kernel: Kernel, step: Accumulate, reduction: _Reduction, around: tuple[For, ...]) -> Kernel:
    """Remove the statement that sets the buffer to the neutral element. What is written back after the loop has to
    cover exactly what that statement set, and nothing may see it in between."""
    used = frozenset().union(*(i.symbols for i in reduction.put.indices))
    path = (*around, find_loop(kernel, step.axis)[0])
    for depth in range(len(path) - 1, -1, -1):
        block = path[depth - 1].body if depth else kernel.body
        if path[depth] not in block:
            raise ScheduleError(f"{path[depth].axis} stands under a condition")
        here = block.index(path[depth])
        users = [n for n in range(here) if any(a.buffer == step.buffer for a in accesses((block[n],)))]
        if not users:
            continue
        outer = path[depth:-1]
        extra = [loop.axis for loop in outer if loop.axis not in used]
        if extra != ([step.outer] if step.mode == "first" else []):
            raise ScheduleError(f"it is also reduced over {', '.join(extra) or 'no outer loop'}")
        kept = (*(loop for loop in outer if loop.axis in used), *(d for d in reduction.dims if d.axis in used))
        require_neutral_start(kernel, step.buffer, block[users[-1]], kept, reduction.put, path[:depth])
        _require_unseen(kernel, step.buffer, reduction.put, path, depth)
        new = (*block[: users[-1]], *block[users[-1] + 1 :])
        return replace_block(kernel, block, new)
    raise ScheduleError(f"no statement before it sets {step.buffer}")


def _require_unseen(kernel: Kernel, name: str, put: Put, path: tuple[For, ...], depth: int) -> None:
    """Nothing in the loops from `depth` on may use an element before the iteration that accumulates it."""
    top = path[depth]
    write = next(a for a in accesses((top,), path[:depth]) if a.statement is put and a.writes)
    volatile = written_in((top,))
    found = list(accesses((top,), path[:depth]))
    for number, other in enumerate(found):
        if other.buffer != name or other.statement is put:
            continue
        for position in range(depth, len(path) - 1):
            is_inside = path[position] in other.loops
            if not is_inside and number > found.index(write):
                break  # after the whole loop
            order: dict[str, Order] = {path[position].axis: ">"} if is_inside else {}
            if may_meet(kernel, write, other, order, path[:position], volatile):
                raise ScheduleError(f"{describe((write, other))}: {name} is used before it is complete")
            if not is_inside:
                break


def require_neutral_start(
    kernel: Kernel, name: str, initial: Statement, loops: tuple[For, ...], put: Put, around: tuple[For, ...]
) -> None:
    """`initial` is a nest over loops like these that sets the same elements to the neutral element. `around` are the
    loops around it."""
    own, body = perfect_nest(initial) if isinstance(initial, For) else ((), (initial,))
    setter = body[0]
    if (
        len(body) != 1
        or not isinstance(setter, Put)
        or setter.operator != "="
        or not isinstance(setter.value, Const)
        or setter.value.value != neutral(put.operator, put.value).value
    ):
        raise ScheduleError(f"the statement before it does not set {name} to the neutral element")
    known = {loop.axis for loop in (*loops, *around)} | set(kernel.sizes)
    conditions = {m for m in put.mask if m.symbols <= known}
    names = {mine.axis: Size.of(theirs.axis) for mine, theirs in _matching(own, setter.indices, loops, put.indices)}
    same_loops = len(own) == len(loops) == len(names) and all(
        any(
            Size.of(theirs.axis) == names[mine.axis]
            and (mine.lower.substitute(names), mine.upper.substitute(names), mine.step)
            == (theirs.lower, theirs.upper, theirs.step)
            for theirs in loops
        )
        for mine in own
    )
    same_places = tuple(i.substitute(names) for i in setter.indices) == put.indices
    if not same_loops or not same_places or {m.substitute(names) for m in setter.mask} != conditions:
        raise ScheduleError(f"what sets {name} runs over other elements than what is written back")


def _matching(
    own: tuple[For, ...], indices: tuple[Size, ...], loops: tuple[For, ...], others: tuple[Size, ...]
) -> list[tuple[For, For]]:
    """Pairs of loops whose axes stand in the same places of the subscripts."""
    left = list(loops)
    pairs: list[tuple[For, For]] = []
    for mine in own:
        places = [index.coefficient(mine.axis) for index in indices]
        for theirs in left:
            if [index.coefficient(theirs.axis) for index in others] == places:
                pairs.append((mine, theirs))
                left.remove(theirs)
                break
    return pairs

"""The step `accumulate`: reduce into a tile, of registers or cache, and combine after the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, If, Kernel, Put, Statement
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import Expr, Load, Mask
from intarsia.ir.schedule import Accumulate
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.masks import neutral
from intarsia.passes.schedule.storage import most_trips
from intarsia.passes.schedule.tree import (
    Body,
    NameSource,
    blocks,
    find_buffer,
    find_loop,
    perfect_nest,
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
    tile = Buffer(step.new, buffer.dtype, tuple(most_trips(dim) for dim in dims), step.memory)
    place = tuple((Size.of(dim.axis) - dim.lower) // dim.step for dim in dims)
    kept = tuple(m for m in put.mask if m not in reduction.conditions)
    held = Load(step.new, place, put.value.dtype)
    start: Expr = neutral(put.operator, put.value)
    if step.mode == "load":
        start = Load(put.buffer, put.indices, put.value.dtype, kept)
    first = _nest(dims, Put(step.new, place, "=", start), names)
    again = replace(put, operator="=", value=held, mask=kept) if step.mode != "add" else None
    add = replace(put, value=held, mask=kept)
    last = _nest(dims, again or add, names)
    if step.mode == "first":
        outer, _ = find_loop(kernel, step.outer)
        last = (If((outer.lower + 1 - outer.axis,), last, _nest(dims, add, names)),)

    def into_tile(statement: Statement) -> Statement | None:
        return replace(put, buffer=step.new, indices=place, mask=reduction.conditions) if statement is put else None

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


def _find_reduction(step: Accumulate, loop: For) -> _Reduction:
    uses = [a for a in accesses((loop,)) if a.buffer == step.buffer]
    if len(uses) != 1 or not isinstance(uses[0].statement, Put):
        raise ScheduleError(f"{step.axis} holds {len(uses)} uses of {step.buffer}, not one write")
    put, loops = uses[0].statement, uses[0].loops
    if put.operator == "=":
        raise ScheduleError(f"{step.buffer} is not accumulated")
    used = frozenset().union(*(i.symbols for i in put.indices))
    names = [inner.axis for inner in loops]
    unknown = [axis for axis in step.keep if axis not in names or axis in used]
    if unknown:
        raise ScheduleError(f"{unknown[0]} is no reduction axis of it")
    if step.axis in used:
        raise ScheduleError(f"{step.buffer}[{', '.join(map(str, put.indices))}] is not reduced over {step.axis}")
    dims = tuple(inner for inner in loops if inner.axis in used or inner.axis in step.keep)
    reduced = {inner.axis for inner in loops if inner.axis not in used}
    conditions = tuple(m for m in put.mask if m.symbols & reduced or m.opaques)
    return _Reduction(put, loops, dims, conditions)


def _nest(dims: tuple[For, ...], put: Put, names: NameSource) -> Body:
    """Loops like `dims`, with names of their own, around a write."""
    body: Body = (put,)
    for dim in reversed(dims):
        body = (replace(dim, body=body),)
    return rename_axes(body, {dim.axis: names.derived(dim.axis) for dim in dims})


# ---------------------------------------------------------------------- the initial value


def _drop_initial(kernel: Kernel, step: Accumulate, reduction: _Reduction, around: tuple[For, ...]) -> Kernel:
    """Remove the statement that sets the buffer to the neutral element. What is written back after the loop has to
    cover exactly what that statement set, with nothing that uses the buffer in between."""
    put = reduction.put
    outside = frozenset().union(*(i.symbols for i in put.indices))
    for block, above in blocks(kernel):
        path = around[len(above) :]
        if above != around[: len(above)]:
            continue
        top = path[0] if path else find_loop(kernel, step.axis)[0]
        if top not in block:
            continue
        here = block.index(top)
        for place in range(here - 1, -1, -1):
            if not any(a.buffer == step.buffer for a in accesses((block[place],))):
                continue
            kept = [loop for loop in path if loop.axis in outside]
            extra = [loop.axis for loop in path if loop.axis not in outside]
            if extra != ([step.outer] if step.mode == "first" else []):
                raise ScheduleError(f"it is also reduced over {', '.join(extra) or 'no outer loop'}")
            _require_same(kernel, step, block[place], (*kept, *(d for d in reduction.dims if d.axis in outside)), put)
            found = block
            new = (*found[:place], *found[place + 1 :])
            return replace_block(kernel, lambda body: body is found, lambda _: new)  # noqa: B023
    raise ScheduleError(f"no statement before it sets {step.buffer}")


def _require_same(kernel: Kernel, step: Accumulate, initial: Statement, loops: tuple[For, ...], put: Put) -> None:
    """`initial` is a nest over loops like these that sets the same elements to the neutral element."""
    own, body = perfect_nest(initial) if isinstance(initial, For) else ((), (initial,))
    setter = body[0]
    if (
        len(body) != 1
        or not isinstance(setter, Put)
        or setter.operator != "="
        or setter.value != neutral(put.operator, put.value)
    ):
        raise ScheduleError(f"the statement before it does not set {step.buffer} to the neutral element")
    conditions = {m for m in put.mask if m.symbols <= {loop.axis for loop in loops} | set(kernel.sizes)}
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
        raise ScheduleError(f"what sets {step.buffer} runs over other elements than what is written back")


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

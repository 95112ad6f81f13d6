"""The second part of a default schedule: which axis becomes the lanes of a vector, and how its loop is split."""

from __future__ import annotations

from functools import partial

from intarsia.ir.kernel import Alloc, Call, Check, For, If, Put, Statement, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.schedule import Accumulate, Align, Peel, Reorder, Unroll, Vectorize
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.dependence import carried_dependence
from intarsia.passes.schedule.kinds import selects_of_list
from intarsia.passes.schedule.shape import LINE, count, lanes_for, operations, points, stride, vector_cost
from intarsia.passes.schedule.staging import stage_transposed
from intarsia.passes.schedule.streams import bypassing
from intarsia.passes.schedule.tree import blocks, find_loop, loops_in, perfect_nest, puts_in

WORTHWHILE = 0.8
"""What vectors may cost against scalars."""

VECTORS = (4, 1, 2, 8)
"""Vectors that are worked on at once, so that the latency of one is hidden by the others. All loops of a kernel take
the same number, or, which is likeliest, what suits each: 4, or 2 where there is much to do."""

RIVAL = 2.5
"""How much dearer than the likeliest axis another one may look that is tried for lanes."""

SHORT = 4
"""Iterations of a loop inside vectors that are written out."""

LONG = 8
"""Cache lines of a row from which on it pays to begin with a part of one."""

DEAR = 12
"""Operations of one element from which on fewer vectors are worked on at once."""


def _vectors_label(several: int) -> str:
    return str(several) if several else "what suits each loop"


def vectorize_region(b: Builder, top: str) -> None:
    """Vectorize a loop with all that is in it: along a row axis around everything, or each inner nest by itself."""
    choice = _choose(b, b.loop(top))
    # Squares in registers pay where gathers, which the choice reckons with, may not.
    if any(stage_transposed(b, top, axis) for axis in ([choice] if choice else _nest_axes(b, top))):
        return
    if choice is None:
        b.remark(f"{top} is not vectorized: along no axis would that pay", done=False)
    elif loops_in(b.loop(choice).body):
        b.together(f"vectors along {choice}", lambda: _vectorize_around(b, choice))
    else:
        for leaf in [loop.axis for loop in loops_in((b.loop(top),)) if not loops_in(loop.body)]:
            b.together(f"vectors along {leaf}", partial(vectorize_leaf, b, leaf))


def _nest_axes(b: Builder, top: str) -> list[str]:
    return [loop.axis for loop in perfect_nest(b.loop(top))[0]]


def _choose(b: Builder, region: For) -> str | None:
    """The axis along which vectors cost least, of those around the statement that does most of the work (or the next
    one, where none of them pays); if it can be, it is made the innermost."""
    puts = [(s, loops) for s, loops in walk((region,)) if isinstance(s, Put) and points(loops)]
    puts.sort(key=lambda pair: -points(pair[1]) * (1 + operations(pair[0].value)))

    def cost(axis: str, lanes: bool) -> float:
        inside = [(p, around) for p, around in puts if any(loop.axis == axis for loop in around)]
        most = min(lanes_for((p,), b.target) for p, _ in inside) if lanes else 1
        return sum(vector_cost(b.kernel, p, around, axis if lanes else "", most) for p, around in inside)

    for _, loops in puts:
        usable = [loop for loop in loops if loop.step == 1 and count(trips(loop)) > 1 and _is_uniform(b, loop)]
        costs = {loop.axis: (cost(loop.axis, True) / cost(loop.axis, False), -n) for n, loop in enumerate(usable)}
        order = sorted(costs, key=lambda axis: costs[axis])
        order = [axis for axis in order if costs[axis][0] <= WORTHWHILE and not _is_recurrence(b, axis)]
        if order:
            rivals = [axis for axis in order if costs[axis][0] <= RIVAL * costs[order[0]][0]]
            best = b.choose(f"lanes of {region.axis}", rivals)
            nest, body = perfect_nest(next(loop for loop in loops if loop.axis == best))
            if len(nest) > 1 and all(isinstance(s, Put) for s in body):
                b.attempt(Reorder((*(loop.axis for loop in nest[1:]), best)))
            return best
    return None


def _is_recurrence(b: Builder, axis: str) -> bool:
    """Does an iteration need what an earlier one made?"""
    loop, around = find_loop(b.kernel, axis)
    return carried_dependence(b.kernel, loop, around, reductions=True) is not None


def _is_uniform(b: Builder, loop: For) -> bool:
    """Do all iterations do the same, but for the elements they touch?"""
    if selects_of_list(b.kernel, loop):
        return False
    for statement, _ in walk(loop.body):
        match statement:
            case For(_, lower, upper):
                if loop.axis in lower.symbols | upper.symbols:
                    return False
            case If() | Call() | Check():
                return False
            case Alloc(buffer):
                if buffer.shape:
                    return False
    return True


def _width(b: Builder, loop: For, vectors: int) -> tuple[int, int]:
    """Lanes, and how many vectors are worked on at once: at most `vectors`, with little waste at the end."""
    lanes = lanes_for(loop.body, b.target)
    length = trips(loop).constant
    if length is None:
        return lanes, 1 if trips(loop).opaques else vectors
    needed = -(-length // lanes)
    while vectors > 1 and (vectors > needed or -needed % vectors * 4 > needed):
        vectors //= 2
    return lanes, vectors


def _is_short(b: Builder, loop: For, vectors: int) -> bool:
    """Are all iterations together a few vectors? Then they are the lanes, whatever their number."""
    length = trips(loop).constant
    return length is not None and length <= vectors * lanes_for(loop.body, b.target)


def _vectorize_around(b: Builder, axis: str) -> None:
    """Run iterations of a loop with all that is in it as lanes, of several vectors at once."""
    outer, lane = "", axis
    several = b.choose("vectors", (0, *VECTORS), _vectors_label) or VECTORS[0]
    if not _is_short(b, b.loop(axis), several):
        lanes, vectors = _width(b, b.loop(axis), several)
        outer, lane = b.split(axis, lanes * vectors)
    b.take(Vectorize((lane,)))
    for loop in loops_in(b.loop(lane).body):
        if loop.kind == "seq" and count(trips(loop)) <= SHORT:
            b.attempt(Unroll((loop.axis,)))
    if outer:
        b.attempt(Peel(outer))


def vectorize_leaf(b: Builder, axis: str) -> None:
    """Vectorize a loop without loops in it; what it reduces is kept in one lane for each residue, and combined after
    the loop."""
    loop = b.loop(axis)
    puts = puts_in(loop.body)
    lanes = lanes_for(puts, b.target)
    costs = [sum(vector_cost(b.kernel, p, (loop,), a, lanes) for p in puts) for a in (axis, "")]
    if not puts or costs[0] > WORTHWHILE * costs[1] or not _is_uniform(b, loop):
        b.remark(f"{axis} is not vectorized: that would not pay", done=False)
        return
    _align(b, axis, puts)
    dear = max(operations(p.value) for p in puts) > DEAR
    likeliest = VECTORS[0] // 2 if dear else VECTORS[0]
    several = b.choose("vectors", (0, *VECTORS), _vectors_label) or likeliest
    outer = ""
    kept: tuple[str, ...] = (axis,)
    if not _is_short(b, loop, several):
        lanes, vectors = _width(b, loop, several)
        outer, inner = b.split(axis, lanes * vectors)
        kept = b.split(inner, lanes) if vectors > 1 else (inner,)
    if kept[:-1]:
        b.take(Unroll(kept[:-1]))
    b.take(Vectorize(kept[-1:]))
    for put in puts:
        if put.operator != "=" and not any(axis in i.symbols for i in put.indices):
            keep_partial_results(b, put.buffer, outer, kept)
    if outer:
        b.attempt(Peel(outer))


def _align(b: Builder, axis: str, puts: tuple[Put, ...]) -> None:
    """Let whole vectors of a result that bypasses the caches begin at whole cache lines, in every row: another store
    has to read the line first. The elements before are one vector with a mask."""
    loop, around = find_loop(b.kernel, axis)
    length = trips(loop).constant
    for put in puts:
        buffer = b.kernel.buffers()[put.buffer]
        rows = [stride(buffer, put.indices, x.axis) for x in around]
        is_even = all(s is not None and s * buffer.dtype.bytes % LINE == 0 for s in rows)
        if put.operator != "=" or is_even or put.buffer not in bypassing(b) or length is None:
            continue
        elements = LINE // buffer.dtype.bytes
        head = b.fresh(axis)
        if length >= LONG * elements and b.attempt(Align(axis, put.buffer)):
            b.take(Vectorize((b.split(head, elements)[1],)))
            return


def keep_partial_results(b: Builder, buffer: str, outer: str, kept: tuple[str, ...]) -> None:
    """Reduce into a vector (several of them), then these into one, then its lanes. `outer` is the loop around those of
    `kept`, "" if the lanes are the whole loop."""
    inside = outer or kept[0]
    put = next(p for p in puts_in((b.loop(inside),)) if p.buffer == buffer)
    axis = outer
    for loop in reversed(find_loop(b.kernel, inside)[1]):
        if len(loop.body) > 1 or any(loop.axis in i.symbols for i in put.indices):
            break
        axis = loop.axis
    if not axis:
        return
    b.take(Accumulate(buffer, axis, b.fresh(buffer), "register", "add", kept))
    if len(kept) > 1:
        combine = next(p for p in loops_in(_after(b, axis)))
        lane = combine.body[0]
        assert isinstance(lane, For)
        b.take(Accumulate(buffer, combine.axis, b.fresh(buffer), "register", "add", (lane.axis,)))


def _after(b: Builder, axis: str) -> tuple[Statement, ...]:
    """The statements after a loop in its block."""
    for body, _ in blocks(b.kernel):
        for n, statement in enumerate(body):
            if isinstance(statement, For) and statement.axis == axis:
                return body[n + 1 :]
    raise AssertionError(f"no loop {axis}")

"""The step `overlap`: stages that use each other's results run block by block; what blocks share is computed in each.

After Krishnamoorthy et al., "Effective automatic parallelization of stencil computations", PLDI 2007 (overlapped
tiles), and Ragan-Kelley et al., "Halide", PLDI 2013 (what a consumer needs, found backwards).

A *stage* is a statement of the kernel's body that subscripts each blocked dimension of what it writes by one axis and a
number, and of the temporaries that it reads by the same axis and any numbers. If a block wants the rows `low` to
`high` of what a stage writes, the stage runs for these, and needs those from `low - 1` to `high + 2` of what it reads
at `i - 1` and `i + 2`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, Call, Check, For, Kernel, Put, Statement, walk
from intarsia.ir.kernel_access import Access, accesses, written_in
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.schedule import Overlap
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.passes.schedule.tree import Body, NameSource, change_loads, find_buffer, rename_buffers, rewrite

Span: TypeAlias = "tuple[int, int]"
"""Rows that are needed, relative to those of a block: from where before its first to where beyond its last."""

Subscripts: TypeAlias = "tuple[Size, ...]"


@dataclass(frozen=True)
class _Stage:
    """A statement with the axis of each blocked dimension, and what is added to it where the stage writes."""

    statement: Statement
    axes: tuple[str, ...]
    offsets: tuple[int, ...]

    def distance(self, access: Access) -> tuple[int, ...]:
        """How far an access lies from what is written, along each blocked dimension."""
        return tuple(i.offset - c for i, c in zip(access.indices, self.offsets))


def overlap(kernel: Kernel, step: Overlap) -> Kernel:
    """See `Overlap`."""
    results = [find_buffer(kernel, name) for name in step.buffers]
    depth = len(step.extents)
    if any(b.role not in ("out", "temp") or len(b.shape) < depth for b in results):
        raise ScheduleError("results and temporaries are made in blocks, with a dimension for each extent")
    if len({b.shape[:depth] for b in results}) > 1:
        raise ScheduleError("the results differ in the dimensions that are blocked")
    if min(step.extents) < 1:
        raise ScheduleError("a block has at least one element")
    names = NameSource(kernel)
    axes = tuple(map(names.claim, step.names)) or tuple(names.derived(f"b{d}") for d in range(depth))
    places, local = _chosen(kernel, frozenset(step.buffers), depth)
    if other := written_in(kernel.body[n] for n in places) - local - set(step.buffers):
        raise ScheduleError(f"a stage writes {min(other)} too, which others use")
    body, buffers = _with_copies(kernel, [kernel.body[n] for n in places], results, local, names)
    used = buffers.keys() | set(step.buffers)
    stages = [_stage(s, used, depth, names) for s in body]
    block = _block(stages, buffers, step, axes)
    for axis, extent, size in reversed(list(zip(axes, step.extents, results[0].shape))):
        block = (For(axis, ZERO, (size + (extent - 1)) // extent, block),)
    return kernel.with_body(_in_place(kernel, places, local, block))


# ---------------------------------------------------------------------- which stages


def _chosen(kernel: Kernel, results: frozenset[str], depth: int) -> tuple[list[int], frozenset[str]]:
    """The places of the statements that make some results, and the temporaries that nothing else uses."""
    users: dict[str, dict[int, list[Access]]] = {}
    for place, statement in enumerate(kernel.body):
        for access in accesses((statement,)):
            users.setdefault(access.buffer, {}).setdefault(place, []).append(access)
    used = {place: {name for name, own in users.items() if place in own} for place in range(len(kernel.body))}
    buffers = kernel.buffers()
    places = {n for n, s in enumerate(kernel.body) if results & written_in((s,))}
    if not places:
        raise ScheduleError("nothing makes them")
    last, local, waiting = max(places), set[str](), set(places)
    while waiting:
        for name in used[waiting.pop()] - results - local:
            buffer, own = buffers[name], users[name]
            is_inner = buffer.role == "temp" and buffer.memory == "global" and len(buffer.shape) >= depth
            if is_inner and max(own) <= last and all(_is_stage(kernel.body[n], own[n], depth) for n in own):
                local.add(name)
                waiting |= own.keys() - places
                places |= own.keys()
    return sorted(places), frozenset(local)


def _is_stage(statement: Statement, found: Sequence[Access], depth: int) -> bool:
    """Does a statement touch one buffer as a stage does?"""
    try:
        for d in range(depth):
            _axis_along(statement, found, d)
    except ScheduleError:
        return False
    return True


def _axis_along(statement: Statement, found: Sequence[Access], dimension: int) -> tuple[str, int]:
    """The axis by which a statement subscripts a dimension, and what it adds where it writes; no axis for one row.
    Raises ScheduleError where there is none."""
    # What only reads, as a stage of another result does, is looked at by where it reads.
    places = sorted({_axis_of(a, dimension) for a in [a for a in found if a.writes] or found})
    axis, offset = places[0]
    if any(_axis_of(a, dimension)[0] != axis for a in found):
        raise ScheduleError(f"a stage is at {' and at '.join(sorted({str(a.indices[dimension]) for a in found}))}")
    if not axis:
        return axis, offset
    if len(places) > 1 and any(a.writes for a in found):
        raise ScheduleError(f"a stage writes at several distances from {axis}")
    loops = {s.axis: s for s, _ in walk((statement,)) if isinstance(s, For)}
    loop = loops[axis]
    if loop.step != 1 or loop.kind != "seq" or loops.keys() & (loop.lower.symbols | loop.upper.symbols):
        raise ScheduleError(f"{axis} is no plain loop")
    return axis, offset


def _stage(statement: Statement, used: Collection[str], depth: int, names: NameSource) -> _Stage:
    """A statement as a stage, with a loop for each blocked dimension. Raises ScheduleError where it is none."""
    if any(isinstance(s, (Call, Check)) for s, _ in walk((statement,))):
        raise ScheduleError("a routine or a check runs once")
    axes: list[str] = []
    offsets: list[int] = []
    for d in range(depth):
        axis, offset = _axis_along(statement, [a for a in accesses((statement,)) if a.buffer in used], d)
        if not axis:  # a loop over the one row
            statement, axis = _with_loop(statement, used, d, offset, names)
            offset = 0
        axes.append(axis)
        offsets.append(offset)
    return _Stage(statement, tuple(axes), tuple(offsets))


def _axis_of(access: Access, dimension: int) -> tuple[str, int]:
    """The axis in a subscript, and what is added to it; no axis where it is a number."""
    index = access.indices[dimension] if dimension < len(access.indices) else ZERO
    rest = index - index.offset
    name = rest.as_name
    if rest != ZERO and (name is None or all(loop.axis != name for loop in access.loops)):
        raise ScheduleError(f"{access.buffer} is subscripted by {index}, which is no axis and a number")
    return name or "", index.offset


def _with_loop(
    statement: Statement, used: Collection[str], dimension: int, row: int, names: NameSource
) -> tuple[Statement, str]:
    """A statement about one row as a loop over it."""
    axis = names.derived("row")

    def moved(buffer: str, indices: Subscripts) -> Subscripts:
        if buffer not in used:
            return indices
        return (*indices[:dimension], indices[dimension] - row + axis, *indices[dimension + 1 :])

    return For(axis, Size.of(row), Size.of(row + 1), _with_subscripts((statement,), moved)), axis


def _with_subscripts(body: Body, change: Callable[[str, Subscripts], Subscripts]) -> Body:
    """Statements whose reads and writes have other subscripts."""

    def load(e: Expr) -> Expr | None:
        return replace(e, indices=change(e.buffer, e.indices)) if isinstance(e, Load) else None

    def put(s: Statement) -> Statement | None:
        return replace(s, indices=change(s.buffer, s.indices)) if isinstance(s, Put) else None

    return rewrite(change_loads(body, load), put)


def _with_copies(
    kernel: Kernel, body: Sequence[Statement], results: Sequence[Buffer], local: Collection[str], names: NameSource
) -> tuple[list[Statement], dict[str, Buffer]]:
    """The statements, in which results that stages read too are temporaries and are copied at the end; and all
    temporaries of a block."""
    buffers = {name: buffer for name, buffer in kernel.buffers().items() if name in local}
    read = {a.buffer for a in accesses(body) if not a.writes}
    out = tuple(body)
    for result in results:
        if result.name not in read:
            continue
        own = replace(result, name=names.derived(result.name), role="temp")
        buffers[own.name] = own
        axes = [names.derived(f"d{n}") for n in range(len(own.shape))]
        place = tuple(map(Size.of, axes))
        copy: Statement = Put(result.name, place, "=", Load(own.name, place, own.dtype))
        for axis, extent in reversed(list(zip(axes, own.shape))):
            copy = For(axis, ZERO, extent, (copy,))
        out = (*rename_buffers(out, {result.name: own.name}), copy)
    return list(out), buffers


# ---------------------------------------------------------------------- the block


def _block(stages: Sequence[_Stage], buffers: Mapping[str, Buffer], step: Overlap, axes: Sequence[str]) -> Body:
    """What a block does: the stages for the rows that it needs, on temporaries of its own."""
    first = [Size.of(axis) * extent for axis, extent in zip(axes, step.extents)]
    needed: dict[str, list[Span]] = {name: [(0, 0)] * len(axes) for name in step.buffers}
    made: list[Statement] = []
    for stage in reversed(stages):
        spans = _wanted(stage, needed)
        if spans:
            _need(stage, spans, needed, buffers)
            made.append(_cut(stage, spans, first, step.extents))
    inner = [needed[name] for name in buffers if name in needed]
    low = [min((spans[d][0] for spans in inner), default=0) for d in range(len(axes))]
    high = [max((spans[d][1] for spans in inner), default=0) for d in range(len(axes))]
    corner = [start + least for start, least in zip(first, low)]

    def own(buffer: str, indices: Subscripts) -> Subscripts:
        if buffer not in buffers:
            return indices
        return (*(i - c for i, c in zip(indices, corner)), *indices[len(corner) :])

    shape = tuple(Size.of(extent + most - least) for extent, least, most in zip(step.extents, low, high))
    allocs = (
        Alloc(replace(b, shape=(*shape, *b.shape[len(shape) :]), memory="cache"))
        for name, b in buffers.items()
        if name in needed
    )
    return (*allocs, *_with_subscripts(tuple(reversed(made)), own))


def _wanted(stage: _Stage, needed: Mapping[str, list[Span]]) -> list[Span]:
    """The rows that a stage has to write, along each blocked dimension; nothing if nobody needs them."""
    found = [needed[name] for name in sorted(written_in((stage.statement,))) if name in needed]
    return [(min(s[0] for s in spans), max(s[1] for s in spans)) for spans in zip(*found)]


def _need(stage: _Stage, spans: Sequence[Span], needed: dict[str, list[Span]], buffers: Collection[str]) -> None:
    """Add what a stage reads, for these rows, to what is needed before it."""
    written = written_in((stage.statement,))
    for access in accesses((stage.statement,)):
        if access.buffer not in buffers or not access.reads:
            continue
        far = stage.distance(access)
        if access.buffer in written and any(far):
            raise ScheduleError(f"a stage reads {access.buffer} where other iterations write it")
        own = [(low + d, high + d) for (low, high), d in zip(spans, far)]
        known = needed.get(access.buffer, own)
        needed[access.buffer] = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(own, known)]


def _cut(stage: _Stage, spans: Sequence[Span], first: Sequence[Size], extents: Sequence[int]) -> Statement:
    """A stage whose loops run over the rows of a block that are needed."""
    facts = Facts(names=frozenset(name for start in first for name in start.symbols))
    bounds = {
        axis: (start + low - offset, start + extent + high - offset)
        for axis, offset, (low, high), start, extent in zip(stage.axes, stage.offsets, spans, first, extents)
    }

    def change(s: Statement) -> Statement | None:
        if not isinstance(s, For) or s.axis not in bounds:
            return None
        lower, upper = bounds[s.axis]
        return replace(s, lower=simplify(maximum(s.lower, lower), facts), upper=minimum(s.upper, upper))

    return rewrite((stage.statement,), change)[0]


def _in_place(kernel: Kernel, places: Sequence[int], local: Collection[str], block: Body) -> Body:
    """The body of the kernel with the blocks in place of their last stage. Raises ScheduleError where a stage would
    overtake what it depends on."""
    moved = tuple(kernel.body[n] for n in places)
    used, made = {a.buffer for a in accesses(moved)}, written_in(moved)
    out: list[Statement] = []
    for n, statement in enumerate(kernel.body):
        if n == places[-1]:
            out += block
        elif n not in places and not (isinstance(statement, Alloc) and statement.buffer.name in local):
            touched = {a.buffer for a in accesses((statement,))}
            if places[0] < n < places[-1] and (found := (touched & made) | (written_in((statement,)) & used)):
                raise ScheduleError(f"something between the stages uses {min(found)}")
            out.append(statement)
    return tuple(out)

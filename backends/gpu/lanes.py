"""The lanes of a launch: which axes they are pieces of, and the names of the numbers of their elements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from intarsia.ir.kernel import LANES, Buffer, For, If, Put, Statement, walk
from intarsia.ir.kernel_access import accesses, sizes_of, trips
from intarsia.ir.scalar import Index
from intarsia.ir.scalar import walk as walk_expression
from intarsia.ir.sizes import ONE, Size


@dataclass(frozen=True)
class Lane:
    """The lanes of a loop: their number, its name, and the axis that counts blocks of them, if one does."""

    extent: int
    block: str
    outer: str | None


def single_axes(body: Sequence[Statement]) -> dict[str, Size]:
    """The axes of loops of one iteration, and where they are."""
    found: dict[str, Size] = {}
    for statement, _ in walk(tuple(body)):
        if not isinstance(statement, For) or statement.kind in LANES:
            continue
        if trips(statement).substitute(found).constant == 1:
            found[statement.axis] = statement.lower.substitute(found)
    return found


def lanes_of(body: Sequence[Statement], buffers: dict[str, Buffer]) -> dict[str, Lane]:
    """The lanes of every loop of lanes. Those that subscript the same dimension of a temporary have one name, and so
    have others of as many blocks that are never dimensions of one block together."""
    single = single_axes(body)
    loops = {s.axis: (s, around) for s, around in walk(tuple(body)) if isinstance(s, For) and s.kind in LANES}
    extents = {a: (loop.upper - loop.lower).constant or 0 for a, (loop, _) in loops.items()}
    outer = {a: _outer_of(loop, around, extents[a], single) for a, (loop, around) in loops.items()}
    same = _same_dimensions(body, extents, buffers, single)
    names: dict[str, str] = {}
    kinds: dict[str, tuple[int, Size]] = {}
    members: dict[str, list[str]] = {}
    for group in _groups(loops, same):
        whole = next((outer[a] for a in group if outer[a] is not None), None)
        counts = [trips(x).substitute(single) for a in group for x in loops[a][1] if x.axis == whole]
        kind = (extents[group[0]], counts[0] if counts else ONE)
        own = next((n for n, k in kinds.items() if k == kind and not _meet(group, members[n], loops)), None)
        if own is None:
            axis = next((a for a in group if outer[a] is not None), group[0])
            own = _new_name(f"BLOCK_{axis.partition('.')[0].upper()}", kinds)
            kinds[own] = kind
            members[own] = []
        members[own] += group
        names.update(dict.fromkeys(group, own))
    return {a: Lane(extents[a], names[a] if extents[a] > 1 else "1", outer[a]) for a in loops}


def all_sizes(statement: Statement) -> Iterator[Size]:
    """The integer expressions of a statement itself, in its loads too."""
    yield from sizes_of(statement)
    if not isinstance(statement, (For, If)):
        for access in accesses((statement,)):
            yield from (*access.indices, *access.mask)
    if isinstance(statement, Put):
        yield from (e.size for e in walk_expression(statement.value) if isinstance(e, Index))


def _outer_of(loop: For, around: Iterable[For], extent: int, single: dict[str, Size]) -> str | None:
    """The axis that occurs with lanes as in `extent * outer + lane`."""
    inside = [s for s, _ in walk(loop.body) if isinstance(s, For)]
    counters = [x.axis for x in (*around, *inside) if x.kind not in LANES and x.axis not in single]
    for statement, _ in walk(loop.body):
        for size in all_sizes(statement):
            size = size.substitute(single)
            step = size.coefficient(loop.axis)
            for name in counters if step else ():
                if size.coefficient(name) == (step or 0) * extent:
                    return name
    return None


def _same_dimensions(
    body: Sequence[Statement], extents: Mapping[str, int], buffers: dict[str, Buffer], single: dict[str, Size]
) -> list[tuple[str, str]]:
    """Pairs of lanes, as many of both, that subscript one dimension of a temporary. `extents` are those of all lanes.
    A temporary in memory may be gone through in blocks of several sizes."""
    first: dict[tuple[str, int, int], str] = {}
    pairs = []
    for access in accesses(tuple(body)):
        if buffers[access.buffer].role != "temp":
            continue
        for n, index in enumerate(access.indices):
            axis = index.substitute(single).as_name
            if axis is not None and axis in extents:
                pairs.append((first.setdefault((access.buffer, n, extents[axis]), axis), axis))
    return pairs


def _groups(loops: Iterable[str], same: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Lanes that go together, in the order of the text."""
    group = {a: [a] for a in loops}
    for a, b in same:
        if group[a] is not group[b]:
            group[a] += group[b]
            for x in group[b]:
                group[x] = group[a]
    return list({id(g): g for g in group.values()}.values())


def _meet(ours: Iterable[str], theirs: Iterable[str], loops: dict[str, tuple[For, tuple[For, ...]]]) -> bool:
    """Is any of some lanes inside any of others, or around it?"""
    one, two = set(ours), set(theirs)
    return any(
        (a in one and any(x.axis in two for x in around)) or (a in two and any(x.axis in one for x in around))
        for a, (_, around) in loops.items()
    )


def _new_name(base: str, taken: Iterable[str]) -> str:
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name

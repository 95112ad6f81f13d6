"""Finding what loops keep for loops that go back over their steps: rows, one for the state that a step begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.graph import Node, Region, Structured, Value, reachable
from intarsia.ir.ops import Compute, Loop, Update
from intarsia.ir.scalar import Expr, Index, Load, as_size, transform
from intarsia.ir.sizes import ZERO, Size, minimum
from intarsia.ir.space import Space, operand, size_loads
from intarsia.passes.fuse.groups import TYPICAL, estimated_bytes
from intarsia.passes.regions import change_node_regions, change_nodes


@dataclass(frozen=True)
class Reader:
    """A loop that goes back: where its counter is s, it reads row `first - s` of what is kept."""

    loop: Loop
    first: Size


@dataclass(frozen=True, eq=False)
class Record:
    """What a loop keeps of the states that its steps begin with, for `readers` alone.

    rows: for the positions of states, tensors of which row k is the state where the counter is `lower + k`. needed: the
    positions of the states from which the steps can be run again. is_open: fewer steps may be run than there are rows.
    """

    loop: Loop
    rows: Mapping[int, Value]
    needed: tuple[int, ...]
    readers: tuple[Reader, ...]
    is_open: bool

    @property
    def steps(self) -> Size:
        """How many rows there are."""
        return next(iter(self.rows.values())).tensor.shape[0]


@dataclass(frozen=True)
class Group:
    """Records of as many steps each, which the same loops read."""

    records: tuple[Record, ...]

    @property
    def readers(self) -> Mapping[Loop, Reader]:
        return {reader.loop: reader for record in self.records for reader in record.readers}

    @property
    def steps(self) -> Size:
        return self.records[0].steps

    @property
    def count(self) -> int:
        """The steps as a number, a typical one where they are open."""
        return self.steps.evaluate(dict.fromkeys(self.steps.symbols, TYPICAL))

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return sum(estimated_bytes(rows) for record in self.records for rows in record.rows.values())

    @property
    def bytes_needed(self) -> int:
        """Bytes from which a step can be run again."""
        return sum(estimated_bytes(record.loop.initial[k]) for record in self.records for k in record.needed)

    def takes(self, other: Record) -> bool:
        """Does a record belong to these? A reader that meets other rows of it in the same step goes by one of them, and
        a loop that keeps states goes by segments of none."""
        own = set(self.readers.values())
        every = own.union(other.readers)
        loops = {r.loop for r in every}
        fits = other.steps == self.steps and len(loops) == len(every)
        return fits and not own.isdisjoint(other.readers) and loops.isdisjoint(r.loop for r in (*self.records, other))


def groups(region: Region) -> Sequence[Group]:
    """The records of the loops of a region."""
    found: list[Group] = []
    for record in (r for node in region.nodes if isinstance(node, Loop) for r in _record(node, region)):
        group = next((g for g in found if g.takes(record)), None)
        if group is None:
            found.append(Group((record,)))
        else:
            found[found.index(group)] = Group((*group.records, record))
    return found


def _record(loop: Loop, region: Region) -> Iterator[Record]:
    """The record of a loop, if it keeps states for other loops and for nothing else."""
    users = {k: [n for n in region.nodes if rows in n.inputs] for k, rows in _rows(loop)}
    found = {k: rows for k, rows in _rows(loop) if users[k] and rows not in region.results}
    is_open = loop.condition is not None or any(
        rows.tensor.shape[0] != loop.upper - loop.lower for rows in found.values()
    )
    readers: dict[Node, Reader] = {}
    for k, rows in found.items():
        for user in users[k]:
            reader = _reader(user, rows)
            if reader is None or readers.setdefault(user, reader) != reader:
                return
            if is_open and not _begins_at_end(reader, loop, rows.tensor.shape[0]):
                return
    if found:
        yield Record(loop, found, _needed(loop, found), tuple(readers.values()), is_open)


def _rows(loop: Loop) -> Iterator[tuple[int, Value]]:
    """The states of which a loop keeps all rows: stacked, or written into a tensor that it carries."""
    states = [p.value for p in loop.states]
    count = len(states)
    for value, stack in zip(loop.body.results[count:], loop.values[count:]):
        if value in states:
            yield states.index(value), stack
    read = [v for r in loop.regions for n in r.nodes for v in n.inputs] + list(loop.body.results)
    for k, value in enumerate(loop.body.results[:count]):
        match value.node:
            case Update(base, (of,), axes, (row, *places), "=", Load(indices=indices)) if (
                base is states[k]
                and of in states
                and row == Size.of(loop.counter) - loop.lower
                and tuple(places) == indices == tuple(Size.of(a.name) for a in axes)
                and all(a.lower == ZERO and a.upper == e for a, e in zip(axes, of.tensor.shape))
                and read.count(base) == 1
                # of steps beyond the end it is known that they read what is there, unless a counter around says where
                and not loop.lower.opaques
                and loop.upper.symbols <= loop.lower.symbols | base.tensor.shape[0].symbols
            ):
                yield states.index(of), loop.values[k]


def _begins_at_end(reader: Reader, loop: Loop, steps: Size) -> bool:
    """Does a reader begin with the row of the last step that was run, which a state that counts them says?"""
    for first, result, ended in zip(loop.initial, loop.body.results, loop.values):
        match first.node, result.node:
            case Structured(space=Space(body=before)), Structured(space=Space(body=Index(after))):
                counts = after == Size.of(loop.counter) + 1 and as_size(before) == loop.lower
                if counts and ended in reader.loop.scalars:
                    load = Load(operand(reader.loop.scalars.index(ended)), (), ended.dtype)
                    ran = minimum(Size.opaque(load) - loop.lower, steps)
                    return reader.loop.lower == reader.first + 1 - ran
    return False


def _needed(loop: Loop, found: Iterable[int]) -> tuple[int, ...]:
    """The positions of the states that the next ones of `found` are made of."""
    needed = set(found)
    while True:
        nodes = reachable(loop.body.results[k].node for k in needed)
        more = needed | {k for k, state in enumerate(loop.states) if state in nodes}
        if more == needed:
            return tuple(sorted(needed))
        needed = more


def _reader(node: Node, rows: Value) -> Reader | None:
    """The loop that reads one row in each step, from the last to the first; None if a node is no such loop."""
    if not isinstance(node, Loop) or rows in node.operands or node.stacked or node.condition is not None:
        return None
    found: set[Size] = set()
    for inner in node.body.walk():
        if rows in inner.operands:
            if (read := _rows_read(inner, rows)) is None:
                return None
            found |= read
    if rows in node.body.results or len(found) != 1:
        return None
    (row,) = found
    if not row.symbols.isdisjoint(n.counter for n in node.body.walk() if isinstance(n, Loop)):
        return None
    first = row.substitute({node.counter: ZERO})
    return Reader(node, first) if row == first - Size.of(node.counter) else None


def _rows_read(node: Node, rows: Value) -> set[Size] | None:
    """Which rows a node reads; None if it does more than that."""
    if not isinstance(node, Structured):
        return None
    buffer = operand(node.operands.index(rows))
    space = node.space
    if any(load.buffer == buffer for load in size_loads(b for a in space.all_axes for b in (a.lower, a.upper))):
        return None
    names = {a.name for a in space.all_axes}
    read = {load.indices[0] for load in space.loads() if load.buffer == buffer}
    return None if any(row.opaques or not names.isdisjoint(row.symbols) for row in read) else read


def with_rows(region: Region, rows: Mapping[Value, Value], start: Size) -> Region:
    """A region that reads others in place of `rows`, which begin at row `start` of these."""

    def change(node: Node) -> Sequence[Node]:
        inside = change_node_regions(node, lambda r: change_nodes(r, change))
        if not isinstance(inside, Structured) or rows.keys().isdisjoint(inside.operands):
            return (inside,)
        moved = {operand(p) for p, v in enumerate(inside.operands) if v in rows}

        def move(e: Expr) -> Expr | None:
            if isinstance(e, Load) and e.buffer in moved:
                return replace(e, indices=(e.indices[0] - start, *e.indices[1:]))
            return None

        operands = tuple(rows.get(v, v) for v in inside.operands)
        space = replace(inside.space, body=transform(inside.space.body, rule=move))
        return (Compute(operands, space, **node.spans),)

    return change_nodes(region, change)

"""The rewrite: a loop that keeps every k-th state, and readers that run the steps of a segment again.

Segments end where the loop does, so that the first one may be shorter: of three with k = 4 and T = 11 it has the rows
0..3, the others 3..7 and 7..11. Readers meet them from the last to the first. Where the first one is made again, its k
steps are 0..4: there are as many for each segment, and all of them were run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.graph import Node, Parameter, Region, Value, region_of
from intarsia.ir.ops import BroadcastTo, Loop, Slice, Update
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.ir.space import Axis, operand
from intarsia.ir.substitution import copied
from intarsia.ir.types import TensorType
from intarsia.passes.checkpoint.records import Group, Reader, Record, with_rows


@dataclass(frozen=True)
class Segments:
    """So many steps in segments of `length`."""

    steps: Size
    length: int

    @property
    def count(self) -> Size:
        return (self.steps + self.length - 1) // self.length

    @property
    def missing(self) -> Size:
        """How many steps the first segment has less than the others."""
        return self.count * self.length - self.steps

    @property
    def rows(self) -> Size:
        """How many steps are run again for one segment."""
        return minimum(self.steps, self.length)

    def start(self, segment: Size) -> Size:
        """The first row of a segment."""
        start = segment * self.length - self.missing
        return start if self.missing == ZERO else maximum(ZERO, start)


def checkpointed(region: Region, group: Group, length: int, fresh: Callable[[str], str]) -> Region:
    """The region in which loops keep one state for each segment of `length` steps, and their readers go by segments.

    `fresh` gives counters names that nothing else has.
    """
    segments = Segments(group.steps, length)
    records = {record.loop: record for record in group.records}
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    kept: dict[Record, _Kept] = {}
    for node in region.nodes:
        new = node.with_operands({v: values[v] for v in node.inputs if v in values})
        made = new.values
        if isinstance(node, Loop) and isinstance(new, Loop):
            if (record := records.get(node)) is not None:
                before, keeping, tensors = _keeping(new, record.needed, segments, fresh("r"))
                nodes += before
                kept[record] = _Kept(new, tensors)
                count, new = len(node.initial), keeping
                made = (*new.values[:count], *new.values[count + len(record.needed) :])
            elif (reader := group.readers.get(node)) is not None:
                read = [r for r in group.records if reader in r.readers]
                rows = {r: {values[v]: k for k, v in r.rows.items()} for r in read}
                new = _by_segments(replace(reader, loop=new), rows, kept, segments, fresh)
                made = new.values
        if new is not node:
            values.update(zip(node.values, made, strict=True))
        nodes.append(new)
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))


@dataclass(frozen=True)
class _Kept:
    """A loop as it was, and for the states that are needed the tensors of what is kept of them."""

    loop: Loop
    tensors: Mapping[int, Value]


def _keeping(
    loop: Loop, needed: Sequence[int], segments: Segments, row: str
) -> tuple[Sequence[Node], Loop, dict[int, Value]]:
    """The loop that carries a tensor of the first states of all segments for each state that is needed; what these
    tensors begin as, and what they are in the end.

    They begin as rows of the first state, with which the first segment begins. A step writes the row of the segment
    that begins with it: the range of rows from p / k rounded up to p / k rounded down holds one where k divides p, and
    none elsewhere.
    """
    place, length = Size.of(loop.counter) - loop.lower + segments.missing, segments.length
    axis = Axis(row, (place + length - 1) // length, place // length + 1)
    before: list[Node] = []
    tensors: list[Parameter] = []
    written: list[Update] = []
    for k in needed:
        state = loop.states[k]
        shape = state.value.tensor.shape
        before.append(BroadcastTo(loop.initial[k], (segments.count, *shape), span=loop.span))
        tensors.append(Parameter(f"{state.label}_kept", TensorType(state.value.dtype, (segments.count, *shape))))
        inner = tuple(Axis.of(f"{row}{d}", extent) for d, extent in enumerate(shape))
        names = tuple(Size.of(a.name) for a in inner)
        load = Load(operand(1), names, state.value.dtype)
        targets = (Size.of(row), *names)
        written.append(Update(tensors[-1].value, (state.value,), (axis, *inner), targets, "=", load, span=loop.span))
    count = len(loop.initial)
    results = loop.body.results
    body = Region(
        (*loop.body.parameters, *tensors),
        (*loop.body.nodes, *written),
        (*results[:count], *(u.value for u in written), *results[count:]),
    )
    condition = loop.condition
    if condition is not None:
        unread = (Parameter(p.label, p.type) for p in tensors)
        condition = replace(condition, parameters=(*condition.parameters, *unread))
    initial = (*loop.initial, *(node.values[0] for node in before))
    new = replace(loop, initial=initial, body=body, condition=condition)
    return before, new, {k: new.values[count + n] for n, k in enumerate(needed)}


def _by_segments(
    reader: Reader,
    rows: Mapping[Record, Mapping[Value, int]],
    kept: Mapping[Record, _Kept],
    segments: Segments,
    fresh: Callable[[str], str],
) -> Loop:
    """A reader as a loop over segments: the steps of one are run again, and then the reader's steps that need them."""
    loop, length = reader.loop, segments.length
    counter = fresh(f"{loop.counter}.segment")
    number = Size.of(counter)
    segment = segments.count - 1 - number
    start = segments.start(segment)
    nodes: list[Node] = []
    own: dict[Value, Value] = {}
    for record, positions in rows.items():
        again = _again(record, kept[record], segment, start, segments.rows, fresh)
        nodes += [*(v.node for v in again.initial), again]
        stacks = dict(zip(record.rows, again.values[len(record.needed) :]))
        own.update((value, stacks[k]) for value, k in positions.items())

    before = segments.steps - 1 - reader.first  # rows before the one that the reader's step 0 would read
    begin, end = number * length - before, (number + 1) * length - before
    starts_with_segment = loop.lower + before == ZERO
    ends_with_segment = loop.upper + before == segments.steps and segments.missing == ZERO
    states = [Parameter(p.label, p.type) for p in loop.states]
    inner = replace(
        loop,
        lower=begin if starts_with_segment else maximum(loop.lower, begin),
        upper=end if ends_with_segment else minimum(loop.upper, end),
        initial=tuple(p.value for p in states),
        body=with_rows(loop.body, own, start),
    )
    region = region_of(states, [*nodes, inner], inner.values)
    first, last = (loop.lower + before) // length, (loop.upper + before + length - 1) // length
    return replace(loop, counter=counter, lower=first, upper=last, body=region)


def _again(record: Record, kept: _Kept, segment: Size, start: Size, count: Size, fresh: Callable[[str], str]) -> Loop:
    """The scan that runs `count` steps again, from row `start` on, and gives the states that these begin with."""
    loop = copied(kept.loop, {}, {}, fresh)
    assert isinstance(loop, Loop)
    states = [loop.states[k] for k in record.needed]
    initial = [_row(kept.tensors[k], segment) for k in record.needed]
    results = [loop.body.results[k] for k in record.needed] + [loop.states[k].value for k in record.rows]
    return replace(
        loop,
        lower=loop.lower + start,
        upper=loop.lower + start + count,
        scalars=(),
        initial=tuple(initial),
        body=region_of(states, loop.body.nodes, results),
        condition=None,
        stacked=len(record.rows),
    )


def _row(x: Value, number: Size) -> Value:
    return Slice.row(x, number).at(x.node.span).value

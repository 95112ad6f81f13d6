"""Can a set of nodes be one kernel? Which of its values are computed where they are used, and do the rest share rows?

A *stage* is a node whose value is stored: a reduction, a result of the group, or a value that is dear to compute again.
The others are inlined. The stages of one group run over the same *rows*: outer axes, such as batch and head, that each
stage has and along which a stage reads what another stored only at its own row. So one loop over the rows holds them
all, and what passes from stage to stage is one row at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import Reshape, Update
from intarsia.ir.sizes import Size
from intarsia.ir.space import operand_position
from intarsia.ir.types import TensorType
from intarsia.passes.fuse.members import Member, Point
from intarsia.passes.lower.uses import CHEAP, sums_of

AxisOf: TypeAlias = tuple[object, str]
"""An axis of a stage by the node and the name, or a dimension of a value."""


@dataclass(frozen=True)
class Refusal:
    """Why nodes are not fused: a short name of the rule, and what it says here."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


CONTRACTIONS = Refusal("contraction-contraction", "a kernel holds one matrix product or convolution")

CHAIN = Refusal("chain", "a product and the reductions of its rows are one sweep, in which this has no place")


@dataclass(frozen=True)
class Stages:
    """How a group is computed.

    stages: the members whose values are stored, in order. places: where each member is computed, by node; a stage at
    least at its own axes. reads: where each value, of the group or from outside, is read, once inlined members are
    gone. work: to compute each member from what is stored or comes from outside. outputs: the values that are needed
    outside of the group. short: the members that are much shorter as they are stored.
    """

    stages: tuple[Member, ...]
    places: Mapping[Node, tuple[Point, ...]]
    reads: Mapping[Value, tuple[Point, ...]]
    work: Mapping[Node, int]
    outputs: frozenset[Value]
    short: frozenset[Node]

    def internal(self) -> Iterable[tuple[Member, Point]]:
        """Every stored value that another stage reads, and where."""
        for stage in self.stages:
            for point in self.reads.get(stage.value, ()):
                yield stage, point


def stages_of(members: Sequence[Member], outputs: frozenset[Value]) -> Stages:
    """Decide which members of a group, in topological order, are stored.

    Stored are reductions, results, and what is dear and would be computed more than once: because it is read at
    several points, or at one that several iterations share.
    """
    reduced = {m.node for m in members if m.is_reduced}
    short = _short(members)
    total: dict[Node, int] = {}
    for member in members:
        total[member.node] = member.work + sum([total.get(n, 0) for n in member.reads_of if n not in reduced])
    reads: dict[Value, dict[Point, None]] = {}
    computed: dict[Node, tuple[Point, ...]] = {}
    stages: list[Member] = []
    for member in reversed(members):
        points = tuple(reads.get(member.value, ()))
        result = member.value in outputs
        several = len(points) + result > 1 or any(p.repeats for p in points)
        is_dear = total[member.node] > CHEAP and several and not (member.node in short and _only_for_products(points))
        kept = member.is_reduced or isinstance(member.node, Update) or is_dear
        places = [] if kept else list(points)
        if kept or result or not points:
            stages.append(member)
            places.append(member.own_point)
        if not kept:
            reads.pop(member.value, None)  # computed again wherever it is read
        computed[member.node] = tuple(places)
        for place in places:
            for value, indices in at(member, place):
                reads.setdefault(value, {})[Point(place.stage, indices)] = None
    found = {value: tuple(points) for value, points in reads.items()}
    return Stages(tuple(reversed(stages)), computed, found, total, outputs, short)


def at(member: Member, place: Point) -> Iterable[tuple[Value, tuple[Size, ...]]]:
    """What a member reads, and at which subscripts, when it is computed at a place."""
    if place.indices == member.own_point.indices:
        return member.reads
    names = {axis.name: index for axis, index in zip(member.space.axes, place.indices)}
    return ((value, tuple(i.substitute(names) for i in indices)) for value, indices in member.reads)


def refusal(members: Sequence[Member], stages: Stages, kind: str) -> Refusal | None:
    """Why a group cannot be one kernel on a kind of target, or None if it can."""
    for member in members:
        for place in stages.places[member.node]:
            if place.stage is not member and (found := _refuse_inlining(member, place, stages.short, kind)):
                return found
    updates = [s for s in stages.stages if isinstance(s.node, Update)]
    if updates and len(stages.stages) > 1:
        return _refuse_beside(updates[-1], members, stages)
    contractions = [s for s in stages.stages if s.is_contraction]
    if len(contractions) > 1:
        return CONTRACTIONS
    return _refuse_rows(stages, contractions[0] if contractions else None)


def _refuse_beside(update: Member, members: Sequence[Member], stages: Stages) -> Refusal | None:
    """Stages in the kernel of an update: reductions that it reads once for each element that it writes. They then run
    for these elements only."""
    node = update.node
    assert isinstance(node, Update)
    own = sums_of(node, [m.node for m in members], stages.outputs)
    if any(stage is not update and stage.value not in own for stage in stages.stages):
        return Refusal("update", "only sums for the elements that it writes are stored beside an update")
    if any(stage.is_contraction for stage in stages.stages):
        return Refusal("update", "a matrix product is tiled in a kernel of its own")
    return None


def _refuse_inlining(member: Member, place: Point, short: frozenset[Node], kind: str) -> Refusal | None:
    """What is computed inside of a contraction is computed again for every element that shares it. That goes for a
    rounding on a CPU, whose products read a factor that is broadcast in every step; a GPU rounds a block at once."""
    reshapes = isinstance(member.node, Reshape) or isinstance(place.stage.node, Reshape)
    if not reshapes and not place.stage.is_contraction:
        return None
    affine = all(Point(place.stage, indices).is_affine for _, indices in at(member, place))
    user = place.stage.title
    if (isinstance(member.node, Reshape) and not affine) or (
        isinstance(place.stage.node, Reshape) and not place.is_affine
    ):
        return Refusal("not affine", "this reshape needs divisions in subscripts, and costs nothing by itself")
    if not place.stage.is_contraction or member.node in short:
        return None
    if not member.is_plain or (kind == "cpu" and member.narrows):
        return Refusal("dear recompute", f"{member.title} would run again for every element that {user} shares")
    if not affine:
        return Refusal("not affine", f"{user} would read through {member.title} at subscripts that are not affine")
    return None


def _refuse_rows(stages: Stages, contraction: Member | None) -> Refusal | None:
    """Do all stages have the rows of the reductions (of the contraction), and read each other at their own row?"""
    arrays = [s for s in stages.stages if s.is_reduced or s.wide_axes]
    if len(arrays) <= 1:
        return None
    same = _SameAxes(stages)
    anchor = contraction or next((s for s in arrays if s.is_reduced), None)
    rows = _rows(arrays, same)
    if not rows and anchor is None:
        return _blame(arrays[0], arrays[-1], stages)
    for stage in arrays:
        own = same.of(stage)
        fits = own == rows if stage.is_reduced or contraction else own >= rows
        if not fits or (contraction and stage.is_reduced and stage is not contraction):
            return _blame(stage, _other([anchor, *arrays] if anchor else arrays, stage), stages)
    if same.conflicts & rows:
        return Refusal("different rows", "a value is read at other rows than its own")
    return _refuse_reads(stages, same, rows) or (None if contraction else _refuse_order(arrays, same, rows, stages))


def _rows(arrays: Sequence[Member], same: _SameAxes) -> frozenset[int]:
    """The axes that all stages share: those of the results of the reductions if there are any."""
    for stage in arrays:
        if stage.is_reduced:
            return same.of(stage)
    return frozenset.intersection(*map(same.of, arrays))


def passes_over(value: Value, stages: Stages) -> int:
    """How often a group reads a value from memory: once if its stages share rows, since a row stays near, else once a
    stage."""
    readers = {point.stage.node for point in stages.reads.get(value, ())}
    arrays = [s for s in stages.stages if s.is_reduced or s.wide_axes]
    return 1 if readers and _rows(arrays, _SameAxes(stages)) else len(readers)


def _refuse_reads(stages: Stages, same: _SameAxes, rows: frozenset[int]) -> Refusal | None:
    """A stage reads what another stored at its own row only."""
    for stored, point in stages.internal():
        own = {a.name: same.find((point.stage.node, a.name)) for a in point.stage.wide_axes}
        for axis, index in zip(stored.space.axes, point.indices):
            row = same.find((stored.node, axis.name))
            if axis in stored.wide_axes and row in rows and own.get(index.as_name or "") != row:
                return _blame(stored, point.stage, stages)
    return None


def _refuse_order(arrays: Sequence[Member], same: _SameAxes, rows: frozenset[int], stages: Stages) -> Refusal | None:
    """Rows are outermost, so that what is stored of one row lies together."""
    for stage in arrays:
        own = same.list_of(stage)
        if not {*own[: len(rows)]} >= rows and not any(s.is_reduced for s in arrays):
            return _blame(arrays[0], _other([stage, *arrays], arrays[0]), stages)
        if not {*own[: len(rows)]} >= rows:
            return Refusal("different rows", f"the rows of {stage.title} are not its leading dimensions")
    return None


def _other(arrays: Sequence[Member], stage: Member) -> Member:
    """The first of several stages that is not this one."""
    return next(s for s in arrays if s is not stage)


def _short(members: Sequence[Member]) -> frozenset[Node]:
    """The members whose elements are each made of one that is stored in 8 bits or fewer, directly or by way of others.
    Products decode them where they use them: a tile or a panel at a time, which schedules keep for all
    who need it (`pack … value`)."""
    found: set[Node] = set()
    for member in members:
        names = {a.name for a in member.space.axes}
        own = [load for load in member.space.loads() if {str(i) for i in load.indices} >= names]
        nodes = [member.node.operands[operand_position(load.buffer)].node for load in own]
        if own and all(load.dtype.bits <= 8 or node in found for load, node in zip(own, nodes)):
            found.add(member.node)
    return frozenset(found)


def _only_for_products(points: Sequence[Point]) -> bool:
    return bool(points) and all(p.stage.is_contraction for p in points)


def _blame(stage: Member, other: Member, stages: Stages) -> Refusal:
    """The rule that keeps a stage out: would it fit if it were not stored?"""
    if not stage.is_reduced and stage.value not in stages.outputs:
        work = stages.work[stage.node]
        return Refusal(
            "dear recompute", f"{stage.title} takes {work} operations, and {other.title} needs it repeatedly"
        )
    if not stage.is_reduced and stages.reads.get(stage.value):
        return Refusal(
            "multiple uses", f"{stage.title} is needed elsewhere too, and not over the rows of {other.title}"
        )
    own, others = _rows_text(stage), _rows_text(other)
    same = " of another dimension" if own == others else ""
    return Refusal("different rows", f"{stage.title} has {own}, {other.title} {others}{same}")


def _rows_text(stage: Member) -> str:
    extents = ", ".join(str(a.extent) for a in stage.wide_axes)
    return f"the rows [{extents}]" if extents else "no rows"


@dataclass(eq=False)
class _Class:
    """Axes that are the same, and the stages and values that they belong to."""

    axes: list[AxisOf]
    holders: set[object]


class _SameAxes:
    """Which axes of the stages are the same: dimension d of a stored value, and the axis by which another stage reads
    that dimension. `conflicts` are classes that hold two axes of one stage.

    Stages that read a dimension of any value by an axis share that axis too, if they may: such a value can as well be
    read at other rows.
    """

    def __init__(self, stages: Stages) -> None:
        self._class: dict[AxisOf, _Class] = {}
        for stored, point in stages.internal():
            self._join(stored.dimensions, point, optional=False)
        read = [(node.value, point) for node, points in stages.places.items() for point in points]
        read += [(v, p) for v, points in stages.reads.items() for p in points]
        dimensions = {v: [(v, str(d), extent) for d, extent in enumerate(_shape(v))] for v, _ in read}
        for value, point in read:
            if len(point.indices) == len(dimensions[value]):
                self._join(dimensions[value], point, optional=True)
        self._numbers: dict[_Class, int] = {}
        lists = [self.list_of(stage) for stage in stages.stages]
        self.conflicts = frozenset(n for numbers in lists for n in numbers if numbers.count(n) > 1)

    def _join(self, dimensions: Sequence[tuple[object, str, Size]], point: Point, optional: bool) -> None:
        extents = point.stage.extents
        for (holder, name, extent), index in zip(dimensions, point.indices):
            axis = index.as_name
            if axis is None or extents.get(axis) != extent:
                continue
            one, other = self._get((holder, name)), self._get((point.stage.node, axis))
            if one is not other and (not optional or one.holders.isdisjoint(other.holders)):
                small, large = sorted((one, other), key=lambda c: len(c.axes))
                large.axes += small.axes
                large.holders |= small.holders
                self._class.update(dict.fromkeys(small.axes, large))

    def _get(self, axis: AxisOf) -> _Class:
        found = self._class.get(axis)
        if found is None:
            found = self._class[axis] = _Class([axis], {axis[0]})
        return found

    def find(self, axis: AxisOf) -> int:
        """The number of the class of an axis."""
        return self._numbers.setdefault(self._get(axis), len(self._numbers))

    def list_of(self, stage: Member) -> list[int]:
        """The classes of the axes of a stage's result, in order."""
        return [self.find((stage.node, a.name)) for a in stage.wide_axes]

    def of(self, stage: Member) -> frozenset[int]:
        return frozenset(self.list_of(stage))


def _shape(value: Value) -> tuple[Size, ...]:
    return value.type.shape if isinstance(value.type, TensorType) else ()

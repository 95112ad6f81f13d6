"""How the members of a kernel read each other: what decides which values are computed where they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.kernel import For
from intarsia.ir.kernel_access import is_injective
from intarsia.ir.ops import ArgReduce, Argsort, Cumulative, Sort, Update
from intarsia.ir.scalar import Apply, Bitcast, Cast, Expr, Index, Load, loads
from intarsia.ir.sizes import Size, product
from intarsia.ir.space import Axis, operand_position
from intarsia.ir.types import TensorType
from intarsia.passes.lower.access import affine_conditions

CHEAP = 4
"""Work, in additions, up to which a value is computed again at each use rather than kept."""

_SLOW = {"div": 8, "sqrt": 8, "rsqrt": 10, "floordiv": 8, "mod": 8}
"""Functions whose one instruction takes as long as that many additions."""


_GATHER = 4
"""Work of a load whose subscript depends on data."""


def work(expression: Expr) -> int:
    """Work of one evaluation, in additions, more than a load of the value would be. Affine subscripts are free, and so
    are conditions on them: they become masks."""
    seen: set[Expr] = set()

    def of(e: Expr) -> int:
        if e in seen:
            return 0
        seen.add(e)
        match e:
            case Apply("where", (condition, then, otherwise)) if affine_conditions(condition)[1]:
                return of(then) + of(otherwise)
            case Apply(function, arguments):
                own = _SLOW.get(function, FUNCTIONS[function].operations)
                return own + sum(map(of, arguments))
            case Cast(_, value) | Bitcast(_, value):
                return of(value) + 1
            case Load(_, indices):
                data = [o for i in indices for o in i.opaques]
                return 1 + sum(map(of, data)) + (_GATHER if data else 0)
            case Index(size):
                return sum(map(of, size.opaques))
        return 0

    return of(expression) - 1


@dataclass
class Uses:
    """The reads that the members of a group make of each other's values."""

    reads: dict[Value, int] = field(default_factory=dict)
    repeated: set[Value] = field(default_factory=set)
    stored: set[Value] = field(default_factory=set)

    @staticmethod
    def of(members: Iterable[Node]) -> Uses:
        uses = Uses()
        for node in members:
            match node:
                case Structured():
                    uses._space(node.operands, node.space.all_axes, node.space.loads())
                case Update(base, _, axes, _, _, body):
                    uses._read(base)
                    inside = (*loads(body), *(load for s in _sizes(node) for o in s.opaques for load in loads(o)))
                    uses._space(node.operands, axes, inside)
                case ArgReduce(x):
                    uses._read(x, 2)
                case Cumulative(x):
                    uses._read(x)
                case Sort(x) | Argsort(x):
                    uses._read(x)
                    uses.stored.add(x)
                case _:
                    for value in node.inputs:
                        uses._read(value, 2)
        return uses

    def is_single(self, value: Value) -> bool:
        """Is every element read at most once?"""
        return self.reads.get(value, 0) <= 1 and value not in self.repeated

    def _read(self, value: Value, times: int = 1) -> None:
        self.reads[value] = self.reads.get(value, 0) + times

    def _space(self, operands: Sequence[Value], axes: Sequence[Axis], found: Iterable[Load]) -> None:
        for load in dict.fromkeys(found):
            value = operands[operand_position(load.buffer)]
            self._read(value)
            if not _reads_each_once(load, axes, value):
                self.repeated.add(value)


def sums_of(update: Update, members: Sequence[Node], outputs: Collection[Value]) -> frozenset[Value]:
    """The reductions of a group that only its update reads, one element for each that it writes: they can run over the
    axes of the update, and leave out what it does not need."""
    once = _read_once_by(update)
    users = Counter(v for m in members for v in dict.fromkeys(m.inputs))
    return frozenset(
        m.value
        for m in members
        if isinstance(m, Structured) and m.space.reduced and m.value in once
        if users[m.value] == 1 and m.value not in outputs
    )


def _read_once_by(update: Update) -> frozenset[Value]:
    """The operands of which an update reads one element for each element that it writes, always another one."""
    if any(s.opaques for s in _sizes(update)):
        return frozenset()
    places: dict[Value, set[tuple[Size, ...]]] = {}
    for load in loads(update.body):
        places.setdefault(update.operands[operand_position(load.buffer)], set()).add(load.indices)
    axes = [For(a.name, a.lower, a.upper, ()) for a in update.axes]
    return frozenset(
        value
        for value, (first, *others) in places.items()
        if value != update.base and not others and is_injective(first, axes) and not any(i.opaques for i in first)
    )


def _sizes(node: Update) -> Iterable[Size]:
    yield from node.targets
    for axis in node.axes:
        yield from (axis.lower, axis.upper)


def _reads_each_once(load: Load, axes: Sequence[Axis], value: Value) -> bool:
    """Does a load, run for every point of `axes`, cost no more than one read of every element? So it is where every
    axis is a subscript by itself, and where there are no more points than elements."""
    names = [i.as_name for i in load.indices]
    if all(a.extent.constant == 1 or names.count(a.name) == 1 for a in axes):
        return True
    points = product(a.extent for a in axes).constant
    elements = value.tensor.elements.constant if isinstance(value.type, TensorType) else None
    return points is not None and elements is not None and points <= elements

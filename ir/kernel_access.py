"""What the statements of a kernel read and write, and where: the raw material of every analysis of kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from intarsia.ir.kernel import Call, Check, For, If, Prefetch, Put, PutOperator, Statement, walk
from intarsia.ir.scalar import Expr, Mask, loads
from intarsia.ir.sizes import Size


@dataclass(frozen=True)
class Access:
    """One place in the text where elements of a buffer are read or written.

    `loops` are those around it, outermost first; `operator` is that of the `Put` for a write. An accumulating write
    reads as well. The mask of a read in the value of a `Put` holds that of the `Put` too. A row access of a `Call` has
    one subscript less than its buffer.
    """

    buffer: str
    indices: tuple[Size, ...]
    mask: Mask
    writes: bool
    loops: tuple[For, ...]
    statement: Statement
    operator: PutOperator | None = None

    @property
    def reads(self) -> bool:
        return not self.writes or self.operator not in ("=", None)


def sizes_of(statement: Statement) -> tuple[Size, ...]:
    """The integer expressions of a statement itself: bounds, subscripts, masks."""
    match statement:
        case For(_, lower, upper):
            return (lower, upper)
        case Put(_, indices, _, _, mask):
            return (*indices, *mask)
        case If(condition):
            return condition
        case Call(_, reads, writes, length):
            return (*(i for _, indices in (*reads, *writes) for i in indices), length)
        case Prefetch(_, indices):
            return indices
    return ()


def expressions(statement: Statement) -> Iterator[Expr]:
    """The scalar expressions of a statement itself: values, and those that its integer expressions hold."""
    match statement:
        case Put():
            yield statement.value
        case Check():
            yield statement.condition
            yield from statement.values
    for size in sizes_of(statement):
        yield from size.opaques


def accesses(body: Iterable[Statement], loops: tuple[For, ...] = ()) -> Iterator[Access]:
    """Every access below `body`, in the order of the text; the reads of a statement come before its writes."""
    for statement, around in walk(tuple(body), loops):
        for expression in expressions(statement):
            own = statement.mask if isinstance(statement, Put) and expression is statement.value else ()
            for load in loads(expression):
                yield Access(load.buffer, load.indices, (*own, *load.mask), False, around, statement)
        match statement:
            case Put(buffer, indices, operator, _, mask):
                yield Access(buffer, indices, mask, True, around, statement, operator)
            case Call(_, reads, writes):
                for buffer, indices in reads:
                    yield Access(buffer, indices, (), False, around, statement)
                for buffer, indices in writes:
                    yield Access(buffer, indices, (), True, around, statement)


def written_in(body: Iterable[Statement]) -> frozenset[str]:
    """The names of the buffers that statements below `body` write."""
    names: set[str] = set()
    for statement, _ in walk(tuple(body)):
        match statement:
            case Put(buffer):
                names.add(buffer)
            case Call(_, _, writes):
                names.update(name for name, _ in writes)
    return frozenset(names)


def holds_one_write(loop: For) -> bool:
    """Is one write, beside prefetches, all that is in a loop? A dot loop wants that."""
    return [type(s) for s in loop.body if not isinstance(s, Prefetch)] == [Put]


def trips(loop: For) -> Size:
    """How many iterations a loop makes if its bounds are in order."""
    return (loop.upper - loop.lower + (loop.step - 1)) // loop.step


def is_injective(indices: tuple[Size, ...], loops: Iterable[For]) -> bool:
    """Do different iterations of `loops` (everything else fixed) give different subscripts? False where unknown.

    A subscript tells iterations apart by mixed radix: each axis steps beyond all that the faster ones reach.
    """
    unknown = {loop.axis: loop for loop in loops if trips(loop).constant not in (0, 1)}
    progress = True
    while unknown and progress:
        progress = False
        for index in indices:
            told = _told_apart(index, unknown)
            for axis in told:
                del unknown[axis]
            progress = progress or bool(told)
    return not unknown


def _told_apart(index: Size, unknown: dict[str, For]) -> list[str]:
    """The axes of `unknown` whose values can be read off one subscript: all that it has, or none."""
    used = [a for a in unknown if a in index.symbols]
    radix: list[tuple[int, str]] = []
    for axis in used:
        coefficient = index.coefficient(axis)
        if not coefficient:
            return []
        radix.append((abs(coefficient) * unknown[axis].step, axis))
    reach: int | None = 0
    for stride, axis in sorted(radix):
        if reach is None or stride <= reach:
            return []
        count = trips(unknown[axis]).constant
        reach = None if count is None else reach + stride * (count - 1)
    return used

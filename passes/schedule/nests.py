"""Recognising contractions: which axes of a nest are rows, columns, batches, and which stages belong to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.scalar import Const, Load, loads
from intarsia.ir.schedule import Collapse
from intarsia.ir.sizes import ZERO, Size
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import count, stride
from intarsia.passes.schedule.tree import perfect_nest, puts_in

FOLDS = ("+=", "min=", "max=")
"""What reduces: shortest paths are contractions too."""


NARROW = 8
"""Bits of elements that are codes, which tiles decode."""


@dataclass(frozen=True)
class Nest:
    """The axes of one stage. The result has the dimensions `batch`, `row` and `column` in some order: only the left
    operand has rows, only the right one has columns, and along columns the result lies in memory. `row` is "" of a
    product with a vector."""

    row: str
    column: str
    batch: tuple[str, ...]
    reduced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contraction:
    """A stage `y[…] += left * right`, or another operation of both and another reduction, with the stages that come
    before and after it: the initial value, and what is done to each element of the result. summed: batch axes over
    which what follows adds up, such as groups with scales of their own. is_ragged: do different elements sum over
    different ranges? plain: the loads that can be copied with a dimension for each axis that they depend on."""

    put: Put
    right: Load
    main: Nest
    initial: Nest | None
    epilogues: tuple[Nest, ...]
    summed: tuple[str, ...] = ()
    is_ragged: bool = False
    plain: frozenset[Load] = frozenset()


# ---------------------------------------------------------------------- recognizing


def find_contraction(b: Builder, loop: For, across: str = "", longest: bool = False) -> Contraction | None:
    """The contraction that a nest is, if it is one and long enough in both directions for a tile.

    Columns are those along which the result lies in memory; or `across`, and then those are the rows, unless the
    `longest` are asked for.
    """
    found = reducing_nest(loop, ragged=True)
    if found is None:
        return None
    put, axes = found
    names = [index.as_name for index in put.indices if index.constant is None]
    kept = [a for a in axes if a in names]
    reduced = tuple(a for a in axes if a not in names)
    if not kept:
        return None
    nest = Nest(kept[0], kept[-1], tuple(kept[1:-1]))
    after = neighbours(b, put, nest, loop)[1]
    along = next((a for a in kept if result_step(b, put, nest, after, a) == 1), None)
    column = across if across in kept else along
    operands = list(dict.fromkeys(loads(put.value)))
    right = [x for x in operands if column in x.symbols]
    left = [x for x in operands if column not in x.symbols]
    rows = [a for a in kept if any(a in x.symbols for x in left) and not any(a in x.symbols for x in right)]
    whole = _whole(right, axes)
    rows = [a for a in rows if count(trips(axes[a])) > 1]
    if column is None or whole is None or not reduced or not (rows or _are_codes(b, whole, left)):
        return None
    row = max(reversed(rows), key=lambda a: count(trips(axes[a])), default="")
    row = along if across and along in rows and not longest else row
    main = Nest(row, column, tuple(a for a in kept if a not in (row, column)), _by_step(b, left, reduced))
    before, after = neighbours(b, put, main, loop)
    is_ragged = bool(put.mask) or any(axes.keys() & (x.lower.symbols | x.upper.symbols) for x in axes.values())
    plain = frozenset(x for x in operands if is_plain(x, axes))
    return Contraction(put, whole, main, before, after, _summed(b, main, after), is_ragged, plain)


def _are_codes(b: Builder, right: Load, left: list[Load]) -> bool:
    """Is a matrix of codes multiplied by a vector? Tiles decode those as fast as for several rows; other numbers had
    better be summed row by row."""
    return bool(left) and b.kernel.buffers()[right.buffer].dtype.bits <= NARROW


def _summed(b: Builder, main: Nest, epilogues: tuple[Nest, ...]) -> tuple[str, ...]:
    """The batch axes over which the stages that follow add up."""
    found: dict[str, None] = {}
    for own in epilogues:
        (put,) = puts_in((b.loop(own.column),))
        if put.operator != "=":
            found |= dict.fromkeys(a for a, axis in zip(main.batch, own.batch) if not _is_subscript(put, axis))
    return tuple(found)


def _is_subscript(put: Put, axis: str) -> bool:
    return any(axis in index.symbols for index in put.indices)


def is_plain(load: Load, axes: Mapping[str, For]) -> bool:
    """Is every subscript a number, perhaps plus an axis, or what axes write as digits: `128 * g + k` with k < 128? What
    depends on no axis, as the layer `2 - l` of a loop back through layers, is a number here."""

    def is_one(index: Size) -> bool:
        is_number = axes.keys().isdisjoint(index.symbols)
        return is_number or index.as_name is not None or (index.symbols <= axes.keys() and _is_digits(index, axes))

    return all(is_one(index - index.offset) for index in load.indices)


def _is_digits(index: Size, axes: Mapping[str, For]) -> bool:
    """Does a sum of multiples of axes count up by one, from one point to the next?"""
    digits = sorted((index.coefficient(axis) or 0, axis) for axis in index.symbols)
    if index != sum((Size.of(axis) * step for step, axis in digits), ZERO):
        return False
    unit = 1
    for step, axis in digits:
        extent = trips(axes[axis]).constant
        if step != unit or extent is None or axes[axis].lower != ZERO:
            return False
        unit *= extent
    return True


def _whole(right: list[Load], axes: Mapping[str, For]) -> Load | None:
    """The operand of the columns: the one load of it; of several, such as codes and scales of their groups, the one
    that depends on all the axes that the others depend on, plainly."""
    if len(right) == 1:
        return right[0]
    symbols = frozenset[str]().union(*(x.symbols for x in right))
    found = [x for x in right if x.symbols == symbols and is_plain(x, axes)]
    return found[0] if len(found) == 1 else None


def _by_step(b: Builder, read: list[Load], axes: tuple[str, ...]) -> tuple[str, ...]:
    """Axes of a reduction, last the one along which what is read number by number lies together: other orders would
    need a line of memory for each step."""
    buffers = b.kernel.buffers()

    def step(axis: str) -> int:
        return max(abs(stride(buffers[x.buffer], x.indices, axis) or 0) for x in read)

    return tuple(sorted(axes, key=step, reverse=True))


def reducing_nest(loop: For, ragged: bool = False) -> tuple[Put, dict[str, For]] | None:
    """The statement of a nest over a box that reduces into elements named by axes alone, and its loops by axis. With
    `ragged`, only the results need to be a box: what is reduced may differ between them, by bounds or masks."""
    nest, body = perfect_nest(loop)
    if len(body) != 1 or not isinstance(put := body[0], Put) or put.operator not in FOLDS or (put.mask and not ragged):
        return None
    axes = {inner.axis: inner for inner in nest}
    names = [index.as_name for index in put.indices if index.constant is None]
    is_plain = all(n in axes for n in names) and len(set(names)) == len(names)
    boxes = [x for x in nest if not ragged or x.axis in names]
    is_box = not any(axes.keys() & (x.lower.symbols | x.upper.symbols) for x in boxes)
    return (put, axes) if is_plain and is_box and all(x.step == 1 for x in nest) else None


def neighbours(b: Builder, put: Put, main: Nest, loop: For) -> tuple[Nest | None, tuple[Nest, ...]]:
    """The stage that sets the result, and those that use it point by point, in their own axes."""
    initial: Nest | None = None
    epilogues: list[Nest] = []
    position = {str(index.as_name): d for d, index in enumerate(put.indices) if index.constant is None}
    for stage in b.outermost():
        nest, body = perfect_nest(stage)
        if stage is loop or len(body) != 1 or not isinstance(own := body[0], Put):
            continue
        places = {a.indices for a in accesses(body) if a.buffer == put.buffer}
        if len(places) != 1:
            continue
        (indices,) = places
        names = {axis: indices[d].as_name for axis, d in position.items()}
        if {inner.axis for inner in nest} != set(names.values()):
            continue
        row, column, *batch = (str(names.get(a, "")) for a in (main.row, main.column, *main.batch))
        found = Nest(row, column, tuple(batch))
        if own.buffer == put.buffer and isinstance(own.value, Const) and own.operator == "=":
            initial = found
        elif own.buffer != put.buffer and (own.operator == "=" or _adds_up(own, found)):
            epilogues.append(found)
    return initial, tuple(epilogues)


def _adds_up(put: Put, nest: Nest) -> bool:
    """Does a stage add what it makes of each element to something, perhaps over batches?"""
    return put.operator == "+=" and all(_is_subscript(put, axis) for axis in (nest.row, nest.column) if axis)


def result_step(b: Builder, put: Put, main: Nest, epilogues: tuple[Nest, ...], axis: str) -> int | None:
    """Elements between neighbours along an axis of what a stage makes, or of what is made of that; None for no axis."""
    if not axis:
        return None
    if not epilogues or b.kernel.buffers()[put.buffer].role != "temp":
        return stride(b.kernel.buffers()[put.buffer], put.indices, axis)
    last = epilogues[-1]
    own = dict(zip((main.row, main.column, *main.batch), (last.row, last.column, *last.batch)))[axis]
    (made,) = puts_in((b.loop(own),))
    return stride(b.kernel.buffers()[made.buffer], made.indices, own)


def flattened(b: Builder, loop: For) -> For:
    """The nest of a contraction after neighbouring axes became one that all it reads and makes has side by side, such
    as the height and width of an image that no window runs over."""
    c = find_contraction(b, loop)
    if c is None:
        return loop
    place = b.outermost().index(loop)
    for nests in zip(*(_side_by_side(c.put, c.main, nest) for nest in (c.main, c.initial, *c.epilogues) if nest)):
        before = len(b.steps)
        if all(b.attempt(Collapse(outer, inner)) for outer, inner in nests):
            return flattened(b, b.outermost()[place])
        while len(b.steps) > before:
            b.undo()
    return loop


def _side_by_side(put: Put, main: Nest, own: Nest) -> Iterator[tuple[str, str]]:
    """Pairs of a nest's axes that subscript neighbouring dimensions of the result."""
    axes = dict(zip((main.row, main.column, *main.batch), (own.row, own.column, *own.batch)))
    names = [axes[str(index)] for index in put.indices if index.constant is None]
    return pairwise(names)

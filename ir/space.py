"""A `Space` says what a structured op means: for each point of named axes, a body, perhaps reduced over more axes.

Shape, loops, work counts, sharding factors, fusion and gradients of an op are all read off its space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from intarsia.ir.dtypes import DType
from intarsia.ir.functions import COMBINERS
from intarsia.ir.scalar import Expr, Load, loads, transform
from intarsia.ir.sizes import ZERO, Size, SizeLike

T = TypeVar("T")


@dataclass(frozen=True)
class Axis:
    """A named integer that runs over lower <= name < upper."""

    name: str
    lower: Size
    upper: Size

    @staticmethod
    def of(name: str, extent: SizeLike) -> Axis:
        return Axis(name, ZERO, Size.of(extent))

    @cached_property
    def extent(self) -> Size:
        return self.upper - self.lower

    def substitute(self, names: Mapping[str, Size]) -> Axis:
        """Replace names in the bounds."""
        return Axis(self.name, self.lower.substitute(names), self.upper.substitute(names))

    def rename_operands(self, names: Mapping[str, str]) -> Axis:
        """Give the operands that the bounds load other names."""
        return Axis(self.name, rename_size_buffers(self.lower, names), rename_size_buffers(self.upper, names))

    def __str__(self) -> str:
        return f"{self.name} < {self.upper}" if self.lower == ZERO else f"{self.name} in {self.lower}..{self.upper}"


@dataclass(frozen=True)
class Space:
    """The meaning of a structured op.

    axes: one for each dimension of the result. All begin at 0, except in the region of an update.
    reduced: axes that `combiner` reduces over; their bounds may use `axes`, earlier reduced axes, counters and data.
    combiner: a name of `COMBINERS`, or None where nothing is reduced.
    body: the value at one point; operands are loaded as `a0`, `a1`, … in the order of the node's operands.
    dtype: of the result. The reduction is formed in the dtype of the body and rounded to `dtype` once at the end.
    """

    axes: tuple[Axis, ...]
    body: Expr
    dtype: DType
    reduced: tuple[Axis, ...] = ()
    combiner: str | None = None

    def __post_init__(self) -> None:
        assert bool(self.reduced) == (self.combiner is not None), "a combiner needs axes and axes need a combiner"
        names = [a.name for a in (*self.axes, *self.reduced)]
        assert len(set(names)) == len(names), f"an axis occurs twice: {names}"

    @property
    def shape(self) -> tuple[Size, ...]:
        return tuple(a.extent for a in self.axes)

    @property
    def neutral(self) -> int | float | bool:
        assert self.combiner is not None
        return COMBINERS[self.combiner].neutral(self.body.dtype)

    @property
    def all_axes(self) -> tuple[Axis, ...]:
        return (*self.axes, *self.reduced)

    def loads_of(self, operand: int) -> tuple[Load, ...]:
        """The distinct ways in which the body, and the bounds, read one operand."""
        return tuple(dict.fromkeys(load for load in self.loads() if load.buffer == f"a{operand}"))

    def loads(self) -> Iterable[Load]:
        """Every load in the order of the text: those of the bounds, then those of the body."""
        yield from size_loads(b for a in self.all_axes for b in (a.lower, a.upper))
        yield from loads(self.body)

    def substitute(self, names: Mapping[str, Size]) -> Space:
        """Replace dimension names and counters everywhere."""
        return replace(
            self,
            axes=tuple(a.substitute(names) for a in self.axes),
            reduced=tuple(a.substitute(names) for a in self.reduced),
            body=transform(self.body, names),
        )

    def rename_operands(self, names: Mapping[str, str]) -> Space:
        """Give operands other names."""
        return replace(
            self,
            axes=tuple(a.rename_operands(names) for a in self.axes),
            reduced=tuple(a.rename_operands(names) for a in self.reduced),
            body=rename_buffers(self.body, names),
        )

    def rename_axes(self, names: Mapping[str, str]) -> Space:
        """Give axes other names."""
        sizes = {old: Size.of(new) for old, new in names.items()}
        renamed = self.substitute(sizes)
        return replace(
            renamed,
            axes=tuple(replace(a, name=names.get(a.name, a.name)) for a in renamed.axes),
            reduced=tuple(replace(a, name=names.get(a.name, a.name)) for a in renamed.reduced),
        )


def operand(position: int) -> str:
    """The buffer name by which a space's body loads its operand at `position`."""
    return f"a{position}"


def operand_position(buffer: str) -> int:
    """The inverse of `operand`."""
    return int(buffer[1:])


def size_loads(sizes: Iterable[Size]) -> Iterator[Load]:
    """The loads inside integer expressions, in the order of the text."""
    for size in sizes:
        for value in size.opaques:
            yield from loads(value)


def rename_buffers(expression: Expr, names: Mapping[str, str]) -> Expr:
    """Give the buffers that an expression loads other names."""

    def rename(e: Expr) -> Expr | None:
        return replace(e, buffer=names[e.buffer]) if isinstance(e, Load) and e.buffer in names else None

    return transform(expression, rule=rename)


def rename_size_buffers(size: Size, names: Mapping[str, str]) -> Size:
    """Give the buffers that an integer expression loads other names."""
    return size.substitute({}, lambda value: Size.opaque(rename_buffers(value, names)))


def arrange(values: tuple[T, ...], reads: Iterable[Load], kept: int = 0) -> tuple[tuple[T, ...], dict[str, str]]:
    """Operands in normal form: distinct, in the order in which they are first read, none unread but the first `kept`.

    Gives them and the names that change: empty where the operands are in that form already.
    """
    order = {v: p for p, v in enumerate(dict.fromkeys(values[:kept]))}
    for load in reads:
        order.setdefault(values[operand_position(load.buffer)], len(order))
    names = {operand(p): operand(order[v]) for p, v in enumerate(values) if v in order and order[v] != p}
    return tuple(order), names

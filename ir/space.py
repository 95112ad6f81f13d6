"""A `Space` says what a structured op means: for each point of named axes, a body, perhaps reduced over more axes.

Shape, loops, work counts, sharding factors, fusion and gradients of an op are all read off its space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import DType
from intarsia.ir.functions import COMBINERS
from intarsia.ir.scalar import Expr, Load, loads, transform
from intarsia.ir.sizes import ZERO, Size, SizeLike


@dataclass(frozen=True)
class Axis:
    """A named integer that runs over lower <= name < upper."""

    name: str
    lower: Size
    upper: Size

    @staticmethod
    def of(name: str, extent: SizeLike) -> Axis:
        return Axis(name, ZERO, Size.of(extent))

    @property
    def extent(self) -> Size:
        return self.upper - self.lower

    def substitute(self, names: Mapping[str, Size]) -> Axis:
        """Replace names in the bounds."""
        return Axis(self.name, self.lower.substitute(names), self.upper.substitute(names))

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
        yield from loads(self.body)
        for axis in self.all_axes:
            for bound in (axis.lower, axis.upper):
                for value in bound.opaques:
                    yield from loads(value)

    def substitute(self, names: Mapping[str, Size]) -> Space:
        """Replace dimension names and counters everywhere."""
        return replace(
            self,
            axes=tuple(a.substitute(names) for a in self.axes),
            reduced=tuple(a.substitute(names) for a in self.reduced),
            body=transform(self.body, names),
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

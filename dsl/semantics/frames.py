"""Frames of index notation: the indices that a definition, reduction or update binds, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from intarsia.ir.extremes import extreme
from intarsia.ir.scalar import Apply, Expr, Index
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis


@dataclass(frozen=True)
class Guard:
    """A condition that holds where an expression is evaluated, and what follows from it: sizes that are at least 0."""

    condition: Expr
    facts: tuple[Size, ...]


@dataclass(frozen=True)
class IndexAxis:
    """An index with its range.

    `hull` is a range that contains it and depends neither on other indices nor on data, or None where none is known;
    `alone` is the dimension that the index subscripts alone, if any.
    """

    axis: Axis
    hull: tuple[Size, Size] | None
    alone: Size | None = None

    @property
    def name(self) -> str:
        return self.axis.name

    @property
    def is_rectangular(self) -> bool:
        return self.hull == (self.axis.lower, self.axis.upper)

    @property
    def facts(self) -> tuple[Size, Size]:
        return Size.of(self.name) - self.axis.lower, self.axis.upper - 1 - self.name

    @property
    def hull_facts(self) -> tuple[Size, ...]:
        """That the index lies in its hull, as sizes that are at least 0."""
        if self.hull is None:
            return ()
        return Size.of(self.name) - self.hull[0], self.hull[1] - 1 - self.name

    @property
    def conditions(self) -> tuple[Guard, ...]:
        """The range as conditions, for a computation over the hull."""
        if self.is_rectangular:
            return ()
        here = Index(Size.of(self.name))
        lower, upper = self.facts
        return (
            Guard(Apply("ge", (here, Index(self.axis.lower))), (lower,)),
            Guard(Apply("lt", (here, Index(self.axis.upper))), (upper,)),
        )


@dataclass
class Frame:
    """One definition, reduction or update while its body is evaluated.

    `guards` are the conditions of the `where`s around the place that is being evaluated. A reduction that stands inside
    a larger expression becomes an op of its own: `guarded` says that its accesses are in bounds only where the
    conditions of the frames around it hold.
    """

    kind: Literal["definition", "reduction", "update"]
    parent: Frame | None = None
    axes: list[IndexAxis] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)
    guarded: bool = False

    def ancestors(self) -> Iterator[Frame]:
        """The frames around this one, innermost first."""
        frame = self.parent
        while frame is not None:
            yield frame
            frame = frame.parent

    def outer_axes(self) -> list[IndexAxis]:
        """The axes of the frames around this one, outermost first."""
        return [axis for frame in reversed(list(self.ancestors())) for axis in frame.axes]

    def axis(self, name: str) -> IndexAxis | None:
        """The axis with a symbol, of this frame or one around it."""
        for frame in (self, *self.ancestors()):
            for axis in frame.axes:
                if axis.name == name:
                    return axis
        return None

    def names(self) -> set[str]:
        return {axis.name for frame in (self, *self.ancestors()) for axis in frame.axes}

    def free_facts(self) -> list[Size]:
        """What holds wherever this frame's body is evaluated, even as an op of its own over the hulls of outer axes."""
        facts = [f for axis in self.outer_axes() for f in axis.hull_facts]
        facts += [f for axis in self.axes for f in axis.facts]
        return facts + [f for guard in self.guards for f in guard.facts]

    def outer_guards(self) -> list[Guard]:
        """What holds in addition where the frames around evaluate this one, outermost first."""
        found: list[Guard] = []
        for frame in reversed(list(self.ancestors())):
            for axis in frame.axes:
                found += axis.conditions
            found += frame.guards
        return found


Ranges = Mapping[str, tuple[Size, Size]]


def bound(size: Size, frame: Frame | None, upper: bool, counters: Ranges = MappingProxyType({})) -> Size | None:
    """The greatest (or least) value of `size` over the hulls of the indices in it, or None where it is not known.

    `counters` has the half-open ranges of the loop counters that are to be taken to their ends too.
    """
    return extreme(size, upper, lambda name, last: _end_of(name, frame, last, counters), lambda s: _varies(s, frame))


def _end_of(name: str, frame: Frame | None, highest: bool, counters: Ranges) -> Size | None:
    """The last (or first) value of a name."""
    axis = frame.axis(name) if frame is not None else None
    if axis is not None:
        return None if axis.hull is None else axis.hull[1] - 1 if highest else axis.hull[0]
    if name not in counters:
        return Size.of(name)
    lower, upper = counters[name]
    end = upper - 1 if highest else lower
    outer = {n: r for n, r in counters.items() if n != name}
    return None if end.opaques else bound(end, frame, highest, outer)


def _varies(size: Size, frame: Frame | None) -> bool:
    return bool(size.opaques) or (frame is not None and not size.symbols.isdisjoint(frame.names()))

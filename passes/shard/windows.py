"""Dimensions of operands that are not read in step with the result: at a distance, or where data say."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from intarsia.ir.factors import Factors
from intarsia.ir.linear import degree
from intarsia.ir.scalar import Apply, Const, Expr, Index, Load
from intarsia.ir.sharding import Axes, local_extent
from intarsia.ir.sizes import Atom, Quotient, Remainder, Size
from intarsia.ir.space import Space, operand


@dataclass(frozen=True)
class Run:
    """The places along an axis that each device computes, or that it has of a dimension: of `whole` places, those from
    `step * n + start` on, `extent` of them, where n is the number of the device along `axes`."""

    axes: Axes
    step: int
    start: int
    extent: int
    whole: int

    @staticmethod
    def part(axes: Axes, whole: int, devices: int) -> Run:
        """Those of the part that each device has."""
        own = local_extent(whole, devices)
        return Run(axes, own, 0, own, whole)

    def goes_beyond(self, devices: int) -> bool:
        """Is there a place of the last device that is not there?"""
        return self.step * (devices - 1) + self.start + self.extent > self.whole

    def places(self, device: int) -> range:
        """The places of one device that are there."""
        first = self.step * device + self.start
        return range(max(0, first), min(self.whole, first + self.extent))


@dataclass(frozen=True)
class Window:
    """For the element at `axis`, `stride * axis + low` to `stride * axis + high` are read along a dimension."""

    axis: str
    stride: Fraction = Fraction(1)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    def read(self, first: int, last: int) -> range:
        """What is read for `first` to `last`."""
        return range(math.ceil(self.stride * first + self.low), math.floor(self.stride * last + self.high) + 1)

    def read_of(self, run: Run, whole: int) -> Run | None:
        """What is read, of a dimension of `whole` elements, for a run; None where its step is not a number for all
        devices."""
        step = self.stride * run.step
        found = self.read(run.start, run.start + run.extent - 1)
        return Run(run.axes, int(step), found.start, len(found), whole) if step.denominator == 1 else None


@dataclass(frozen=True)
class Halo:
    """How many elements before and after its own part a device takes of a dimension from its neighbours. What lies
    beyond the end of a result also reads `front` elements before these and `back` behind them, of any value."""

    before: int
    after: int
    front: int = 0
    back: int = 0


def find_halo(reads: Iterable[tuple[Window, Run]], whole: int, devices: int) -> Halo | None:
    """The halo of a dimension of `whole` elements that is read for these runs; None where the two neighbours of a
    device do not have all of it."""
    own = local_extent(whole, devices)
    before = after = front = back = 0
    for window, run in reads:
        for device in range(devices):
            first, last = device * own, (device + 1) * own - 1
            if places := run.places(device):
                needed = window.read(places[0], places[-1])
                before = max(before, first - max(0, needed.start))
                after = max(after, min(whole, needed.stop) - 1 - last)
            start = run.step * device + run.start
            touched = window.read(start, start + run.extent - 1)
            front, back = max(front, first - touched.start), max(back, touched.stop - 1 - last)
    return Halo(before, after, max(0, front - before), max(0, back - after)) if max(before, after) <= own else None


def find_window(space: Space, position: int, dimension: int, rule: Factors) -> Window | None:
    """The window in which an operand is read along a dimension, if all its loads are near one axis, along which the
    window moves at least as far as it is wide: one of the result, else the longest one that is reduced over."""
    extents = {f.name: f.extent.constant for f in rule.factors}
    limits = {a.name: (a.lower.constant, a.upper.constant) for a in space.all_axes}
    indices = {load: load.indices[dimension] for load in space.loads_of(position)}
    divided = any(isinstance(atom, Quotient) for index in indices.values() for atom in index.atoms())
    exact = _exact(space.body) if divided else {}
    found = [_linear(index, exact.get(load, frozenset())) for load, index in indices.items()]
    subscripts = [s for s in found if s is not None]
    if not found or len(subscripts) < len(found):
        return None
    names = {n for s in subscripts for n in s.factors}
    own = names & {a.name for a in space.axes}
    axes = sorted(own) if len(own) < 2 else []
    axes += sorted(names - own, key=lambda n: (-(extents.get(n) or math.inf), n))
    for axis in axes:
        strides = {s.factors.get(axis, Fraction(0)) for s in subscripts}
        ends = [e for s in subscripts if (e := s.range_without(axis, limits)) is not None]
        if axis not in extents or len(strides) > 1 or len(ends) < len(subscripts):
            continue
        low, high = min(a for a, _ in ends), max(b for _, b in ends)
        (stride,), extent = strides, extents[axis]
        if stride > 0 and (extent is None or high - low <= stride * extent):
            return Window(axis, stride, low, high)
    return None


def reach(space: Space, index: Size, axis: str) -> tuple[int, int] | None:
    """How far from an axis a subscript reads at least and at most; None where it is no such distance from it."""
    limits = {a.name: (a.lower.constant, a.upper.constant) for a in space.reduced}
    found = _linear(index - Size.of(axis), frozenset())
    ends = found.range_without("", limits) if found is not None else None
    return (math.floor(ends[0]), math.ceil(ends[1])) if ends is not None else None


@dataclass(frozen=True)
class _Subscript:
    """A sum of names, each times its factor, and of something from `low` to `high`."""

    factors: Mapping[str, Fraction]
    low: Fraction
    high: Fraction

    def times(self, factor: Fraction) -> _Subscript:
        low, high = sorted((self.low * factor, self.high * factor))
        return _Subscript({n: f * factor for n, f in self.factors.items()}, low, high)

    def plus(self, other: _Subscript) -> _Subscript:
        names = dict.fromkeys((*self.factors, *other.factors))
        total = {n: self.factors.get(n, Fraction(0)) + other.factors.get(n, Fraction(0)) for n in names}
        return _Subscript({n: f for n, f in total.items() if f}, self.low + other.low, self.high + other.high)

    def range_without(
        self, axis: str, limits: Mapping[str, tuple[int | None, int | None]]
    ) -> tuple[Fraction, Fraction] | None:
        """From where to where the sum without an axis runs; None where the others have no numbers as limits."""
        low, high = self.low, self.high
        for name, factor in self.factors.items():
            if name == axis:
                continue
            lower, upper = limits.get(name, (None, None))
            if lower is None or upper is None:
                return None
            ends = sorted((lower * factor, (upper - 1) * factor))
            low, high = low + ends[0], high + ends[1]
        return low, high


def _exact(body: Expr) -> dict[Load, frozenset[Atom]]:
    """The remainders that are 0 wherever a load counts, as in `where(i % 2 == 0, x[i // 2], 0)`."""
    found: dict[Load, frozenset[Atom]] = {}
    seen: set[tuple[Expr, frozenset[Atom]]] = set()

    def visit(e: Expr, zero: frozenset[Atom]) -> None:
        if (e, zero) in seen:
            return
        seen.add((e, zero))
        match e:
            case Load():
                found[e] = found.get(e, zero) & zero
            case Apply("where", (condition, a, b)):
                visit(condition, zero)
                visit(a, zero | _zero(condition))
                visit(b, zero)
            case _:
                for child in e.children:
                    visit(child, zero)

    visit(body, frozenset())
    return found


def _zero(condition: Expr) -> frozenset[Atom]:
    """The remainders that a condition says are 0."""
    match condition:
        case Apply("and", (a, b)):
            return _zero(a) | _zero(b)
        case Apply("eq", (Index(Size(terms=(((Remainder() as atom,), 1),))), Index(Size(terms=())) | Const(0))):
            return frozenset({atom})
    return frozenset()


def _linear(index: Size, exact: Collection[Atom]) -> _Subscript | None:
    """A subscript without products of names and without data. n // d is n / d less (d - 1) / d at most, and nothing
    where n % d is 0, as `exact` says."""
    total = _Subscript({}, Fraction(0), Fraction(0))
    for monomial, coefficient in index.terms:
        match monomial:
            case ():
                part: _Subscript | None = _Subscript({}, Fraction(1), Fraction(1))
            case (str() as name,):
                part = _Subscript({name: Fraction(1)}, Fraction(0), Fraction(0))
            case (Quotient(n, Size(constant=int() as d)),) if d > 0:
                inner = _linear(n, exact)
                rounding = _Subscript({}, Fraction(0 if Remainder(n, Size.of(d)) in exact else 1 - d), Fraction(0))
                part = inner.plus(rounding).times(Fraction(1, d)) if inner is not None else None
            case (Remainder(n, Size(constant=int() as d)),) if d > 0 and not n.opaques:
                part = _Subscript({}, Fraction(0), Fraction(d - 1))
            case _:
                part = None
        if part is None:
            return None
        total = total.plus(part.times(Fraction(coefficient)))
    return total


def is_selected(space: Space, position: int, dimension: int) -> bool:
    """Do data say where an operand is read along a dimension, and is the result a sum of what is read?"""
    loads = space.loads_of(position)
    by_data = bool(loads) and all(load.indices[dimension].opaques for load in loads)
    plain = all(load.dtype.is_float or load.dtype.kind == "int" for load in loads)
    sums = space.combiner in (None, "sum") and not space.dtype.is_narrow and space.dtype.kind != "bool"
    return by_data and plain and sums and degree(space.body, {operand(position)}) == 1

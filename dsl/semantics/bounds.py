"""Proofs that subscripts are in bounds and that sizes agree, for the sizes at hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from intarsia.dsl.semantics.frames import Frame, bound
from intarsia.ir.conditions import Condition
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.proofs import Facts
from intarsia.ir.sizes import Extremum, Quotient, Remainder, Size, SizeLike, maximum, minimum


@dataclass
class Bounds:
    """What is known of dimension names and loop counters.

    `known` holds the sizes at hand: where a name has none, what cannot be shown for every size is left for the time
    when it has one. `left_open` collects it.
    """

    dimensions: dict[str, None] = field(default_factory=dict)
    known: dict[str, Size] = field(default_factory=dict)
    counters: dict[str, tuple[Size, Size]] = field(default_factory=dict)
    facts: list[Size] = field(default_factory=list)
    untyped: set[str] = field(default_factory=set)  # sizes of tensors without a declared type: compared by value only
    left_open: dict[Condition, None] = field(default_factory=dict)

    def at_hand(self, size: Size) -> Size:
        """The size with the known names replaced."""
        return size.substitute(self.known) if self.known else size

    def value(self, size: Size) -> int | None:
        return self.at_hand(size).constant

    def decided(self, sizes: Iterable[Size]) -> bool:
        """Have all dimension names in `sizes` a value?"""
        return not any(n in self.dimensions and n not in self.known for s in sizes for n in s.symbols)

    # ------------------------------------------------------------------ sizes

    def compare(self, left: Size, right: Size) -> bool | None:
        """Are two sizes equal? None where it depends on sizes that are not at hand.

        Different names never match. Quotients, remainders and extrema are compared by value.
        """
        difference = left - right
        if difference.constant is not None:
            return difference.constant == 0
        if self.untyped.isdisjoint(left.symbols | right.symbols):
            if not (_is_compound(left) or _is_compound(right)):
                return False
            if left.symbols and right.symbols and left.symbols.isdisjoint(right.symbols):
                return False
        difference = self.at_hand(difference)
        if difference.constant is not None:
            return difference.constant == 0
        facts = self._assume(self.facts)
        if facts.proves_equal(difference, 0):
            return True
        self._leave_open(Condition(difference, f"{left} is not {right}", exact=True))
        return None

    def may_be_zero(self, size: Size, message: str, span: Span | None = None) -> bool:
        """Is `size` 0, as far as the sizes at hand tell? By value, whatever the names."""
        size = self.at_hand(size)
        if size.constant is None:
            self._leave_open(Condition(size, message, span, exact=True))
        return size.constant in (None, 0)

    def may_be_nonnegative(self, size: Size, message: str, span: Span | None = None) -> bool:
        """Is `size` at least 0, as far as the sizes at hand tell?"""
        size = self.at_hand(size)
        if size.constant is None and not self._prove(size, ()):
            self._leave_open(Condition(size, message, span))
        return size.constant is None or size.constant >= 0

    def _leave_open(self, condition: Condition) -> None:
        """Keep what has to hold for sizes that are not at hand. Unknowns of a call speak of it again once solved."""
        names = frozenset() if condition.size is None else condition.size.symbols
        if names <= self.dimensions.keys():
            self.left_open[condition] = None

    def holds(self, size: Size, frame: Frame | None = None) -> bool | None:
        """Is `size >= 0` for all values of its indices and counters? None where it depends on sizes not at hand."""
        own = frame.free_facts() if frame is not None else []
        if self._prove(size, own):
            return True
        if frame is not None and (guards := frame.outer_guards()):
            own += [f for guard in guards for f in guard.facts]
            if self._prove(size, own):
                frame.guarded = True
                return True
        return False if self.decided((size, *own)) else None

    def proves(self, size: Size, frame: Frame) -> bool:
        """Is `size >= 0` wherever the frame's body is evaluated in its own op?"""
        return self._prove(size, frame.free_facts())

    def _prove(self, size: Size, own: Iterable[Size]) -> bool:
        """Try first what the indices in `size` say themselves, then everything."""
        size = self.at_hand(size)
        if size.constant is not None and size.constant >= 0:
            return True
        everything = [*self.facts, *self._counter_facts(), *own]
        near = [f for f in everything if not f.symbols.isdisjoint(size.symbols)]
        if self._assume(near).proves(size):
            return True
        return len(near) < len(everything) and self._assume(everything).proves(size)

    def _counter_facts(self) -> list[Size]:
        return [f for name, (a, b) in self.counters.items() for f in (Size.of(name) - a, b - 1 - name)]

    def _assume(self, facts: Iterable[Size]) -> Facts:
        names = frozenset(n for n in self.dimensions if n not in self.known)
        return Facts(tuple(self.at_hand(f) for f in facts), names)

    # ------------------------------------------------------------------ accesses

    def require_nonnegative(self, size: Size, what: str, span: Span) -> None:
        """Raise E0311 where a size is negative."""
        if not self.may_be_nonnegative(size, f"{what} is {size}, which is negative", span):
            raise CompileError("E0311", f"{what} is {self.show(size)}, which is negative", span)

    def require_access(
        self, index: Size, extent: Size, what: str, dimension: int, shown: str, frame: Frame | None, span: Span
    ) -> None:
        """Prove 0 <= index < extent, or raise E0403. A subscript that depends on data is checked when it is run."""
        if frame is not None and (name := index.as_name) is not None and (axis := frame.axis(name)) is not None:
            least = axis.axis.lower.constant
            if axis.axis.upper == extent and least is not None and least >= 0 and axis.is_rectangular:
                return  # the ordinary case: an index that runs over the dimension that it subscripts
        self._require_in_scope(index, frame, span)
        if index.opaques or extent.opaques or self._depends_on_data(index, frame):
            return
        below, above = self.holds(index, frame), self.holds(extent - 1 - index, frame)
        if below and above:
            return
        definite = self._is_outside(index, extent, frame)
        if definite or below is False or above is False:
            raise self._outside(index, extent, what, dimension, shown, frame, span, below is not True)
        self._leave_access_open(index, extent, what, frame, span, (below is True, above is True))

    def _leave_access_open(
        self, index: Size, extent: Size, what: str, frame: Frame | None, span: Span, shown: tuple[bool, bool]
    ) -> None:
        """Keep that the ends of what an index runs over are inside, but for the sides that are shown already."""
        ranges = {n: r for n, r in self.counters.items() if n in index.symbols}
        ranges |= _ranges(index, frame)
        lengths = tuple(self.at_hand(b - a) for a, b in ranges.values())
        for proved, end, sign in zip(shown, (False, True), (1, -1)):
            if proved:
                continue
            reached = bound(index, None, end, {**self.counters, **ranges})
            size = None if reached is None else self.at_hand(reached * sign + (extent - 1 if end else 0))
            if size is not None and not size.symbols <= self.dimensions.keys():
                size = None
            self._leave_open(Condition(size, f"{what} can fall outside", span, ranges=lengths))

    def _require_in_scope(self, index: Size, frame: Frame | None, span: Span) -> None:
        """Raise E0409 for an index of index notation in the subscript of a whole tensor."""
        own = frame.names() if frame is not None else set()
        for name in sorted(index.symbols - own):
            if name not in self.dimensions and name not in self.counters:
                hint = "only elements are subscripted by an index: give every dimension a subscript"
                message = f"the index {name} is used outside of index notation"
                raise CompileError("E0409", message, span, hint=hint)

    def _depends_on_data(self, index: Size, frame: Frame | None) -> bool:
        """Does an index in the subscript end where data says?"""
        if frame is None:
            return False
        axes = [axis.axis for name in index.symbols if (axis := frame.axis(name)) is not None]
        return any(axis.lower.opaques or axis.upper.opaques for axis in axes)

    def _is_outside(self, index: Size, extent: Size, frame: Frame | None) -> bool:
        """Is some access outside for all sizes for which there is one? Only where no condition guards it."""
        if frame is not None and (frame.guards or frame.outer_guards()):
            return False
        axes = [a for name in sorted(index.symbols) if frame is not None and (a := frame.axis(name)) is not None]
        nonempty = [a.axis.upper - a.axis.lower - 1 for a in axes]
        nonempty += [b - a - 1 for n, (a, b) in self.counters.items() if n in index.symbols]
        assumed = self._assume((*self.facts, *nonempty, *(Size.of(n) - 1 for n in self.dimensions)))
        most, least = bound(index, frame, True, self.counters), bound(index, frame, False, self.counters)
        if most is not None and not most.opaques and assumed.proves(self.at_hand(most - extent)):
            return True
        return least is not None and not least.opaques and assumed.proves(self.at_hand(-least - 1))

    def _outside(
        self,
        index: Size,
        extent: Size,
        what: str,
        dimension: int,
        shown: str,
        frame: Frame | None,
        span: Span,
        below: bool,
    ) -> CompileError:
        least, most = bound(index, frame, False, self.counters), bound(index, frame, True, self.counters)
        text = str(index)
        if least is not None and most is not None:
            low, high = self.show(least), self.show(most)
            range_text = f"`{text}` is {low}" if low == high else f"`{text}` runs from {low} to {high}"
            range_text = range_text if text != low else f"index {low}"
        else:
            range_text = f"`{text}`"
        size = self.show(extent)
        message = f"{what} can fall outside: {range_text}, dimension {dimension} of {shown} has size {size}"
        names = [n for n in sorted(index.symbols) if n in self.counters or (frame is not None and frame.axis(n))]
        if names:
            condition = f"{text} >= 0" if below else f"{text} < {extent}"
            hint = f"give {names[0]} a smaller range, guard with where({condition}, …, …), or use pad"
        elif extent.constant is not None:
            hint = f"from 0 to {extent - 1}; literal negative ones, from {-extent} to -1, count from the end"
        else:
            hint = f"a subscript of this dimension is at most {extent - 1}"
        return CompileError("E0403", message, span, hint=hint)

    def show(self, size: SizeLike) -> str:
        """A size for messages, with its value where it has one."""
        size = Size.of(size)
        value = self.value(size)
        return str(size) if value is None or size.constant is not None else f"{size} = {value}"


def _is_compound(size: Size) -> bool:
    return any(isinstance(a, (Quotient, Remainder, Extremum)) for a in size.atoms())


def _ranges(index: Size, frame: Frame | None) -> dict[str, tuple[Size, Size]]:
    """The ranges of the indices in `index`, as far as they depend on no other: their hulls, and what the conditions
    around say that is a bound of one of them."""
    found: dict[str, tuple[Size, Size]] = {}
    if frame is None:
        return found
    guards = [g for f in (frame, *frame.ancestors()) for g in f.guards]
    facts = [fact for guard in guards for fact in guard.facts]
    for name in sorted(index.symbols):
        axis = frame.axis(name)
        if axis is None or axis.hull is None:
            continue
        lower, upper = axis.hull
        for fact in facts:
            factor = fact.coefficient(name) or 0
            rest = fact - Size.of(name) * factor
            if factor == 1 and rest.symbols.isdisjoint(frame.names()):
                lower = maximum(lower, -rest)
            elif factor == -1 and rest.symbols.isdisjoint(frame.names()):
                upper = minimum(upper, rest + 1)
        found[name] = lower, upper
    return found

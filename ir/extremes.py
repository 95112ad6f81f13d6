"""The greatest and the least value of an integer expression over ranges of the names in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from intarsia.ir.sizes import ZERO, Extremum, Quotient, Remainder, Size, maximum, minimum

EndOf = Callable[[str, bool], "Size | None"]
"""The last (true) or first value of a name, as an expression of what does not vary; None where it is not known."""


def extreme(size: Size, upper: bool, end_of: EndOf, varies: Callable[[Size], bool]) -> Size | None:
    """The greatest (or least) value of `size`, or None where it is not known. `varies`: does an expression have names
    that `end_of` takes to their ends, or depend on data?"""
    total = ZERO
    for monomial, coefficient in size.terms:
        highest = upper == (coefficient > 0)
        match monomial:
            case ():
                part: Size | None = Size.of(1)
            case (str() as name,):
                part = end_of(name, highest)
            case (Extremum(which, arguments),):
                parts = [extreme(a, highest, end_of, varies) for a in arguments]
                known = [p for p in parts if p is not None]
                part = None
                if len(known) == len(parts) or (known and highest == (which == "min")):
                    part = minimum(*known) if which == "min" else maximum(*known)
            case (Quotient(n, d),) if not varies(d) and (d.constant is None or d.constant > 0):
                inner = extreme(n, highest, end_of, varies)
                part = None if inner is None else inner // d
            case (Remainder(n, d),) if not varies(d) and varies(n):
                part = d - 1 if highest else ZERO
            case _:
                part = Size(((monomial, 1),))
                if varies(part):
                    part = None
        if part is None:
            return None
        total = total + part * coefficient
    return total


def greatest(size: Size, ranges: Mapping[str, tuple[Size, Size]]) -> Size | None:
    """The greatest value over half-open ranges and all data, or None where it is not known."""

    def end_of(name: str, highest: bool) -> Size | None:
        if name not in ranges:
            return Size.of(name)
        lower, upper = ranges[name]
        outer = {n: r for n, r in ranges.items() if n != name}
        if highest:
            return greatest(upper - 1, outer)
        least = greatest(-lower, outer)
        return None if least is None else -least

    return extreme(size, True, end_of, lambda s: bool(s.opaques) or not s.symbols.isdisjoint(ranges))

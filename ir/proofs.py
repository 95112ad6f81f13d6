"""Proofs about integer expressions: is `e >= 0` whenever the known facts hold?

The method is Fourier-Motzkin elimination, searched depth first with a small budget: to show e >= 0, add multiples of
facts f >= 0 that cancel a name of e, until a number is left. Quotients, remainders and extrema bring their own facts.
What cannot be shown is "not proved", never "false".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from intarsia.ir.sizes import (
    ONE,
    ZERO,
    Atom,
    Extremum,
    Monomial,
    Opaque,
    Quotient,
    Remainder,
    Size,
    SizeLike,
    maximum,
    minimum,
)

_BUDGET = 400


@dataclass(frozen=True)
class Facts:
    """Expressions known to be at least 0, and names known to be so (dimensions and counters)."""

    nonnegative: tuple[Size, ...] = ()
    names: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def of_atoms(self) -> tuple[Size, ...]:
        """What the quotients and remainders in the facts bring of their own."""
        return tuple(dict.fromkeys(f for fact in self.nonnegative for f in _facts_of_atoms(fact)))

    def given(self, *facts: Size) -> Facts:
        """These facts and more expressions that are at least 0."""
        return Facts((*self.nonnegative, *facts), self.names)

    def within(self, name: str, lower: SizeLike, upper: SizeLike) -> Facts:
        """These facts and lower <= name < upper."""
        return self.given(Size.of(name) - lower, Size.of(upper) - 1 - name)

    def proves(self, expression: SizeLike) -> bool:
        """Is `expression >= 0` proved?"""
        return _prove(Size.of(expression), self, [_BUDGET], 0)

    def proves_below(self, left: SizeLike, right: SizeLike) -> bool:
        """Is `left < right` proved?"""
        return self.proves(Size.of(right) - left - 1)

    def proves_equal(self, left: SizeLike, right: SizeLike) -> bool:
        difference = Size.of(left) - right
        return difference.constant == 0 or (self.proves(difference) and self.proves(-difference))


def ranges(bounds: Mapping[str, tuple[SizeLike, SizeLike]], facts: Facts = Facts()) -> Facts:
    """Facts for axes with half-open ranges."""
    for name, (lower, upper) in bounds.items():
        facts = facts.within(name, lower, upper)
    return facts


def _prove(e: Size, facts: Facts, budget: list[int], depth: int) -> bool:
    if e.constant is not None:
        return e.constant >= 0
    common = math.gcd(*(c for m, c in e.terms if m))
    if common > 1:  # e is an integer: 4 * q - 3 >= 0 says that q - 1 >= 0
        e = Size(tuple((m, c // common) for m, c in e.terms if c // common))
    if all(c >= 0 and all(isinstance(a, str) and a in facts.names for a in m) for m, c in e.terms):
        return True
    budget[0] -= 1
    if budget[0] < 0 or depth > 12:
        return False
    if (split := _split_extremum(e)) is not None:
        arguments, every = split
        results = (_prove(a, facts, budget, depth + 1) for a in arguments)
        return all(results) if every else any(results)
    own = _facts_of_atoms(e)
    for monomial, coefficient in _by_hardness(e):
        for fact in (*facts.nonnegative, *own, *facts.of_atoms):
            c = next((c for m, c in fact.terms if m == monomial), 0)
            if c == 0 or (c > 0) != (coefficient > 0):
                continue
            # e is an integer, so |c| * e > -|c| is enough: |c| - 1 of slack.
            if _prove(e * abs(c) - fact * abs(coefficient) + (abs(c) - 1), facts, budget, depth + 1):
                return True
        if coefficient > 0 and all(isinstance(a, str) and a in facts.names for a in monomial):
            rest = Size(tuple(t for t in e.terms if t[0] != monomial))
            if _prove(rest, facts, budget, depth + 1):
                return True
        # Every proof has to get rid of this monomial: no other order can help.
        return len(monomial) > 1 and _prove_product(e, monomial, coefficient, facts, budget, depth)
    return False


def _by_hardness(e: Size) -> list[tuple[Monomial, int]]:
    """The monomial to eliminate first: compound atoms before names, longer products before shorter."""
    terms = [(m, c) for m, c in e.terms if m]
    return sorted(terms, key=lambda t: (all(isinstance(a, str) for a in t[0]), -len(t[0])))


def _prove_product(e: Size, monomial: Monomial, coefficient: int, facts: Facts, budget: list[int], depth: int) -> bool:
    """Eliminate a product with a fact multiplied by names that are at least 0: i < N gives i*M <= N*M - M."""
    for position, atom in enumerate(monomial):
        others = monomial[:position] + monomial[position + 1 :]
        if not all(isinstance(a, str) and a in facts.names for a in others):
            continue
        factor = ONE
        for other in others:
            assert isinstance(other, str)
            factor = factor * other
        for fact in facts.nonnegative:
            c = next((c for m, c in fact.terms if m == (atom,)), 0)
            if c and (c > 0) == (coefficient > 0):
                scaled = fact * factor
                if _prove(e * abs(c) - scaled * abs(coefficient), facts, budget, depth + 1):
                    return True
    return False


def _split_extremum(e: Size) -> tuple[list[Size], bool] | None:
    """Cases of a minimum or maximum in e: must all of them hold, or is one enough?"""
    for monomial, coefficient in e.terms:
        match monomial:
            case (Extremum(name, arguments),):
                rest = Size(tuple(t for t in e.terms if t[0] != monomial))
                every = (name == "min") == (coefficient > 0)
                return [rest + a * coefficient for a in arguments], every
    return None


def _facts_of_atoms(e: Size) -> Iterable[Size]:
    """n - d*(n//d) is in 0..d-1 and n % d is too, for a constant d > 0."""
    found: list[Size] = []
    for monomial, _ in e.terms:
        match monomial:
            case (Quotient(n, d) as atom,) if (d.constant or 0) > 0:
                whole = Size((((atom,), 1),)) * d
                found += [n - whole, whole + d - 1 - n]
            case (Remainder(n, d) as atom,) if (d.constant or 0) > 0:
                rest = Size((((atom,), 1),))
                found += [rest, d - 1 - rest]
    return found


def simplify(expression: Size, facts: Facts) -> Size:
    """Drop quotients and remainders that the facts make trivial: (64*h + d) // 768 is 0 where 64*h + d < 768."""
    if all(isinstance(a, str) for a in expression.atoms()):
        return expression
    total = ZERO
    for monomial, coefficient in expression.terms:
        factor = Size.of(coefficient)
        for atom in monomial:
            factor = factor * _simplify_atom(atom, facts)
        total = total + factor
    return total


def _simplify_atom(atom: Atom, facts: Facts) -> Size:
    match atom:
        case Quotient(n, d) | Remainder(n, d):
            n, d = simplify(n, facts), simplify(d, facts)
            quotient = isinstance(atom, Quotient)
            if facts.proves(n) and facts.proves_below(n, d):
                return ZERO if quotient else n
            whole, rest = _whole_part(n, d, facts)
            if whole.terms:
                return whole + _simplify_atom(Quotient(rest, d), facts) if quotient else rest % d
            return n // d if quotient else n % d
        case Extremum(name, arguments):
            kept = [simplify(a, facts) for a in arguments]
            sign = 1 if name == "min" else -1
            for a in kept:
                if all(a is b or facts.proves((b - a) * sign) for b in kept):
                    return a
            return minimum(*kept) if name == "min" else maximum(*kept)
        case Opaque(value):
            return Size.opaque(value)
        case str():
            return Size.of(atom)


def _whole_part(n: Size, d: Size, facts: Facts) -> tuple[Size, Size]:
    """n = d * whole + rest for a product d of names (N * (i*M + j)) // N; needs d > 0."""
    if d.constant is not None or len(d.terms) != 1 or not facts.proves(d - 1):
        return ZERO, n
    (divisor, unit), whole, rest = d.terms[0], ZERO, ZERO
    for monomial, coefficient in n.terms:
        left = list(monomial)
        fits = coefficient % unit == 0
        for atom in divisor:
            if atom in left:
                left.remove(atom)
            else:
                fits = False
        if fits:
            whole = whole + Size(((tuple(left), coefficient // unit),))
        else:
            rest = rest + Size(((monomial, coefficient),))
    return whole, rest

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
_DEPTH = 12


@dataclass
class _Search:
    """One search for a proof: the steps that are left, what it has shown, and at which depth it tried what.

    What failed at some depth, or is being tried there, has no proof further down.
    """

    budget: int = _BUDGET
    proved: set[Size] = field(default_factory=set)
    tried: dict[Size, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Expressions known to be at least 0, and names known to be so (dimensions and counters)."""

    nonnegative: tuple[Size, ...] = ()
    names: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def of_atoms(self) -> tuple[Size, ...]:
        """What the quotients and remainders in the facts bring of their own."""
        return tuple(dict.fromkeys(f for fact in self.nonnegative for f in _facts_of_atoms(fact)))

    @cached_property
    def first_use(self) -> dict[Monomial, int]:
        """Where each monomial, and each name, in quotients too, is first spoken of; axes of inner loops come after
        those of outer ones."""
        found: dict[Monomial, int] = {}
        for position, fact in enumerate(self.nonnegative):
            for monomial in (*(m for m, _ in fact.terms), *((name,) for name in sorted(fact.symbols))):
                found.setdefault(monomial, position)
        return found

    def given(self, *facts: Size) -> Facts:
        """These facts and more expressions that are at least 0."""
        return Facts((*self.nonnegative, *(part for fact in facts for part in _parts(fact))), self.names)

    def is_nonnegative(self, atom: Atom) -> bool:
        """Is an atom at least 0 at first sight?"""
        match atom:
            case str():
                return atom in self.names
            case Quotient(n, d):
                return (d.constant or 0) > 0 and self.is_sum_of_nonnegative(n)
            case Remainder(_, d):
                return (d.constant or 0) > 0
            case Extremum(name, arguments):
                return (all if name == "min" else any)(map(self.is_sum_of_nonnegative, arguments))
        return False

    def is_sum_of_nonnegative(self, e: Size) -> bool:
        """Is an expression at least 0 at first sight, because nothing in it is negative?"""
        return all(c >= 0 and all(map(self.is_nonnegative, monomial)) for monomial, c in e.terms)

    def within(self, name: str, lower: SizeLike, upper: SizeLike) -> Facts:
        """These facts and lower <= name < upper."""
        return self.given(Size.of(name) - lower, Size.of(upper) - 1 - name)

    def proves(self, expression: SizeLike) -> bool:
        """Is `expression >= 0` proved?"""
        e = Size.of(expression)
        if e not in self._answers:
            self._answers[e] = self._is_so_for_all_numbers(e) or _prove(e, self, _Search(), 0)
        return self._answers[e]

    @cached_property
    def _answers(self) -> dict[Size, bool]:
        """What was asked before."""
        return {}

    @cached_property
    def _numbers(self) -> dict[Monomial, tuple[int | None, int | None]]:
        """The least and greatest value of each name for which a fact says a number."""
        found: dict[Monomial, tuple[int | None, int | None]] = {}
        for fact in self.nonnegative:
            alone = [(m, c) for m, c in fact.terms if m]
            if len(alone) == 1 and abs(alone[0][1]) == 1:
                ((monomial, coefficient),) = alone
                least, most = found.get(monomial, (None, None))
                if coefficient > 0:
                    least = -fact.offset if least is None else max(least, -fact.offset)
                else:
                    most = fact.offset if most is None else min(most, fact.offset)
                found[monomial] = least, most
        return found

    def _is_so_for_all_numbers(self, e: Size) -> bool:
        """Is an expression at least 0 whatever values names have between numbers? That is quickly seen."""
        total = 0
        for monomial, coefficient in e.terms:
            ends = self._numbers.get(monomial, (0 if all(map(self.is_nonnegative, monomial)) else None, None))
            end = 1 if not monomial else ends[0] if coefficient > 0 else ends[1]
            if end is None:
                return False
            total += coefficient * end
        return total >= 0

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


def _parts(fact: Size) -> tuple[Size, ...]:
    """A fact without extrema where it says the same of each argument: min(a, b) >= c is a >= c and b >= c."""
    for monomial, coefficient in fact.terms:
        match monomial:
            case (Extremum(name, arguments),) if (name == "min") == (coefficient > 0):
                rest = Size(tuple(t for t in fact.terms if t[0] != monomial))
                return tuple(part for a in arguments for part in _parts(rest + a * coefficient))
    return (fact,)


def _prove(e: Size, facts: Facts, search: _Search, depth: int) -> bool:
    if e.constant is not None:
        return e.constant >= 0
    common = math.gcd(*(c for m, c in e.terms if m))
    if common > 1:  # e is an integer: 4 * q - 3 >= 0 says that q - 1 >= 0
        e = Size(tuple((m, c // common) for m, c in e.terms if c // common))
    if facts.is_sum_of_nonnegative(e):
        return True
    if e in search.proved:
        return True
    if search.tried.get(e, _DEPTH + 1) <= depth:
        return False
    search.tried[e] = depth
    search.budget -= 1
    if search.budget < 0 or not _has_proof(e, facts, search, depth):
        return False
    search.proved.add(e)
    search.tried.clear()  # some of it may have failed because this was not known
    return True


def _has_proof(e: Size, facts: Facts, search: _Search, depth: int) -> bool:
    """Is there a next step towards e >= 0, and a proof from there?"""
    if (split := _split_extremum(e)) is not None:
        arguments, every = split
        results = (_prove(a, facts, search, depth + 1) for a in arguments)
        return all(results) if every else any(results)
    own = [*_facts_of_atoms(e), *_facts_of_remainders(e, facts, search, depth)]
    for monomial, coefficient in _by_hardness(e, facts):
        match monomial:
            case (Quotient(n, d),) if (d.constant or 0) > 0 and coefficient > 0:
                # All else is at least 0 at first sight; q is if n is. The facts of q would lose that q is whole.
                rest = e - Size(((monomial, coefficient),))
                if facts.is_sum_of_nonnegative(rest) and _prove(n, facts, search, depth + 1):
                    return True
            case (Quotient(n, d),) if d.constant is None and abs(coefficient) == 1:
                if _prove(d - 1, facts, search, depth + 1):
                    # q >= k says n >= d*k, and q <= k says n < d*(k + 1).
                    rest = e - Size(((monomial, coefficient),))
                    whole = n + d * rest if coefficient > 0 else d * (rest + 1) - 1 - n
                    return _prove(whole, facts, search, depth + 1)
        for fact, c in _helpful(e, monomial, coefficient, (*facts.nonnegative, *own, *facts.of_atoms)):
            # e is an integer, so |c| * e > -|c| is enough: |c| - 1 of slack.
            if _prove(e * abs(c) - fact * abs(coefficient) + (abs(c) - 1), facts, search, depth + 1):
                return True
        if coefficient > 0 and all(map(facts.is_nonnegative, monomial)):
            rest = Size(tuple(t for t in e.terms if t[0] != monomial))
            if _prove(rest, facts, search, depth + 1):
                return True
        # Every proof has to get rid of this monomial: no other order can help.
        return len(monomial) > 1 and _prove_product(e, monomial, coefficient, facts, search, depth)
    return False


def _by_hardness(e: Size, facts: Facts) -> list[tuple[Monomial, int]]:
    """The monomial to eliminate first: compound atoms before names, longer products before shorter, then what was
    bounded last, as a bound speaks of names that were there before."""
    terms = [(m, c) for m, c in e.terms if m]
    first = facts.first_use
    return sorted(terms, key=lambda t: (all(isinstance(a, str) for a in t[0]), -len(t[0]), -first.get(t[0], -1)))


def _helpful(e: Size, monomial: Monomial, coefficient: int, facts: Iterable[Size]) -> list[tuple[Size, int]]:
    """Facts that can cancel a monomial, with its coefficient in them, first those that leave least and cancel most."""
    own = dict(e.terms)
    found: list[tuple[tuple[int, int], Size, int]] = []
    for fact in facts:
        c = next((c for m, c in fact.terms if m == monomial), 0)
        if c and (c > 0) == (coefficient > 0):
            added = sum(m not in own for m, _ in fact.terms if m)
            cancelled = sum(own.get(m, 0) * c == k * coefficient for m, k in fact.terms if m)
            found.append(((added - cancelled, -cancelled), fact, c))
    found.sort(key=lambda t: t[0])
    return [(fact, c) for _, fact, c in found]


def _prove_product(e: Size, monomial: Monomial, coefficient: int, facts: Facts, search: _Search, depth: int) -> bool:
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
                if _prove(e * abs(c) - scaled * abs(coefficient), facts, search, depth + 1):
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
    """What quotients and remainders by a number bring of their own."""
    found: list[Size] = []
    for monomial, _ in e.terms:
        match monomial:
            case ((Quotient() | Remainder()) as atom,):
                found += atom.bounds
    return found


def _facts_of_remainders(e: Size, facts: Facts, search: _Search, depth: int) -> Iterable[Size]:
    """n % d is in 0..d-1 for a d that is proved to be positive."""
    for monomial, _ in e.terms:
        match monomial:
            case (Remainder(_, d) as atom,) if d.constant is None and _prove(d - 1, facts, search, depth + 1):
                rest = Size((((atom,), 1),))
                yield from (rest, d - 1 - rest)


def simplify(expression: Size, facts: Facts) -> Size:
    """Drop what the facts make trivial: (64*h + d) // 768 is 0 where 64*h + d < 768; 64 * (i // 64) + i % 64 is i."""
    if all(isinstance(a, str) for a in expression.atoms()):
        return expression
    total = ZERO
    for monomial, coefficient in expression.terms:
        factor = Size.of(coefficient)
        for atom in monomial:
            factor = factor * _simplify_atom(atom, facts)
        total = total + factor
    return _join_digits(total, facts)


def _simplify_atom(atom: Atom, facts: Facts) -> Size:
    match atom:
        case Quotient(n, d) | Remainder(n, d):
            n, d = simplify(n, facts), simplify(d, facts)
            quotient = isinstance(atom, Quotient)
            if facts.proves(n) and facts.proves_below(n, d):
                return ZERO if quotient else n
            if (better := _in_units(n, d, facts)) is not None:
                return better[0 if quotient else 1]
            result = n // d if quotient else n % d
            return result if result.terms == (((atom,), 1),) else simplify(result, facts)
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


def _in_units(n: Size, d: Size, facts: Facts) -> tuple[Size, Size] | None:
    """Quotient and remainder of n = d * whole + rest, or of n = u * a + r and d = u * b where 0 <= r < u: a // b and
    u * (a % b) + r; None if n has no such form. For d > 0."""
    if not facts.proves(d - 1):
        return None
    whole, rest = _multiples(n, d)
    if whole.terms:
        return whole + simplify(rest // d, facts), simplify(rest % d, facts)
    for unit in _units(n, d):
        a, r = _multiples(n, unit)
        if facts.proves(r) and facts.proves_below(r, unit):
            b, _ = _multiples(d, unit)
            return simplify(a // b, facts), simplify(a % b, facts) * unit + r
    return None


def _join_digits(e: Size, facts: Facts) -> Size:
    """d * (n // d) + n % d -> n, and d * ((n // d) % m) + n % d -> n % (d*m), for d > 0, until nothing fits."""
    coefficients = dict(e.terms)
    for monomial, c in e.terms:
        for position, atom in enumerate(monomial):
            if not isinstance(atom, Remainder) or not facts.proves(atom.denominator - 1):
                continue
            others = monomial[:position] + monomial[position + 1 :]
            n, d = atom.numerator, atom.denominator
            for high, joined in ((n // d, n), *_higher_digits(n, d, e)):
                upper = Size(((others, c),)) * high * d
                if all(coefficients.get(m) == k for m, k in upper.terms):
                    low = Size(((monomial, c),))
                    return _join_digits(simplify(e - upper - low + Size(((others, c),)) * joined, facts), facts)
    return e


def _higher_digits(n: Size, d: Size, e: Size) -> Iterable[tuple[Size, Size]]:
    """The remainders of n // d in e, each with what it makes together with n % d."""
    for monomial, _ in e.terms:
        for atom in monomial:
            match atom:
                case Remainder(high, m) if high == n // d:
                    yield Size((((atom,), 1),)), n % (d * m)


def _multiples(n: Size, d: Size) -> tuple[Size, Size]:
    """n = d * whole + rest for a d of one term: N * (i*M + j) + k is N times (i*M + j), and k."""
    if len(d.terms) != 1:
        return ZERO, n
    (divisor, unit), whole, rest = d.terms[0], ZERO, ZERO
    for monomial, coefficient in n.terms:
        left = _without(monomial, divisor)
        if left is not None and not monomial:
            whole, rest = whole + coefficient // unit, rest + coefficient % unit
        elif left is not None and coefficient % unit == 0:
            whole = whole + Size(((left, coefficient // unit),))
        else:
            rest = rest + Size(((monomial, coefficient),))
    return whole, rest


def _without(monomial: Monomial, atoms: Monomial) -> Monomial | None:
    """A product without some of its factors, or None if it lacks one."""
    left = list(monomial)
    for atom in atoms:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _units(n: Size, d: Size) -> list[Size]:
    """What d, of one term, has in common with a term of n: in such a unit n // d may be simpler."""
    if len(d.terms) != 1:
        return []
    divisor, unit = d.terms[0]
    found: dict[Size, None] = {}
    for monomial, coefficient in n.terms:
        left = list(monomial)
        common: list[Atom] = []
        for atom in divisor:
            if atom in left:
                left.remove(atom)
                common.append(atom)
        factor = Size(((tuple(common), math.gcd(unit, coefficient)),))
        if monomial and factor not in (ONE, d):
            found[factor] = None
    return list(found)

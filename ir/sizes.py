"""Integer expressions over named integers: sizes, bounds and subscripts of both representations.

A `Size` is a polynomial with integer coefficients in normal form, so equal expressions are equal objects and `==`
compares them. Its atoms are names (dimension names, axes, loop counters), floor quotients, remainders, minima and
maxima, and `Opaque` values that depend on data. Quotient and remainder round down; by zero they give 0 (language.md,
section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from intarsia.ir.scalar import Expr


class _Compound:
    """An atom that is more than a name. The terms of a sum are in the order of the texts of their atoms, which are
    therefore kept."""

    @cached_property
    def text(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Quotient(_Compound):
    """`numerator // denominator`, rounded down; 0 where the denominator is 0."""

    numerator: Size
    denominator: Size

    @cached_property
    def text(self) -> str:
        return f"{_factor(self.numerator)} // {_factor(self.denominator)}"

    @cached_property
    def bounds(self) -> tuple[Size, ...]:
        """What is at least 0 for a number d > 0: n - d * (n // d), and d - 1 less that."""
        if (self.denominator.constant or 0) <= 0:
            return ()
        rest = self.numerator - _atom(self) * self.denominator
        return rest, self.denominator - 1 - rest


@dataclass(frozen=True)
class Remainder(_Compound):
    """`numerator % denominator`, with the sign of the denominator; 0 where the denominator is 0."""

    numerator: Size
    denominator: Size

    @cached_property
    def text(self) -> str:
        return f"{_factor(self.numerator)} % {_factor(self.denominator)}"

    @cached_property
    def bounds(self) -> tuple[Size, ...]:
        """What is at least 0 for a number d > 0: n % d, and d - 1 less that."""
        if (self.denominator.constant or 0) <= 0:
            return ()
        return _atom(self), self.denominator - 1 - _atom(self)


@dataclass(frozen=True)
class Extremum(_Compound):
    """`min(…)` or `max(…)` of two or more expressions."""

    name: str  # "min" or "max"
    arguments: tuple[Size, ...]

    @cached_property
    def text(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True)
class Opaque(_Compound):
    """An integer that depends on data: a scalar expression of integer type, such as a load.

    Text: a plain load as it is, `col[p]`; anything else in braces, `{col[p] + start[r]}`.
    """

    value: Expr

    @cached_property
    def text(self) -> str:
        return self.value.subscript_text


Atom: TypeAlias = str | Quotient | Remainder | Extremum | Opaque
Monomial: TypeAlias = "tuple[Atom, ...]"
Environment: TypeAlias = "Mapping[str, Size]"


@dataclass(frozen=True)
class Size:
    """A polynomial: `terms` maps each product of atoms to its coefficient, sorted by text, without zeros. A constant
    term, the product of no atoms, is the first."""

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)

    def __hash__(self) -> int:
        return self._hash

    # ------------------------------------------------------------------ making

    @staticmethod
    def of(value: SizeLike) -> Size:
        """A constant, a name, or the size itself."""
        if isinstance(value, Size):
            return value
        if isinstance(value, str):
            return Size((((value,), 1),))
        return Size((((), int(value)),) if value else ())

    @staticmethod
    def opaque(value: Expr) -> Size:
        return Size((((Opaque(value),), 1),))

    @staticmethod
    def _collect(terms: Iterable[tuple[Monomial, int]]) -> Size:
        total: dict[Monomial, int] = {}
        for monomial, coefficient in terms:
            total[monomial] = total.get(monomial, 0) + coefficient
        kept = [(m, c) for m, c in total.items() if c]
        if len(kept) > 1:
            kept.sort(key=lambda t: _order(t[0]))
        return Size(tuple(kept))

    def __add__(self, other: SizeLike) -> Size:
        right = Size.of(other)
        if (number := right.constant) is not None:
            return self._plus(number)
        if (number := self.constant) is not None:
            return right._plus(number)
        return Size._collect((*self.terms, *right.terms))

    def _plus(self, number: int) -> Size:
        """The sum with a number."""
        if not number:
            return self
        rest = self.terms
        if rest and not rest[0][0]:
            number, rest = number + rest[0][1], rest[1:]
        return Size((((), number), *rest) if number else rest)

    def __radd__(self, other: SizeLike) -> Size:
        return Size.of(other) + self

    def __neg__(self) -> Size:
        return Size(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: SizeLike) -> Size:
        if isinstance(other, int):
            return self._plus(-other)
        return self + -Size.of(other)

    def __rsub__(self, other: SizeLike) -> Size:
        return Size.of(other) - self

    def __mul__(self, other: SizeLike) -> Size:
        right = Size.of(other)
        if (n := right.constant) is not None:
            return self if n == 1 else Size(tuple((m, c * n) for m, c in self.terms)) if n else ZERO
        return Size._collect(
            (tuple(sorted((*m1, *m2), key=str)), c1 * c2) for m1, c1 in self.terms for m2, c2 in right.terms
        )

    def __rmul__(self, other: SizeLike) -> Size:
        return Size.of(other) * self

    def __floordiv__(self, other: SizeLike) -> Size:
        return self._divide(Size.of(other))[0]

    def __rfloordiv__(self, other: SizeLike) -> Size:
        return Size.of(other) // self

    def __mod__(self, other: SizeLike) -> Size:
        return self._divide(Size.of(other))[1]

    def __rmod__(self, other: SizeLike) -> Size:
        return Size.of(other) % self

    def _divide(self, denominator: Size) -> tuple[Size, Size]:
        """Floor quotient and remainder: (d*a + b) // d = a + b // d for a constant d > 0."""
        d = denominator.constant
        if d == 0 or not self.terms:
            return ZERO, ZERO
        if d is not None and d > 0:
            whole = Size._collect((m, c // d) for m, c in self.terms)
            rest = Size._collect((m, c % d) for m, c in self.terms)
            if rest.constant is not None:  # r is below d, so it adds nothing to the quotient
                return whole, rest
            quotient, remainder = rest._divide_rest(d)
            return whole + quotient, remainder
        if (n := self.constant) is not None and d is not None:
            return Size.of(n // d), Size.of(n % d)
        return _atom(Quotient(self, denominator)), _atom(Remainder(self, denominator))

    def _divide_rest(self, d: int) -> tuple[Size, Size]:
        """The same for coefficients in 0..d-1, not all of them of the constant.

        (g*a + r) // (g*e) = a // e for r < g; (a // c + k) // d = (a + c*k) // (c*d); and of a % (d*c), the remainder
        by d is a % d, the quotient (a // d) % c.
        """
        common = math.gcd(d, *(c for m, c in self.terms if m))
        if common > 1:
            low = self.offset % common
            quotient, remainder = Size(tuple((m, c // common) for m, c in (self - low).terms))._divide(
                Size.of(d // common)
            )
            return quotient, remainder * common + low
        quotient, remainder = _atom(Quotient(self, Size.of(d))), _atom(Remainder(self, Size.of(d)))
        match (self - self.offset).terms:
            case (((Quotient(a, Size(constant=int() as c)),), 1),) if c > 0:
                quotient = (a + self.offset * c) // (c * d)
            case (((Remainder(a, Size(constant=int() as c)),), 1),) if c > 0 and c % d == 0 and not self.offset:
                return (a // d) % (c // d), a % d
        return quotient, remainder

    # ------------------------------------------------------------------ looking

    @property
    def constant(self) -> int | None:
        """The value if this is a number."""
        terms = self.terms
        if not terms:
            return 0
        if len(terms) == 1 and not terms[0][0]:
            return terms[0][1]
        return None

    def __int__(self) -> int:
        assert self.constant is not None, f"{self} is not a number"
        return self.constant

    @property
    def offset(self) -> int:
        """The constant term."""
        return self.terms[0][1] if self.terms and not self.terms[0][0] else 0

    @cached_property
    def symbols(self) -> frozenset[str]:
        """Every name that occurs, also inside quotients, extrema and opaque values."""
        found: set[str] = set()
        for atom in self.atoms():
            match atom:
                case str():
                    found.add(atom)
                case Quotient(a, b) | Remainder(a, b):
                    found |= a.symbols | b.symbols
                case Extremum(_, arguments):
                    found.update(*(a.symbols for a in arguments))
                case Opaque(value):
                    found |= value.symbols
        return frozenset(found)

    def atoms(self) -> Iterator[Atom]:
        """The atoms of this polynomial itself, not those inside its atoms."""
        for monomial, _ in self.terms:
            yield from monomial

    @cached_property
    def opaques(self) -> tuple[Expr, ...]:
        """Every data-dependent value inside, in order."""
        found: list[Expr] = []
        for atom in self.atoms():
            match atom:
                case Quotient(a, b) | Remainder(a, b):
                    found += [*a.opaques, *b.opaques]
                case Extremum(_, arguments):
                    found += [o for a in arguments for o in a.opaques]
                case Opaque(value):
                    found.append(value)
        return tuple(found)

    def coefficient(self, name: str) -> int | None:
        """The coefficient of `name` if the expression is linear in it with a constant factor, else None."""
        result = 0
        for monomial, c in self.terms:
            if monomial == (name,):
                result = c
            elif any(name == a or (not isinstance(a, str) and name in _atom(a).symbols) for a in monomial):
                return None
        return result

    @property
    def as_name(self) -> str | None:
        """The name if this is one name alone."""
        if len(self.terms) == 1:
            monomial, coefficient = self.terms[0]
            if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], str):
                return monomial[0]
        return None

    def is_affine_in(self, names: Iterable[str]) -> bool:
        return all(self.coefficient(n) is not None for n in names)

    # ------------------------------------------------------------------ changing

    def substitute(self, names: Environment, opaque: Callable[[Expr], Size] | None = None) -> Size:
        """Replace names by sizes; `opaque` maps each data-dependent value (default: names are replaced in it too)."""
        if not self.terms or (opaque is None and not (self.symbols & names.keys())):
            return self
        if (name := self.as_name) is not None:
            return names.get(name, self)
        terms: list[tuple[Monomial, int]] = []
        for monomial, coefficient in self.terms:
            if all(isinstance(atom, str) and atom not in names for atom in monomial):
                terms.append((monomial, coefficient))
                continue
            product = Size.of(coefficient)
            for atom in monomial:
                product = product * _substitute_atom(atom, names, opaque)
            terms += product.terms
        return Size._collect(terms)

    def evaluate(self, names: Mapping[str, int], opaque: Callable[[Expr], int] | None = None) -> int:
        """The number for given names. Raises KeyError for a name that is missing."""
        total = 0
        for monomial, coefficient in self.terms:
            for atom in monomial:
                coefficient *= _evaluate_atom(atom, names, opaque)
            total += coefficient
        return total

    def __str__(self) -> str:
        text = ""
        for monomial, c in sorted(self.terms, key=lambda t: not t[0]):  # the constant last
            factors = [_factor_atom(a) for a in monomial]
            if len(monomial) == 1 and c == 1:
                factors = [str(monomial[0])]  # a quotient needs no brackets beside + and -
            elif abs(c) != 1 or not factors:
                factors.insert(0, str(abs(c)))
            term = " * ".join(factors)
            text += (f" {'-' if c < 0 else '+'} {term}") if text else (f"-{term}" if c < 0 else term)
        return text or "0"

    def __repr__(self) -> str:
        return f"Size({self})"


SizeLike: TypeAlias = Size | int | str
ZERO = Size(())
ONE = Size.of(1)


def minimum(*arguments: SizeLike) -> Size:
    return _extremum("min", [Size.of(a) for a in arguments])


def maximum(*arguments: SizeLike) -> Size:
    return _extremum("max", [Size.of(a) for a in arguments])


def _extremum(name: str, arguments: list[Size]) -> Size:
    pick = min if name == "min" else max
    flat: list[Size] = []
    for a in arguments:
        match a.terms:
            case (((Extremum(n, inner),), 1),) if n == name:
                flat += inner
            case _:
                flat.append(a)
    # Arguments that differ by a constant are comparable: keep the winner of each such class.
    classes: dict[Size, int] = {}
    for a in flat:
        base, offset = a - a.offset, a.offset
        classes[base] = pick(classes[base], offset) if base in classes else offset
    kept = sorted((b + c for b, c in classes.items()), key=str)
    return kept[0] if len(kept) == 1 else _atom(Extremum(name, tuple(kept)))


def product(sizes: Iterable[SizeLike]) -> Size:
    result = ONE
    for s in sizes:
        result = result * s
    return result


def row_major_strides(shape: Iterable[Size]) -> tuple[Size, ...]:
    """Elements from one index to the next along each dimension of a dense row-major array."""
    strides = [ONE]
    for extent in reversed(tuple(shape)[1:]):
        strides.append(strides[-1] * extent)
    return tuple(reversed(strides))


def _order(monomial: Monomial) -> str:
    return str(monomial[0]) if len(monomial) == 1 else " * ".join(map(str, monomial))


def _atom(atom: Atom) -> Size:
    return Size((((atom,), 1),))


def _factor(size: Size) -> str:
    """Text that may stand beside `*`, `//` and `%`."""
    match size.terms:
        case (((atom,), 1),):
            return _factor_atom(atom)
        case () | (((), _),) if size.offset >= 0:
            return str(size)
    return f"({size})"


def _factor_atom(atom: Atom) -> str:
    return f"({atom})" if isinstance(atom, (Quotient, Remainder)) else str(atom)


def _substitute_atom(atom: Atom, names: Environment, opaque: Callable[[Expr], Size] | None) -> Size:
    match atom:
        case str():
            return names.get(atom, _atom(atom))
        case Quotient(a, b):
            return a.substitute(names, opaque) // b.substitute(names, opaque)
        case Remainder(a, b):
            return a.substitute(names, opaque) % b.substitute(names, opaque)
        case Extremum(name, arguments):
            return _extremum(name, [a.substitute(names, opaque) for a in arguments])
        case Opaque(value):
            return opaque(value) if opaque else Size.opaque(value.substitute(names))


def _evaluate_atom(atom: Atom, names: Mapping[str, int], opaque: Callable[[Expr], int] | None) -> int:
    match atom:
        case str():
            return names[atom]
        case Quotient(a, b):
            d = b.evaluate(names, opaque)
            return a.evaluate(names, opaque) // d if d else 0
        case Remainder(a, b):
            d = b.evaluate(names, opaque)
            return a.evaluate(names, opaque) % d if d else 0
        case Extremum(name, arguments):
            return (min if name == "min" else max)(a.evaluate(names, opaque) for a in arguments)
        case Opaque(value):
            assert opaque is not None, f"{value} depends on data"
            return opaque(value)

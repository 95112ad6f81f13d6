"""Scalar expressions as products, as linear forms and as polynomials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest

from intarsia.ir.dtypes import DType
from intarsia.ir.scalar import Apply, Const, Expr, apply, constant, walk, where

FAR = 2.0**32
"""A factor beyond this, or its inverse, is there to bring a number into the range of its type."""


@dataclass(frozen=True)
class Product:
    """above[0] * above[1] * … / below[0] / …"""

    above: tuple[Expr, ...] = ()
    below: tuple[Expr, ...] = ()

    @staticmethod
    def of(value: Expr) -> Product:
        """The factors of an expression; a number far from 1 stays with what it multiplies, which is out of range, or
        so small that digits are lost, without it."""
        match value:
            case Apply("mul" | "div", (left, right)) if _is_far(left) or _is_far(right):
                return Product((value,))
            case Apply("mul", (left, right)):
                return Product.of(left)._times(Product.of(right))
            case Apply("div", (left, right)):
                return Product.of(left)._times(Product.of(right)._inverse())
            case Apply("neg", (negated,)) if value.dtype.is_float:
                return Product((constant(-1.0, value.dtype),))._times(Product.of(negated))
        return Product((value,))

    def _times(self, other: Product) -> Product:
        return Product(self.above + other.above, self.below + other.below)

    def _inverse(self) -> Product:
        return Product(self.below, self.above)

    @property
    def factors(self) -> tuple[Expr, ...]:
        return self.above + self.below

    def where(self, belongs: Callable[[Expr], bool]) -> Product:
        """The product of the factors that belong to it."""
        return Product(tuple(filter(belongs, self.above)), tuple(filter(belongs, self.below)))

    def times(self, value: Expr) -> Expr:
        """`value` times the product."""
        above = reduce(lambda a, b: apply("mul", a, b), self.above, value)
        return reduce(lambda a, b: apply("div", a, b), self.below, above)

    def value(self, dtype: DType) -> Expr:
        """The product as an expression."""
        first, *rest = self.above or (constant(1, dtype),)
        return Product(tuple(rest), self.below).times(first)


@dataclass(frozen=True)
class Linear:
    """A sum of coefficients times expressions, and a number."""

    terms: Mapping[Expr, float]
    number: float = 0.0

    @staticmethod
    def of(value: Expr) -> Linear:
        """The linear form of an expression; what is no sum, difference or multiple is one term."""
        match value:
            case Const(number) if value.dtype.is_float and math.isfinite(number):
                return Linear({}, float(number))
            case Apply("add", (left, right)):
                return Linear.of(left).plus(Linear.of(right), 1.0)
            case Apply("sub", (left, right)):
                return Linear.of(left).plus(Linear.of(right), -1.0)
            case Apply("neg", (inner,)):
                return Linear({}).plus(Linear.of(inner), -1.0)
            case Apply("mul", (Const(number), inner)) | Apply("mul", (inner, Const(number))) if number:
                return Linear({}).plus(Linear.of(inner), float(number))
            case Apply("div", (inner, Const(number))) if value.dtype.is_float and number:
                return Linear({}).plus(Linear.of(inner), 1.0 / float(number))
        return Linear({value: 1.0})

    def plus(self, other: Linear, factor: float) -> Linear:
        """This form plus `factor` times another."""
        terms = dict(self.terms)
        for term, coefficient in other.terms.items():
            terms[term] = terms.get(term, 0.0) + factor * coefficient
        return Linear({t: c for t, c in terms.items() if c}, self.number + factor * other.number)

    def without(self, term: Expr) -> Linear:
        return Linear({t: c for t, c in self.terms.items() if t != term}, self.number)

    def is_close(self, other: Linear) -> bool:
        """Are both the same, but for the rounding of coefficients?"""
        return (
            self.terms.keys() == other.terms.keys()
            and math.isclose(self.number, other.number, rel_tol=1e-6, abs_tol=1e-12)
            and all(math.isclose(c, other.terms[t], rel_tol=1e-6) for t, c in self.terms.items())
        )


@dataclass(frozen=True)
class Polynomial:
    """What an expression is at `x + d`, for a part x of it: coefficients[0] + coefficients[1] * d + …, where the
    coefficients are made of x too, so that the first one is the expression itself."""

    coefficients: tuple[Expr, ...]

    @staticmethod
    def of(value: Expr, x: Expr) -> Polynomial | None:
        """The polynomial of an expression in a part of it; None where it is none."""
        if value == x:
            return Polynomial((value, constant(1, value.dtype)))
        if x not in walk(value):
            return Polynomial((value,))
        match value:
            case Apply("neg", (inner,)):
                found = Polynomial.of(inner, x)
                return found and found._scaled(lambda c: _folded("neg", c))
            case Apply("add" | "sub" | "mul" | "div" as function, (left, right)):
                a, b = Polynomial.of(left, x), Polynomial.of(right, x)
                return None if a is None or b is None else a._with(function, b)
            case Apply("where", (condition, left, right)) if x not in walk(condition):
                a, b = Polynomial.of(left, x), Polynomial.of(right, x)
                return None if a is None or b is None else a._chosen(condition, b)
        return None

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def _with(self, function: str, other: Polynomial) -> Polynomial | None:
        if function == "mul":
            return self._times(other)
        if function == "div":
            (divisor, *more) = other.coefficients
            return None if more else self._scaled(lambda c: _folded("div", c, divisor))
        pairs = zip_longest(self.coefficients, other.coefficients)
        return Polynomial(tuple(_sum_of(function, a, b) for a, b in pairs))

    def _scaled(self, change: Callable[[Expr], Expr]) -> Polynomial:
        return Polynomial(tuple(map(change, self.coefficients)))

    def _chosen(self, condition: Expr, other: Polynomial) -> Polynomial:
        zero = constant(0.0, self.coefficients[0].dtype)
        pairs = zip_longest(self.coefficients, other.coefficients, fillvalue=zero)
        return Polynomial(tuple(where(condition, a, b) for a, b in pairs))

    def _times(self, other: Polynomial) -> Polynomial:
        terms: dict[int, Expr] = {}
        for n, a in enumerate(self.coefficients):
            for m, b in enumerate(other.coefficients):
                term = _folded("mul", a, b)
                terms[n + m] = _folded("add", terms[n + m], term) if n + m in terms else term
        return Polynomial(tuple(terms[n] for n in sorted(terms)))


def _is_far(factor: Expr) -> bool:
    """Is it a number that is far larger or smaller than 1?"""
    return isinstance(factor, Const) and factor.dtype.is_float and not 1 / FAR <= abs(float(factor.value)) <= FAR


def _sum_of(function: str, a: Expr | None, b: Expr | None) -> Expr:
    """The sum or difference of two coefficients, of which one may be missing."""
    if a is None:
        assert b is not None
        return b if function == "add" else _folded("neg", b)
    return a if b is None else _folded(function, a, b)


def _folded(function: str, *arguments: Expr) -> Expr:
    """A function of its arguments, as a number if they are numbers; numbers come first and only once in a product."""
    match function, arguments:
        case "add", (a, b) if a == b:
            return _folded("mul", constant(2.0, a.dtype), a)
        case "mul", (a, Const() as b) if not isinstance(a, Const):
            return _folded("mul", b, a)
        case "mul", (Const() as a, Apply("mul", (Const() as b, c))):
            return _folded("mul", _folded("mul", a, b), c)
    dtype, numbers = arguments[0].dtype, [float(a.value) for a in arguments if isinstance(a, Const)]
    match function, numbers:
        case "neg", [x]:
            return constant(-x, dtype)
        case "add", [x, y]:
            return constant(x + y, dtype)
        case "sub", [x, y]:
            return constant(x - y, dtype)
        case "mul", [x, y]:
            return constant(x * y, dtype)
        case "div", [x, y] if y:
            return constant(x / y, dtype)
    return apply(function, *arguments)

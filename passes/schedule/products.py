"""Scalar expressions as products and as linear forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

from intarsia.ir.dtypes import DType
from intarsia.ir.scalar import Apply, Const, Expr, apply, constant


@dataclass(frozen=True)
class Product:
    """above[0] * above[1] * … / below[0] / …"""

    above: tuple[Expr, ...] = ()
    below: tuple[Expr, ...] = ()

    @staticmethod
    def of(value: Expr) -> Product:
        """The factors of an expression."""
        match value:
            case Apply("mul", (left, right)):
                return Product.of(left)._times(Product.of(right))
            case Apply("div", (left, right)):
                return Product.of(left)._times(Product.of(right)._inverse())
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

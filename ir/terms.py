"""Scalar expressions with Python's operators, for formulas written as code.

    t = Term(expression)
    y = fma(t, t, 1.0) / (abs(t) + 0.5)      # numbers take the dtype of the term beside them

`expr` is the expression. Comparisons give `bool` terms; `&` and `|` are for integers and for booleans alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.scalar import Bitcast, Expr, apply, cast, constant

Operand: TypeAlias = "Term | int | float | bool"


@dataclass(frozen=True)
class Term:
    """A scalar expression under construction. Equality is that of Python; `equals` builds a comparison."""

    expr: Expr

    @property
    def dtype(self) -> DType:
        return self.expr.dtype

    def like(self, other: Operand) -> Term:
        """A number as a term of this one's dtype; a term as it is."""
        return other if isinstance(other, Term) else Term(constant(other, self.dtype))

    def _with(self, function: str, other: Operand, *, swapped: bool = False) -> Term:
        pair = (self, self.like(other))
        left, right = reversed(pair) if swapped else pair
        return Term(apply(function, left.expr, right.expr))

    def __add__(self, other: Operand) -> Term:
        return self._with("add", other)

    def __radd__(self, other: Operand) -> Term:
        return self._with("add", other, swapped=True)

    def __sub__(self, other: Operand) -> Term:
        return self._with("sub", other)

    def __rsub__(self, other: Operand) -> Term:
        return self._with("sub", other, swapped=True)

    def __mul__(self, other: Operand) -> Term:
        return self._with("mul", other)

    def __rmul__(self, other: Operand) -> Term:
        return self._with("mul", other, swapped=True)

    def __truediv__(self, other: Operand) -> Term:
        return self._with("div", other)

    def __rtruediv__(self, other: Operand) -> Term:
        return self._with("div", other, swapped=True)

    def __lt__(self, other: Operand) -> Term:
        return self._with("lt", other)

    def __le__(self, other: Operand) -> Term:
        return self._with("le", other)

    def __gt__(self, other: Operand) -> Term:
        return self._with("gt", other)

    def __ge__(self, other: Operand) -> Term:
        return self._with("ge", other)

    def __and__(self, other: Operand) -> Term:
        return self._with("and" if self.dtype == BOOL else "bit_and", other)

    def __or__(self, other: Operand) -> Term:
        return self._with("or" if self.dtype == BOOL else "bit_or", other)

    def __xor__(self, other: Operand) -> Term:
        return self._with("bit_xor", other)

    def __lshift__(self, count: Operand) -> Term:
        return self._with("shift_left", count)

    def __rshift__(self, count: Operand) -> Term:
        return self._with("shift_right", count)

    def __invert__(self) -> Term:
        return Term(apply("not" if self.dtype == BOOL else "bit_not", self.expr))

    def __neg__(self) -> Term:
        return Term(apply("neg", self.expr))

    def __abs__(self) -> Term:
        return Term(apply("abs", self.expr))

    def equals(self, other: Operand) -> Term:
        return self._with("eq", other)

    def differs(self, other: Operand) -> Term:
        return self._with("ne", other)

    def round(self) -> Term:
        return Term(apply("round", self.expr))

    def floor(self) -> Term:
        return Term(apply("floor", self.expr))

    def sqrt(self) -> Term:
        return Term(apply("sqrt", self.expr))

    def cast(self, dtype: DType) -> Term:
        return Term(cast(dtype, self.expr))

    def bitcast(self, dtype: DType) -> Term:
        return Term(Bitcast(dtype, self.expr))


def fma(a: Term, b: Operand, c: Operand) -> Term:
    """a * b + c, rounded once."""
    return Term(apply("fma", a.expr, a.like(b).expr, a.like(c).expr))


def ldexp(x: Term, power: Term) -> Term:
    """x * 2**power for a whole number of the same dtype."""
    return Term(apply("ldexp", x.expr, power.expr))


def where(condition: Term, then: Operand, otherwise: Operand) -> Term:
    """`then` where the condition holds, else `otherwise`; one of them at least is a term."""
    like = then if isinstance(then, Term) else otherwise
    assert isinstance(like, Term)
    return Term(apply("where", condition.expr, like.like(then).expr, like.like(otherwise).expr))


def polynomial(x: Term, coefficients: Sequence[float]) -> Term:
    """c[0] + c[1] x + c[2] x^2 + …, by Horner's rule."""
    result = x.like(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = fma(result, x, coefficient)
    return result

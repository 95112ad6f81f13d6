"""Functions of a few bits: of which element an expression is one, and what it gives for each of its codes."""

from __future__ import annotations

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import BF16, F32, U8, U16, U32, Array
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.narrowing import extremes
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr

WORDS = {F32: U32, BF16: U16}
"""The types of numbers in tables, and words as wide, whose low bits say which number is meant."""

BITS = 5
"""Bits of an element of which tables are made, at most."""


class FewBits:
    """Finds functions of a few bits; each part of an expression is looked at once."""

    def __init__(self) -> None:
        self._known: dict[Expr, frozenset[Expr] | None] = {}

    def argument(self, expression: Expr) -> Expr | None:
        """The element of few bits of which a number is a function, if it is one of nothing else; or an integer of few
        values that is cast to it."""
        if expression.dtype not in WORDS or not isinstance(expression, (Apply, Cast)):
            return None
        found = self._arguments(expression)
        if found is not None and len(found) == 1:
            return next(iter(found))
        match expression:
            case Cast(dtype, value) if dtype == BF16 and value.dtype.is_integer and value.dtype.bits == 8:
                ends = extremes(value)
                return value if ends is not None and ends[1] - ends[0] < 1 << BITS else None
        return None

    def _arguments(self, e: Expr) -> frozenset[Expr] | None:
        """The elements that a value is a function of; None where it depends on anything else."""
        if e not in self._known:
            self._known[e] = self._new(e)
        return self._known[e]

    def _new(self, e: Expr) -> frozenset[Expr] | None:
        match e:
            case Const():
                return frozenset()
            case Bitcast(dtype, element) if dtype == U8 and element.dtype.is_narrow and element.dtype.bits <= BITS:
                return frozenset((e,))
            case Cast() | Bitcast():
                return self._arguments(e.value)
            case Apply(function, arguments) if FUNCTIONS[function].domain != "float":
                found = [self._arguments(x) for x in arguments]
                known = [x for x in found if x is not None]
                whole = frozenset[Expr]().union(*known)
                return whole if len(known) == len(found) and len(whole) <= 1 else None
        return None


def needed_bits(argument: Expr) -> int:
    """How many of its low bits tell all values of an argument apart."""
    least, greatest = extremes(argument) or (0, 0)
    return (greatest - least).bit_length()


def entries(expression: Expr, argument: Expr) -> Array:
    """What an expression is for each value of its argument, by the bits that tell these apart."""
    return _Table(argument, _values(argument)).value(expression)


def _values(argument: Expr) -> Array:
    """The values of an argument by these bits; there may be fewer."""
    least, greatest = extremes(argument) or (0, 0)
    count = 1 << needed_bits(argument)
    values = least + (np.arange(count) - least) % count
    return np.where(values <= greatest, values, least).astype(argument.dtype.numpy)


class _Table:
    """Evaluates an expression for all codes of an element."""

    def __init__(self, argument: Expr, codes: Array) -> None:
        self.arithmetic = Arithmetic()
        self._known: dict[Expr, Array] = {argument: codes}

    def value(self, e: Expr) -> Array:
        if e not in self._known:
            with np.errstate(all="ignore"):
                self._known[e] = np.broadcast_to(self._new(e), next(iter(self._known.values())).shape)
        return self._known[e]

    def _new(self, e: Expr) -> Array:
        match e:
            case Const():
                return self.arithmetic.constant(e)
            case Cast(dtype, x):
                return self.arithmetic.cast(self.value(x), x.dtype, dtype)
            case Bitcast(dtype, x):
                return self.arithmetic.bitcast(self.value(x), x.dtype, dtype)
            case Apply(function, arguments):
                values = [self.value(a) for a in arguments]
                return self.arithmetic.apply(function, values, [a.dtype for a in arguments])
        raise AssertionError(e)

"""Functions of a few bits as tables in a register: one permutation in place of the arithmetic that decodes an element.

    f32(bitcast(bit_xor(u32(bitcast(w, u8)), 8) - 8, i32))   =>   table[w], with 16 numbers that are known now

A vector of 16 numbers is looked up by the low four bits of each lane, two of them by the low five. Any function of an
element of five bits or fewer will do: integers, floats, and codes whose values a format lists (`nf4`).
"""

from __future__ import annotations

import numpy as np

from intarsia.backends.cpu.llvm import Function
from intarsia.backends.cpu.values import Value, vector_constant
from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import F32, U8, Array
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr
from intarsia.ir.target import Target

ENTRIES = 16
"""Numbers that a vector of 512 bits holds."""

BITS = 5
"""Bits of an element whose table fills two of them: what one instruction looks up."""


class FewBits:
    """Finds functions of a few bits; each part of an expression is looked at once."""

    def __init__(self) -> None:
        self._known: dict[Expr, frozenset[Expr] | None] = {}

    def argument(self, expression: Expr) -> Expr | None:
        """The element of few bits of which an f32 is a function, if it is one of nothing else."""
        if expression.dtype != F32 or not isinstance(expression, (Apply, Cast)):
            return None
        found = self._arguments(expression)
        return next(iter(found)) if found is not None and len(found) == 1 else None

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


def is_usable(target: Target, code: Value) -> bool:
    return "avx512f" in target.features and code.lanes == ENTRIES


def look_up(function: Function, expression: Expr, argument: Expr, code: Value) -> Value:
    """A function of a code in 32 bits, above which may be anything, in all lanes."""
    assert isinstance(argument, Bitcast)
    count = 1 << argument.value.dtype.bits
    entries = _Table(argument, np.arange(count, dtype=np.uint8)).value(expression)
    entries = np.tile(entries, max(1, ENTRIES // count))
    first, *second = (
        (table.type, table.text)
        for start in range(0, entries.size, ENTRIES)
        for table in [vector_constant([float(v) for v in entries[start : start + ENTRIES]], F32)]
    )
    index, name = (code.type, code.text), "llvm.x86.avx512.vpermi2var.ps" if second else "llvm.x86.avx512.permvar.sf"
    text = function.call(first[0], f"{name}.512", [first, index, *second])
    return Value(text, F32, ENTRIES)


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

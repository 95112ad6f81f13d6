"""Functions of a few bits as tables in a register: one permutation in place of the arithmetic that decodes an element.

    f32(bitcast(bit_xor(u32(bitcast(w, u8)), 8) - 8, i32))   =>   table[w], with 16 numbers that are known now

With AVX-512, a vector of 16 numbers is looked up by the low four bits of each lane, two of them by the low five, as is
one of 32 numbers of 16 bits. With AVX2 it is one of 8 by the low three; of several the upper bits choose, where the
arithmetic takes longer. Any function of an element of five bits or fewer will do: integers, floats, and codes whose
values a format lists (`nf4`). So will the cast to bf16 of an integer that takes no more values, such as a code less its
zero point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from intarsia.backends.cpu.llvm import Function
from intarsia.backends.cpu.values import Value, comparison, constant, instruction, select, vector_constant
from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import BF16, F32, U8, U16, U32, Array
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.narrowing import extremes
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr
from intarsia.ir.target import Target

ENTRIES = 16
"""Numbers that a vector of 512 bits holds."""

PERMUTATIONS = {
    (BF16, 32): ("avx512bw", "llvm.x86.avx512.permvar.hi.512"),
    (F32, 16): ("avx512f", "llvm.x86.avx512.permvar.sf.512"),
    (F32, 8): ("avx2", "llvm.x86.avx2.permps"),
}
"""By type and lanes: the feature that it takes, and the permutation of a vector by the lowest bits of each lane."""

WORDS = {F32: U32, BF16: U16}
"""The types of numbers in tables, and words as wide, whose low bits say which number is meant."""

BITS = 5
"""Bits of an element whose table fills two of them: what one instruction looks up."""


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


def is_usable(target: Target, expression: Expr, argument: Expr, lanes: int) -> bool:
    """Has the target a permutation for so many lanes, and is it no dearer than the arithmetic? Numbers of several
    registers take a permutation each, a choice for each but one, and a shift for each bit that chooses."""
    feature, _ = PERMUTATIONS.get((expression.dtype, lanes), ("", ""))
    if feature not in target.features:
        return False
    registers = 1 if lanes >= ENTRIES else -(-(1 << needed_bits(argument)) // lanes)
    instructions = registers + (registers - 1) + (registers - 1).bit_length()
    return sum(1 for _ in _between(expression, argument)) >= instructions


def needed_bits(argument: Expr) -> int:
    """How many of its low bits tell all values of an argument apart."""
    least, greatest = extremes(argument) or (0, 0)
    return (greatest - least).bit_length()


def _values(argument: Expr) -> Array:
    """The values of an argument by these bits; there may be fewer."""
    least, greatest = extremes(argument) or (0, 0)
    count = 1 << needed_bits(argument)
    values = least + (np.arange(count) - least) % count
    return np.where(values <= greatest, values, least).astype(argument.dtype.numpy)


def _between(expression: Expr, argument: Expr) -> Iterator[Expr]:
    """The operations that a value takes, each once; a bitcast is none."""
    stack, seen = [expression], {argument}
    while stack:
        e = stack.pop()
        if e not in seen:
            seen.add(e)
            stack += e.children
            if isinstance(e, (Apply, Cast)):
                yield e


def look_up(function: Function, expression: Expr, argument: Expr, code: Value) -> Value:
    """A function of a code in words as wide as the result, above which may be anything, in all lanes."""
    entries = _Table(argument, _values(argument)).value(expression)
    entries = np.tile(entries, max(1, code.lanes // entries.size))
    tables = [
        vector_constant([float(v) for v in entries[start : start + code.lanes]], expression.dtype)
        for start in range(0, entries.size, code.lanes)
    ]
    _, name = PERMUTATIONS[expression.dtype, code.lanes]
    if code.lanes == ENTRIES and len(tables) == 2:
        first, second = tables
        arguments = [(first.type, first.text), (code.type, code.text), (second.type, second.text)]
        text = function.call(first.type, "llvm.x86.avx512.vpermi2var.ps.512", arguments)
        return replace(first, text=text)
    found = [replace(x, text=function.call(x.type, name, [(x.type, x.text), (code.type, code.text)])) for x in tables]
    bit = code.lanes.bit_length() - 1  # the lowest one that no permutation looks at
    while len(found) > 1:
        sign = instruction(function, "shl", code, constant(31 - bit, U32, code.lanes))
        upper = comparison(function, "icmp slt", sign, constant(0, U32, code.lanes))
        found = [select(function, upper, high, low) for low, high in zip(found[::2], found[1::2])]
        bit += 1
    return found[0]


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

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
from intarsia.ir.dtypes import BF16, F32, U32
from intarsia.ir.few_bits import entries, needed_bits
from intarsia.ir.scalar import Apply, Cast, Expr
from intarsia.ir.target import Target

ENTRIES = 16
"""Numbers that a vector of 512 bits holds."""

PERMUTATIONS = {
    (BF16, 32): ("avx512bw", "llvm.x86.avx512.permvar.hi.512"),
    (F32, 16): ("avx512f", "llvm.x86.avx512.permvar.sf.512"),
    (F32, 8): ("avx2", "llvm.x86.avx2.permps"),
}
"""By type and lanes: the feature that it takes, and the permutation of a vector by the lowest bits of each lane."""


def is_usable(target: Target, expression: Expr, argument: Expr, lanes: int) -> bool:
    """Has the target a permutation for so many lanes, and is it no dearer than the arithmetic? Numbers of several
    registers take a permutation each, a choice for each but one, and a shift for each bit that chooses."""
    feature, _ = PERMUTATIONS.get((expression.dtype, lanes), ("", ""))
    if feature not in target.features:
        return False
    registers = 1 if lanes >= ENTRIES else -(-(1 << needed_bits(argument)) // lanes)
    instructions = registers + (registers - 1) + (registers - 1).bit_length()
    return sum(1 for _ in _between(expression, argument)) >= instructions


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
    known = entries(expression, argument)
    known = np.tile(known, max(1, code.lanes // known.size))
    tables = [
        vector_constant([float(v) for v in known[start : start + code.lanes]], expression.dtype)
        for start in range(0, known.size, code.lanes)
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

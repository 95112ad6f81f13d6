"""Inline assembly of kernels, for Triton's interpreter: the few instructions of PTX that move bits, carried out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from intarsia.ir.dtypes import Array

_INSTRUCTION = re.compile(r"(\w+)\.b32\s+(.*)")
_ALL = np.uint32(0xFFFFFFFF)


def assembled(text: str, sources: Sequence[Array], results: Sequence[np.dtype[np.generic]], pack: int) -> list[Array]:
    """What assembly gives for arrays of one shape, of integers of their bits: `pack` elements at a time, which share
    registers of 32 bits, as `tl.inline_asm_elementwise` has it. `$0` and so on are the registers of the results, then
    those of the sources. Raises NotImplementedError for an instruction that moves no bits."""
    shape, size = sources[0].shape, sources[0].size
    registers: dict[str, Array] = {}
    kept = sum(_registers(dtype, pack) for dtype in results)
    for source in sources:
        flat = np.zeros(-(-size // pack) * pack, source.dtype)
        flat[:size] = source.reshape(-1)
        words = flat.view(np.uint8).reshape(len(flat) // pack, -1).view(np.uint32)
        registers.update({f"${kept + n}": words[:, n] for n in range(words.shape[1])})
        kept += words.shape[1]
    for line in re.split(r"[;{}]", text):
        if not (line := line.strip()) or line.startswith(".reg"):
            continue
        found = _INSTRUCTION.fullmatch(line)
        if found is None or found[1] not in _FUNCTIONS:
            raise NotImplementedError(f"{line} is not interpreted")
        target, *operands = (word.strip() for word in found[2].split(","))
        values = [registers[word] if word in registers else np.uint32(int(word, 0)) for word in operands]
        registers[target] = np.asarray(_FUNCTIONS[found[1]](*values), np.uint32)
    made, first = [], 0
    for dtype in results:
        count = _registers(dtype, pack)
        words = np.stack([registers[f"${first + n}"] for n in range(count)], axis=1)
        made.append(np.ascontiguousarray(words).view(dtype).reshape(-1)[:size].reshape(shape))
        first += count
    return made


def _registers(dtype: np.dtype[np.generic], pack: int) -> int:
    """The registers that so many elements take."""
    return -(-pack * dtype.itemsize // 4)


def _lop3(a: Array, b: Array, c: Array, function: Array) -> Array:
    """Any function of three bits: that of the numbers whose bits say what it gives."""
    total = np.zeros_like(a)
    for row in range(8):
        if int(function) >> row & 1:
            total |= (a if row & 4 else a ^ _ALL) & (b if row & 2 else b ^ _ALL) & (c if row & 1 else c ^ _ALL)
    return total


def _prmt(a: Array, b: Array, selector: Array) -> Array:
    """Four of the eight bytes of two registers, each picked by four bits, of which the last asks for its sign alone."""
    both = np.asarray(a, np.uint64) | np.asarray(b, np.uint64) << np.uint64(32)
    total = np.zeros(np.broadcast_shapes(both.shape, np.shape(selector)), np.uint32)
    for place in range(4):
        pick = np.asarray(selector, np.uint64) >> np.uint64(4 * place)
        byte = (both >> (pick & np.uint64(7)) * np.uint64(8)).astype(np.uint32) & np.uint32(0xFF)
        sign = (byte >> np.uint32(7)) * np.uint32(0xFF)
        total |= np.where(pick & np.uint64(8), sign, byte) << np.uint32(8 * place)
    return total


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "mov": lambda a: a,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "lop3": _lop3,
    "prmt": _prmt,
}

"""Constant codes and their scales are laid out before the first call in the order in which a kernel reads them.

A weight of few bits is read as it streams past, from memory above all. What a tile or a panel reads of a matrix lies in
rows that are pages apart; in the order of the loops it is one piece, which prefetchers see, and each line is read once.
Scales and zero points of groups lie along the sum, and lanes across it: in the order of the loops a vector of them is
one load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from intarsia.ir.dtypes import U32
from intarsia.ir.kernel import For, Kernel, Prefetch, Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import ROOT, Pack, Squeeze
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import bytes_of, count, readings, stride
from intarsia.passes.schedule.squeeze import WORDS

LARGE = 1 << 18
"""Bytes of codes from which their order in memory matters: smaller ones stay in the second cache."""

PADDED = 2.0
"""How much larger than what it is made of a copy may be where the last block of columns is not whole."""


def lay_out_codes(b: Builder) -> None:
    """Let constants of a kernel that reads some whose elements are bytes or less be copied once, in the order of the
    loops that read them."""
    constants = [buffer for buffer in b.kernel.inputs if buffer.constant]
    for buffer in constants if any(x.dtype.bits <= 8 for x in constants) else ():
        if bytes_of(buffer) < LARGE:
            continue
        found = only_read(b.kernel, buffer.name)
        if found is None:
            continue
        load, loops = found
        if readings(buffer, load, loops) > 1:
            continue  # a copy of all that is read would be larger
        order = _order(load, loops)
        before, new = set(b.axes()), b.fresh(buffer.name)
        if b.attempt(Pack(buffer.name, ROOT, new, order, "prepared")):
            copied = [axis for axis in b.axes() if axis not in before]
            written = [copied[n] for n, x in enumerate(order) if b.loop(x).kind == "unroll"]
            share_words(b, new, [((axis,), count(trips(b.loop(axis)))) for axis in written])


def lay_out_gathered(b: Builder) -> None:
    """Let constants that lie apart for neighbouring lanes be copied once, so that they lie side by side."""
    for buffer in b.kernel.inputs:
        found = only_read(b.kernel, buffer.name) if buffer.constant else None
        if found is None:
            continue
        load, loops = found
        lanes = [x for x in loops if x.kind == "lane" and x.axis in load.symbols]
        if any(stride(buffer, load.indices, x.axis) != 1 for x in lanes) and readings(buffer, load, loops) < PADDED:
            b.attempt(Pack(buffer.name, ROOT, b.fresh(buffer.name), _order(load, loops), "prepared"))


def _order(load: Load, loops: Sequence[For]) -> tuple[str, ...]:
    """The axes of what is read, from the outermost."""
    return tuple(x.axis for x in loops if x.axis in load.symbols)


def filled_by(*bits: int) -> int:
    """The fewest codes of so many bits that fill whole words of the widest type."""
    return U32.bits // math.gcd(U32.bits, *bits)


def share_words(b: Builder, codes: str, ways: Sequence[tuple[tuple[str, ...], int]], widest: int = U32.bits) -> str:
    """Let codes of fewer than 8 bits share words, as wide as they fill up to `widest` bits. Returns what they are in.

    ways: along which axes of the copy, and how many steps along the first of them are written out with all of the
    others where the codes are read: there it is known which of them is meant.
    """
    bits = b.kernel.buffers()[codes].dtype.bits
    for name, word in WORDS.items():
        for axes, steps in ways:
            filled = steps * math.prod(count(trips(b.loop(axis))) for axis in axes[1:]) * bits
            step = Squeeze(codes, axes, name, new := b.fresh(codes))
            if bits < 8 and word.bits <= widest and filled % word.bits == 0 and b.attempt(step):
                return new
    return codes


def only_read(kernel: Kernel, buffer: str) -> tuple[Load, tuple[For, ...]] | None:
    """The load of a buffer, and the loops around it, if there is just one and no data says where it is."""
    found: list[tuple[Load, tuple[For, ...]]] = []
    for statement, loops in walk(kernel.body):
        if isinstance(statement, Prefetch) and statement.buffer == buffer:
            return None  # what is fetched ahead is laid out as it should be
        if isinstance(statement, Put):
            found += [(x, loops) for x in dict.fromkeys(loads(statement.value)) if x.buffer == buffer]
    if len(found) != 1 or any(i.opaques for i in found[0][0].indices):
        return None
    return found[0]
